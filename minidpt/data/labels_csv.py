"""A CSV file of images, and which of the files that a list names are missing.

columns by the header or the first row -> files of each split and label -> folders.assemble
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

from ..support.files import MAX_CLASSES
from .folders import IMAGE_SUFFIXES, IN_ORDER, SPLIT_NAMES, Splits, assemble
from .naming import Naming, read_rows
from .samples import Dataset

MANY = 1000  # missing files are enough to know of
LABELS = "labels.csv"  # in a folder: lists its images
_COLUMNS = {  # what a column means, by its name: letters and digits only, no s at the end
    "path": {"path", "file", "filename", "filepath", "image", "imagename", "imagepath", "img"},
    "label": {"label", "lbl", "class", "classname", "category"},
    "split": {"split", "part", "subset", "set"},
}


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
