"""Folders that are splits under other names, or variants of a data set, and not its classes."""

import re
import shutil
from pathlib import Path

import pytest
from helpers.image_folders import draw_class_folders, draw_image

from minidpt.data.class_folders import split_of
from minidpt.data.datasets import open_dataset
from minidpt.data.samples import ReadOptions

COUNTS = {"bird": 4, "coin": 3, "flower": 2}
AS_CLASSES = ReadOptions(folders_are_classes=True)


def draw_in(root: Path, *folders: str) -> Path:
    """The same classes in each of the folders."""
    for folder in folders:
        draw_class_folders(root / folder, COUNTS)
    return root


def sizes(dataset) -> list[int]:
    return [len(dataset.train), len(dataset.val), len(dataset.test)]


def folders_of(samples, root: Path) -> set[str]:
    return {Path(sample.path).relative_to(root).parts[0] for sample in samples}


def error_of(root: Path, *options) -> str:
    with pytest.raises(ValueError) as raised:
        open_dataset(root, *options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# ---- names of splits


@pytest.mark.parametrize(
    ("name", "split", "rest"),
    [
        ("seg_train", "train", ["seg"]),
        ("training_set", "train", []),
        ("TRAIN_DATA", "train", []),
        ("SegTrainImages", "train", ["seg"]),
        ("TestSet", "test", []),
        ("testset", "test", []),
        ("imgs-train", "train", []),
        ("val2017", "val", []),
        ("DIV2K_valid_HR", "val", ["div", "k", "hr"]),
        ("猫 test", "test", ["猫"]),
        ("my evaluation images", "test", ["my"]),
        ("train_station", "train", ["station"]),
    ],
)
def test_a_folder_name_tells_a_split_and_the_rest(name, split, rest):
    assert split_of(name) == (split, tuple(rest))


@pytest.mark.parametrize("name", ["testudo", "trainer", "strain", "train_test", "images", "1", "_"])
def test_other_folder_names_tell_no_split(name):
    assert split_of(name) is None


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("seg_train", "seg_test"),
        ("training_set", "test_set"),
        ("train_images", "test_images"),
        ("Train_Data", "TESTING"),
        ("imgs_train", "test-set"),
        ("trainset", "testset"),
        ("train", "test_set"),
        ("cats-and-dogs-train", "Cats And Dogs Validation"),
        ("train2017", "val2017"),
        ("train", "eval"),
        ("trainval", "test"),
        ("Training", "Evaluation"),
        ("train_old", "test_new"),  # told by their folders
    ],
)
def test_train_like_beside_test_like_folders_are_the_split(tmp_path, train, test):
    dataset = open_dataset(draw_in(tmp_path, train, test))
    assert dataset.classnames == ["bird", "coin", "flower"] and dataset.notes == ()
    assert sizes(dataset) == [9, 0, 9]
    assert folders_of(dataset.train, tmp_path) == {train}
    assert folders_of(dataset.test, tmp_path) == {test}
    assert f"folders {train}/, {test}/" in dataset.source


@pytest.mark.parametrize("names", [("x_train", "x_valid", "x_test"), ("train", "dev_set", "test")])
def test_three_folders_are_train_val_and_test(tmp_path, names):
    dataset = open_dataset(draw_in(tmp_path, *names))
    splits = dataset.train, dataset.val, dataset.test
    assert [folders_of(split, tmp_path) for split in splits] == [{name} for name in names]


@pytest.mark.parametrize(
    ("folders", "test", "unread"),
    [
        (("train", "eval", "test"), "test", "eval/"),
        (("train", "test", "test_images"), "test", "test_images/"),
        (("train", "trainval", "test"), "test", "trainval/"),
        (("train_set", "test_set", "evaluation_set"), "test_set", "evaluation_set/"),
        (("seg_train", "seg_test", "seg_pred"), "seg_test", "seg_pred/"),
    ],
)
def test_a_second_test_and_others_beside_are_not_read(tmp_path, folders, test, unread):
    dataset = open_dataset(draw_in(tmp_path, *folders))
    assert sizes(dataset) == [9, 0, 9] and folders_of(dataset.test, tmp_path) == {test}
    assert dataset.notes == (f"read: {folders[0]}/, {test}/; not read: {unread}",)


def test_folders_of_predictions_and_files_beside_a_split_do_not_matter(tmp_path):
    draw_in(tmp_path, "seg_train", "seg_test")
    draw_image(tmp_path / "seg_pred" / "a.png")
    draw_image(tmp_path / "seg_train" / "loose.png")
    (tmp_path / "train.csv").write_text("id,x\n")
    dataset = open_dataset(tmp_path)
    assert sizes(dataset) == [9, 0, 9]
    assert dataset.notes[0] == "read: seg_train/, seg_test/; not read: seg_pred/"
    assert dataset.notes[1].startswith("not read: 1 image in no class folder, first seg_train")


