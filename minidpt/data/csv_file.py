"""Pictures that a CSV file lists with their labels."""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from ..files import MAX_CLASSES
from .folders import Parts, assemble
from .items import Dataset
from .listing import IMAGE_SUFFIXES, IN_ORDER, PART_NAMES, missing_files, told
from .naming import Naming, read_rows

LABELS = "labels.csv"  # in a folder: lists its pictures

_COLUMNS = {  # without other signs than letters, and without an s at the end
    "path": {"path", "file", "filename", "filepath", "image", "imagename", "imagepath", "img"},
    "label": {"label", "lbl", "class", "classname", "category"},
    "split": {"split", "part", "subset", "set"},
}


def open_csv(path: Path, naming: Naming, seed: int) -> Dataset:
    """The data set of a CSV file of `path,label[,split]`; paths start from the file's folder.

    Its `root` is the innermost folder around the pictures: the file may lie anywhere.
    A header may name these columns in any order, among others. Without one, the first row must
    begin with a picture file. The split is train, val or test; without one, it is drawn. Raises
    ValueError or FileNotFoundError with the line's number.
    """
    where = f"labels {path}"
    start = os.path.join(os.path.abspath(path.parent), "")
    columns, width, rows, notes = _table(read_rows(path, where), where)
    at_path, at_label, at_split = map(columns.get, _COLUMNS)
    needed = 1 + max(columns.values())
    parts: Parts = {}
    lines: dict[str, int] = {}  # picture -> line
    first_lines: dict[str, int] = {}  # class -> line
    for line, row in rows:
        whole = len(row) == width or len(row) >= needed and not any(row[width:])
        part = "all" if at_split is None else whole and PART_NAMES.get(row[at_split].lower())
        if not (whole and row[at_path] and row[at_label] and part):
            expected = "a path, a label" + " and train, val or test" * (at_split is not None)
            many = f" ({len(row)} cells for {width} columns: quote one that has a separator in it)"
            got = ",".join(row) + many * (len(row) > width)
            raise ValueError(f"{where}, line {line}: expected {expected}, got {got}")
        file, label = row[at_path], row[at_label]
        file = file if os.path.isabs(file) else start + file
        if lines.setdefault(file, line) != line:
            raise ValueError(
                f"{where}, line {line}: expected each picture once, got {row[at_path]} again "
                f"(line {lines[file]}): remove one"
            )
        if first_lines.setdefault(label, line) == line and len(first_lines) > MAX_CLASSES:
            raise ValueError(f"{where}: expected at most {MAX_CLASSES:,} labels, got more")
        parts.setdefault(part, {}).setdefault(label, []).append(file)
    if len(first_lines) < 2:
        raise ValueError(f"{where}: expected at least 2 labels, got {list(first_lines)}: add some")

    if missing := missing_files(lines):
        raise FileNotFoundError(
            f"{where}, line {lines[missing[0]]}: expected pictures, got {told(missing)}: mend the "
            "path"
        )
    parts = {part: parts[part] for part in IN_ORDER if part in parts}
    first = next(iter(parts))
    for label, line in first_lines.items():
        if label not in parts[first]:
            raise ValueError(
                f"{where}, line {line}: expected only labels that {first} has, got '{label}': "
                f"add {first} pictures of it or remove it"
            )
    named = path.resolve().parent.name if path.name == LABELS else path.stem
    naming = replace(naming, name=naming.name or named)
    root = Path(os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in lines]))
    dataset = assemble(root, parts, naming, path.name, seed)
    return replace(dataset, notes=(*dataset.notes, *notes))


def lists_pictures(path: Path) -> bool:
    """Whether a CSV file has the columns that `open_csv` reads; others lie in data sets, too."""
    try:
        _table(read_rows(path, f"labels {path}"), f"labels {path}")
    except ValueError:
        return False
    return True


class _Table(NamedTuple):
    """Which column is the path, which the label, which the split; how many there are; the rows."""

    columns: dict[str, int]
    width: int
    rows: Iterator[tuple[int, list[str]]]
    notes: list[str]


def _table(rows: Iterator[tuple[int, list[str]]], where: str) -> _Table:
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
        return _Table(columns, len(first), rows, notes)
    if len(first) in (2, 3) and os.path.splitext(first[0])[1].lower() in IMAGE_SUFFIXES:
        columns = {name: number for number, name in enumerate(_COLUMNS) if number < len(first)}
        return _Table(columns, len(first), chain([(line, first)], rows), [])
    raise ValueError(
        f"{where}, line {line}: expected a header path,label[,split], or a picture file and its "
        f"label, got {','.join(first) or 'an empty file'}"
    )
