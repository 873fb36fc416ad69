"""The fifteen data sets are recognised as users have them, and read as published."""

import json
import os
import random
import runpy
import shutil
from pathlib import Path

import pytest
from helpers.dataset_miniatures import CLASSES, draw_as_class_folders, draw_miniature, write_split
from helpers.image_folders import draw_class_folders, draw_image

from minidpt.data import naming
from minidpt.data import samples as data
from minidpt.data.datasets import open_dataset
from minidpt.data.layouts import LAYOUTS, layout_of
from minidpt.data.samples import few_shot

NAMES = [layout.name for layout in LAYOUTS]
TEST_ONLY = ["ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"]
LISTED = [name for name in NAMES if name not in TEST_ONLY + ["ImageNet"]]
DOWNLOADED = ["ImageNet", "Caltech101", "OxfordPets", "Food101", "FGVCAircraft", "SUN397"]
DOWNLOADED += ["DescribableTextures", "EuroSAT"]

# Names of classes as prompts read them, in the order of labels, and the zero-shot template.
EXPECTED = {
    "ImageNet": (["tench", "goldfish", "crane bird"], "a photo of a {}."),
    "Caltech101": (["face", "leopard", "crocodile head"], "a photo of a {}."),
    "OxfordPets": (
        ["abyssinian", "american bulldog", "british shorthair"],
        "a photo of a {}, a type of pet.",
    ),
    "StanfordCars": (
        ["2000 AM General Hummer SUV", "2012 Acura TL Sedan", "2012 smart fortwo Convertible"],
        "a photo of a {}.",
    ),
    "OxfordFlowers": (
        ["pink primrose", "hard-leaved pocket orchid", "globe thistle"],
        "a photo of a {}, a type of flower.",
    ),
    "Food101": (["apple pie", "churros", "hot dog"], "a photo of {}, a type of food."),
    "FGVCAircraft": (["707-320", "727-200", "F/A-18"], "a photo of a {}, a type of aircraft."),
    "SUN397": (
        ["abbey", "airplane cabin", "indoor cathedral", "outdoor cathedral"],
        "a photo of a {}.",
    ),
    "DescribableTextures": (["banded", "polka-dotted", "zigzagged"], "{} texture."),
    "EuroSAT": (
        ["Annual Crop Land", "Forest", "Highway or Road", "Sea or Lake"],
        "a centered satellite photo of {}.",
    ),
    "UCF101": (["Apply Eye Makeup", "Tai Chi", "Yo Yo"], "a photo of a person doing {}."),
    "ImageNetV2": (["tench", "goldfish", "crane bird"], "a photo of a {}."),
    "ImageNetSketch": (["tench", "goldfish", "crane bird"], "a photo of a {}."),
    "ImageNetA": (["goldfish", "crane bird"], "a photo of a {}."),
    "ImageNetR": (["goldfish", "crane bird"], "a photo of a {}."),
}


def sizes(dataset) -> tuple[int, int, int]:
    return len(dataset.train), len(dataset.val), len(dataset.test)


def everything(dataset) -> list[data.Sample]:
    return dataset.train + dataset.val + dataset.test


def assert_is(dataset, name: str) -> None:
    """Called as published, and every picture exists and has its class's name and number."""
    classnames, template = EXPECTED[name]
    assert dataset.name == name and dataset.template == template
    assert [own.replace("_", " ") for own in dataset.classnames] == classnames
    for path, label, classname in everything(dataset):
        assert os.path.isfile(path) and classname == dataset.classnames[label]
    assert len({item.path for item in everything(dataset)}) == len(everything(dataset))


# ---- CoOp's layout


