"""Class folders: which images are found, how classes are called, what is refused."""

import os
import re
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.image_folders import (
    SPLIT_TABLE,
    all_samples,
    draw_class_folders,
    draw_image,
    open_error,
    relative_paths,
    write_image_table,
)

from minidpt.data import folders, naming
from minidpt.data.datasets import open_dataset
from minidpt.data.samples import few_shot
from minidpt.data.splits import write_split
from minidpt.images import decode
from minidpt.support.files import canonical_classname
from minidpt.support.progress import use_progress

# ---- any folder


def test_class_folders_are_split_by_class(tmp_path):
    draw_class_folders(tmp_path, {"owl": 10, "cat": 7, "sea_horse": 20})
    dataset = open_dataset(tmp_path)
    assert dataset.classnames == ["cat", "owl", "sea horse"]
    assert dataset.template == "a photo of a {}." and dataset.notes == ()
    counts = [
        [sum(sample.label == label for sample in samples) for label in range(3)]
        for samples in dataset.splits.values()
    ]
    # 50 and 20 % of 7: 3.5 -> 4 (the even one), 1.4 -> 1; the rest is the test
    assert counts == [[4, 5, 10], [1, 2, 4], [2, 3, 6]]
    assert len({item.path for item in all_samples(dataset)}) == 37
    for item in all_samples(dataset):
        assert item.classname == dataset.classnames[item.label]
        assert Path(item.path).parent.name == ["cat", "owl", "sea_horse"][item.label]
    drawn = "no split file: drawn 50/20/30 % with the fixed seed 1, 19/7/11 images"
    assert f"3 classes, class folders in {tmp_path}, {drawn}" in dataset.source


def test_drawn_split_depends_on_its_seed_alone(tmp_path):
    draw_class_folders(tmp_path, {"a": 30, "b": 30})
    assert open_dataset(tmp_path) == open_dataset(tmp_path)
    assert open_dataset(tmp_path).test != open_dataset(tmp_path, seed=0).test
    few = draw_class_folders(tmp_path / "few", {"a": 7, "b": 7})
    dataset = open_dataset(few)
    files = [Path(sample.path).stem[-1] for sample in dataset.train + dataset.val + dataset.test]
    assert "".join(files) == "47632315" + "16" + "5247"  # as every version draws them


@pytest.mark.parametrize(
    ("count", "parts"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (2, 0, 1)), (4, (2, 1, 1))]
)
def test_tiny_classes_have_a_training_and_a_test_image(tmp_path, count, parts):
    draw_class_folders(tmp_path, {"a": count, "b": 10})
    dataset = open_dataset(tmp_path)
    counts = [sum(i.label == 0 for i in getattr(dataset, p)) for p in ("train", "val", "test")]
    assert tuple(counts) == parts
    assert dataset.notes == (() if count > 1 else ("without a test image: 'a'",))


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("sea_horse", "sea horse"),
        ("sea-horse", "sea horse"),
        ("SeaHorse", "Sea Horse"),
        ("AnnualCrop_2", "Annual Crop 2"),
        ("BMWSeries", "BMW Series"),
        ("iPhone", "iPhone"),
        ("UFOs", "UFOs"),
        ("USA", "USA"),
        ("ÉcoleÉlémentaire", "École Élémentaire"),
        ("Cafe\u0301", "Caf\u00e9"),  # decomposed, as macOS stores it
        ("海馬", "海馬"),
        ("__a__b", "a b"),
        ("X-ray", "X-ray"),
        ("737-200", "737-200"),
        ("cat-2", "cat-2"),
        (os.fsdecode(b"caf\xe9"), "caf\ufffd"),  # Latin-1 bytes
    ],
)
def test_folder_names_become_words(folder, name):
    assert canonical_classname(naming.readable(folder), "folder") == name


def test_names_in_odd_encodings_can_be_opened(tmp_path):
    for folder in ("海馬", "Cafe\u0301", os.fsdecode(b"caf\xe9"), "  spaces  "):
        draw_image(tmp_path / folder / "ü \u202e,\n.PNG")
        draw_image(tmp_path / folder / os.fsdecode(b"\xff.png"))
    dataset = open_dataset(tmp_path)
    assert dataset.classnames == ["spaces", "Caf\u00e9", "caf\ufffd", "海馬"]
    assert len(all_samples(dataset)) == 8
    for item in all_samples(dataset):
        assert decode.open_image(item.path).size == (7, 5)


