"""Folders that are splits under other names, or variants of a data set, and not its classes."""

import re
import shutil
from pathlib import Path

import pytest
from helpers.image_folders import draw_class_folders, draw_image, open_error

from minidpt.data.datasets import open_dataset
from minidpt.data.folders import split_of
from minidpt.data.samples import ReadOptions

NAMES = ["bird", "coin", "flower"]
AS_CLASSES = ReadOptions(folders_are_classes=True)
ASK = ": if these are the classes, pass --folders-are-classes"


def draw_in(root: Path, *folders: str) -> Path:
    """The same classes, of 4, 3 and 2 images, in each of the folders."""
    for folder in folders:
        draw_class_folders(root / folder, {"bird": 4, "coin": 3, "flower": 2})
    return root


def sizes(dataset) -> list[int]:
    return list(map(len, dataset.splits.values()))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("seg_train", ("train", ("seg",))),
        ("TRAIN_DATA", ("train", ())),
        ("SegTrainImages", ("train", ("seg",))),
        ("testset", ("test", ())),
        ("val2017", ("val", ())),
        ("DIV2K_valid_HR", ("val", ("div", "k", "hr"))),
        ("猫 test", ("test", ("猫",))),
        ("my evaluation images", ("test", ("my",))),
        *((name, None) for name in ("testudo", "trainer", "strain", "train_test", "images", "1")),
    ],
)
def test_a_folder_name_tells_a_split_and_the_rest(name, expected):
    assert split_of(name) == expected


@pytest.mark.parametrize(
    ("train", "val", "test", "unread"),
    [
        ("seg_train", "", "seg_test", ""),
        ("training_set", "", "test_set", ""),
        ("train_images", "", "test_images", ""),
        ("Train_Data", "", "TESTING", ""),
        ("trainset", "", "test-set", ""),
        ("train", "", "test_set", ""),
        ("cats-and-dogs-train", "", "Cats And Dogs Validation", ""),
        ("train2017", "", "val2017", ""),
        ("trainval", "", "eval", ""),
        ("train_old", "", "test_new", ""),  # told by their folders
        ("x_train", "x_valid", "x_test", ""),
        ("train", "dev_set", "test", ""),
        ("train", "", "test", "eval"),
        ("train", "", "test", "test_images"),
        ("train", "", "test", "trainval"),
        ("train_set", "", "test_set", "evaluation_set"),
        ("seg_train", "", "seg_test", "seg_pred"),
    ],
)
def test_train_like_beside_test_like_folders_are_the_split(tmp_path, train, val, test, unread):
    dataset = open_dataset(draw_in(tmp_path, *filter(None, (train, val, test, unread))))
    assert dataset.classnames == NAMES and sizes(dataset) == [9, 9 * bool(val), 9]
    for folder, samples in zip((train, val, test), dataset.splits.values(), strict=True):
        assert {Path(s.path).relative_to(tmp_path).parts[0] for s in samples} <= {folder}
    read = ", ".join(f"{name}/" for name in (train, val, test) if name)
    assert f"folders {read}" in dataset.source
    assert dataset.notes == ((f"read: {read}; not read: {unread}/",) if unread else ())


@pytest.mark.parametrize(
    "folders",
    [("cat_train", "dog_train", "cat_test", "dog_test"), ("train1", "train2", "test")],
)
def test_two_folders_for_training_are_an_error(tmp_path, folders):
    expected = f"expected one folder for train, got {folders[0]}/ and {folders[1]}/: merge or ren"
    assert expected in open_error(draw_in(tmp_path, *folders))


@pytest.mark.parametrize(
    "names", [("owl", "testudo", "train_station"), ("test_tube", "train_station")]
)
def test_classes_called_a_little_like_splits_stay_classes(tmp_path, names):
    dataset = open_dataset(draw_class_folders(tmp_path, dict.fromkeys(names, 4)))
    assert dataset.classnames == [name.replace("_", " ") for name in names]
    assert dataset.notes == ()


