"""What lies in a folder: images, folders of classes, train/ val/ test/ of them.

files of each split and class (`Splits`), what classes are called (`Naming`) -> assemble -> Dataset
"""

import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

from ..images.decode import MORE_FORMATS, formats
from .layouts import plain
from .naming import Naming
from .samples import SPLITS, Dataset, Sample, make_dataset

IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", *chain(*MORE_FORMATS.values())),
}
SPLIT_NAMES = {  # what a folder, or a cell of a CSV file, calls a split
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
IN_ORDER = ("all", "train", "test", "val")  # the first that is there has all classes
_OF_SYSTEMS = {  # folders of network disks, of Windows, macOS, Unix and Python, in lower case; no
    # words that a class may be called by, such as Windows XP's RECYCLER
    *("@eadir", "@recycle", "@tmp", "@synoresource", "@sharebin", "#recycle", "#snapshot"),
    *("$recycle.bin", "system volume information", "found.000", "lost+found", "__macosx"),
    *("network trash folder", "~snapshot", "__pycache__"),
}
UNREAD_SUFFIXES = {  # of images in formats that are not read
    *(".heics", ".heifs", ".avifs", ".jp2", ".j2k", ".psd", ".svg", ".eps", ".ico", ".tga", ".dcm"),
    *(".exr", ".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef"),
}


def image_suffixes() -> set[str]:
    """Return `IMAGE_SUFFIXES` without those of formats that this Pillow has not."""
    missing = MORE_FORMATS.keys() - set(formats())
    return IMAGE_SUFFIXES - {suffix for name in missing for suffix in MORE_FORMATS[name]}


class ImageFiles(list[str]):
    """The paths of images, and of how many more the format is not read, by their suffix."""

    unread: Counter[str]


def _visible(folder: str | os.PathLike) -> Iterator[os.DirEntry]:
    """Scan a folder without what is hidden, and folders that systems make for themselves."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.lower() not in _OF_SYSTEMS:
                yield entry


def sub_folders(folder: Path) -> list[Path]:
    """List the visible folders in a folder, by name."""
    return [folder / name for name in sorted(e.name for e in _visible(folder) if e.is_dir())]


def holds_images(folder: str | os.PathLike) -> bool:
    """Return whether images lie directly in a folder."""
    suffixes = tuple(image_suffixes())
    return any(e.name.lower().endswith(suffixes) and e.is_file() for e in _visible(folder))


def images_in(folder: str | os.PathLike) -> ImageFiles:
    """List the image files in a folder and its sub-folders, sorted; hidden ones are left out.

    Links to folders are followed, but never to a folder that was seen or that contains this one.
    The system is asked about folders and links only, not about each file: a million files take
    seconds. Raises FileNotFoundError for a link to nothing.
    """
    suffixes = tuple(image_suffixes())
    seen = set(map(str, Path(folder).resolve().parents))
    files, waiting = ImageFiles(), [os.fspath(folder)]
    files.unread = Counter()
    while waiting:
        current = waiting.pop()
        if (identity := os.path.realpath(current)) in seen:
            continue
        seen.add(identity)
        for entry in _visible(current):
            if entry.is_dir():
                waiting.append(entry.path)
            elif not entry.name.lower().endswith(suffixes):
                if kind := _unread_kind(entry):
                    files.unread[kind] += 1
            elif entry.is_file():
                files.append(entry.path)
            elif entry.is_symlink():
                raise FileNotFoundError(f"image {entry.path}: expected a file, got a broken link")
    files.sort()
    return files


def _unread_kind(entry: os.DirEntry) -> str:
    """Return the suffix of a file that is an unread image, or "without ending"; else nothing."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in UNREAD_SUFFIXES or suffix in IMAGE_SUFFIXES:
        return suffix
    return "" if suffix or not entry.is_file() else "without ending"


def unread_notes(unread: Counter[str]) -> list[str]:
    """Note how many images are not read, of which kinds, if there are any."""
    kinds = sorted(unread.items(), key=lambda kind: (-kind[1], kind))
    named = ", ".join(f"{count} {what}" for what, count in kinds)
    return [f"not read: {named} (convert or rename images)"] if named else []


def loose_notes(*folders: Path) -> tuple[str, ...]:
    """Note the images beside class folders in `folders`, the data folder first."""
    suffixes, loose = tuple(image_suffixes()), []
    for folder in dict.fromkeys(folders):
        loose += sorted(
            os.path.relpath(entry.path, folders[0])
            for entry in _visible(folder)
            if entry.is_file()
            if entry.name.lower().endswith(suffixes) or _unread_kind(entry)
        )
    return in_no_class(loose)


def in_no_class(loose: list[str]) -> tuple[str, ...]:
    """Note images by their paths, if there are any."""
    images = "1 image" if len(loose) == 1 else f"{len(loose)} images"
    return (f"not read: {images} in no class folder, first {loose[0]}",) if loose else ()


def contents(folder: Path) -> str:
    """Describe what lies in a folder, in a few words for an error."""
    names = sorted(f"{e.name}/" if e.is_dir() else e.name for e in _visible(folder))
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more if names else "no folder and no file"


# split ("all": to be split by class) -> class, as its folder or label is called -> its files
Splits = dict[str, dict[str, list[str]]]


def assemble(
    root: Path, splits: Splits, naming: Naming, how: str, seed: int, keys: list[str] | None = None
) -> Dataset:
    """Make a Dataset of the files of each split and class.

    `keys` are the classes in the order of labels (None: sorted; those of the first split count).
    "all" is split by class, 50 % train, 20 % val, 30 % test, with `seed`, or is the test. Without
    "test", "val" is the test; without "train", it is a test set only. Every class must have an
    image in the first split.
    """
    first = next(iter(splits))
    keys = keys or naming.ordered(splits[first])
    names, notes = naming.classnames(root, keys)
    lists = [files for by_class in splits.values() for files in by_class.values()]
    unread = sum((files.unread for files in lists if isinstance(files, ImageFiles)), Counter())
    notes += unread_notes(unread)
    if empty := [key for key in keys if not splits[first].get(key)]:
        fix = "; ".join([*unread_notes(unread), "add some or remove the class"])
        got = f"none for '{empty[0]}' ({len(empty)} such); {fix}"
        raise ValueError(f"data folder {root}: expected images of every class, got {got}")
    if is_split_drawn := "all" in splits and naming.draws_split:
        splits = _split_by_class({key: splits["all"][key] for key in keys}, seed)
        how += f", no split file: drawn 50/20/30 % with the fixed seed {seed}"
    elif "all" in splits:
        splits, how = {"test": splits["all"]}, f"{how}, no split file: all of them are the test"
    elif "test" not in splits and "val" in splits:
        splits = {**splits, "test": splits["val"], "val": {}}
        how += " (no labelled test, so val is the test set)"
    if not any(splits.get("test", {}).values()):
        raise ValueError(f"data folder {root}: expected images for the test, got none: add some")

    listed: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    labels = {key: label for label, key in enumerate(names)}
    for split, by_class in splits.items():
        for key, files in by_class.items():
            if key not in labels:
                got = f"'{key}' in {split}"
                alike = [other for other in labels if plain(other) == plain(key)]
                got += f", '{alike[0]}' but for capitals, - or _: rename" if alike else ": remove"
                raise ValueError(f"data in {root}: expected only classes of {first}, got {got} it")
            listed[split] += map(Sample, files, repeat(labels[key]), repeat(names[key]))
    name = naming.name or root.resolve().name
    classnames = list(names.values())
    dataset = make_dataset(name, root, classnames, naming.template, listed, how, notes)
    dataset = replace(
        dataset, class_keys=list(names), is_split_drawn=is_split_drawn,
        allow_duplicates=len(set(map(str.casefold, classnames))) < len(classnames),
    )  # fmt: skip
    return naming.credit(dataset, keys)


def _split_by_class(files: dict[str, list[str]], seed: int) -> Splits:
    """Draw 50 % train, 20 % val, 30 % test; of two images one for training, one for the test."""
    generator = random.Random(seed)
    splits: Splits = {split: {} for split in SPLITS}
    for key, of_class in files.items():
        shuffled = list(of_class)
        generator.shuffle(shuffled)
        count = len(shuffled)
        train = max(1, round(0.5 * count))
        val = max(0, min(round(0.2 * count), count - train - 1))
        splits["train"][key] = shuffled[:train]
        splits["val"][key] = shuffled[train : train + val]
        splits["test"][key] = shuffled[train + val :]
    return splits