def test_only_visible_images_are_found_and_sub_folders_searched(tmp_path):
    draw_class_folders(tmp_path, {"a": 2, "b": 2, "recycler": 2, "temporary items": 2})
    draw_image(tmp_path / "a" / "deep" / "er" / "UPPER.JPG")
    draw_image(tmp_path / "a" / "x.WebP")
    draw_image(tmp_path / "a" / ".hidden.png")
    draw_image(tmp_path / "a" / ".thumbnails" / "x.png")
    draw_image(tmp_path / ".git" / "x.png")
    for name in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found",
                 "__pycache__", "#recycle"):  # fmt: skip
        draw_image(tmp_path / name / "x.png")
        draw_image(tmp_path / "a" / name / "image_0001.png" / "x.png")
    draw_image(tmp_path / "loose.png")
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    dataset = open_dataset(tmp_path)
    assert dataset.classnames == ["a", "b", "recycler", "temporary items"]
    ignored = "#recycle/, $RECYCLE.BIN/, @eaDir/ and 4 more"
    assert dataset.notes == ("not read: 1 image in no class folder, first loose.png",
                             f"ignored: {ignored}")  # fmt: skip
    paths = sorted(relative_paths(all_samples(dataset), tmp_path))
    expected = ["a/deep/er/UPPER.JPG", "a/image_0001.png", "a/image_0002.png", "a/x.WebP"]
    assert [path for path in paths if path.startswith("a/")] == expected


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = tmp_path / "root"
    draw_class_folders(root, {"a": 2, "b": 2})
    draw_class_folders(tmp_path / "elsewhere", {"c": 3, "d": 4})
    (root / "c").symlink_to(tmp_path / "elsewhere" / "c")  # a class that lies elsewhere
    (root / "a" / "more").symlink_to(tmp_path / "elsewhere" / "d")
    (root / "a" / "twice").symlink_to(tmp_path / "elsewhere" / "d")
    (root / "a" / "self").symlink_to(root / "a")
    (root / "b" / "up").symlink_to(root)
    dataset = open_dataset(root)
    counts = [sum(item.label == label for item in all_samples(dataset)) for label in range(3)]
    assert dataset.classnames == ["a", "b", "c"] and counts == [2 + 4, 2, 3]


@pytest.mark.parametrize("target", ["none.jpg", "link.jpg"])
def test_a_link_to_nothing_or_to_itself_is_named(tmp_path, target):
    draw_class_folders(tmp_path, {"a": 2, "b": 2})
    for folder in (tmp_path, tmp_path / "a"):
        (folder / "zz").symlink_to(target.removesuffix(".jpg").replace("link", "zz"))
    assert open_dataset(tmp_path).classnames == ["a", "b"]  # neither a class nor an image
    (tmp_path / "link.jpg").symlink_to(target)
    assert open_dataset(tmp_path).notes == ()
    (tmp_path / "a" / "link.jpg").symlink_to(target)
    with pytest.raises(FileNotFoundError, match="a/link.jpg: expected a file, got a broken link"):
        open_dataset(tmp_path)


# ---- train, val, test


BOTH = {"dog": 3, "cat": 2}


@pytest.mark.parametrize(
    ("folders", "labels"),
    [
        *(
            ({"train": BOTH, val: {"dog": 1}, "test": BOTH}, ([0, 0, 1, 1, 1], [1]))
            for val in ("val", "valid", "validation", "Val")
        ),
        ({"test": BOTH}, ([], [])),
        ({"Testing": BOTH}, ([], [])),
        ({"val": BOTH}, ([], [])),
        ({"val": {"dog": 1}, "test": BOTH}, ([], [1])),
    ],
)
def test_train_val_test_folders_are_the_split(tmp_path, folders, labels):
    for folder, counts in folders.items():
        draw_class_folders(tmp_path / folder, counts)
    dataset = open_dataset(tmp_path)
    assert dataset.classnames == ["cat", "dog"]  # of train, else of test
    by_split = [[sample.label for sample in samples] for samples in dataset.splits.values()]
    assert by_split == [*labels, [0, 0, 1, 1, 1]]
    used = [samples for samples in dataset.splits.values() if samples]
    for folder, samples in zip(folders, used, strict=True):
        for path, label, _ in samples:
            assert Path(path).parent == tmp_path / folder / dataset.classnames[label]
    assert f"folders {', '.join(f'{folder}/' for folder in folders)}" in dataset.source
    if not dataset.train:
        with pytest.raises(ValueError, match="expected training images, got only a test set"):
            few_shot(dataset, 1, seed=1)


@pytest.mark.parametrize("others", [[], ["extra"], ["extra", "annotations"]])
def test_a_train_folder_alone_is_split_and_its_siblings_are_no_classes(tmp_path, others):
    draw_class_folders(tmp_path / "train", {"dog": 10, "cat": 10})
    for other in others:
        draw_class_folders(tmp_path / other, {"dog": 3, "owl": 3})
    dataset = open_dataset(tmp_path)
    assert dataset.classnames == ["cat", "dog"]
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (10, 4, 6)
    assert "class folders in train/, no split file: drawn 50/20/30 %" in dataset.source
    note = "no labelled test/ beside train/: test images are drawn from it"
    unread = ", ".join(f"{name}/" for name in sorted(others))
    assert dataset.notes == (note, *([f"read: train/; not read: {unread}"] if others else []))