@pytest.mark.parametrize("folders", [["cat_train", "cat_test", "dog_train"], ["train1", "train2"]])
def test_two_folders_for_training_are_an_error(tmp_path, folders):
    draw_in(tmp_path, *folders, "dog_test")
    if folders[0] == "train1":
        (tmp_path / "dog_test").rename(tmp_path / "test")
    error = error_of(tmp_path)
    first, other = (name for name in folders if "train" in name)
    assert (
        f"expected one folder for train, got {first}/ and {other}/: merge or rename them" in error
    )


@pytest.mark.parametrize(
    "names",
    [("train_station", "testudo", "owl"), ("train_station", "test_tube"), ("trainer", "tester")],
)
def test_classes_called_a_little_like_splits_stay_classes(tmp_path, names):
    draw_class_folders(tmp_path, dict.fromkeys(names, 4))
    dataset = open_dataset(tmp_path)
    assert dataset.classnames == sorted(name.replace("_", " ") for name in names)
    assert dataset.notes == ()


def test_flat_folders_called_as_splits_are_no_classes(tmp_path):
    draw_class_folders(tmp_path, {"train_images": 5, "test_images": 5})
    expected = "expected classes in train_images/, test_images/, got none there: if these are the"
    assert expected in error_of(tmp_path)
    dataset = open_dataset(tmp_path, read=AS_CLASSES)
    assert dataset.classnames == ["test images", "train images"]


# ---- variants, and classes that hold folders


@pytest.mark.parametrize(
    "folders",
    [
        ("fold1", "fold2"),
        ("color", "grayscale", "segmented"),
        ("site_A", "site_B"),
        ("2019", "2020", "2021", "2022"),
        ("fold1/train", "fold1/test", "fold2/train", "fold2/test"),
        ("train/color", "train/grayscale", "test/color", "test/grayscale"),
        ("color/color", "grayscale/images"),  # each alone
    ],
)
def test_variants_of_the_same_classes_are_asked_about(tmp_path, folders):
    error = error_of(draw_in(tmp_path, *folders))
    named = sorted({Path(name).parts[0] for name in folders})
    if named == ["test", "train"]:
        named = ["color", "grayscale"]
    assert "expected class folders, got " + "/, ".join(named[:3]) + "/" in error
    shared = "test/, train/" if "fold1/test" in folders else "bird/, coin/, flower/"
    assert f", which share {shared}: if these are the classes, pass --folders-are-classes" in error


def test_folders_are_classes_where_the_caller_says_so(tmp_path):
    draw_in(tmp_path / "variants", "color", "grayscale")
    draw_in(tmp_path / "parts", "train/a", "train/b", "test/a", "test/b")
    dataset = open_dataset(tmp_path / "parts", read=AS_CLASSES)
    assert dataset.classnames == ["a", "b"] and sizes(dataset) == [18, 0, 18]
    shutil.rmtree(tmp_path / "parts")
    for root in (tmp_path / "variants", tmp_path):  # which is looked through
        dataset = open_dataset(root, read=AS_CLASSES)
        assert dataset.classnames == ["color", "grayscale"] and sum(sizes(dataset)) == 18
    draw_class_folders(tmp_path / "vehicles", {"bus": 4, "car": 4, "train": 4})
    dataset = open_dataset(tmp_path / "vehicles", read=AS_CLASSES)
    assert dataset.classnames == ["bus", "car", "train"] and dataset.notes == ()


def test_capitals_do_not_hide_what_variants_share(tmp_path):
    draw_class_folders(tmp_path / "a", {"Bird": 3, "coin": 3, "x": 3})
    draw_class_folders(tmp_path / "b", {"bird": 3, "Coin": 3, "y": 3})
    assert "a/, b/, which share Bird/, coin/" in error_of(tmp_path)


def test_a_class_that_holds_images_makes_the_others_classes(tmp_path):
    draw_in(tmp_path, "color", "grayscale")
    draw_image(tmp_path / "owl" / "a.png")
    dataset = open_dataset(tmp_path)
    assert dataset.classnames == ["color", "grayscale", "owl"]
    note = "taken for classes: color/, grayscale/, which share bird/, coin/, flower/"
    assert note in dataset.notes


