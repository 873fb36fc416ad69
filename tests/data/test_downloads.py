"""Data sets are recognised as torchvision downloads them, or as plain class folders."""

import json
import runpy
import shutil
from pathlib import Path

import pytest
from helpers.dataset_miniatures import (
    CLASSES,
    LISTED,
    TEST_ONLY,
    assert_as_published,
    draw_as_class_folders,
    draw_miniature,
)
from helpers.image_folders import draw_class_folders, draw_image, open_error

from minidpt.data import naming
from minidpt.data.datasets import open_dataset
from minidpt.data.layouts import layout_of

DOWNLOADED = ["ImageNet", "Caltech101", "OxfordPets", "Food101", "FGVCAircraft", "SUN397"]
DOWNLOADED += ["DescribableTextures", "EuroSAT"]


# ---- torchvision's downloads, plain class folders


@pytest.mark.parametrize("name", DOWNLOADED)
def test_downloads_of_torchvision_open(tmp_path, name):
    folder = draw_miniature(tmp_path, name, torchvision=True)
    dataset = open_dataset(folder, name)
    assert_as_published(dataset, name)
    assert open_dataset(tmp_path, name) == dataset
    if name != "ImageNet":
        assert open_dataset(tmp_path) == dataset == open_dataset(folder)
    classes = len(dataset.classnames)
    train, val = (4, 0) if name == "ImageNet" else (3, 1)  # by lists, or 50/20/30 % of 6
    assert dataset.sizes[1:] == (train * classes, val * classes, 2 * classes)


@pytest.mark.parametrize("name", ["OxfordPets", "Food101", "DescribableTextures"])
def test_downloaded_test_lists_are_the_test_set(tmp_path, name):
    dataset = open_dataset(draw_miniature(tmp_path, name, torchvision=True))
    numbers = [int(Path(item.path).stem.rpartition("_")[2][-4:]) for item in dataset.test]
    assert [(number - 1) % 6 + 1 for number in numbers] == [2, 6] * len(dataset.classnames)


@pytest.mark.parametrize("name", ["StanfordCars", "OxfordFlowers"])
def test_downloads_with_mat_files_open_by_the_published_split(tmp_path, name):
    folder = draw_miniature(tmp_path / "download", name, torchvision=True)
    for unlisted in (folder, draw_miniature(tmp_path / "unlisted", name, split=False)):
        with pytest.raises(FileNotFoundError, match=rf"split_zhou_{name}.json.*\.mat files are"):
            open_dataset(unlisted)
    guide = draw_miniature(tmp_path / "guide", name)
    shutil.copy(guide / f"split_zhou_{name}.json", folder)
    assert_as_published(open_dataset(folder), name)


PLAIN = [name for name in LISTED if name not in ("FGVCAircraft", "SUN397")]


@pytest.mark.parametrize("name", ["ImageNet", *PLAIN, *TEST_ONLY])
def test_plain_class_folders_open_by_name(tmp_path, name):
    folder = draw_as_class_folders(tmp_path / "mine", name)
    renamed = None
    if name == "OxfordFlowers":  # folders are numbers: their names come from a file
        renamed = tmp_path / "cat_to_name.json"
        renamed.write_text(json.dumps(CLASSES[name]))
    dataset = open_dataset(folder, name, classnames=renamed)
    if name == "ImageNetV2":  # no classnames.txt: the built-in list
        assert dataset.classnames == ["tench", "goldfish", "great white shark"]
        return
    assert_as_published(dataset, name)
    assert dataset.sizes[1:][2] == (6 if name in TEST_ONLY else 2) * len(dataset.classnames)


def test_train_and_test_folders_open_by_name(tmp_path):
    draw_class_folders(tmp_path / "train", {"AnnualCrop": 2, "River": 2})
    draw_class_folders(tmp_path / "test", {"AnnualCrop": 1, "River": 1})
    dataset = open_dataset(tmp_path, "eurosat")
    assert dataset.name == "EuroSAT" and dataset.classnames == ["Annual Crop Land", "River"]
    assert dataset.sizes[1:] == (4, 0, 2)


FOLDERS = {name: layout_of(name).folders[0] for name in PLAIN if name != "OxfordFlowers"}


@pytest.mark.parametrize("name", FOLDERS)
def test_plain_class_folders_are_recognised_by_their_folders_name(tmp_path, name):
    folder = draw_as_class_folders(tmp_path / FOLDERS[name], name)
    dataset = open_dataset(folder)
    assert_as_published(dataset, name)
    assert open_dataset(tmp_path) == dataset
    named = open_dataset(folder, name)
    assert named.test == dataset.test
    assert dataset.source == named.source
    assert open_dataset(folder.rename(tmp_path / "mine")).name == "mine"