@pytest.mark.parametrize("parts", [[""], ["train"], ["train", "test"], ["train", "test", "val"]])
def test_images_beside_class_folders_are_said(tmp_path, parts):
    for folder in parts:
        draw_class_folders(tmp_path / folder, {"dog": 3, "cat": 3})
        for name in ("x.png", "b.CR2", ".hidden.png", "notes.txt"):
            (tmp_path / folder / name).write_bytes(b"")
    (tmp_path / "a.jpg").write_bytes(b"")
    count = 1 + 2 * len(parts)
    expected = f"not read: {count} images in no class folder, first a.jpg"
    assert open_dataset(tmp_path).notes[-1] == expected


def test_images_of_a_part_without_class_folders_are_said(tmp_path):
    for folder in ("train", "test"):
        draw_class_folders(tmp_path / folder, {"dog": 3, "cat": 3})
    draw_image(tmp_path / "val" / "a.png")
    note = "not read: val/, which has no images in folders of the classes (a.png)"
    assert open_dataset(tmp_path).notes == (note,)


def test_who_watches_is_told_of_the_class_folders_that_are_listed(tmp_path):
    draw_class_folders(tmp_path, {"dog": 3, "cat": 3, "owl": 3})
    reports = []

    @contextmanager
    def watch(*job):
        reports.append(job)
        yield reports.append

    with use_progress(watch):
        open_dataset(tmp_path)
    assert reports == [("class folders listed", 3), 1, 2, 3]


def test_thousands_of_classes_that_hold_folders_are_compared_at_once(monkeypatch):
    monkeypatch.setattr(folders, "holds_images", lambda path: False)
    monkeypatch.setattr(folders, "sub_folders", lambda path: [path / "images", path / path.name])
    started = time.process_time()
    assert folders.find_alike(Path(f"class{number}") for number in range(5000)) == ([], [])
    assert time.process_time() - started < 5  # each with each: 20 s


# ---- mistakes


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "at least 2 class folders .*, got no folder and no file"),
        ({"owl": 3}, "at least 2 class folders .*, got owl/"),
        ({"owl": 3, "cat": 2, "dog": 0}, "of every class, got none for 'dog'"),
        ({"sea_horse": 3, "SeaHorse": 2}, "got 'SeaHorse' and 'sea_horse': rename or merge"),
        ({"train/owl": 3, "test/owl": 3}, "train: expected at least 2 class folders"),
        ({"train/a": 1, "val/a": 1, "valid/a": 1}, "expected one folder for val, got val/ and val"),
        ({"owl": 1, "cat": 1}, "expected images for the test, got none"),
        ({"train/owl": 3, "train/cat": 0, "test/owl": 3}, "got none for 'cat'"),
        ({"train/dog": 1, "train/cat": 1, "test/dog": 1, "test/owl": 1},
         "only classes of train, got 'owl' in test"),
    ],
)  # fmt: skip
def test_mistakes_get_one_line_that_names_the_folder(tmp_path, counts, message):
    (tmp_path / "root").mkdir()
    draw_class_folders(tmp_path / "root", counts)
    assert re.search(message, open_error(tmp_path / "root"))


def test_a_file_or_nothing_is_no_data_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder or file, got nothing"):
        open_dataset(tmp_path / "root")
    (tmp_path / "root").write_text("x")
    with pytest.raises(ValueError, match="expected a folder, .csv or split.json, got another"):
        open_dataset(tmp_path / "root")


