"""Any folder of pictures, any CSV file: what is found, how classes are called, what is refused."""

import os
import shutil
from collections import deque
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.image_folders import draw_class_folders, draw_image

from minidpt.data import folders, naming
from minidpt.data import samples as data
from minidpt.data.datasets import open_dataset
from minidpt.data.naming import read_rows
from minidpt.data.samples import few_shot
from minidpt.data.splits import write_split
from minidpt.images import decode
from minidpt.support.files import canonical_classname
from minidpt.support.progress import use_progress


def files(items, root) -> list[str]:
    return [Path(item.path).relative_to(root).as_posix() for item in items]


def everything(dataset) -> list[data.Sample]:
    return dataset.train + dataset.val + dataset.test


# ---- any folder


def test_class_folders_are_split_by_class(tmp_path):
    draw_class_folders(tmp_path, {"owl": 10, "cat": 7, "sea_horse": 20})
    dataset = open_dataset(tmp_path)
    assert dataset.classnames == ["cat", "owl", "sea horse"]
    assert dataset.template == "a photo of a {}." and dataset.notes == ()
    counts = {
        part: [[i.label for i in getattr(dataset, part)].count(label) for label in range(3)]
        for part in ("train", "val", "test")
    }
    # 50 and 20 % of 7: 3.5 -> 4 (the even one), 1.4 -> 1; the rest is the test
    assert counts == {"train": [4, 5, 10], "val": [1, 2, 4], "test": [2, 3, 6]}
    assert len({item.path for item in everything(dataset)}) == 37
    for item in everything(dataset):
        assert item.classname == dataset.classnames[item.label]
        assert Path(item.path).parent.name == ["cat", "owl", "sea_horse"][item.label]
    assert "3 classes" in dataset.source and "19/7/11" in dataset.source
    assert "fixed seed 1" in dataset.source


def test_drawn_split_depends_on_its_seed_alone(tmp_path):
    draw_class_folders(tmp_path, {"a": 30, "b": 30})
    assert open_dataset(tmp_path) == open_dataset(tmp_path)
    assert open_dataset(tmp_path).test != open_dataset(tmp_path, seed=0).test
    assert open_dataset(tmp_path).train != sorted(open_dataset(tmp_path).train)


@pytest.mark.parametrize(
    ("count", "parts"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (2, 0, 1)), (4, (2, 1, 1))]
)
def test_tiny_classes_have_a_training_and_a_test_image(tmp_path, count, parts):
    draw_class_folders(tmp_path, {"a": count, "b": 10})
    dataset = open_dataset(tmp_path)
    found = [sum(i.label == 0 for i in getattr(dataset, p)) for p in ("train", "val", "test")]
    assert tuple(found) == parts
    assert dataset.notes == (() if count > 1 else ("class 'a' has no test image",))


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
    assert len(everything(dataset)) == 8
    for item in everything(dataset):
        assert decode.open_image(item.path).size == (7, 5)


def test_numbered_folders_are_counted_not_spelled(tmp_path):
    draw_class_folders(tmp_path, {"10": 2, "9": 2, "0": 2})
    assert open_dataset(tmp_path).classnames == ["0", "9", "10"]


def test_only_visible_pictures_are_found_and_sub_folders_searched(tmp_path):
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
    assert dataset.notes == ("not read: 1 image in no class folder, first loose.png",)
    assert sorted(f for f in files(everything(dataset), tmp_path) if f.startswith("a/")) == [
        "a/deep/er/UPPER.JPG",
        "a/image_0001.png",
        "a/image_0002.png",
        "a/x.WebP",
    ]


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
    counts = [sum(item.label == label for item in everything(dataset)) for label in range(3)]
    assert dataset.classnames == ["a", "b", "c"] and counts == [2 + 4, 2, 3]