def test_as_many_class_folders_as_published_are_recognised_by_their_folders_name(tmp_path):
    for number in range(1, 103):
        touch(tmp_path / "oxford_flowers" / str(number), 2)
    dataset = open_dataset(tmp_path / "oxford_flowers")
    assert dataset.name == "OxfordFlowers" and dataset.classnames[-1] == "102"
    assert dataset.template == "a photo of a {}, a type of flower."


def test_train_and_test_folders_are_recognised_by_the_folder_s_name(tmp_path):
    for split in ("train", "test"):
        draw_class_folders(tmp_path / "food-101" / split, {"apple_pie": 2, "tacos": 2})
        draw_class_folders(tmp_path / "sun397" / split, {"abbey": 2, "airplane_cabin": 2})
    food, sun = open_dataset(tmp_path / "food-101"), open_dataset(tmp_path / "sun397")
    assert food.name == "Food101" and food.classnames == ["apple pie", "tacos"]
    assert sun.name == "SUN397" and sun.classnames == ["abbey", "airplane cabin"]
    assert food.sizes[1:] == sun.sizes[1:] == (4, 0, 4)
    draw_class_folders(tmp_path / "paths" / "SUN397", {"a/abbey": 3, "c/cathedral/indoor": 3})
    nested = open_dataset(tmp_path / "paths" / "SUN397")
    assert nested.name == "SUN397" and nested.classnames == ["abbey", "indoor cathedral"]
    draw_image(tmp_path / "paths" / "SUN397" / "b.png")
    loose = "not read: 1 image in no class folder, first b.png"
    draw_class_folders(tmp_path / "imagenet-r", {"n01440764": 1, "n01443537": 1})
    draw_image(tmp_path / "imagenet-r" / "b.png")  # the folder is data folder and test part in one
    assert loose in open_dataset(tmp_path / "imagenet-r").notes
    (tmp_path / "paths" / "SUN397" / "c.psd").touch()  # told of once
    notes = [n for n in open_dataset(tmp_path / "paths" / "SUN397").notes if "not read" in n]
    assert notes == ["not read: 1 .psd (convert or rename images)", loose]


@pytest.mark.parametrize("folder", ["dtd", "DescribableTextures", "caltech-101"])
def test_a_folders_name_alone_does_not_rename_its_classes(tmp_path, folder):
    dataset = open_dataset(draw_class_folders(tmp_path / folder, {"cat_A": 4, "dog_B": 4}))
    named = {"DescribableTextures": "DescribableTextures-2"}.get(folder, folder)
    assert dataset.name == named and dataset.classnames == ["cat A", "dog B"]
    assert dataset.template == "a photo of a {}."
    name = layout_of(folder).name
    assert f"if it is {name}, pass --dataset {name}" in dataset.notes[0]
    assert open_dataset(tmp_path / folder, name).name == name  # if the caller says so


@pytest.mark.parametrize("plain", [False, True])
def test_a_folder_of_another_data_set_is_refused(tmp_path, plain):
    if plain:
        folder = draw_as_class_folders(tmp_path / "food-101", "Food101")
    else:
        folder = draw_miniature(tmp_path, "Food101", split=False)
    wrong = "expected DescribableTextures, got Food101: pass --dataset Food101"
    for path in [folder] if plain else [folder, folder / "images"]:
        assert wrong in open_error(path, "DescribableTextures")


@pytest.mark.parametrize("split", [True, False])
def test_a_table_that_is_not_ours_does_not_hide_a_data_set(tmp_path, split):
    folder = draw_miniature(tmp_path, "Caltech101", split=split)
    expected = open_dataset(folder)
    (folder / "labels.csv").write_text("id,breed\n000bec18,boston_bull\n")
    for dataset in (open_dataset(folder), open_dataset(folder, "Caltech101")):
        assert dataset.source == expected.source and dataset.test == expected.test
        assert dataset.notes[-1].startswith("labels.csv is not read, as this is Caltech101")
    plain = draw_as_class_folders(tmp_path / "mine", "DescribableTextures")
    shutil.copy(folder / "labels.csv", plain)
    assert_as_published(open_dataset(plain, "DescribableTextures"), "DescribableTextures")
    rows = [f"{key}/{number}.jpg,{key[0]}" for key in ("banded", "zigzagged") for number in (1, 2)]
    (plain / "labels.csv").write_text("\n".join(["path,label", *rows]))  # ours
    assert open_dataset(plain, "DescribableTextures").classnames == ["b", "z"]


def test_names_are_found_in_any_spelling():
    for name in ("caltech101", "CALTECH-101", "Caltech_101"):
        assert layout_of(name).name == "Caltech101"
    names = ("OxfordIIITPet", "flowers102", "dtd", "imagenet_v2", "ImageNet-A")
    expected = ["OxfordPets", "OxfordFlowers", "DescribableTextures", "ImageNetV2", "ImageNetA"]
    assert [layout_of(name).name for name in names] == expected


