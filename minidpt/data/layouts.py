"""The fifteen data sets of few-shot CLIP research: folders, lists, class names, templates.

They are those of CoOp's data guide (github.com/KaiyangZhou/CoOp, DATASETS.md) and of torchvision's
downloads. datasets.py tells them apart and reads them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..support.files import input_error
from .naming import Naming
from .samples import SPLITS


def year_first(key: str) -> str:
    """Put the year first: Acura TL Sedan 2012 -> 2012 Acura TL Sedan."""
    *words, year = re.split("[ _]+", key)
    return " ".join([year, *words])


def capitals(key: str) -> str:
    """Split at capitals: ApplyEyeMakeup, Apply_Eye_Makeup -> Apply Eye Makeup."""
    return " ".join(re.findall("[A-Z][^A-Z_]*", key)) or key


def without_letter_reversed(key: str) -> str:
    """Turn folders around: c/cathedral/indoor -> indoor cathedral."""
    parts = key.split("/")
    return " ".join(reversed(parts[1:] if len(parts[0]) == 1 else parts))


# Lines of lists of images, which lack their ".jpg"
IN_FOLDER = r"/*(?P<image>(?P<key>.*[^/])/+[^/]+?)(\.jpg)?/*"  # apple_pie/1005649
PET = r"(?P<image>(?P<key>\S+)_\S*).*"  # Abyssinian_100 1 1 1
VARIANT = r"(?P<image>\S*) (?P<key>.+)"  # 1025794 707-320


@dataclass(frozen=True, kw_only=True)
class Layout(Naming):
    """Where the files of a data set lie. Paths start from its folder, unless said."""

    folders: tuple[str, ...]  # what its folder is called below a root (CoOp's name first)
    published: tuple[int, int, int, int]  # classes; train, val and test images
    images: tuple[str, ...] = ("images",)  # where its images lie, the first that is there
    markers: tuple[str, ...] = ()  # what only it has (patterns); if none, the folder of its images
    rule: Callable[[str], str] = str  # hyphens and capitals are part of the published names
    inner: str = ""  # one more folder, in torchvision's downloads
    lists: Mapping[str, str] = field(default_factory=dict)  # split -> list of its images
    entry: str = IN_FOLDER  # pattern of a line in these
    order: str = ""  # list of all classes, in the order of labels
    names: str = ""  # file of "folder name" lines
    splits: Mapping[str, str] = field(default_factory=dict)  # split -> its class folders, in images
    numbered: bool = False  # folder 7 is the 8th of `names`
    nested: bool = False  # classes are the innermost folders
    has_split_file: bool = True  # CoOp made a split file of it
    classes: tuple[str, ...] = ()  # some class folders, to know it by where only its name tells
    folder: Path = Path()  # where it lies, and the folder of its images, once they are found
    root: Path = Path()

    def file(self, name: str) -> Path | None:
        """Find a list that belongs to it: in its folder, with the images, or beside either."""
        beside = (self.folder, self.root, self.folder.parent, self.root.resolve().parent)
        return next((where / name for where in beside if (where / name).is_file()), None)

    def is_called(self, name: str) -> bool:
        """Return whether that is its name, or what its folder is called."""
        return plain(name) in map(plain, (self.name, *self.folders))

    @property
    def split_file(self) -> str:
        """CoOp's list of the published train, val and test images, if there is one."""
        return f"split_zhou_{self.name}.json" if self.has_split_file else ""