def test_link_to_nothing_is_named(tmp_path):
    draw_class_folders(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a" / "gone.jpg").symlink_to(tmp_path / "none.jpg")
    with pytest.raises(FileNotFoundError, match="a/gone.jpg: expected a file, got a broken link"):
        open_dataset(tmp_path)


# ---- train, val, test


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_train_val_test_folders_are_kept(tmp_path, val):
    draw_class_folders(tmp_path / "train", {"dog": 3, "cat": 2})
    draw_class_folders(tmp_path / val, {"dog": 1})
    draw_class_folders(tmp_path / "test", {"dog": 2, "cat": 4})
    dataset = open_dataset(tmp_path)
    assert dataset.classnames == ["cat", "dog"]
    assert files(dataset.train, tmp_path)[0] == "train/cat/image_0001.png"
    assert [item.label for item in dataset.train] == [0, 0, 1, 1, 1]
    assert files(dataset.val, tmp_path) == [f"{val}/dog/image_0001.png"]
    assert dataset.val[0].label == 1  # counted by the classes of train, not of val
    assert [item.label for item in dataset.test] == [0, 0, 0, 0, 1, 1]


def test_without_a_test_folder_val_is_the_test_and_said_so(tmp_path):
    draw_class_folders(tmp_path / "train", {"dog": 3, "cat": 2})
    draw_class_folders(tmp_path / "val", {"dog": 1, "cat": 2})
    dataset = open_dataset(tmp_path)
    assert len(dataset.test) == 3 and dataset.val == []
    assert "no test/, so val/ is the test set" in dataset.source


def test_class_that_only_the_test_has_is_named(tmp_path):
    draw_class_folders(tmp_path / "train", {"dog": 1, "cat": 1})
    draw_class_folders(tmp_path / "test", {"dog": 1, "owl": 1})
    with pytest.raises(ValueError, match="only classes of train, got 'owl' in test"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("folder", ["test", "Testing", "val"])
def test_a_test_folder_alone_is_a_test_set(tmp_path, folder):
    draw_class_folders(tmp_path / folder, {"dog": 3, "cat": 2})
    dataset = open_dataset(tmp_path)
    assert dataset.classnames == ["cat", "dog"] and dataset.train == dataset.val == []
    assert [item.label for item in dataset.test] == [0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="expected training images, got only a test set"):
        few_shot(dataset, 1, seed=1)


def test_val_and_test_without_train_are_a_test_set_with_the_classes_of_test(tmp_path):
    draw_class_folders(tmp_path / "val", {"dog": 1})
    draw_class_folders(tmp_path / "test", {"dog": 3, "cat": 2})
    dataset = open_dataset(tmp_path)
    assert dataset.classnames == ["cat", "dog"] and dataset.train == []
    assert files(dataset.val, tmp_path) == ["val/dog/image_0001.png"]
    assert dataset.val[0].label == 1 and len(dataset.test) == 5
    assert "folders val/, test/, 0/1/5 images" in dataset.source


@pytest.mark.parametrize("others", [[], ["extra"], ["extra", "annotations"]])
def test_a_train_folder_alone_is_split_and_what_lies_beside_is_no_class(tmp_path, others):
    draw_class_folders(tmp_path / "train", {"dog": 10, "cat": 10})
    for other in others:
        draw_class_folders(tmp_path / other, {"dog": 3, "owl": 3})
    dataset = open_dataset(tmp_path)
    assert dataset.classnames == ["cat", "dog"]
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (10, 4, 6)
    assert "class folders in train/, no split file: drawn 50/20/30 %" in dataset.source
    note = "no test/ beside train/: the test is drawn from it"
    more = {0: (), 1: ("extra/",), 2: ("annotations/ and 1 more",)}[len(others)]
    assert dataset.notes == (note, *(f"read: train/; not read: {name}" for name in more))


def test_folders_beside_train_and_test_are_said(tmp_path):
    for part in ("train", "test", "unlabelled"):
        draw_class_folders(tmp_path / part, {"dog": 2, "cat": 2})
    dataset = open_dataset(tmp_path)
    assert dataset.classnames == ["cat", "dog"]
    assert dataset.notes == ("read: train/, test/; not read: unlabelled/",)


def test_class_names_for_folders_with_spaces_stand_behind_a_tab(tmp_path):
    draw_class_folders(tmp_path / "data", {"sea horse": 2, "ox": 2, "road sign": 2})
    names = tmp_path / "names.txt"
    names.write_text("sea horse\tfish\nroad sign traffic sign\n")
    dataset = open_dataset(tmp_path / "data", classnames=names)
    assert dataset.classnames == ["ox", "road sign", "fish"]
    assert "1 of 3 class names from names.txt" in dataset.source


@pytest.mark.parametrize("parts", [[""], ["train"], ["train", "test"], ["train", "test", "val"]])
def test_pictures_beside_class_folders_are_said(tmp_path, parts):
    for part in parts:
        draw_class_folders(tmp_path / part, {"dog": 3, "cat": 3})
        for name in ("x.png", "b.CR2", ".hidden.png", "notes.txt"):
            (tmp_path / part / name).write_bytes(b"")
    (tmp_path / "a.jpg").write_bytes(b"")
    count = 1 + 2 * len(parts)
    expected = f"not read: {count} images in no class folder, first a.jpg"
    assert open_dataset(tmp_path).notes[-1] == expected


def test_pictures_of_a_part_without_class_folders_are_said(tmp_path):
    draw_class_folders(tmp_path / "train", {"dog": 3, "cat": 3})
    draw_class_folders(tmp_path / "test", {"dog": 3, "cat": 3})
    draw_image(tmp_path / "val" / "a.png")
    (note,) = open_dataset(tmp_path).notes
    assert note == f"not read: 1 image in no class folder, first {Path('val/a.png')}"


def test_who_watches_is_told_of_the_class_folders_that_are_listed(tmp_path):
    draw_class_folders(tmp_path, {"dog": 3, "cat": 3, "owl": 3})
    told = []

    @contextmanager
    def watch(*job):
        told.append(job)
        yield told.append

    with use_progress(watch):
        open_dataset(tmp_path)
    assert told == [("class folders listed", 3), 1, 2, 3]


# ---- CSV files


def table(folder: Path, text: str | bytes, name: str = "birds.csv") -> Path:
    """A CSV file beside the pictures a.png to f.png."""
    for letter in "abcdef":
        draw_image(folder / "pictures" / f"{letter}.png")
    text = text.encode() if isinstance(text, str) else text
    (folder / name).write_bytes(text)
    return folder / name


FULL = """path,label,split
pictures/a.png,sea_horse,train
pictures/b.png,owl,train
pictures/c.png,owl,val
pictures/d.png,sea_horse,test
pictures/e.png,owl,test
"""


def test_csv_with_a_split_is_kept(tmp_path):
    dataset = open_dataset(table(tmp_path, FULL))
    assert dataset.name == "birds" and dataset.classnames == ["owl", "sea horse"]
    assert dataset.root == tmp_path / "pictures"  # results may lie beside the file
    assert [(Path(p).name, n, c) for p, n, c in dataset.train] == [
        ("a.png", 1, "sea horse"),
        ("b.png", 0, "owl"),
    ]
    assert files(dataset.val, tmp_path) == ["pictures/c.png"]
    assert sorted(files(dataset.test, tmp_path)) == ["pictures/d.png", "pictures/e.png"]
    assert dataset.source == "birds: 2 classes, birds.csv, 2/1/2 images (train/val/test)"


@pytest.mark.parametrize(
    "text",
    [
        "pictures/a.png,owl,train\npictures/b.png,cat,train\npictures/c.png,cat,test",
        "image;id;class;part\npictures/a.png;1;owl;TRAIN\n\npictures/b.png;2;cat;training\n"
        "pictures/c.png;3;cat;Testing\n",
        "\ufeffLabel,Split,Filename\r\nowl,train,pictures/a.png\r\ncat,train,pictures/b.png\r\n"
        "cat,validation,pictures/c.png\r\n",  # no test: val is the test
        'split\tlabel\tpath\ntrain\towl\t"pictures/a.png"\ntrain\tcat\tpictures/b.png\n'
        "dev\tcat\tpictures/c.png",
    ],
    ids=["no header", "semicolons", "Windows", "tabs"],
)
def test_csv_dialects(tmp_path, text):
    dataset = open_dataset(table(tmp_path, text))
    assert dataset.classnames == ["cat", "owl"]
    assert sorted(files(dataset.train, tmp_path)) == ["pictures/a.png", "pictures/b.png"]
    assert files(dataset.test, tmp_path) == ["pictures/c.png"] and dataset.val == []


@pytest.mark.parametrize(
    "header",
    ["image,label(s)", "img,lbl", "filename,class", "Image Path,Class_Name", "files,labels"],
)
def test_csv_headers_that_people_write_are_known(tmp_path, header):
    rows = "".join(f"pictures/{letter}.png,{'ab'[n % 2]},,\n" for n, letter in enumerate("abcdef"))
    dataset = open_dataset(table(tmp_path, f"{header}\n{rows}"))  # empty cells more: no loss
    assert dataset.classnames == ["a", "b"] and len(everything(dataset)) == 6
    assert open_dataset(table(tmp_path, f"{header}\n{rows}".replace("\n", "\r"))) == dataset


@pytest.mark.parametrize(
    ("header", "note"),
    [
        ("path,label,class", "the label is read from the column 'label', not from 'class'"),
        ("image,label,filename", "the path is read from the column 'image', not from 'filename'"),
    ],
)
def test_of_two_columns_for_one_thing_the_first_is_read_and_said(tmp_path, header, note):
    rows = "".join(f"pictures/{letter}.png,{'ab'[n % 2]},{n}\n" for n, letter in enumerate("abcd"))
    dataset = open_dataset(table(tmp_path, f"{header}\n{rows}"))
    assert (dataset.classnames, dataset.notes) == (["a", "b"], (note,))


def test_pictures_that_a_csv_misses_are_counted_up_to_a_thousand(tmp_path):
    rows = "".join(f"{number}.png,{'ab'[number % 2]}\n" for number in range(1500))
    with pytest.raises(FileNotFoundError, match="line 1: .* 1000 or more missing, the first"):
        open_dataset(table(tmp_path, rows))


def test_a_csv_may_be_as_long_as_imagenet_s_and_its_rows_and_cells_are_bounded(tmp_path):
    path = table(tmp_path, "path,label,a,b,c,d,e,f\n" + "a.png,owl,,,,,,\n" * 1_300_000)
    assert sum(len(row) == 8 for _, row in read_rows(path, "birds")) == 1_300_001
    path = table(tmp_path, "a.png,owl\n" * 2_000_001)
    with pytest.raises(ValueError, match="^birds: expected at most 2,000,000 rows.* split it"):
        deque(read_rows(path, "birds"), maxlen=0)
    with pytest.raises(ValueError, match="at most 40,000,000 entries.* split it"):
        open_dataset(table(tmp_path, "," * 40_000_001))


def test_a_quoted_cell_keeps_its_comma_and_its_line_end_is_a_space(tmp_path):
    rows = 'pictures/a.png,"crane, bird"\npictures/b.png,"sea\nhorse"\n'
    dataset = open_dataset(table(tmp_path, rows + rows.replace("a.p", "c.p").replace("b.p", "d.p")))
    assert dataset.classnames == ["crane, bird", "sea horse"]


def test_labels_that_are_no_names_are_said(tmp_path):
    rows = "".join(f"pictures/{letter}.png,{n // 2}\n" for n, letter in enumerate("abcdef"))
    (note,) = open_dataset(table(tmp_path, rows)).notes
    assert "called by numbers" in note and "--classnames" in note
    (tmp_path / "names.txt").write_text("0 ox\n1 owl\n2 gnu\n")
    named = open_dataset(table(tmp_path, rows), classnames=tmp_path / "names.txt")
    assert named.classnames == ["ox", "owl", "gnu"] and named.notes == ()


def test_csv_takes_no_fifo_for_a_picture(tmp_path):
    path = table(tmp_path, FULL + "pictures/pipe.png,owl,test\n")
    os.mkfifo(tmp_path / "pictures" / "pipe.png")
    with pytest.raises(FileNotFoundError, match=r"line 7: .*pipe.png \(which is no regular"):
        open_dataset(path)


def test_csv_without_a_split_is_drawn(tmp_path):
    rows = "".join(f"pictures/{letter}.png,{'ab'[n % 2]}\n" for n, letter in enumerate("abcdef"))
    dataset = open_dataset(table(tmp_path, rows))
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (4, 0, 2)
    assert "drawn 50/20/30 % with the fixed seed 1" in dataset.source


@pytest.mark.parametrize("split", ["test", "val"])
def test_csv_of_test_rows_alone_is_a_test_set(tmp_path, split):
    text = f"path,label,split\npictures/a.png,owl,{split}\npictures/b.png,cat,{split}\n"
    dataset = open_dataset(table(tmp_path, text))
    assert dataset.classnames == ["cat", "owl"] and dataset.train == dataset.val == []
    assert files(dataset.test, tmp_path) == ["pictures/a.png", "pictures/b.png"]


def test_csv_takes_absolute_paths_and_numbers_as_labels(tmp_path):
    picture = draw_image(tmp_path / "elsewhere" / "x,1.png")
    rows = f'path,label\n"{picture}",10\npictures/a.png,9\npictures/b.png,9\npictures/c.png,10'
    dataset = open_dataset(table(tmp_path / "data", rows))
    assert dataset.classnames == ["9", "10"]
    assert str(picture) in [item.path for item in everything(dataset)]


def test_folder_with_labels_csv_is_read_by_it(tmp_path):
    draw_class_folders(tmp_path, {"x": 2, "y": 2})  # would be classes
    dataset = open_dataset(table(tmp_path, FULL, "labels.csv").parent)
    assert dataset.classnames == ["owl", "sea horse"] and dataset.name == tmp_path.name


def test_csv_is_the_same_however_its_path_is_spelt(tmp_path, monkeypatch):
    folder = draw_class_folders(tmp_path / "below", {"ox": 3, "owl": 3})
    rows = [f"{file.relative_to(folder)},{file.parent.name}" for file in folder.rglob("*.png")]
    (folder / "mine.csv").write_text("\n".join(rows))
    absolute = open_dataset(tmp_path / "below/mine.csv")
    monkeypatch.chdir(tmp_path)
    relative = open_dataset("below/mine.csv")
    assert relative.fingerprint() == absolute.fingerprint()
    assert relative.train == absolute.train


def test_csv_of_a_known_data_set_has_its_names_and_template(tmp_path):
    text = FULL.replace("sea_horse", "SeaLake").replace("owl", "River")
    dataset = open_dataset(table(tmp_path, text), "eurosat")
    assert dataset.name == "EuroSAT" and dataset.classnames == ["River", "Sea or Lake"]
    assert dataset.template == "a centered satellite photo of {}."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected a header path,label.*, got an empty file"),
        ("file,species\npictures/a.png,owl", "line 1: expected a header .*, got file,species"),
        ("owl,pictures/a.png\n", "line 1: expected a header .*, got owl,pictures/a.png"),
        ("pictures/a.png\n", "line 1: expected a header"),
        (FULL + "pictures/f.png,owl", r"line 7: expected path, label, train, val or test, .*\(2 "),
        (FULL + "pictures/f.png,owl,later", "line 7: .* train, val or test, got .*later"),
        (FULL + "\n\npictures/f.png,,test", "line 9: expected path, label"),
        (FULL + ",owl,test", "line 7: expected path, label"),
        (FULL + "pictures/b.png,cat,test", r"line 7: .* pictures/b.png again \(line 3\)"),
        (FULL + "pictures/g.png,owl,test", r"line 7: .* got 1 missing, the first .*s/g.png: mend"),
        (FULL + "pictures/f.png,cat,test", "expected only classes of train, got 'cat' in test"),
        (FULL + '"pictures/f.png,cat,test', "line 7: expected CSV, got"),
        (FULL.encode() + b"pictures/\xe9.png,owl,test", "line 7: expected UTF-8, got .* 0xe9"),
        ("pictures/a.png,owl\npictures/b.png,owl", "expected 2 to 25,000 labels, got 1"),
        (FULL.replace("val", "train").replace("test", "train"), "images for the test, got none"),
        (FULL + "pictures/f.png,crane, bird,test", r"line 7: .*\(4 cells for 3 columns\)"),
        ("pictures/a.png,ox\npictures/b.png,crane, bird", "line 2: .*3 cells for 2 columns"),
        ("pictures/a.png,ox\npictures/b.png", "line 2: expected path, label, got pictures/b"),
        ("pictures/a.png,ox,train,x\n", "line 1: expected a header"),
        ("id,path,label\n1,pictures/a.png", "line 2: expected path, label, got 1,pictures"),
        (FULL.replace("owl,test\n", "owl,test,x\n"), "line 6: .*4 cells for 3"),
        ("path,label\n", "expected 2 to 25,000 labels, got 0"),
        (FULL + 'pictures/f.png,"' + "x" * 501 + '",train', "a class's name, up to 500 bytes"),
        (FULL + "pictures/f.png,a\x1b[31m,train", r"a class's name, .* got 'a\\x1b\[31m'"),
        (FULL.encode("utf-16"), "line 1: expected UTF-8, got the byte 0xff"),
        (FULL + "pictures/f\0.png,owl,test", r"line 7: "),
        (
            FULL + "pictures,owl,test",
            r"line 7: expected images, got 1 missing.*pictures \(which is no regular file",
        ),
    ],
)
def test_csv_mistakes_name_the_line(tmp_path, text, message):
    path = table(tmp_path, text)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        open_dataset(path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


# ---- names and templates by the caller


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
    (tmp_path / "names.txt").write_text("owl x2\ndog x3\n")
    with pytest.raises(ValueError, match=r"classes of data \(x1, x2, x3, ...\), got none"):
        open_dataset(tmp_path / "data", classnames=tmp_path / "names.txt")


def test_labels_of_a_csv_and_classes_of_a_split_file_are_renamed(tmp_path):
    (tmp_path / "names.txt").write_text("owl snowy owl\n")
    dataset = open_dataset(table(tmp_path / "data", FULL), classnames=tmp_path / "names.txt")
    assert dataset.classnames == ["snowy owl", "sea horse"]
    write_split(open_dataset(table(tmp_path / "data", FULL)), tmp_path / "split.json")
    dataset = open_dataset(tmp_path / "split.json", classnames=tmp_path / "names.txt")
    assert dataset.classnames == ["snowy owl", "sea horse"]
    assert {item.classname for item in dataset.test} == {"snowy owl", "sea horse"}


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
        ("n.txt", "y1 a\n", r"expected the classes of data \(x1, x2, ...\), got none"),
        ("n.txt", "x1 a\nx2 A\n", None),
    ],
)
def test_mistakes_in_class_names_are_named(tmp_path, name, text, message):
    draw_class_folders(tmp_path / "data", {"x1": 2, "x2": 2})
    (tmp_path / name).write_text(text)
    if message is None:  # the same name twice, on purpose
        dataset = open_dataset(tmp_path / "data", classnames=tmp_path / name)
        assert dataset.notes == ("classes 'x1' and 'x2' are both called 'A'",)
        return
    with pytest.raises(ValueError, match=message) as error:
        open_dataset(tmp_path / "data", classnames=tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="none.txt: expected a file"):
        open_dataset(tmp_path / "data", classnames=tmp_path / "none.txt")


