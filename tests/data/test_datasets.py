"""The fifteen data sets as CoOp's guide lays them out, read as published."""

import os
import random
import re
import shutil
from pathlib import Path

import pytest
from helpers.dataset_miniatures import (
    LISTED,
    NAMES,
    TEST_ONLY,
    assert_as_published,
    draw_miniature,
    write_split,
)
from helpers.image_folders import draw_class_folders, open_error, relative_paths

from minidpt.data.datasets import open_dataset
from minidpt.data.layouts import LAYOUTS, layout_of
from minidpt.data.samples import few_shot

# ---- CoOp's layout


@pytest.fixture(scope="module")
def guide(tmp_path_factory) -> dict[str, Path]:
    """All fifteen below one root, as in CoOp's data guide: name -> folder."""
    root = tmp_path_factory.mktemp("guide")
    return {name: draw_miniature(root, name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_every_data_set_opens_by_its_folder_or_by_root_and_name(guide, name):
    dataset = open_dataset(guide[name], name)
    assert_as_published(dataset, name)
    assert open_dataset(guide[name].parent, name) == dataset
    if name != "ImageNet":  # three of its classes are not called so by themselves
        assert open_dataset(guide[name]) == dataset
    classes = len(dataset.classnames)
    if name == "ImageNet":
        assert dataset.sizes[1:] == (4 * classes, 0, 2 * classes)
    elif name in TEST_ONLY:
        assert dataset.sizes[1:] == (0, 0, 3 * classes)
    else:
        assert dataset.sizes[1:] == (3 * classes, classes, 2 * classes)


@pytest.mark.parametrize("name", ["Caltech101", "Food101", "EuroSAT", "UCF101", "ImageNetR"])
def test_a_data_set_opens_by_its_folder_of_images(guide, name):
    images = open_dataset(guide[name]).root
    assert images.parent == guide[name]
    assert open_dataset(images) == open_dataset(guide[name])


CALTECH = ["BACKGROUND_Google", "Faces", "Faces_easy", "airplanes", "crocodile_head"]


@pytest.mark.parametrize("above", ["", "caltech-101", "caltech101", "data/caltech101", "mine"])
def test_caltech101_is_found_at_each_level_and_renamed(tmp_path, above):
    draw_class_folders(tmp_path / above / "101_ObjectCategories", dict.fromkeys(CALTECH, 4))
    start = tmp_path / "data" if above.startswith("data") else tmp_path
    for path in (start, tmp_path / above, tmp_path / above / "101_ObjectCategories"):
        dataset = open_dataset(path)
        assert dataset.name == "Caltech101"
        assert dataset.classnames == ["face", "airplane", "crocodile head"]
        assert {item.classname for item in dataset.test} == set(dataset.classnames)


def test_other_classes_in_the_layout_of_caltech101(tmp_path):
    draw_class_folders(tmp_path / "101_ObjectCategories", {"road_sign": 4, "bird": 4})
    dataset = open_dataset(tmp_path)
    assert dataset.classnames == ["bird", "road sign"] and dataset.name == tmp_path.name
    assert "if it is Caltech101, pass --dataset Caltech101" in dataset.notes[-1]


def test_a_link_to_the_images_leads_to_the_split_file(tmp_path):
    folder = draw_miniature(tmp_path / "disk", "Caltech101")
    (tmp_path / "link").symlink_to(folder / "101_ObjectCategories")
    (tmp_path / "caltech-101").mkdir()
    (tmp_path / "caltech-101" / "101_ObjectCategories").symlink_to(tmp_path / "link")
    for path in ("link", "caltech-101", "caltech-101/101_ObjectCategories"):
        dataset = open_dataset(tmp_path / path)
        assert_as_published(dataset, "Caltech101")
        assert "split_zhou_Caltech101.json" in dataset.source


def test_source_says_what_was_read(guide):
    sources = {name: open_dataset(guide[name], name).source for name in NAMES}
    assert sources["Caltech101"] == (
        "Caltech101: 3 classes, split_zhou_Caltech101.json, 9/3/6 images (train/val/test)"
    )
    assert sources["ImageNet"] == (
        "ImageNet: 3 classes, imagenet/images/train/, imagenet/images/val/, "
        "12/0/6 images (train/val/test), class names from classnames.txt"
    )
    assert "images_variant_train.txt, images_variant_val.txt" in sources["FGVCAircraft"]
    for name in LISTED:
        if name != "FGVCAircraft":
            assert f"split_zhou_{name}.json" in sources[name]


def test_less_than_the_published_images_is_said(guide):
    assert open_dataset(guide["Caltech101"]).notes == (
        "Caltech101 as published has 100 classes and 4128/1649/2465 images: mind this when you "
        "compare",
    )


# classes; train, val, test, as the papers' appendices list them
PUBLISHED = """
ImageNet 1000 1281167 0 50000, Caltech101 100 4128 1649 2465, OxfordPets 37 2944 736 3669,
StanfordCars 196 6509 1635 8041, OxfordFlowers 102 4093 1633 2463, Food101 101 50500 20200 30300,
FGVCAircraft 100 3334 3333 3333, SUN397 397 15880 3970 19850, DescribableTextures 47 2820 1128 1692,
EuroSAT 10 13500 5400 8100, UCF101 101 7639 1898 3783, ImageNetV2 1000 0 0 10000,
ImageNetSketch 1000 0 0 50889, ImageNetA 200 0 0 7500, ImageNetR 200 0 0 30000
"""


def test_the_table_has_the_published_numbers():
    rows = [" ".join(map(str, (layout.name, *layout.published))) for layout in LAYOUTS]
    assert rows == " ".join(PUBLISHED.split()).split(", ")


@pytest.mark.parametrize("name", sorted({*LISTED} - {"StanfordCars", "OxfordFlowers"}))
def test_own_lists_or_class_folders_serve_without_the_split_file(tmp_path, name):
    folder = draw_miniature(tmp_path, name, split=False)
    dataset = open_dataset(folder)
    assert_as_published(dataset, name)
    if name in ("OxfordPets", "SUN397"):  # own lists; a fifth of 4 for val
        assert dataset.sizes[1:] == tuple(n * len(dataset.classnames) for n in (3, 1, 2))
        tested = {Path(item.path).name for item in dataset.test}
        assert all(("_2." in name or "_6." in name) or "_a" in name for name in tested)
    assert "split_zhou" not in dataset.source
    assert open_dataset(folder, seed=0).test != [] and open_dataset(folder) == dataset


def test_labels_are_in_the_order_of_the_data_set_s_own_list(tmp_path):
    folder = draw_miniature(tmp_path, "FGVCAircraft")
    (folder / "variants.txt").write_text("F/A-18\n707-320\n727-200\n")
    assert open_dataset(folder).classnames == ["F/A-18", "707-320", "727-200"]


# ---- the published draw


def sample(generator: random.Random, items: list, count: int) -> list:
    """random.sample, written down from its description for this few items: swap and shrink."""
    pool, drawn = list(items), []
    for taken in range(count):
        left = len(pool) - taken
        index = generator.getrandbits(left.bit_length())
        while index >= left:
            index = generator.getrandbits(left.bit_length())
        drawn.append(pool[index])
        pool[index] = pool[left - 1]
    return drawn


@pytest.mark.parametrize(("shots", "seed"), [(1, 0), (2, 1), (2, 2), (5, 3), (16, 1)])
def test_few_shots_of_a_split_file_are_the_published_draw(tmp_path, shots, seed):
    folder, rows, numbers = tmp_path / "eurosat", {"train": [], "val": [], "test": []}, range(30)
    for key, label in [("River", 1), ("Forest", 0), ("SeaLake", 2)]:  # first appearance: 1, 0, 2
        for number in numbers:
            split = ("train", "train", "val", "test")[number % 4]
            path = f"{key}/{key}_{number}.jpg"
            rows[split].append([path, label, key])
            (folder / "2750" / key).mkdir(parents=True, exist_ok=True)
            (folder / "2750" / path).touch()
    random.Random(5).shuffle(rows["train"])
    rows["train"].sort(key=lambda row: row[1] == 2)  # mixed, but label 2 comes last
    write_split(folder, "EuroSAT", rows)

    generator = random.Random(seed)
    expected = {}
    for split, count in [("train", shots), ("val", min(shots, 4))]:
        by_label: dict[int, list[str]] = {}
        for path, label, _ in rows[split]:
            by_label.setdefault(label, []).append(path)
        expected[split] = []
        for pool in by_label.values():
            expected[split] += sample(generator, pool, count) if len(pool) >= count else pool
    dataset = open_dataset(folder)
    for split, samples in dataset.splits.items():  # labels and order of the file
        listed = [[Path(s.path).relative_to(dataset.root).as_posix(), s.label] for s in samples]
        assert listed == [row[:2] for row in rows[split]]
    drawn = few_shot(dataset, shots, seed)
    for split, paths in expected.items():
        assert relative_paths(getattr(drawn, split), folder / "2750") == paths, split
    assert drawn.test == dataset.test


# ---- mistakes


def test_unknown_name_lists_the_choices(tmp_path):
    with pytest.raises(ValueError, match="expected one of ImageNet, Caltech101.*, got 'cifar10'"):
        open_dataset(tmp_path, "cifar10")


def test_several_data_sets_are_listed(guide):
    message = open_error(guide["ImageNet"].parent)
    assert re.search("got ImageNet, Caltech101, .* pass --dataset", message)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_is_looked_for_and_said(tmp_path, name):
    (tmp_path / "something").mkdir()
    message = open_error(tmp_path, name)
    layout = layout_of(name)
    assert message.startswith(f"{name} in ") and "got something/" in message
    assert f"into {layout.folders[0]}/" in message
    assert name in TEST_ONLY + ["ImageNet", "FGVCAircraft"] or f"split_zhou_{name}.json" in message
    parts = [f"{split}/" for split in layout.splits.values() if split != "."]
    for expected in (*layout.lists.values(), *parts):
        assert expected in message


def test_other_data_sets_are_not_taken_for_classes(guide):
    root = guide["ImageNet"].parent
    shutil.move(guide["Food101"], root.parent / "moved")
    try:
        with pytest.raises(FileNotFoundError, match="Food101 in .*; got caltech-101/, dtd/"):
            open_dataset(root, "Food101")
    finally:
        shutil.move(root.parent / "moved", guide["Food101"])


@pytest.mark.parametrize("name", LISTED)
def test_lists_without_their_images_are_recognised(tmp_path, name):
    folder = draw_miniature(tmp_path, name)
    for images in layout_of(name).images:
        if images != ".":
            shutil.rmtree(folder / images, ignore_errors=True)
    if name == "StanfordCars":
        shutil.rmtree(folder / "cars_train")
    assert name in open_error(folder)


@pytest.mark.parametrize("name", LISTED)
def test_missing_images_are_counted_and_the_first_named(tmp_path, name):
    folder = draw_miniature(tmp_path, name)
    gone = open_dataset(folder).train[0].path
    os.remove(gone)
    pattern = f"expected all its images .* 1 missing, the first {re.escape(gone)}"
    assert re.search(pattern, open_error(folder))


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("Food101", "meta/train.json", "[]", "expected lists of images by class"),
        ("Food101", "meta/train.json", "{", "expected JSON"),
        ("Food101", "meta/train.json", '{"a": [1]}', "expected lists of images by class"),
        ("FGVCAircraft", "images_variant_val.txt", "1000001\n", "line 1: expected an image"),
        ("FGVCAircraft", "variants.txt", "707-320\n", "expected all classes, got none called '727"),
        ("DescribableTextures", "labels/val1.txt", "\nbanded.jpg", "line 2: expected an image"),
        ("SUN397", "Testing_01.txt", b"/a/\xe9.jpg", "line 1: expected UTF-8, got the byte 0xe9"),
        ("OxfordPets", "annotations/test.txt", "Ragdoll_1 1 1 1\n", "1 missing, the first"),
    ],
)
def test_broken_lists_are_named(tmp_path, name, file, content, message):
    folder = draw_miniature(tmp_path, name, split=False)
    content = content.encode() if isinstance(content, str) else content
    (folder / file).write_bytes(content)
    assert re.search(f"{file}.*{message}", open_error(folder))


def test_nothing_is_written_into_any_data_folder(guide):
    root = guide["ImageNet"].parent
    before = sorted((p, p.stat().st_mtime_ns) for p in root.rglob("*"))
    for name in NAMES:
        open_dataset(root, name)
    assert sorted((p, p.stat().st_mtime_ns) for p in root.rglob("*")) == before