_imagenet_test_set = partial(
    Layout, has_split_file=False, splits={"test": "."}, names="classnames.txt"
)
# fmt: off
LAYOUTS = (
    Layout(
        name="ImageNet", folders=("imagenet", "ILSVRC2012"), images=("images", "."),
        markers=("images/train/n[01]*", "train/n[01]*"), has_split_file=False,
        splits={"train": "train", "test": "val"}, names="classnames.txt",
        published=(1000, 1_281_167, 0, 50_000),
    ),
    Layout(
        name="Caltech101", folders=("caltech-101", "caltech101"), images=("101_ObjectCategories",),
        dropped=("BACKGROUND_Google", "Faces_easy"),
        renamed={"airplanes": "airplane", "Faces": "face", "Leopards": "leopard",
                 "Motorbikes": "motorbike"},
        classes=("accordion", "yin_yang"), published=(100, 4_128, 1_649, 2_465),
    ),
    Layout(
        name="OxfordPets", folders=("oxford_pets", "oxford-iiit-pet"),
        markers=("annotations/trainval.txt",),
        lists={"train": "annotations/trainval.txt", "test": "annotations/test.txt"}, entry=PET,
        sort=str.lower, rule=str.lower, classes=("Abyssinian", "yorkshire_terrier"),
        template="a photo of a {}, a type of pet.", published=(37, 2_944, 736, 3_669),
    ),
    Layout(
        name="StanfordCars", folders=("stanford_cars",), images=(".",),
        markers=("cars_train", "cars_test"), rule=year_first,
        classes=("AM General Hummer SUV 2000", "smart fortwo Convertible 2012"),
        published=(196, 6_509, 1_635, 8_041),
    ),
    Layout(
        name="OxfordFlowers", folders=("oxford_flowers", "flowers-102"), images=("jpg",),
        markers=("imagelabels.mat", "cat_to_name.json"), names="cat_to_name.json",
        template="a photo of a {}, a type of flower.", published=(102, 4_093, 1_633, 2_463),
    ),
    Layout(
        name="Food101", folders=("food-101",), markers=("meta/train.json", "meta/train.txt"),
        lists={"train": "meta/train.json", "test": "meta/test.json"},
        classes=("apple_pie", "waffles"), template="a photo of {}, a type of food.",
        published=(101, 50_500, 20_200, 30_300),
    ),
    Layout(
        name="FGVCAircraft", folders=("fgvc_aircraft", "fgvc-aircraft-2013b"), inner="data",
        markers=("images_variant_train.txt",), has_split_file=False,
        lists={split: f"images_variant_{split}.txt" for split in SPLITS}, entry=VARIANT,
        order="variants.txt", classes=("707-320", "Yak-42"),
        template="a photo of a {}, a type of aircraft.", published=(100, 3_334, 3_333, 3_333),
    ),
    Layout(
        name="SUN397", folders=("sun397",), images=("SUN397", "."),
        markers=("SUN397/[a-z]", "ClassName.txt"),
        lists={"train": "Training_01.txt", "test": "Testing_01.txt"}, order="ClassName.txt",
        nested=True, rule=without_letter_reversed, classes=("a", "abbey", "zoo"),
        published=(397, 15_880, 3_970, 19_850),
    ),
    Layout(
        name="DescribableTextures", folders=("dtd", "describable_textures"), inner="dtd",
        markers=("labels/train1.txt",), lists={split: f"labels/{split}1.txt" for split in SPLITS},
        classes=("banded", "zigzagged"), template="{} texture.",
        published=(47, 2_820, 1_128, 1_692),
    ),
    Layout(
        name="EuroSAT", folders=("eurosat", "EuroSAT_RGB"), images=("2750", "."),
        markers=("2750/[A-Z]*", "AnnualCrop/AnnualCrop_*", "SeaLake/SeaLake_*"),
        renamed={
            "AnnualCrop": "Annual Crop Land", "Highway": "Highway or Road",
            "HerbaceousVegetation": "Herbaceous Vegetation Land", "Pasture": "Pasture Land",
            "Industrial": "Industrial Buildings", "PermanentCrop": "Permanent Crop Land",
            "Residential": "Residential Buildings", "SeaLake": "Sea or Lake",
        },
        template="a centered satellite photo of {}.", published=(10, 13_500, 5_400, 8_100),
    ),
    Layout(
        name="UCF101", folders=("ucf101",), images=("UCF-101-midframes",), rule=capitals,
        classes=("ApplyEyeMakeup", "YoYo"), template="a photo of a person doing {}.",
        published=(101, 7_639, 1_898, 3_783),
    ),
    _imagenet_test_set(
        name="ImageNetV2", folders=("imagenetv2",),
        images=("imagenetv2-matched-frequency-format-val",), numbered=True,
        published=(1000, 0, 0, 10_000),
    ),
    _imagenet_test_set(
        name="ImageNetSketch", folders=("imagenet-sketch",), images=("images", "sketch"),
        markers=("sketch/n[01]*",), published=(1000, 0, 0, 50_889),
    ),
    _imagenet_test_set(
        name="ImageNetA", folders=("imagenet-adversarial",), images=("imagenet-a",),
        published=(200, 0, 0, 7_500),
    ),
    _imagenet_test_set(
        name="ImageNetR", folders=("imagenet-rendition",), images=("imagenet-r",),
        published=(200, 0, 0, 30_000),
    ),
)
# fmt: on


def layout_of(name: str) -> Layout:
    """Return the layout called so, or whose folder is; case, - and _ do not count.

    Raises ValueError with the choices.
    """
    for layout in LAYOUTS:
        if layout.is_called(name):
            return layout
    choices = ", ".join(layout.name for layout in LAYOUTS)
    raise input_error("data set", f"one of {choices}", f"'{name}'")


def plain(name: str) -> str:
    """Reduce a name to lower case, without - and _, to compare."""
    return re.sub(r"[-_ ]", "", name).lower()
