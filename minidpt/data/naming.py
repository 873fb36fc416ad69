"""How classes are called: words from folder names, lists of names, ImageNet's own."""

import csv
import functools
import os
import pkgutil
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import regex

from ..support import files
from .samples import DEFAULT_READ, DEFAULT_TEMPLATE, Dataset, ReadOptions

_WORDNET_ID = re.compile(r"n\d{8}")


def readable(folder_name: str) -> str:
    """Make words of a folder's name: sea-horse -> "sea horse", SeaHorse -> "Sea Horse".

    The tokenizer ignores case. "iPhone", "UFOs" and "X-ray" stay whole.
    """
    name = os.fsencode(folder_name).decode("utf-8", "replace")  # names that are no valid UTF-8
    name = unicodedata.normalize("NFC", name)  # macOS stores accents apart from their letters
    words = regex.sub(r"(?<=\p{L}{2})-(?=\p{L}{2})", " ", name)
    words = regex.sub(r"(?<=\p{Ll}{2})(?=\p{Lu})|(?<=\p{Lu})(?=\p{Lu}\p{Ll}{2})", " ", words)
    return " ".join(words.split())


def comparable(name: str) -> str:
    """Reduce a folder, label or class name to lower-case words: Sea_Horse -> sea horse."""
    return " ".join(readable(name).replace("_", " ").casefold().split())


def match_classes(dataset: Dataset, keys: list[str], names: list[str]) -> list[int | None]:
    """Find each class of a data set among others by its key, in any spelling, or name; or None."""
    class_keys = dataset.class_keys or dataset.classnames
    matches: list[int | None] = [None] * len(class_keys)
    for ours, theirs, form in (
        (class_keys, keys, str), (class_keys, keys, comparable),
        (dataset.classnames, names, comparable),
    ):  # fmt: skip
        numbers: dict[str, list[int]] = {}
        for number in sorted(set(range(len(theirs))).difference(matches)):
            numbers.setdefault(form(theirs[number]), []).append(number)
        for label, text in enumerate(ours):
            if matches[label] is None and (same := numbers.get(form(text))):
                matches[label] = same.pop(0)
    return matches


@functools.cache
def imagenet_classnames() -> dict[str, str]:
    """Return WordNet id -> name of ImageNet's 1000 classes, as curated for CLIP; sorted by id."""
    lines = pkgutil.get_data(__package__, "imagenet_classnames.txt").decode().splitlines()
    return dict(line.split(maxsplit=1) for line in lines)


@files.single_line_errors
def read_classnames(path: str | os.PathLike) -> dict[str, str]:
    """Read folder or label -> class name from a file of such pairs.

    Lines of "n01440764 tench" (.txt and others; before a tab the folder may have spaces), of
    "n01440764,tench" (.csv), or one JSON object (.json). Raises FileNotFoundError or ValueError.
    """
    path = Path(path)
    where = f"class names {path}"
    if path.suffix.lower() == ".json":
        content = files.read_json(path, where)
        if not isinstance(content, dict):
            got = files.short_repr(content)
            raise files.input_error(where, '{"folder": "name", ...}', got)
        pairs = ((1, pair) for pair in content.items())
    elif path.suffix.lower() == ".csv":
        pairs = read_rows(path, where)
    else:
        lines = enumerate(map(str.strip, files.read_text(path, where).split("\n")), start=1)
        pairs = ((n, line.split("\t" if "\t" in line else None, 1)) for n, line in lines if line)

    names = {}
    for line, pair in pairs:
        if len(pair) != 2 or not all(isinstance(cell, str) and cell.strip() for cell in pair):
            got = ", ".join(map(files.short_repr, pair))
            raise files.input_error(f"{where}, line {line}", "a folder and its name", got)
        key, name = pair[0].strip(), files.canonical_classname(pair[1], f"{where}, line {line}")
        if names.setdefault(key, name) != name:
            raise files.input_error(f"{where}, line {line}", f"one name for '{key}'", "a second")
    return names


