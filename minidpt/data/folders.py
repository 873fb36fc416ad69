"""What lies in a folder: images, folders of classes, train/ val/ test/ of them.

files of each split and class (`Splits`), what classes are called (`Naming`) -> assemble -> Dataset
"""

import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
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
_UNREAD = {  # suffixes of images in formats that are not read, or not by every Pillow
    *IMAGE_SUFFIXES,
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


FOLDER, IMAGE, LINK = "folder", "image", "link"  # kinds of `scan`; the last leads nowhere


def scan(folder: str | os.PathLike) -> Iterator[tuple[str, str, str]]:
    """Yield the name, path and kind of all but what is hidden or made by systems for themselves.

    Kinds: FOLDER, IMAGE, LINK (called as an image, but broken or circular), of images that are not
    read their suffix or "without ending", of all else "".
    """
    suffixes = image_suffixes()
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.lower() not in _OF_SYSTEMS:
                yield entry.name, entry.path, _kind(entry, suffixes)


def _kind(entry: os.DirEntry, suffixes: set[str]) -> str:
    suffix = os.path.splitext(entry.name)[1].lower()
    with suppress(OSError):  # a link that leads to itself
        if entry.is_dir():
            return FOLDER
        if entry.is_file():
            if suffix in suffixes:
                return IMAGE
            return suffix if suffix in _UNREAD else "" if suffix else "without ending"
    return LINK if suffix in suffixes and entry.is_symlink() else ""


def sub_folders(folder: Path) -> list[Path]:
    """List the visible folders in a folder, by name."""
    return [folder / name for name in sorted(n for n, _, kind in scan(folder) if kind == FOLDER)]


def holds_images(folder: str | os.PathLike) -> bool:
    """Return whether images lie directly in a folder."""
    return any(kind == IMAGE for _, _, kind in scan(folder))


def images_in(folder: str | os.PathLike) -> ImageFiles:
    """List the image files in a folder and its sub-folders, sorted; hidden ones are left out.

    Links to folders are followed, but never to a folder that was seen or that contains this one.
    Raises FileNotFoundError for a link to nothing.
    """
    seen = set(map(str, Path(folder).resolve().parents))
    files, waiting = ImageFiles(), [os.fspath(folder)]
    files.unread = Counter()
    while waiting:
        current = waiting.pop()
        if (identity := os.path.realpath(current)) in seen:
            continue
        seen.add(identity)
        for _, path, kind in scan(current):
            if kind == FOLDER:
                waiting.append(path)
            elif kind == IMAGE:
                files.append(path)
            elif kind == LINK:
                raise FileNotFoundError(f"image {path}: expected a file, got a broken link")
            elif kind:
                files.unread[kind] += 1
    files.sort()
    return files


def unread_notes(unread: Counter[str]) -> list[str]:
    """Note how many images are not read, of which kinds, if there are any."""
    named = ", ".join(f"{count} {kind}" for kind, count in sorted(unread.items()))
    return [f"not read: {named} (convert or rename images)"] if named else []


def ignored_notes(folder: Path) -> list[str]:
    """Note the folders that systems have made for themselves, such as __MACOSX, if any."""
    names = sorted(f"{name}/" for name in os.listdir(folder) if name.lower() in _OF_SYSTEMS)
    return [f"ignored: {shorten(names)}"] if names else []


def loose_notes(*folders: Path) -> tuple[str, ...]:
    """Note the images beside class folders in `folders`, the data folder first."""
    loose = []
    for folder in dict.fromkeys(folders):
        paths = (path for _, path, kind in scan(folder) if kind not in ("", FOLDER, LINK))
        loose += sorted(os.path.relpath(path, folders[0]) for path in paths)
    return in_no_class(loose)


def in_no_class(loose: list[str]) -> tuple[str, ...]:
    """Note images by their paths, if there are any."""
    images = "1 image" if len(loose) == 1 else f"{len(loose)} images"
    return (f"not read: {images} in no class folder, first {loose[0]}",) if loose else ()


def contents(folder: Path) -> str:
    """Describe what lies in a folder, in a few words for an error."""
    names = sorted(f"{name}/" if kind == FOLDER else name for name, _, kind in scan(folder))
    return shorten(names, 6) or "no folder and no file"


def shorten(names: list[str], count: int = 3) -> str:
    """Join the first of some names, and say how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


# split ("all": to be split by class) -> class, as its folder or label is called -> its files
Splits = dict[str, dict[str, list[str]]]


def assemble(
    root: Path,
    splits: Splits,
    naming: Naming,
    how: str,
    notes: Iterable[str] = (),
    keys: list[str] | None = None,
) -> Dataset:
    """Make a Dataset of the files of each split and class; `how` and `notes` are told in it.

    `keys` are the classes in the order of labels (None: those of the first split, sorted), each
    with an image in the first split. "all" is split by class, or is the test. Without "test",
    "val" is the test; without "train", it is a test set only.
    """
    first = next(iter(splits))
    keys = keys or naming.ordered(splits[first])
    names, shared_names = naming.classnames(root, keys)
    lists = [files for by_class in splits.values() for files in by_class.values()]
    unread = sum((files.unread for files in lists if isinstance(files, ImageFiles)), Counter())
    if empty := [key for key in keys if not splits[first].get(key)]:
        fix = "; ".join([*unread_notes(unread), "add some or remove the class"])
        got = f"none for '{empty[0]}' ({len(empty)} such); {fix}"
        raise ValueError(f"data folder {root}: expected images of every class, got {got}")
    if is_split_drawn := "all" in splits and naming.draws_split:
        splits = _split_by_class({key: splits["all"][key] for key in keys}, naming.seed)
        how += f", no split file: drawn 50/20/30 % with the fixed seed {naming.seed}"
    elif "all" in splits:
        splits, how = {"test": splits["all"]}, f"{how}, no split file: every image is a test image"
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
                got += f" for '{alike[0]}': rename" if alike else ": remove"
                raise ValueError(f"data in {root}: expected only classes of {first}, got {got} it")
            listed[split] += map(Sample, files, repeat(labels[key]), repeat(names[key]))
    name, classnames = naming.name or root.resolve().name, list(names.values())
    dataset = make_dataset(
        name, root, classnames, listed, how, template=naming.template, class_keys=list(names),
        notes=(*shared_names, *unread_notes(unread)), is_split_drawn=is_split_drawn,
        allow_duplicates=len(set(map(str.casefold, classnames))) < len(classnames),
    )  # fmt: skip
    return naming.credit(dataset, keys).with_notes(*naming.notes, *notes)


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