@pytest.mark.parametrize("names", [("test_images", "train_images"), ("bus", "car", "train")])
def test_splits_without_classes_are_classes_only_by_the_option(tmp_path, names):
    draw_class_folders(tmp_path, dict.fromkeys(names, 4))
    splits = "train_images/, test_images/" if "bus" not in names else "train/"
    contents = ", ".join(f"{name}/" for name in names)
    assert f"expected classes in {splits}, got none there ({contents}){ASK}" in open_error(tmp_path)
    dataset = open_dataset(tmp_path, read=AS_CLASSES)
    assert dataset.classnames == [name.replace("_", " ") for name in names]


@pytest.mark.parametrize(
    ("folders", "variants", "shared"),
    [
        (("fold1", "fold2"), "fold1/, fold2/", NAMES),
        (("color", "gray", "segmented"), "color/, gray/, segmented/", NAMES),
        (("2019", "2020", "2021", "2022"), "2019/, 2020/, 2021/ and 1 more", NAMES),
        (("a/train", "a/test", "b/train", "b/test"), "a/, b/", ["test", "train"]),
        (("train/color", "train/gray", "test/color", "test/gray"), "color/, gray/", NAMES),
        (("color/color", "gray/images"), "color/, gray/", NAMES),  # each alone
    ],
)
def test_variants_of_the_same_classes_are_asked_about(tmp_path, folders, variants, shared):
    shared = ", ".join(f"{name}/" for name in shared)
    expected = f"expected class folders, got {variants}, which share {shared}{ASK}"
    assert expected in open_error(draw_in(tmp_path, *folders))
    classes = (
        ["color", "gray"] if folders[0] == "train/color" else {f.split("/")[0] for f in folders}
    )
    dataset = open_dataset(tmp_path, read=AS_CLASSES)
    assert dataset.classnames == sorted(classes) and sum(sizes(dataset)) == 9 * len(folders)


def test_capitals_do_not_hide_what_variants_share(tmp_path):
    draw_class_folders(tmp_path / "a", {"Bird": 3, "coin": 3, "x": 3})
    draw_class_folders(tmp_path / "b", {"bird": 3, "Coin": 3, "y": 3})
    draw_class_folders(tmp_path / "c", {"bird": 3, "z": 3})  # shares one alone
    assert "a/, b/, which share Bird/, coin/" in open_error(tmp_path)


@pytest.mark.parametrize(
    "folders",
    [
        ("bird/images", "coin/images"),
        ("bird/a", "bird/b", "coin/b", "coin/c"),
        ("bird/train", "coin/train"),
        ("bird/x/y/z", "coin"),
        ("bird/a", "bird/b", "coin/a", "coin/b", "owl"),  # which makes the others classes
    ],
)
def test_classes_that_hold_folders_stay_classes(tmp_path, folders):
    for folder in folders:
        for number in range(3):
            draw_image(tmp_path / folder / f"{number}.png")
    dataset = open_dataset(tmp_path)
    assert dataset.classnames == sorted({folder.split("/")[0] for folder in folders})
    assert dataset.notes == () and sum(sizes(dataset)) == 3 * len(folders)


@pytest.mark.parametrize(
    "names",
    [("train", "val", "test"), ("Training", "Dev", "Testing"), ("x_train", "x_val", "x_test")],
)
def test_train_and_test_in_each_class_are_the_split(tmp_path, names):
    for name, counts in {"bird": (4, 1, 3), "coin": (2, 0, 5)}.items():
        for folder, count in zip(names, counts, strict=True):
            for number in range(count):
                draw_image(tmp_path / name / folder / f"{number}.png")
    dataset = open_dataset(tmp_path)
    assert dataset.classnames == ["bird", "coin"] and sizes(dataset) == [6, 1, 8]
    assert [sample.label for sample in dataset.test] == [0, 0, 0, 1, 1, 1, 1, 1]
    for split, folder in zip(dataset.splits.values(), names, strict=True):
        assert {Path(sample.path).parent.name for sample in split} == {folder}
    assert f"train/, test/, val/ in the class folders in {tmp_path}" in dataset.source
    draw_image(tmp_path / "owl" / "a.png")
    shared = f"{min(names[::2])}/, {max(names[::2])}/"
    assert f"got bird/, coin/, which share {shared}{ASK}" in open_error(tmp_path)
    assert sum(sizes(open_dataset(tmp_path, read=AS_CLASSES))) == 16