def test_template_is_the_callers(tmp_path):
    draw_class_folders(tmp_path, {"a": 2, "b": 2})
    assert open_dataset(tmp_path, template="a sketch of {}").template == "a sketch of {}"
    for template in ("no class", "{} and {}", ""):
        with pytest.raises(ValueError, match="template: expected one {} for the class name"):
            open_dataset(tmp_path, template=template)


def test_split_file_of_a_run_opens_without_listing_a_folder(tmp_path, monkeypatch):
    draw_class_folders(tmp_path / "data", {"a": 8, "b": 8})
    drawn = few_shot(open_dataset(tmp_path / "data", template="the {}"), 2, seed=3)
    write_split(drawn, tmp_path / "split.json")
    monkeypatch.setattr(os, "scandir", None)
    again = open_dataset(tmp_path / "split.json")
    assert (again.train, again.val, again.test) == (drawn.train, drawn.val, drawn.test)
    assert again.template == "the {}" and again.name == "data"


# ---- mistakes


def no_folder(root):
    pass


def a_file(root):
    root.write_text("x")


def empty(root):
    root.mkdir()


def one_class(root):
    draw_class_folders(root, {"owl": 3})


def class_without_image(root):
    draw_class_folders(root, {"owl": 3, "cat": 2, "dog": 0})