@dataclass(frozen=True, kw_only=True)
class Naming:
    """How a data set is read and its classes are called; by default as their folders are."""

    name: str = ""
    is_named: bool = False  # by the caller, not recognised
    template: str | tuple[str, ...] = DEFAULT_TEMPLATE
    rule: Callable[[str], str] = readable  # a folder or label -> class name
    renamed: Mapping[str, str] = field(default_factory=dict)  # exceptions from the rule
    renames: Mapping[str, str] = field(default_factory=dict)  # the caller's, before all others
    renames_file: str = ""  # where the caller has them
    dropped: Collection[str] = ()  # folders that are no class
    order_file: Path | None = None  # of all folders or labels, in the order of labels
    sort: Callable[[str], str] = str  # without it, labels are in this order of them
    read: ReadOptions = DEFAULT_READ  # the caller's
    least_classes: int = 2  # of a data set's first split
    draws_split: bool = True  # where there is none; else all images are the test
    seed: int = 1  # of that split
    notes: tuple[str, ...] = ()  # on what the data set was taken for

    def ordered(self, keys: Collection[str]) -> list[str]:
        """Sort folders or labels in the order of labels: as listed, or as numbers if all are."""
        if self.order_file:
            where = f"list {self.order_file}"
            text = files.read_text(self.order_file, where)
            listed = [line.strip().strip("/") for line in text.split("\n")]
            if unknown := set(keys).difference(listed):
                raise files.input_error(where, "all classes", f"none called '{min(unknown)}'")
            return [key for key in listed if key in keys]
        if all(key.isdecimal() and len(key) < 20 for key in keys):
            return sorted(keys, key=lambda key: (int(key), key))
        return sorted(keys, key=self.sort)

    def classnames(self, where: Path, keys: list[str]) -> tuple[dict[str, str], list[str]]:
        """Name folders or labels; return the names, and notes on those that two classes share.

        Raises ValueError for these but in a published list, such as ImageNet's.
        """
        published = {**imagenet_classnames(), **self.renamed}
        renamed, where = {**published, **self.renames}, f"data folder {where}"
        names, keys_of, notes = {}, {}, []
        for key in keys:
            if _WORDNET_ID.fullmatch(key) and key not in renamed:
                got = f"the WordNet id '{key}', none of ImageNet's 1000: name it (--classnames)"
                raise files.input_error(where, "a name for each class", got)
            name = renamed.get(key) or files.canonical_classname(self.rule(key), where)
            names[key] = name
            other = keys_of.setdefault(name.casefold(), key)  # CLIP reads lower case
            both = [published.get(each, f"/{each}").casefold() for each in (key, other)]
            if other != key and both[0] == both[1]:
                notes.append(f"classes '{other}' and '{key}' are both called '{name}'")
            elif other != key:
                got, fix = f"'{other}' and '{key}'", "rename or merge them"
                if self.renames:
                    got, fix = f"'{name}' for {got}", f"{fix} ({self.renames_file})"
                raise files.input_error(where, "different class names", got, fix)
        if all(map(str.isdecimal, names.values())):
            notes.append("numbers as class names tell CLIP little: name them (--classnames)")
        return names, notes

    def credit(self, dataset: Dataset, keys: Collection[str]) -> Dataset:
        """Say in `source` how many of the data set's `keys` the caller has named.

        Raises ValueError if there are names, but for none of the keys.
        """
        if not self.renames:
            return dataset
        count = sum(key in self.renames for key in keys)
        if not count:
            expected = f"the classes of {dataset.name} ({', '.join(list(keys)[:3])}, ...)"
            raise files.input_error(f"class names {self.renames_file}", expected, "none")
        credit = f"{count} of {len(keys)} class names from {Path(self.renames_file).name}"
        return replace(dataset, source=f"{dataset.source}, {credit}")


def read_rows(path: Path, where: str) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and stripped cells of the rows of a CSV file that are not empty.

    Between cells stands what the first line has most of: commas, semicolons or tabs.
    """
    text = files.read_text(path, where, 20 * files.MAX_IMAGES)
    delimiter = max(",;\t", key=text.lstrip("\n").partition("\n")[0].count)
    lines = (line[0] for line in re.finditer(r".*\n|.+", text))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for count, row in enumerate(reader, start=1):
            if count > files.MAX_IMAGES:
                expected = f"at most {files.MAX_IMAGES:,} rows"
                raise files.input_error(where, expected, "more", "split it")
            if any(cells := [cell.strip() for cell in row]):
                yield reader.line_num, cells
    except csv.Error as error:
        raise files.input_error(f"{where}, line {reader.line_num}", "CSV", error) from error
