"""Draw a miniature of every data set as users have it: few classes, genuine folders and lists.

    PYTHONPATH=.:tests python -m helpers.dataset_miniatures FOLDER    # all, as in CoOp's data guide

Six images of each class, in its own color; where there is a list, 3 are for training, 1 for
val, 2 for the test.
"""

import json
import os
import sys
from itertools import compress
from pathlib import Path

from helpers.image_folders import all_samples, draw_image
from minidpt.data.layouts import LAYOUTS
from minidpt.data.samples import Dataset

NAMES = [layout.name for layout in LAYOUTS]
TEST_ONLY = ["ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"]
LISTED = [name for name in NAMES if name not in TEST_ONLY + ["ImageNet"]]
COLORS = [(200, 40, 40), (40, 160, 60), (50, 70, 220), (230, 200, 40), (150, 60, 170)]


def called_so(*names: str) -> dict[str, str]:
    """Return classes whose names are those of their folders."""
    return dict(zip(names, names))


# The name of a class in its folder (or list) → its name in the published split; in the order of
# labels. None: no class.
CLASSES: dict[str, dict[str, str | None]] = {
    "ImageNet": {"n01440764": "tench", "n01443537": "goldfish", "n02012849": "crane bird"},
    "Caltech101": {
        "BACKGROUND_Google": None,
        "Faces": "face",
        "Faces_easy": None,
        "Leopards": "leopard",
        "crocodile_head": "crocodile_head",
    },
    "OxfordPets": {
        "Abyssinian": "abyssinian",
        "american_bulldog": "american_bulldog",
        "British_Shorthair": "british_shorthair",
    },
    "StanfordCars": {
        "AM General Hummer SUV 2000": "2000 AM General Hummer SUV",
        "Acura TL Sedan 2012": "2012 Acura TL Sedan",
        "smart fortwo Convertible 2012": "2012 smart fortwo Convertible",
    },
    "OxfordFlowers": {"1": "pink primrose", "2": "hard-leaved orchid", "10": "globe thistle"},
    "Food101": called_so("apple_pie", "churros", "hot_dog"),
    "FGVCAircraft": called_so("707-320", "727-200", "F/A-18"),
    "SUN397": {
        "a/abbey": "abbey",
        "a/airplane_cabin": "airplane_cabin",
        "c/cathedral/indoor": "indoor cathedral",
        "c/cathedral/outdoor": "outdoor cathedral",
    },
    "DescribableTextures": called_so("banded", "polka-dotted", "zigzagged"),
    "EuroSAT": {
        "AnnualCrop": "Annual Crop Land",
        "Forest": "Forest",
        "Highway": "Highway or Road",
        "SeaLake": "Sea or Lake",
    },
    "UCF101": called_so("Apply_Eye_Makeup", "Tai_Chi", "Yo_Yo"),
    "ImageNetV2": {"0": "tench", "1": "goldfish", "2": "crane bird"},
    "ImageNetSketch": {"n01440764": "tench", "n01443537": "goldfish", "n02012849": "crane bird"},
    "ImageNetA": {"n01443537": "goldfish", "n02012849": "crane bird"},
    "ImageNetR": {"n01443537": "goldfish", "n02012849": "crane bird"},
}

# The split of each of the six images.
SPLITS = ("train", "test", "train", "val", "train", "test")


def draw_miniature(root: Path, name: str, torchvision: bool = False, split: bool = True) -> Path:
    """Draw a data set under its folder's name in `root`, and return that folder.

    As in CoOp's data guide, or as torchvision downloads it; the first with its split file if
    `split` (and if it has one).
    """
    special = {"ImageNet": draw_imagenet, "StanfordCars": draw_cars, "SUN397": draw_sun}
    draw = draw_variant if name in TEST_ONLY else special.get(name, draw_listed)
    return draw(root, CLASSES[name], torchvision, name, split and not torchvision)


def draw_as_class_folders(root: Path, name: str) -> Path:
    """Draw a data set as plain class folders, without any list."""
    return draw_each(root, list(CLASSES[name]), "{key}/{number}.jpg") and root


TEMPLATES = {  # for zero-shot, of those that have another than "a photo of a {}."
    "OxfordPets": "a photo of a {}, a type of pet.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "Food101": "a photo of {}, a type of food.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "UCF101": "a photo of a person doing {}.",
}