# ---- ImageNet and its test sets


def test_built_in_names_are_those_of_imagenet():
    names = naming.imagenet_classnames()
    assert len(names) == 1000 and list(names) == sorted(names)
    assert names["n02119789"] == "kit fox" and names["n15075141"] == "toilet paper"


def test_names_beside_the_images_go_before_the_built_in_ones(tmp_path):
    folder = draw_miniature(tmp_path, "ImageNet")
    listed = (folder / "classnames.txt").read_text()
    (folder / "classnames.txt").write_text(listed.replace("crane bird", "crane"))
    assert open_dataset(folder).classnames == ["tench", "goldfish", "crane"]
    (folder / "classnames.txt").unlink()
    assert open_dataset(folder).classnames == ["tench", "goldfish", "crane bird"]


def touch(folder: Path, count: int) -> None:
    """Empty files, as listing does not look into them."""
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.JPEG").touch()


@pytest.mark.parametrize(
    ("folder", "count", "name"),
    [
        ("imagenet100", 2, "imagenet100"),
        ("imagenet", 2, "imagenet"),
        ("ImageNet", 2, "ImageNet-2"),  # not to stand beside its published numbers
        ("mine", 900, "ImageNet"),
        ("mine", 899, "mine"),
    ],
)
def test_imagenet_is_about_a_thousand_classes(tmp_path, folder, count, name):
    ids = list(naming.imagenet_classnames())[:count]
    for split in ("train", "val"):
        for wordnet_id in ids:
            touch(tmp_path / folder / split / wordnet_id, 1)
    dataset = open_dataset(tmp_path / folder)
    assert dataset.name == name and dataset.classnames[:2] == ["tench", "goldfish"]
    assert dataset.sizes[1:] == (count, 0, count)
    if name != "ImageNet":
        assert f"these {count} classes are not ImageNet's 1000: " in dataset.notes[-1]
    named = open_dataset(tmp_path / folder, "ImageNet")
    assert named.name == "ImageNet" and named.test == dataset.test


def test_a_test_folder_of_wordnet_ids_is_the_test(tmp_path):
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        draw_class_folders(tmp_path / split, {"n01440764": count, "n01443537": count})
    dataset = open_dataset(tmp_path)
    assert dataset.classnames == ["tench", "goldfish"] and dataset.sizes[1:] == (8, 4, 6)
    assert all("/test/" in item.path for item in dataset.test)
    shutil.rmtree(tmp_path / "test")
    draw_image(tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG")  # ImageNet's own has no classes
    assert open_dataset(tmp_path).sizes[1:] == (8, 0, 4)
    draw_image(tmp_path / "train" / "a.JPEG")
    assert open_dataset(tmp_path).notes[-1].startswith("not read: 1 image in no class folder")


@pytest.mark.parametrize("listed", [True, False])
def test_numbered_folders_are_renamed_by_wordnet_id_or_number(tmp_path, listed):
    folder = draw_miniature(tmp_path, "ImageNetV2")
    if not listed:
        (folder / "classnames.txt").unlink()
    names = tmp_path / "names.txt"
    names.write_text("n01440764 a big fish\n1 a gold fish\nn15075141 paper\n")
    dataset = open_dataset(folder, classnames=names)
    third = "crane bird" if listed else "great white shark"
    assert dataset.classnames == ["a big fish", "a gold fish", third]
    assert "2 of 3 class names from names.txt" in dataset.source
    names.write_text("n15075141 goldfish\n")  # the name of another class
    with pytest.raises(ValueError, match=r"classes of ImageNetV2 \(0, 1, 2, ...\), got none"):
        open_dataset(folder, classnames=names)


def test_the_listing_benchmark_takes_few_files(monkeypatch, capsys):
    path = Path(__file__).parents[1] / "benchmarks" / "listing.py"
    monkeypatch.setattr("sys.argv", [str(path), "--files", "500"])
    runpy.run_path(str(path), run_name="__main__")
    assert "made 2,000 files" in (out := capsys.readouterr().out)
    assert "ImageNet: 1000 classes, " in out


def test_two_classes_of_one_name_are_said(tmp_path):
    draw_class_folders(tmp_path, {"n03773504": 2, "n04008634": 2, "n01440764": 2})
    dataset = open_dataset(tmp_path)
    assert dataset.classnames == ["tench", "missile", "missile"]
    assert dataset.notes == ("classes 'n03773504' and 'n04008634' are both called 'missile'",)


def test_wordnet_ids_without_a_name_are_an_error(tmp_path):
    draw_class_folders(tmp_path, {"n01440764": 2, "n00004475": 2})
    with pytest.raises(ValueError, match="got the WordNet id 'n00004475', none of ImageNet's 1000"):
        open_dataset(tmp_path)