@pytest.mark.parametrize(
    ("folders", "counts", "name"),
    [
        (("seg_train/seg_train", "seg_test/seg_test"), [9, 0, 9], "mine"),
        (("dataset/seg_train/seg_train", "dataset/seg_test"), [9, 0, 9], "dataset"),
        (("train/train", "test/Test/images"), [9, 0, 9], "mine"),
        (("a/b/c/train",), [5, 1, 3], "c"),
        (("a/b",), [5, 1, 3], "b"),
    ],
)
def test_a_folder_alone_in_a_folder_is_looked_through(tmp_path, folders, counts, name):
    root = draw_in(tmp_path / "mine", *folders)
    (root / "README.txt").write_text("about")
    (root / "__MACOSX" / "x").mkdir(parents=True)
    dataset = open_dataset(root)
    assert dataset.classnames == NAMES and dataset.name == name and sizes(dataset) == counts
    notes = [note for note in dataset.notes if not note.startswith("no labelled test/")]
    assert notes == ["ignored: __MACOSX/"]


def test_a_folder_alone_may_be_a_known_data_set_or_a_csv(tmp_path):
    draw_class_folders(tmp_path / "a" / "b" / "EuroSAT_RGB", {"AnnualCrop": 4, "Forest": 4})
    assert open_dataset(tmp_path / "a").name == "EuroSAT"
    rows = "x/bird/image_0001.png,owl\ny/bird/image_0002.png,ox\ny/bird/image_0003.png,ox\n"
    (draw_in(tmp_path / "c" / "d", "x", "y") / "labels.csv").write_text(rows)
    assert open_dataset(tmp_path / "c").classnames == ["owl", "ox"]


def test_one_class_and_circles_are_not_looked_through(tmp_path):
    draw_class_folders(tmp_path / "two" / "owl", {"more": 1, "others": 1})
    draw_image(tmp_path / "two" / "owl" / "a.png")
    assert "(or train/ and test/ of them, or labels.csv), got owl/" in open_error(tmp_path / "two")
    (tmp_path / "circle").mkdir()
    (tmp_path / "circle" / "on").symlink_to(tmp_path / "circle")
    assert "labels.csv), got on/" in open_error(tmp_path / "circle")
    draw_in(tmp_path / "splits", "train")
    draw_class_folders(tmp_path / "splits" / "test" / "bird", {"left": 2, "right": 1})
    dataset = open_dataset(tmp_path / "splits")
    assert [sample.classname for sample in dataset.test] == ["bird"] * 3


@pytest.mark.parametrize("files", ["a.png", "unknown/a.png", "{test}/a.png", "", "bird/"])
@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("training_set", "test_set")])
def test_a_test_without_labels_is_named_and_another_one_taken(tmp_path, files, train, test):
    path = draw_in(tmp_path, train) / test / files.format(test=test)
    (path.parent if path.suffix else path).mkdir(parents=True)
    if path.suffix:
        draw_image(path)
    drawn = open_dataset(tmp_path)
    assert drawn.classnames == NAMES and sizes(drawn) == [5, 1, 3]
    contents = re.sub("/.*", "/", files.format(test=test)) or "no folder and no file"
    note = f"not tested: {test}/, which has no images in folders of the classes ({contents})"
    first = f"no labelled test/ beside {train}/: test images are drawn from it"
    assert drawn.notes == (first, note)
    draw_in(tmp_path, "val" if test == "test" else "validation_set")
    dataset = open_dataset(tmp_path)
    assert sizes(dataset) == [9, 0, 9] and dataset.notes == (note,)
    assert "(no labelled test, so val is the test set)" in dataset.source


@pytest.mark.parametrize("name", ["Bird", "BIRD", "bird_", "birds"])
def test_names_that_differ_between_train_and_test_are_named(tmp_path, name):
    draw_in(tmp_path, "train", "test")
    (tmp_path / "test" / "bird").rename(tmp_path / "test" / name)
    expected = f"expected only classes of train, got '{name}' in test"
    if name == "birds":
        assert f"{expected}: remove it" in open_error(tmp_path)
        return
    expected += " for 'bird': rename it"
    assert expected in open_error(tmp_path)
    for other in ("coin", "flower"):
        shutil.rmtree(tmp_path / "test" / other)
    assert expected in open_error(tmp_path)  # also alone