@pytest.mark.parametrize(
    "folders",
    [
        ("bird/images", "coin/images"),
        ("bird/a", "bird/b", "coin/b", "coin/c"),
        ("bird/train", "coin/train"),
        ("bird/x/y/z", "coin"),
    ],
)
def test_classes_that_share_one_folder_name_stay_classes(tmp_path, folders):
    for folder in folders:
        for number in range(3):
            draw_image(tmp_path / folder / f"{number}.png")
    dataset = open_dataset(tmp_path)
    assert dataset.classnames == ["bird", "coin"] and dataset.notes == ()
    assert sum(sizes(dataset)) == 3 * len(folders)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("Training", "Dev", "Testing"), ("x_train", "x_val", "x_test")],
)
def test_train_and_test_in_each_class_are_the_split(tmp_path, train, val, test):
    for name, counts in {"bird": (4, 1, 3), "coin": (2, 0, 5)}.items():
        for folder, count in zip((train, val, test), counts, strict=True):
            for number in range(count):
                draw_image(tmp_path / name / folder / f"{number}.png")
    dataset = open_dataset(tmp_path)
    assert dataset.classnames == ["bird", "coin"] and sizes(dataset) == [6, 1, 8]
    assert [sample.label for sample in dataset.test] == [0, 0, 0, 1, 1, 1, 1, 1]
    for split, folder in ((dataset.train, train), (dataset.val, val), (dataset.test, test)):
        assert {Path(sample.path).parent.name for sample in split} == {folder}
    assert f"train/, test/, val/ in the class folders in {tmp_path}" in dataset.source
    draw_image(tmp_path / "owl" / "a.png")
    shared = ", ".join(sorted(f"{name}/" for name in (train, test)))
    assert f"got bird/, coin/, which share {shared}: if these are" in error_of(tmp_path)
    assert sum(sizes(open_dataset(tmp_path, read=AS_CLASSES))) == 16


# ---- folders alone in a folder


@pytest.mark.parametrize(
    ("folders", "counts", "name"),
    [
        (("seg_train/seg_train", "seg_test/seg_test"), [9, 0, 9], "mine"),
        (("dataset/seg_train/seg_train", "dataset/seg_test"), [9, 0, 9], "dataset"),
        (("data/train", "data/test"), [9, 0, 9], "data"),
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
    assert dataset.classnames == ["bird", "coin", "flower"] and dataset.name in (
        *folders[0].split("/"),
        "mine",
    )
    assert sizes(dataset) == counts
    assert [note for note in dataset.notes if "drawn" not in note] == []


def test_what_lies_alone_may_be_a_known_data_set_or_a_csv(tmp_path):
    draw_class_folders(tmp_path / "a" / "b" / "EuroSAT_RGB", {"AnnualCrop": 4, "Forest": 4})
    assert open_dataset(tmp_path / "a").name == "EuroSAT"
    draw_in(tmp_path / "c" / "d", "x", "y")
    (tmp_path / "c" / "d" / "labels.csv").write_text(
        "x/bird/image_0001.png,owl\ny/bird/image_0002.png,ox\ny/bird/image_0003.png,ox\n"
    )
    assert open_dataset(tmp_path / "c").classnames == ["owl", "ox"]


def test_one_class_and_circles_are_not_looked_through(tmp_path):
    draw_image(tmp_path / "one" / "owl" / "a.png")
    assert "at least 2 class folders, got only 'owl'" in error_of(tmp_path / "one")
    draw_class_folders(tmp_path / "two" / "owl", {"more": 1, "others": 1})
    draw_image(tmp_path / "two" / "owl" / "a.png")
    assert "at least 2 class folders, got only 'owl'" in error_of(tmp_path / "two")
    (tmp_path / "circle").mkdir()
    (tmp_path / "circle" / "on").symlink_to(tmp_path / "circle")
    assert "got only 'on'" in error_of(tmp_path / "circle")


def test_the_only_class_of_a_test_is_not_looked_through(tmp_path):
    draw_in(tmp_path, "train")
    draw_class_folders(tmp_path / "test" / "bird", {"left": 2, "right": 1})
    dataset = open_dataset(tmp_path)
    assert [sample.classname for sample in dataset.test] == ["bird"] * 3


# ---- a test without labels


@pytest.mark.parametrize("files", ["a.png", "unknown/a.png", "{test}/a.png", "", "bird/"])
@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("training_set", "test_set")])
def test_a_test_without_labels_is_named_and_another_one_taken(tmp_path, files, train, test):
    path = draw_in(tmp_path, train) / test / files.format(test=test)
    (path if path.suffix == "" else path.parent).mkdir(parents=True)
    if path.suffix:
        draw_image(path)
    drawn = open_dataset(tmp_path)
    assert drawn.classnames == ["bird", "coin", "flower"] and sizes(drawn) == [5, 1, 3]
    contents = re.sub("/.*", "/", files.format(test=test)) or "no folder and no file"
    note = f"not tested: {test}/, which has no images in folders of the classes ({contents})"
    assert drawn.notes == (f"no labelled test/ beside {train}/: the test is drawn from it", note)
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
        assert f"{expected}: remove it" in error_of(tmp_path)
        return
    expected += ", 'bird' but for capitals, - or _: rename it"
    assert expected in error_of(tmp_path)
    for other in ("coin", "flower"):
        shutil.rmtree(tmp_path / "test" / other)
    assert expected in error_of(tmp_path)  # also alone