def assert_as_published(dataset: Dataset, name: str) -> None:
    """Assert the published names, and that every image exists and has its class's name."""
    assert dataset.name == name
    assert dataset.template == TEMPLATES.get(name, "a photo of a {}.")
    expected = [each.replace("_", " ") for each in CLASSES[name].values() if each is not None]
    assert [each.replace("_", " ") for each in dataset.classnames] == expected
    for path, label, classname in all_samples(dataset):
        assert os.path.isfile(path) and classname == dataset.classnames[label]
    assert len({item.path for item in all_samples(dataset)}) == len(all_samples(dataset))


# ---- helpers


def draw_each(images: Path, keys: list[str], pattern: str, count: int = 6) -> dict[str, list[str]]:
    """Draw `count` images of each class; returns class → paths below `images`."""
    drawn = {}
    for label, key in enumerate(keys):
        names = [pattern.format(key=key, number=n, all=6 * label + n) for n in range(1, count + 1)]
        for number, name in enumerate(names):
            draw_image(images / name, (20 + number, 16), COLORS[label % len(COLORS)])
        drawn[key] = names
    return drawn


def split_rows(drawn: dict[str, list[str]], names: dict[str, str | None]) -> dict[str, list]:
    """Return the rows of CoOp's split file by split: [path, label, class name]."""
    keys = [key for key in drawn if names[key] is not None]
    rows = {"train": [], "val": [], "test": []}
    for label, key in enumerate(keys):
        for split, path in zip(SPLITS, drawn[key], strict=True):
            rows[split].append([path, label, names[key]])
    return rows


def write_split(folder: Path, name: str, rows: dict[str, list]) -> None:
    """Write CoOp's split file."""
    write(folder / f"split_zhou_{name}.json", json.dumps(rows, indent=4))


def write(path: Path, *lines: str) -> None:
    """Write lines of text; the folders above are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_mat(path: Path) -> None:
    """Write the first bytes of a MATLAB file: it exists, but has no content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"MATLAB 5.0 MAT-file, Platform: GLNX86".ljust(124) + b"\x00\x01IM")


def write_classnames(path: Path, names: dict[str, str | None]) -> None:
    """Write CoOp's classnames.txt, which lists all classes of ImageNet, also those not drawn."""
    ids = {**CLASSES["ImageNet"], **{k: n for k, n in names.items() if k.startswith("n")}}
    write(path, *(f"{key} {name}" for key, name in sorted(ids.items())))


# ---- one function for each layout


def draw_imagenet(root, names, torchvision, name, split):
    folder = root / "imagenet"
    images = folder if torchvision else folder / "images"
    draw_each(images / "train", list(names), "{key}/{key}_{number}.JPEG", count=4)
    draw_each(images / "val", list(names), "{key}/ILSVRC2012_val_{all:08d}.JPEG", count=2)
    if not torchvision:
        write_classnames(folder / "classnames.txt", names)
    return folder


def draw_cars(root, names, torchvision, name, split):
    folder = root / "stanford_cars"
    rows = {"train": [], "val": [], "test": []}
    for label, key in enumerate(names):
        for number, in_split in enumerate(SPLITS, start=1):
            images = "cars_test" if in_split == "test" else "cars_train"
            path = f"{images}/{6 * label + number:05d}.jpg"
            draw_image(folder / path, (20, 16), COLORS[label])
            rows[in_split].append([path, label, names[key]])
    write_mat(folder / "devkit" / "cars_meta.mat")
    write_mat(folder / "cars_test_annos_withlabels.mat")
    if split:
        write_split(folder, name, rows)
    return folder


LISTED_IN = {  # CoOp's folder and torchvision's, where in it the images lie, their names
    "Caltech101": (
        "caltech-101",
        "caltech101",
        "101_ObjectCategories/{key}/image_{number:04d}.jpg",
    ),
    "OxfordPets": ("oxford_pets", "oxford-iiit-pet", "images/{key}_{number}.jpg"),
    "OxfordFlowers": ("oxford_flowers", "flowers-102", "jpg/image_{all:05d}.jpg"),
    "Food101": ("food-101", "food-101", "images/{key}/100{all:04d}.jpg"),
    "FGVCAircraft": ("fgvc_aircraft", "fgvc-aircraft-2013b/data", "images/100{all:04d}.jpg"),
    "DescribableTextures": ("dtd", "dtd/dtd", "images/{key}/{key}_{number:04d}.jpg"),
    "EuroSAT": ("eurosat", "eurosat", "2750/{key}/{key}_{number}.jpg"),
    "UCF101": ("ucf101", "ucf101", "UCF-101-midframes/{key}/v_{key}_g01_c{number:02d}.jpg"),
}