def test_images_that_are_not_read_are_named_with_their_numbers(tmp_path):
    draw_class_folders(tmp_path, {"a": 2, "b": 2})
    for name in ("x.CR2", "y.cr2", "z.jp2", "endless", ".hidden.cr2", "notes.txt"):
        (tmp_path / "a" / name).write_bytes(b"")
    (tmp_path / "b" / "deep").mkdir()
    (tmp_path / "b" / "deep" / "x.cr2").write_bytes(b"")
    os.mkfifo(tmp_path / "b" / "pipe")
    expected = "not read: 3 .cr2, 1 .jp2, 1 without ending (convert or rename images)"
    assert set(expected.split(", ")) <= set(open_dataset(tmp_path).notes[0].split(", "))
    assert folders.images_in(tmp_path).unread == {".cr2": 3, ".jp2": 1, "without ending": 1}
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.nef").write_bytes(b"")
    with pytest.raises(ValueError, match="got none for 'a' .*; not read: 1 .cr2, 1 .nef"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("reads", [False, True])
def test_avif_and_jpeg_xl_are_images_where_pillow_reads_them(tmp_path, monkeypatch, reads):
    draw_class_folders(tmp_path, {"a": 2})
    for name in ("x.avif", "x.jxl"):
        (tmp_path / "a" / name).write_bytes(b"")
    monkeypatch.setattr(folders, "formats", lambda: ("JPEG", "AVIF", "JXL") if reads else ("JPEG",))
    images = folders.images_in(tmp_path)
    assert (len(images), sum(images.unread.values())) == ((4, 0) if reads else (2, 2))


# ---- class names and templates that the caller gives


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "x1 snowy owl\n\nx3   lynx\nfolder name\n"),
        ("names.csv", "folder,name\nx1,snowy owl\nx3,lynx\n"),
        ("names.json", '{"x1": "snowy owl", "x3": "lynx"}'),
    ],
)
def test_classes_are_renamed_by_a_file(tmp_path, name, text):
    draw_class_folders(tmp_path / "data", {"x1": 3, "x2": 3, "x3": 3})
    (tmp_path / name).write_text(text)
    dataset = open_dataset(tmp_path / "data", classnames=tmp_path / name)
    assert dataset.classnames == ["snowy owl", "x2", "lynx"]
    assert {i.classname for i in dataset.test} == set(dataset.classnames)
    assert dataset.source.endswith(f"2 of 3 class names from {name}")


def test_classes_that_are_named_by_a_file_are_counted_not_the_names(tmp_path):
    draw_class_folders(tmp_path / "data", {"x1": 3, "x2": 3, "x3": 3})
    (tmp_path / "names.txt").write_text("x1 lynx\nowl x2\ndog x3\n")  # x2 and x3 by chance
    dataset = open_dataset(tmp_path / "data", classnames=tmp_path / "names.txt")
    assert dataset.source.endswith("1 of 3 class names from names.txt")


def test_labels_of_a_csv_and_classes_of_a_split_file_are_renamed(tmp_path):
    (tmp_path / "names.txt").write_text("owl snowy owl\n")
    table = write_image_table(tmp_path / "data", SPLIT_TABLE)
    write_split(open_dataset(table), tmp_path / "split.json")
    for path in (table, tmp_path / "split.json"):
        dataset = open_dataset(path, classnames=tmp_path / "names.txt")
        assert dataset.classnames == ["snowy owl", "sea horse"]
        assert {item.classname for item in dataset.test} == set(dataset.classnames)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("n.txt", "x1 a\nx2\n", "line 2: expected a folder and its name, got .*x2"),
        ("n.txt", "x1 a\nx1 b\n", "line 2: expected one name for 'x1', got a second"),
        ("n.csv", "x1,a,b\n", "line 1: expected a folder and its name"),
        ("n.json", "{\n", "expected JSON, .* line 2"),
        ("n.json", '["a", "b"]', "expected .*folder.*name"),
        ("n.json", '{"x1": 1}', "expected a folder and its name"),
        ("n.json", '{"x1": "a", "x1": "b"}', "expected JSON, got two entries 'x1'"),
        ("n.json", "[" * 100_000, "n.json: expected JSON, got maximum recursion"),
        ("n.json", '{"x1": "\\ud800"}', "a class's name, .*ud800"),
        ("n.txt", "x1 a\x00b\n", "line 1: expected a class's name"),
        ("n.txt", "x1 " + "a" * 501, "line 1: expected a class's name, up to 500 bytes"),
        ("n.txt", "a x1\nb x2\n", r"expected the classes of data \(x1, x2, ...\), got none"),
        ("n.txt", "x1 a\nx2 A\n", "expected different class names, got 'A' for 'x1' and 'x2'"),
    ],
)
def test_mistakes_in_class_names_are_named(tmp_path, name, text, message):
    draw_class_folders(tmp_path / "data", {"x1": 2, "x2": 2})
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        open_dataset(tmp_path / "data", classnames=tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="none.txt: expected a file"):
        open_dataset(tmp_path / "data", classnames=tmp_path / "none.txt")


def test_template_is_the_callers(tmp_path):
    draw_class_folders(tmp_path, {"a": 2, "b": 2})
    assert open_dataset(tmp_path, template="a sketch of {}").template == "a sketch of {}"
    for template in ("no class", "{} and {}", ""):
        with pytest.raises(ValueError, match="template .*expected up to 1000 characters with {}"):
            open_dataset(tmp_path, template=template)


def test_class_names_for_folders_with_spaces_stand_behind_a_tab(tmp_path):
    draw_class_folders(tmp_path / "data", {"sea horse": 2, "ox": 2, "road sign": 2})
    names = tmp_path / "names.txt"
    names.write_text("sea horse\tfish\nroad sign traffic sign\n")
    dataset = open_dataset(tmp_path / "data", classnames=names)
    assert dataset.classnames == ["ox", "road sign", "fish"]
    assert "1 of 3 class names from names.txt" in dataset.source
