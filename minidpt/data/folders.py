"""What lies in a folder: images, folders of classes, train/ val/ test/ of them, a CSV file.

files of each split and class (`Splits`), what classes are called (`Naming`) -> assemble -> Dataset
"""

import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice, repeat
from pathlib import Path

from ..images.decode import MORE_FORMATS, formats
from ..support.files import MAX_CLASSES
from .layouts import plain
from .naming import Naming, read_rows
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
MANY = 1000  # missing files are enough to know of
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
LABELS = "labels.csv"  # in a folder: lists its images
_COLUMNS = {  # what a column means, by its name: letters and digits only, no s at the end
    "path": {"path", "file", "filename", "filepath", "image", "imagename", "imagepath", "img"},
    "label": {"label", "lbl", "class", "classname", "category"},
    "split": {"split", "part", "subset", "set"},
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


def describe_missing(missing: list[str]) -> str:
    """Say how many files are missing, and the first of them."""
    more = " or more" if len(missing) == MANY else ""
    there = " (which is no regular file)" if os.path.lexists(missing[0]) else ""
    return f"{len(missing)}{more} missing, the first {missing[0]}{there}"


def missing_files(paths: Iterable[str]) -> list[str]:
    """List those of the paths that are no regular files, nor links to one; at most `MANY`.

    Folders with many of them are listed: on a network disk much faster than to ask for each.
    """
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        by_folder.setdefault(os.path.dirname(path), []).append(path)
    missing: list[str] = []
    for folder, asked in by_folder.items():
        if len(asked) > 20 and os.path.isdir(folder):
            wanted = set(map(os.path.basename, asked))
            with os.scandir(folder) as entries:
                there = {e.name for e in entries if e.name in wanted and e.is_file()}
            asked = [path for path in asked if os.path.basename(path) not in there]
        others = (path for path in dict.fromkeys(asked) if not os.path.isfile(path))
        missing += islice(others, MANY - len(missing))
        if len(missing) == MANY:
            break
    return missing


# split ("all": to be split by class) -> class, as its folder or label is called -> its files
Splits = dict[str, dict[str, list[str]]]


def assemble(
    root: Path, splits: Splits, naming: Naming, how: str, seed: int, keys: list[str] | None = None
) -> Dataset:
    """Make a Dataset of the files of each split and class.

    `keys` are the classes in the order of labels (None: sorted; those of the first split count).
    "all" is split by class, 50 % train, 20 % val, 30 % test, with `seed`. Without "test", "val" is
    the test; without "train", it is a test set only. Every class must have an image in the first
    split.
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
    if "all" in splits:
        splits = _split_by_class({key: splits["all"][key] for key in keys}, seed)
        how += f", no split file: drawn 50/20/30 % with the fixed seed {seed}"
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


def open_csv(path: Path, naming: Naming, seed: int) -> Dataset:
    """Open the data set of a CSV file of `path,label[,split]`; paths start from its folder.

    Its `root` is the innermost folder around the images: the file may lie anywhere.
    A header may name these columns in any order, among others. Without one, the first row must
    begin with an image file. The split is train, val or test; without one, it is drawn. Raises
    ValueError or FileNotFoundError with the line's number.
    """
    where = f"labels {path}"
    start = os.path.join(os.path.abspath(path.parent), "")
    columns, width, rows, notes = _read_table(path, where)
    at_path, at_label, at_split = map(columns.get, _COLUMNS)
    needed = 1 + max(columns.values())
    splits: Splits = {}
    lines: dict[str, int] = {}  # image -> line
    for line, row in rows:
        complete = len(row) == width or len(row) >= needed and not any(row[width:])
        split = "all" if at_split is None else complete and SPLIT_NAMES.get(row[at_split].lower())
        if not (complete and row[at_path] and row[at_label] and split):
            expected = "path, label" if at_split is None else "path, label, train, val or test"
            got = f"{','.join(row)} ({len(row)} cells for {width} columns)"
            raise ValueError(f"{where}, line {line}: expected {expected}, got {got}")
        file = os.path.join(start, row[at_path])
        if lines.setdefault(file, line) != line:
            got = f"{row[at_path]} again (line {lines[file]})"
            raise ValueError(f"{where}, line {line}: expected each image once, got {got}")
        splits.setdefault(split, {}).setdefault(row[at_label], []).append(file)
    labels = set(chain(*splits.values()))
    if not 2 <= len(labels) <= MAX_CLASSES:
        raise ValueError(f"{where}: expected 2 to {MAX_CLASSES:,} labels, got {len(labels)}")
    if missing := missing_files(lines):
        line, got = lines[missing[0]], describe_missing(missing)
        raise FileNotFoundError(f"{where}, line {line}: expected images, got {got}: mend the path")
    splits = {split: splits[split] for split in IN_ORDER if split in splits}
    named = path.resolve().parent.name if path.name == LABELS else path.stem
    naming = replace(naming, name=naming.name or named)
    root = Path(os.path.commonpath(list(map(os.path.dirname, map(os.path.abspath, lines)))))
    return assemble(root, splits, naming, path.name, seed).with_notes(*notes)


def lists_images(path: Path) -> bool:
    """Return whether a CSV file has the columns that `open_csv` reads; others lie in data sets."""
    try:
        return bool(_read_table(path, ""))
    except ValueError:
        return False


# path, label and split -> their columns; how many columns there are; rows by line; notes
_Table = tuple[dict[str, int], int, Iterator[tuple[int, list[str]]], list[str]]


def _read_table(path: Path, where: str) -> _Table:
    """Decide what the columns mean: by the header, or by the first row where that is none."""
    rows = read_rows(path, where)
    line, first = next(rows, (1, []))
    columns: dict[str, int] = {}
    notes = []
    for number, cell in enumerate(first):
        word = re.sub(r"[\W_]", "", cell.lower())
        for name, words in _COLUMNS.items():
            if {word, word.removesuffix("s")} & words and columns.setdefault(name, number) < number:
                taken = first[columns[name]]
                notes.append(f"the {name} is read from the column '{taken}', not from '{cell}'")
    if "path" in columns and "label" in columns:
        return columns, len(first), rows, notes
    if len(first) in (2, 3) and os.path.splitext(first[0])[1].lower() in IMAGE_SUFFIXES:
        columns = dict(zip(_COLUMNS, range(len(first))))
        return columns, len(first), chain([(line, first)], rows), []
    got = ",".join(first) or "an empty file"
    raise ValueError(f"{where}, line {line}: expected a header path,label[,split], got {got}")
