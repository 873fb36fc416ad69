"""A CSV file of images: what its columns mean, and which files of a list are missing.

columns by the header or the first row -> files of each split and label -> folders.assemble
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain, filterfalse, islice
from pathlib import Path

from ..support.files import MAX_CLASSES, MAX_IMAGES, input_error, short_repr, shorten
from . import folders
from .folders import IMAGE_SUFFIXES, SPLIT_NAMES, Splits
from .naming import Naming, read_rows
from .samples import SPLITS, Dataset

MANY = 1000  # missing files are enough to know of
LABELS, METADATA = "labels.csv", "metadata.csv"  # in a folder: list its images
_COLUMNS = {  # what a column means, by its name: letters and digits only, no s at the end
    "path": {"path", "file", "filename", "filepath", "image", "imagename", "imagepath", "img"},
    "label": {"label", "lbl", "class", "classname", "category"},
    "split": {"split", "part", "subset", "set"},
}
_IDS = {"id", "imageid", "imgid", "fileid"}  # the path, if no other column is
_SPLIT_WORDS = {**SPLIT_NAMES, "trainval": "train", "privatetest": "test"}
_OTHER_TESTS = ("eval", "evaluation", "holdout", "heldout", "publictest")  # val, beside a test
_LIST = re.compile(r"""[\[{](|.*["',\d].*)[\]}]""", re.DOTALL)  # of JSON, or Python
_Entries = dict[str, tuple[int, str, str]]  # image -> line, label, cell of the split's column
_WHOLE = re.compile(r"(-?\d+)(\.0*)?")  # pandas writes 1.0 in a column with gaps


def describe_missing(missing: list[str]) -> str:
    """Say how many files are missing, and the first of them."""
    more = " or more" if len(missing) == MANY else ""
    there = " (which is no regular file)" if os.path.lexists(missing[0]) else ""
    return f"{len(missing)}{more} missing, the first {missing[0]}{there}"


def missing_files(paths: Iterable[str], most: int = MANY) -> list[str]:
    """List those of the paths that are no regular files, nor links to one; at most `most`."""
    by_folder: dict[str, list[str]] = {}
    for path in dict.fromkeys(paths):
        by_folder.setdefault(os.path.dirname(path), []).append(path)
    missing: list[str] = []
    for folder, asked in by_folder.items():
        if len(asked) > 20 and os.path.isdir(folder):  # on a network disk faster than to ask
            with os.scandir(folder) as entries:
                there = {e.path for e in entries if e.is_file(follow_symlinks=False)}
            asked = [path for path in asked if path not in there]
        missing += islice(filterfalse(os.path.isfile, asked), most - len(missing))
    return missing


def find_table(folder: Path) -> Path | None:
    """Find labels.csv in a folder, or metadata.csv if no class folders or splits are beside it."""
    if (table := folder / LABELS).is_file():
        return table
    table = folder / METADATA
    has_classes = len(folders.sub_folders(folder)) > 1 or folders.split_folders(folder)
    return table if table.is_file() and not has_classes and lists_images(table) else None


def open_csv(path: Path, naming: Naming) -> Dataset:
    """Open the data set of a CSV file of `path,label[,split]`; the columns by `_read_table`.

    Paths start from its folder, or `naming.read.image_root`, and may lack their ending. The `root`
    of the data set is the innermost folder around the images. Raises ValueError or
    FileNotFoundError with the line's number.
    """
    where, read = f"labels {path}", naming.read
    if read.folders_are_classes:
        raise input_error(where, "a folder for --folders-are-classes", "a CSV file")
    columns, header, rows = _read_table(path, where, read.columns)
    columns |= {} if "split" in columns else _find_split(path, columns, header)
    entries, width = {}, len(header)
    start = os.path.abspath(read.image_root or path.parent)
    for line, row in rows:
        at = f"{where}, line {line}"
        complete = len(row) == width or len(row) > max(columns.values()) and not any(row[width:])
        if not complete or not all(row[column] for column in columns.values()):
            expected = "path, label, train, val or test" if "split" in columns else "path, label"
            got = f"{','.join(row)} ({len(row)} cells for {width} columns)"
            raise input_error(at, expected, got)
        name, label, cell = (row[columns[key]] if key in columns else "all" for key in _COLUMNS)
        file = os.path.normpath(os.path.join(start, name))
        if file in entries:
            raise input_error(at, "each image once", f"{name} again (line {entries[file][0]})")
        entries[file] = line, sys.intern(label), sys.intern(cell)
    splits_of = {"all": "all"}
    if "split" in columns:
        column = header[columns["split"]]
        splits_of = _splits_of(column, dict.fromkeys(cell for _, _, cell in entries.values()))
        for line, _, cell in entries.values():
            if cell not in splits_of:
                got = f"'{cell}' in the column '{column}'"
                fix = "fix it, or name another column by --columns split=NAME"
                raise input_error(f"{where}, line {line}", "train, val or test", got, fix)
    names, notes = _name_labels(where, entries, naming.least_classes)
    moved = _find_images(where, entries, path.parent)
    splits: Splits = {split: {} for split in folders.IN_ORDER if split in splits_of.values()}
    for file, (_, label, cell) in entries.items():
        files = splits[splits_of[cell]].setdefault(names[label], [])
        files.append(moved.get(file, file))
    is_usual = path.name in (LABELS, METADATA)
    name = naming.name or (path.resolve().parent.name if is_usual else path.stem)
    parents = {os.path.dirname(moved.get(file, file)) for file in entries}
    root = Path(os.path.commonpath(parents))
    notes = (*_column_notes(columns, header, splits_of), *notes)
    return folders.assemble(root, splits, replace(naming, name=name), path.name, notes)


def _name_labels(where: str, entries: _Entries, least: int) -> tuple[dict[str, str], list[str]]:
    """Return what labels are called, "1" for "1.0" if all are numbers; note composed labels."""
    counts = Counter(label for _, label, _ in entries.values())
    for line, label, _ in entries.values():
        if _LIST.fullmatch(label):
            got = f"the list {label}: leave one label"
            raise input_error(f"{where}, line {line}", "a label", got)
    numbers = list(map(_WHOLE.fullmatch, counts))
    names = {label: number[1] if all(numbers) else label for label, number in zip(counts, numbers)}
    if not least <= (count := len(set(names.values()))) <= MAX_CLASSES:
        raise input_error(where, f"{least} to {MAX_CLASSES:,} labels", count)
    parts = {label: set(re.split(r"\s*[|;,]\s*", label)) - {""} for label in counts}
    uses = Counter(chain.from_iterable(parts.values()))
    composed = [
        f"'{label}' ({counts[label]} images)"
        for label in counts
        if len(parts[label]) > 1 and any(uses[each] > 1 for each in parts[label])
    ]
    note = f"combined labels are separate classes: {shorten(composed)}"
    return names, [note] if composed else []


def _find_images(where: str, entries: _Entries, folder: Path) -> dict[str, str]:
    """Map missing images to their files: with "/" for "\\", or with the ending that alone fits.

    Raises FileNotFoundError for those that still miss, with where in or below `folder` there is
    one of that name.
    """
    slashed = {path: path.replace("\\", "/") for path in missing_files(entries, MAX_IMAGES)}
    files: dict[str, list[str]] = {}
    for parent in filter(os.path.isdir, set(map(os.path.dirname, slashed.values()))):
        for _, path, kind in folders.scan(parent):
            for name in {path, _without_ending(path)} if kind == folders.IMAGE else ():
                files.setdefault(name, []).append(path)
    fits = {path: files.get(name, ()) for path, name in slashed.items()}
    if missing := [path for path, files in fits.items() if len(files) != 1]:
        got, fix = describe_missing(missing[:MANY]), "fix the path"
        name = _without_ending(os.path.basename(slashed[missing[0]]))
        for parent, _, names in islice(os.walk(folder), 10 * MANY):
            if alike := [each for each in names if _without_ending(each) == name]:
                fix = f"there is {os.path.join(parent, alike[0])}: fix the path or --image-root"
                break
        line = entries[missing[0]][0]
        raise FileNotFoundError(f"{where}, line {line}: expected images, got {got}: {fix}")
    return {path: files[0] for path, files in fits.items()}


def _without_ending(name: str) -> str:
    """Return the name of an image without its ending, any other as it is."""
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in IMAGE_SUFFIXES else name


def lists_images(path: Path) -> bool:
    """Return whether a CSV file has the columns that `open_csv` reads; others lie in data sets."""
    with suppress(ValueError):
        return bool(_read_table(path, ""))
    return False


def _read_table(
    path: Path, where: str, by_hand: str | None = None
) -> tuple[dict[str, int], list[str], Iterator[tuple[int, list[str]]]]:
    """Return the columns by their meaning, the header, and the rows by line.

    Columns are named by hand, by the header, or by a first row that begins with an image.
    """
    rows = read_rows(path, where)
    line, header = next(rows, (1, []))
    columns: dict[str, int] = {}
    for pair in [] if by_hand is None else by_hand.split(","):
        key, _, name = map(str.strip, pair.partition("="))
        if not (meaning := _meaning(key)) or name not in header:
            expected = "image, label or split = a column's name"
            got = f"no column {short_repr(name)}" if meaning and name else short_repr(pair)
            got += f", columns {','.join(header)}"
            raise input_error(f"{where}: --columns", expected, got)
        columns[meaning] = header.index(name)
    meanings = [(number, _meaning(name)) for number, name in enumerate(header)]
    meanings += [(number, "path") for number, name in enumerate(header) if _word(name) in _IDS]
    for number, meaning in meanings:
        if meaning and number not in columns.values():
            columns.setdefault(meaning, number)
    if "path" in columns and "label" in columns:
        return columns, header, rows
    if len(header) in (2, 3) and _without_ending(header[0]) != header[0]:
        columns = dict(zip(_COLUMNS, range(len(header))))
        return columns, [""] * len(header), chain([(line, header)], rows)
    got, fix = ",".join(header) or "an empty file", "name others by --columns image=NAME,label=NAME"
    raise input_error(f"{where}, line {line}", "a header path,label[,split]", got, fix)


def _word(text: str) -> str:
    """Return the letters and digits of a word, of a number those before ".0"."""
    return re.sub(r"\.0*$|[\W_]", "", text.lower())


def _meaning(name: str) -> str | None:
    """Return what a column means by its name: path, label, split, or None."""
    spellings = {_word(name), _word(name).removesuffix("s")}
    return next((key for key, words in _COLUMNS.items() if spellings & words), None)


def _find_split(path: Path, columns: dict[str, int], header: list[str]) -> dict[str, int]:
    """Find the column, of any other name, whose cells name training and another split."""
    where, others = f"labels {path}", set(range(len(header))) - {*columns.values()}
    cells = {n: set() for n in others if header[n] and "fold" not in _word(header[n])}
    for _, row in islice(read_rows(path, where), 1, None) if cells else ():
        for number in cells.keys() & range(len(row)):
            cells[number].add(row[number])
        cells = {n: words for n, words in cells.items() if len(words) <= 20}  # few are splits
    splits = [n for n in cells if {"train"} < set(_splits_of(header[n], cells[n]).values())]
    if len(splits) > 1:
        got, fix = " and ".join(header[n] for n in splits), f"split={header[splits[0]]}"
        raise input_error(where, "one column of train and test", got, f"pass --columns {fix}")
    return dict(zip(("split",), splits))


def _splits_of(column: str, cells: Iterable[str]) -> dict[str, str]:
    """Map cells of a column to the splits that they name, numbers only by the column's name."""
    words = {cell: re.sub("(set|data|split)$", "", _word(cell)) for cell in cells}
    name, numbers = _word(column), {}
    split = SPLIT_NAMES.get(name.removeprefix("is").removesuffix("image"))
    if name == "partition":  # as in CelebA
        numbers = dict(zip("012", SPLITS))
    elif split and name.startswith("is"):
        other = "test" if split == "train" else "train"
        numbers = {"0": other, "false": other, "no": other, "1": split, "true": split, "yes": split}
    has_test = "test" in map(_SPLIT_WORDS.get, words.values())
    known = _SPLIT_WORDS | dict.fromkeys(_OTHER_TESTS, "val" if has_test else "test")
    known = numbers if numbers.keys() >= set(words.values()) else known
    return {cell: known[word] for cell, word in words.items() if word in known}


def _column_notes(columns: dict, header: list[str], splits_of: dict[str, str]) -> Iterator[str]:
    """Note the columns that are not read, and how a split is read from one of another name."""
    if unread := [n for i, n in enumerate(header) if n and i not in columns.values()]:
        yield f"columns not read: {shorten(unread, 20)}"
    name = header[columns["split"]] if "split" in columns else ""
    if name and _meaning(name) != "split":
        cells = ", ".join(f"{cell} is {split}" for cell, split in splits_of.items())
        yield f"the split is read from the column '{name}': {cells}"