def same_name_twice(root):
    draw_class_folders(root, {"sea_horse": 3, "SeaHorse": 2})


def one_class_in_parts(root):
    draw_class_folders(root / "train", {"owl": 3})
    draw_class_folders(root / "test", {"owl": 3})


def class_called_train(root):
    draw_class_folders(root, {"bus": 3, "car": 3, "train": 3})


def two_of_val(root):
    for part in ("train", "val", "valid"):
        draw_class_folders(root / part, {"owl": 3, "cat": 3})


def one_image_each(root):
    draw_class_folders(root, {"owl": 1, "cat": 1})


def empty_test(root):
    draw_class_folders(root / "train", {"owl": 3, "cat": 3})
    draw_class_folders(root / "test", {"owl": 0})


def flat_test(root):
    draw_class_folders(root / "train", {"owl": 3, "cat": 3})
    draw_image(root / "test" / "a.png")


def train_class_without_image(root):
    draw_class_folders(root / "train", {"owl": 3, "cat": 0})
    draw_class_folders(root / "test", {"owl": 3, "cat": 3})


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (no_folder, FileNotFoundError, "expected a folder, got nothing there"),
        (a_file, ValueError, "expected a folder, got a file"),
        (empty, ValueError, "expected a folder for each class .*, got no folder and no file"),
        (one_class, ValueError, "at least 2 class folders, got only 'owl'"),
        (class_without_image, ValueError, "of every class, got none for 'dog'"),
        (same_name_twice, ValueError, "got 'SeaHorse' and 'sea_horse': rename or merge"),
        (one_class_in_parts, ValueError, "train: expected at least 2 class folders"),
        (class_called_train, ValueError, "in train/, got none there and bus/, car/ .* train_"),
        (two_of_val, ValueError, "expected one folder for val, got val/ and valid/"),
        (one_image_each, ValueError, "expected images for the test, got none"),
        (empty_test, ValueError, "expected images for the test, got none"),
        (flat_test, ValueError, "test: expected a folder for each class .*, got a.png"),
        (train_class_without_image, ValueError, "got none for 'cat'"),
    ],
)
def test_mistakes_get_one_line_that_names_the_folder(tmp_path, made, error, message):
    made(tmp_path / "root")
    with pytest.raises(error, match=message) as raised:
        open_dataset(tmp_path / "root")
    assert str(tmp_path / "root") in str(raised.value) and "\n" not in str(raised.value)


def test_pictures_that_are_not_read_are_named_with_their_numbers(tmp_path):
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
def test_avif_and_jpeg_xl_are_pictures_where_pillow_reads_them(tmp_path, monkeypatch, reads):
    draw_class_folders(tmp_path, {"a": 2})
    for name in ("x.avif", "x.jxl"):
        (tmp_path / "a" / name).write_bytes(b"")
    monkeypatch.setattr(folders, "formats", lambda: ("JPEG", "AVIF", "JXL") if reads else ("JPEG",))
    found = folders.images_in(tmp_path)
    assert (len(found), sum(found.unread.values())) == ((4, 0) if reads else (2, 2))