@pytest.fixture(scope="module")
def guide(tmp_path_factory) -> dict[str, Path]:
    """All fifteen below one root, as in CoOp's data guide: name -> folder."""
    root = tmp_path_factory.mktemp("guide")
    return {name: draw_miniature(root, name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_every_data_set_of_the_guide_opens_by_its_folder_or_by_root_and_name(guide, name):
    dataset = open_dataset(guide[name], name)
    assert_is(dataset, name)
    assert open_dataset(guide[name].parent, name) == dataset
    if name != "ImageNet":  # three of its classes are not called so by themselves
        assert open_dataset(guide[name]) == dataset
    classes = len(dataset.classnames)
    if name == "ImageNet":
        assert sizes(dataset) == (4 * classes, 0, 2 * classes)
    elif name in TEST_ONLY:
        assert sizes(dataset) == (0, 0, 3 * classes)
    else:
        assert sizes(dataset) == (3 * classes, classes, 2 * classes)


@pytest.mark.parametrize("name", ["Caltech101", "Food101", "EuroSAT", "UCF101", "ImageNetR"])
def test_a_data_set_opens_by_its_folder_of_pictures(guide, name):
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
    assert "not taken for Caltech101; else pass --dataset Caltech101" in dataset.notes[-1]


def test_a_link_to_the_pictures_leads_to_the_split_file(tmp_path):
    folder = draw_miniature(tmp_path / "disk", "Caltech101")
    (tmp_path / "link").symlink_to(folder / "101_ObjectCategories")
    (tmp_path / "caltech-101").mkdir()
    (tmp_path / "caltech-101" / "101_ObjectCategories").symlink_to(tmp_path / "link")
    for path in ("link", "caltech-101", "caltech-101/101_ObjectCategories"):
        dataset = open_dataset(tmp_path / path)
        assert_is(dataset, "Caltech101")
        assert "split_zhou_Caltech101.json" in dataset.source


def test_one_data_set_below_a_root_needs_no_name(tmp_path):
    folder = draw_miniature(tmp_path, "DescribableTextures")
    assert open_dataset(tmp_path) == open_dataset(folder)


def test_source_says_what_was_read(guide):
    sources = {name: open_dataset(guide[name]).source for name in NAMES[1:]}
    sources["ImageNet"] = open_dataset(guide["ImageNet"], "ImageNet").source
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


def test_less_than_the_published_pictures_is_said(guide):
    assert open_dataset(guide["Caltech101"]).notes == (
        "Caltech101 as published has 100 classes and 4128/1649/2465 images: mind this when you "
        "compare",
    )


# classes; train, val, test, as the papers' appendices list them
PUBLISHED = {
    "ImageNet": (1000, 1281167, 0, 50000),
    "Caltech101": (100, 4128, 1649, 2465),
    "OxfordPets": (37, 2944, 736, 3669),
    "StanfordCars": (196, 6509, 1635, 8041),
    "OxfordFlowers": (102, 4093, 1633, 2463),
    "Food101": (101, 50500, 20200, 30300),
    "FGVCAircraft": (100, 3334, 3333, 3333),
    "SUN397": (397, 15880, 3970, 19850),
    "DescribableTextures": (47, 2820, 1128, 1692),
    "EuroSAT": (10, 13500, 5400, 8100),
    "UCF101": (101, 7639, 1898, 3783),
    "ImageNetV2": (1000, 0, 0, 10000),
    "ImageNetSketch": (1000, 0, 0, 50889),
    "ImageNetA": (200, 0, 0, 7500),
    "ImageNetR": (200, 0, 0, 30000),
}


def test_the_table_has_the_published_numbers():
    assert {layout.name: layout.published for layout in LAYOUTS} == PUBLISHED


def test_labels_and_order_of_a_published_split_are_kept(tmp_path):
    folder = draw_miniature(tmp_path, "Caltech101")
    rows = json.loads((folder / "split_zhou_Caltech101.json").read_text())
    random.Random(7).shuffle(rows["train"])
    write_split(folder, "Caltech101", rows)
    dataset = open_dataset(folder)
    root = folder / "101_ObjectCategories"
    found = [[Path(path).relative_to(root).as_posix(), *other] for path, *other in dataset.train]
    assert found == rows["train"]


@pytest.mark.parametrize("name", LISTED)
def test_own_lists_or_class_folders_serve_without_the_split_file(tmp_path, name):
    folder = draw_miniature(tmp_path, name, split=False)
    if name in ("StanfordCars", "OxfordFlowers"):
        with pytest.raises(FileNotFoundError, match=rf"split_zhou_{name}.json.*\.mat files are"):
            open_dataset(folder)
        return
    dataset = open_dataset(folder)
    assert_is(dataset, name)
    if name in ("OxfordPets", "SUN397"):  # own lists; a fifth of 4 for val
        assert sizes(dataset) == tuple(n * len(dataset.classnames) for n in (3, 1, 2))
        tested = {Path(item.path).name for item in dataset.test}
        assert all(("_2." in name or "_6." in name) or "_a" in name for name in tested)
    assert "split_zhou" not in dataset.source
    assert open_dataset(folder, seed=0).test != [] and open_dataset(folder) == dataset


# ---- torchvision's downloads, plain class folders


@pytest.mark.parametrize("name", DOWNLOADED)
def test_downloads_of_torchvision_open(tmp_path, name):
    folder = draw_miniature(tmp_path, name, torchvision=True)
    dataset = open_dataset(folder, name)
    assert_is(dataset, name)
    assert open_dataset(tmp_path, name) == dataset
    if name != "ImageNet":
        assert open_dataset(tmp_path) == dataset == open_dataset(folder)
    classes = len(dataset.classnames)
    assert sizes(dataset) == {
        "ImageNet": (4 * classes, 0, 2 * classes),
        "FGVCAircraft": (3 * classes, classes, 2 * classes),  # own lists
        "DescribableTextures": (3 * classes, classes, 2 * classes),
        "OxfordPets": (3 * classes, classes, 2 * classes),
        "Food101": (3 * classes, classes, 2 * classes),
    }.get(name, (3 * classes, classes, 2 * classes))  # 50/20/30 % of 6: 3, 1, 2


@pytest.mark.parametrize("name", ["OxfordPets", "Food101", "DescribableTextures"])
def test_downloaded_test_lists_are_the_test_set(tmp_path, name):
    dataset = open_dataset(draw_miniature(tmp_path, name, torchvision=True))
    numbers = [int(Path(item.path).stem.rpartition("_")[2][-4:]) for item in dataset.test]
    assert [(number - 1) % 6 + 1 for number in numbers] == [2, 6] * len(dataset.classnames)


@pytest.mark.parametrize("name", ["StanfordCars", "OxfordFlowers"])
def test_downloads_with_mat_files_open_by_the_published_split(tmp_path, name):
    folder = draw_miniature(tmp_path / "download", name, torchvision=True)
    with pytest.raises(FileNotFoundError, match=f"{name} in .*split_zhou_{name}.json"):
        open_dataset(folder)
    guide = draw_miniature(tmp_path / "guide", name)
    shutil.copy(guide / f"split_zhou_{name}.json", folder)
    assert_is(open_dataset(folder), name)


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
    assert_is(dataset, name)
    assert sizes(dataset)[2] == (6 if name in TEST_ONLY else 2) * len(dataset.classnames)


def test_train_and_test_folders_open_by_name(tmp_path):
    draw_class_folders(tmp_path / "train", {"AnnualCrop": 2, "River": 2})
    draw_class_folders(tmp_path / "test", {"AnnualCrop": 1, "River": 1})
    dataset = open_dataset(tmp_path, "eurosat")
    assert dataset.name == "EuroSAT" and dataset.classnames == ["Annual Crop Land", "River"]
    assert sizes(dataset) == (4, 0, 2)


FOLDERS = {name: layout_of(name).folders[0] for name in PLAIN if name != "OxfordFlowers"}


@pytest.mark.parametrize("name", FOLDERS)
def test_plain_class_folders_are_recognised_by_their_folders_name(tmp_path, name):
    folder = draw_as_class_folders(tmp_path / FOLDERS[name], name)
    dataset = open_dataset(folder)
    assert_is(dataset, name)
    assert open_dataset(tmp_path) == dataset
    named = open_dataset(folder, name)
    assert named.test == dataset.test
    assert dataset.source == f"{named.source}, recognised by the name of {folder.name}/"
    assert open_dataset(folder.rename(tmp_path / "mine")).name == "mine"


def test_as_many_class_folders_as_published_are_recognised_by_their_folders_name(tmp_path):
    for number in range(1, 103):
        touch(tmp_path / "oxford_flowers" / str(number), 2)
    dataset = open_dataset(tmp_path / "oxford_flowers")
    assert dataset.name == "OxfordFlowers" and dataset.classnames[-1] == "102"
    assert dataset.template == "a photo of a {}, a type of flower."


def test_train_and_test_folders_and_paths_of_classes_are_recognised_by_the_folders_name(tmp_path):
    for part in ("train", "test"):
        draw_class_folders(tmp_path / "food-101" / part, {"apple_pie": 2, "tacos": 2})
        draw_class_folders(tmp_path / "sun397" / part, {"abbey": 2, "airplane_cabin": 2})
    food, sun = open_dataset(tmp_path / "food-101"), open_dataset(tmp_path / "sun397")
    assert food.name == "Food101" and food.classnames == ["apple pie", "tacos"]
    assert sun.name == "SUN397" and sun.classnames == ["abbey", "airplane cabin"]
    assert sizes(food) == sizes(sun) == (4, 0, 4)
    draw_class_folders(tmp_path / "paths" / "SUN397", {"a/abbey": 3, "c/cathedral/indoor": 3})
    nested = open_dataset(tmp_path / "paths" / "SUN397")
    assert nested.name == "SUN397" and nested.classnames == ["abbey", "indoor cathedral"]
    draw_image(tmp_path / "paths" / "SUN397" / "b.png")
    loose = "not read: 1 image in no class folder, first b.png"
    draw_class_folders(tmp_path / "imagenet-r", {"n01440764": 1, "n01443537": 1})
    draw_image(tmp_path / "imagenet-r" / "b.png")  # the folder is data folder and test part in one
    assert loose in open_dataset(tmp_path / "imagenet-r").notes
    (tmp_path / "paths" / "SUN397" / "c.psd").touch()  # told of once
    found = [n for n in open_dataset(tmp_path / "paths" / "SUN397").notes if "not read" in n]
    assert found == ["not read: 1 .psd (convert or rename images)", loose]


@pytest.mark.parametrize("folder", ["dtd", "DescribableTextures", "caltech-101"])
def test_a_folders_name_alone_does_not_rename_its_classes(tmp_path, folder):
    dataset = open_dataset(draw_class_folders(tmp_path / folder, {"cat_A": 4, "dog_B": 4}))
    named = {"DescribableTextures": "DescribableTextures-2"}.get(folder, folder)
    assert dataset.name == named and dataset.classnames == ["cat A", "dog B"]
    assert dataset.template == "a photo of a {}."
    name = layout_of(folder).name
    assert f"not taken for {name}; else pass --dataset {name}" in dataset.notes[0]
    assert open_dataset(tmp_path / folder, name).name == name  # if the caller says so


@pytest.mark.parametrize("plain", [False, True])
def test_a_folder_of_another_data_set_is_refused(tmp_path, plain):
    if plain:
        folder = draw_as_class_folders(tmp_path / "food-101", "Food101")
    else:
        folder = draw_miniature(tmp_path, "Food101", split=False)
    wrong = "expected DescribableTextures, got Food101: pass --dataset Food101"
    for path in [folder] if plain else [folder, folder / "images"]:
        with pytest.raises(ValueError, match=wrong) as error:
            open_dataset(path, "DescribableTextures")
        to_single_line(error, path)


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
    assert_is(open_dataset(plain, "DescribableTextures"), "DescribableTextures")
    rows = [f"{key}/{number}.jpg,{key[0]}" for key in ("banded", "zigzagged") for number in (1, 2)]
    (plain / "labels.csv").write_text("\n".join(["path,label", *rows]))  # ours
    assert open_dataset(plain, "DescribableTextures").classnames == ["b", "z"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("caltech101", "Caltech101"),
        ("CALTECH-101", "Caltech101"),
        ("oxford_pets", "OxfordPets"),
        ("OxfordIIITPet", "OxfordPets"),
        ("flowers102", "OxfordFlowers"),
        ("dtd", "DescribableTextures"),
        ("fgvc-aircraft", "FGVCAircraft"),
        ("imagenet_v2", "ImageNetV2"),
        ("ImageNet-A", "ImageNetA"),
        ("sun397", "SUN397"),
    ],
)
def test_names_are_found_in_any_spelling(name, expected):
    assert layout_of(name).name == expected


# ---- ImageNet and its test sets


def test_built_in_names_are_those_of_imagenet():
    names = naming.imagenet_classnames()
    assert len(names) == 1000 and list(names) == sorted(names)
    assert names["n02119789"] == "kit fox" and names["n15075141"] == "toilet paper"


def test_names_beside_the_pictures_go_before_the_built_in_ones(tmp_path):
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
    for part in ("train", "val"):
        for wordnet_id in ids:
            touch(tmp_path / folder / part / wordnet_id, 1)
    dataset = open_dataset(tmp_path / folder)
    assert dataset.name == name and dataset.classnames[:2] == ["tench", "goldfish"]
    assert sizes(dataset) == (count, 0, count)
    if name != "ImageNet":
        assert f"{count} of ImageNet's 1000 classes" in dataset.notes[-1]
    named = open_dataset(tmp_path / folder, "ImageNet")
    assert named.name == "ImageNet" and named.test == dataset.test


def test_a_test_folder_of_wordnet_ids_is_the_test(tmp_path):
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        draw_class_folders(tmp_path / part, {"n01440764": count, "n01443537": count})
    dataset = open_dataset(tmp_path)
    assert dataset.classnames == ["tench", "goldfish"] and sizes(dataset) == (8, 4, 6)
    assert all("/test/" in item.path for item in dataset.test)
    shutil.rmtree(tmp_path / "test")
    draw_image(tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG")  # ImageNet's own has no classes
    assert sizes(open_dataset(tmp_path)) == (8, 0, 4)
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


def test_test_sets_have_no_few_shots(guide):
    with pytest.raises(ValueError, match="ImageNetA: expected training .* only a test set"):
        few_shot(open_dataset(guide["ImageNetA"]), 1, seed=1)


# ---- the published draw


def sample(generator: random.Random, items: list, count: int) -> list:
    """random.sample, written down from its description for this few items: swap and shrink."""
    pool, drawn = list(items), []
    for taken in range(count):
        left = len(pool) - taken
        place = generator.getrandbits(left.bit_length())
        while place >= left:
            place = generator.getrandbits(left.bit_length())
        drawn.append(pool[place])
        pool[place] = pool[left - 1]
    return drawn


@pytest.mark.parametrize(("shots", "seed"), [(1, 0), (2, 1), (2, 2), (5, 3), (16, 1)])
def test_few_shots_of_a_split_file_are_the_published_draw(tmp_path, shots, seed):
    folder, rows, numbers = tmp_path / "eurosat", {"train": [], "val": [], "test": []}, range(30)
    for key, label in [("River", 1), ("Forest", 0), ("SeaLake", 2)]:  # first appearance: 1, 0, 2
        for number in numbers:
            part = ("train", "train", "val", "test")[number % 4]
            path = f"{key}/{key}_{number}.jpg"
            rows[part].append([path, label, key])
            (folder / "2750" / key).mkdir(parents=True, exist_ok=True)
            (folder / "2750" / path).touch()
    random.Random(5).shuffle(rows["train"])
    rows["train"].sort(key=lambda row: row[1] == 2)  # mixed, but label 2 comes last
    write_split(folder, "EuroSAT", rows)

    generator = random.Random(seed)
    expected = {}
    for part, count in [("train", shots), ("val", min(shots, 4))]:
        by_label: dict[int, list[str]] = {}
        for path, label, _ in rows[part]:
            by_label.setdefault(label, []).append(path)
        expected[part] = []
        for own in by_label.values():
            expected[part] += sample(generator, own, count) if len(own) >= count else own
    drawn = few_shot(open_dataset(folder), shots, seed)
    for part, paths in expected.items():
        found = [Path(i.path).relative_to(folder / "2750").as_posix() for i in getattr(drawn, part)]
        assert found == paths, part
    assert drawn.test == open_dataset(folder).test


# ---- mistakes


def to_single_line(error, root) -> str:
    message = str(error.value)
    assert str(root) in message and "\n" not in message and ": expected " in message
    return message


def test_unknown_name_lists_the_choices(tmp_path):
    with pytest.raises(ValueError, match="expected one of ImageNet, Caltech101.*, got 'cifar10'"):
        open_dataset(tmp_path, "cifar10")


def test_several_data_sets_are_listed(guide):
    with pytest.raises(ValueError, match="got ImageNet, Caltech101, .* pass --dataset") as error:
        open_dataset(guide["ImageNet"].parent)
    to_single_line(error, guide["ImageNet"].parent)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_is_looked_for_and_said(tmp_path, name):
    (tmp_path / "something").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        open_dataset(tmp_path, name)
    message = to_single_line(error, tmp_path)
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
def test_lists_without_their_pictures_are_recognised(tmp_path, name):
    folder = draw_miniature(tmp_path, name)
    for images in layout_of(name).images:
        if images != ".":
            shutil.rmtree(folder / images, ignore_errors=True)
    if name == "StanfordCars":
        shutil.rmtree(folder / "cars_train")
    with pytest.raises(FileNotFoundError) as error:
        open_dataset(folder)
    to_single_line(error, folder)


@pytest.mark.parametrize("name", LISTED)
def test_missing_pictures_are_counted_and_the_first_named(tmp_path, name):
    folder = draw_miniature(tmp_path, name)
    gone = open_dataset(folder).train[0].path
    os.remove(gone)
    with pytest.raises(FileNotFoundError, match="expected all its images .* 1 missing") as error:
        open_dataset(folder)
    assert gone in to_single_line(error, folder)


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
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        open_dataset(folder)
    assert file in to_single_line(error, folder)


def test_class_that_only_a_test_list_has_is_named(tmp_path):
    folder = draw_miniature(tmp_path, "DescribableTextures", split=False)
    draw_image(folder / "images" / "woven" / "woven_0001.jpg")
    with open(folder / "labels" / "test1.txt", "a") as file:
        file.write("woven/woven_0001.jpg\n")
    with pytest.raises(ValueError, match="expected only classes of train, got 'woven' in test"):
        open_dataset(folder)


def test_nothing_is_written_into_any_data_folder(guide):
    root = guide["ImageNet"].parent
    before = sorted((p, p.stat().st_mtime_ns) for p in root.rglob("*"))
    for name in NAMES:
        open_dataset(root, name)
    assert sorted((p, p.stat().st_mtime_ns) for p in root.rglob("*")) == before