def draw_listed(root, names, torchvision, name, split):
    """Draw a data set of one folder of images, with its own lists and CoOp's."""
    data = root / LISTED_IN[name][torchvision]
    images, _, pattern = LISTED_IN[name][2].partition("/")
    drawn = draw_each(data / images, list(names), pattern)
    rows = split_rows(drawn, names)
    if name == "Caltech101" and torchvision:
        write_mat(data / "Annotations" / "Faces_2" / "annotation_0001.mat")
    elif name == "OxfordPets":
        write_mat(data / "images" / "Abyssinian_100.mat")
        lines = {"trainval": [], "test": []}
        for number, (key, paths) in enumerate(drawn.items(), start=1):
            species = 2 if key == "american_bulldog" else 1
            for in_split, path in zip(SPLITS, paths, strict=True):
                list_name = "test" if in_split == "test" else "trainval"
                lines[list_name].append(f"{Path(path).stem} {number} {species} {number}")
        for list_name, entries in lines.items():
            write(data / "annotations" / f"{list_name}.txt", *entries)
    elif name == "OxfordFlowers":
        write_mat(data / "imagelabels.mat")
        write_mat(data / "setid.mat")
        if not torchvision:
            write(data / "cat_to_name.json", json.dumps(names))
    elif name == "Food101":
        for list_name in ("train", "test"):
            listed = [(each == "test") == (list_name == "test") for each in SPLITS]
            stems = {k: [file[:-4] for file in compress(v, listed)] for k, v in drawn.items()}
            write(data / "meta" / f"{list_name}.json", json.dumps(stems))
            write(data / "meta" / f"{list_name}.txt", *sum(stems.values(), []))
        write(data / "meta" / "classes.txt", *names)
    elif name == "FGVCAircraft":
        write(data / "variants.txt", *names)
        for in_split, listed in rows.items():
            lines = [f"{path[:-4]} {variant}" for path, _, variant in reversed(listed)]
            write(data / f"images_variant_{in_split}.txt", *lines)
    elif name == "DescribableTextures":
        for in_split, listed in rows.items():
            write(data / "labels" / f"{in_split}1.txt", *(path for path, _, _ in listed))
        write_mat(data / "imdb" / "imdb.mat")
    folder = root / Path(LISTED_IN[name][torchvision]).parts[0]
    if split and name != "FGVCAircraft":  # it has none
        write_split(folder, name, rows)
    return folder


def draw_sun(root, names, torchvision, name, split):
    folder = root if torchvision else root / "sun397"
    images = folder / "SUN397"
    drawn = draw_each(images, list(names), "{key}/sun_a{number}bkdcgfpks.jpg")
    write((images if torchvision else folder) / "ClassName.txt", *(f"/{key}" for key in names))
    if not torchvision:
        rows = split_rows(drawn, names)
        lines = ["/" + path for path, _, _ in rows["train"] + rows["val"]]
        write(folder / "Training_01.txt", *lines)
        write(folder / "Testing_01.txt", *("/" + path for path, _, _ in rows["test"]))
    if split:
        write_split(folder, name, split_rows(drawn, names))
    return images if torchvision else folder


def draw_variant(root, names, torchvision, name, split):
    """Draw one of ImageNet's four other test sets."""
    folder, images, pattern = {
        "ImageNetV2": (
            "imagenetv2",
            "imagenetv2-matched-frequency-format-val",
            "{key}/{number:040x}.jpeg",
        ),
        "ImageNetSketch": ("imagenet-sketch", "images", "{key}/sketch_{number}.JPEG"),
        "ImageNetA": ("imagenet-adversarial", "imagenet-a", "{key}/0.00{number}_fox _ 0.9.jpg"),
        "ImageNetR": ("imagenet-rendition", "imagenet-r", "{key}/art_{number}.jpg"),
    }[name]
    draw_each(root / folder / images, list(names), pattern, count=3)
    if name in ("ImageNetA", "ImageNetR"):
        write(root / folder / images / "README.txt", "200 classes of ImageNet")
    write_classnames(root / folder / "classnames.txt", names)
    return root / folder


if __name__ == "__main__":
    for each in CLASSES:
        print(draw_miniature(Path(sys.argv[1]), each))
