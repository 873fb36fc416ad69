"""Pictures with class names: the lists, the few-shot draw, split files.

open_dataset (datasets.py) or read_split -> few_shot, select_classes -> batches.py

The user's folder is only ever read.
"""

import hashlib
import json
import math
import os
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from ..clip.pictures import MORE_FORMATS, formats
from ..files import (
    MAX_CLASSES,
    MAX_PICTURES,
    collector_paused,
    entries,
    good_name,
    one_line_errors,
    read_json,
    replacing,
    shown,
)

IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", *chain(*MORE_FORMATS.values())),
}
DEFAULT_TEMPLATE = "a photo of a {}."
PARTS = ("train", "val", "test")
MANY = 1000  # missing files are enough to know of


def image_suffixes() -> set[str]:
    """`IMAGE_SUFFIXES` without those of formats that this Pillow has not."""
    missing = MORE_FORMATS.keys() - set(formats())
    return IMAGE_SUFFIXES - {suffix for name in missing for suffix in MORE_FORMATS[name]}


class Item(NamedTuple):
    """One picture: its file, its class as a number from 0, and as a name."""

    path: str
    label: int
    classname: str


@dataclass(frozen=True)
class Dataset:
    """Three lists of pictures with the names that they share.

    `classnames[label]` is the name for prompts, `template` such as "a photo of a {}.". `root` is
    the folder that all paths lie in, `source` one line that says what was recognised from which
    files, `notes` lines that the user should see (classes with few pictures, for example). `drawn`:
    (shots, seed) of the draw that train and val come from, if they do; `part`: of the classes.
    """

    name: str
    root: Path
    classnames: list[str]
    template: str
    train: list[Item]
    val: list[Item]
    test: list[Item]
    source: str
    notes: tuple[str, ...] = ()
    drawn: tuple[int, int] | None = None
    part: str = "all"

    def fingerprint(self) -> str:
        """SHA-256 of the class names and of each part's pictures: path below `root`, label.

        Wherever `root` lies. What is in the files does not count: a million of them would be read.
        """
        start = os.path.join(self.root, "")
        listed = [
            [(path.removeprefix(start), label) for path, label, _ in getattr(self, part)]
            for part in PARTS
        ]
        return hashlib.sha256(json.dumps([self.classnames, *listed]).encode()).hexdigest()

    def folders(self) -> list[Path]:
        """The user's folders, in which nothing is to be written; the outermost first.

        `root`, those that pictures lie in (the paths of a CSV file may lead anywhere), and those
        around several of these, as around class folders. The home folder and what is above it are
        left out: results lie below them, too.
        """
        holding = {os.path.dirname(item.path) for part in PARTS for item in getattr(self, part)}
        holding = set(map(os.path.abspath, holding))
        around = Counter(map(os.path.dirname, holding))
        found = {self.root, *holding, *(folder for folder, count in around.items() if count > 1)}
        home = Path(os.path.expanduser("~")).resolve()
        resolved = {Path(folder).resolve() for folder in found} - {home, *home.parents}
        return sorted(resolved, key=lambda folder: (len(folder.parts), folder))


def make_dataset(
    name: str,
    root: Path,
    classnames: list[str],
    template: str,
    listed: dict[str, list[Item]],
    how: str,
    notes: Iterable[str] = (),
) -> Dataset:
    """Puts a Dataset together and describes it in its line `source`; `how`: from which files.

    Raises ValueError for names that are none (`good_name`), whatever file they come from.
    """
    good_name(name, f"data in {root}", folder=True)
    for classname in classnames:
        good_name(classname, f"data set {name} in {root}")
    if len(classnames) > 1 == len(set(classnames)):
        raise ValueError(f"data set {name} in {root}: expected several names, got {classnames[:3]}")
    counts = "/".join(str(len(listed[part])) for part in PARTS)
    source = f"{name}: {len(classnames)} classes, {how}, {counts} images (train/val/test)"
    tested = {item.label for item in listed["test"]}
    untested = (
        f"class '{classname}' has no test image"
        for label, classname in enumerate(classnames)
        if label not in tested
    )
    notes = (*notes, *untested)
    return Dataset(name, root, classnames, template, **listed, source=source, notes=notes)


# ---- few shots


def few_shot(dataset: Dataset, shots: int, seed: int) -> Dataset:
    """`shots` training pictures of each class, min(shots, 4) of val, the whole test set.

    The published draw, picture for picture (CoOp's protocol): one generator, classes in the order
    of their first picture, first train, then val. A class with fewer pictures gives all it has,
    and a line in `notes` says so. What this very draw has left (a run's split file) stays as it is,
    in its order. Raises ValueError for less than one shot, and for a data set that is only a test.
    """
    if shots < 1:
        raise ValueError(f"shots: expected at least 1, got {shots}")
    if not dataset.train:
        raise ValueError(
            f"{dataset.name}: expected training pictures for few shots, got only a test set: "
            f"train on another data set and test on this one"
        )
    train, val, generator = dataset.train, dataset.val, random.Random(seed)
    if dataset.drawn != (shots, seed):
        train = _draw(train, shots, generator)
        val = _draw(val, min(shots, 4), generator)
    counts = Counter(item.label for item in train)
    notes = tuple(
        f"class '{name}' has {counts[label]} images, {shots} shots wanted: using {counts[label]}"
        for label, name in enumerate(dataset.classnames)
        if counts[label] < shots
    )
    notes = dataset.notes + notes
    return replace(dataset, train=train, val=val, notes=notes, drawn=(shots, seed))


def _draw(items: list[Item], count: int, generator: random.Random) -> list[Item]:
    by_label: dict[int, list[Item]] = {}  # keeps the order of first appearance
    for item in items:
        by_label.setdefault(item.label, []).append(item)
    drawn = []
    for own in by_label.values():
        drawn += generator.sample(own, count) if len(own) >= count else own
    return drawn


def select_classes(dataset: Dataset, which: str) -> Dataset:
    """The "base" classes (the first half of the labels, rounded up), the "new" ones, or "all".

    Labels of the result count from 0 (base-to-new generalisation, CoCoOp, section 4.1). To be given
    the result of `few_shot`: the published protocol draws from all classes, then selects. Raises
    ValueError for another word, or if fewer than two classes would be left.
    """
    count = len(dataset.classnames)
    half = math.ceil(count / 2)
    choices = {"all": range(count), "base": range(half), "new": range(half, count)}
    if which not in choices:
        raise ValueError(f"classes: expected one of {', '.join(choices)}, got '{which}'")
    if which != "all" != dataset.part:
        raise ValueError(
            f"{dataset.name}: expected all classes of a data set, got a split with the "
            f"{dataset.part} ones: pass --classes all"
        )
    kept = choices[which]
    if len(kept) < 2:
        raise ValueError(
            f"{dataset.name}: expected at least 2 {which} classes, got {len(kept)} of {count}: "
            f"use a data set of at least 4 classes"
        )
    listed = {
        part: [
            Item(path, label - kept.start, classname)
            for path, label, classname in getattr(dataset, part)
            if label in kept
        ]
        for part in PARTS
    }
    counts = "/".join(str(len(items)) for items in listed.values())
    source = f"{dataset.source}; {which}: {len(kept)} classes, {counts} images"
    classnames = dataset.classnames[kept.start : kept.stop]
    part = dataset.part if which == "all" else which
    return replace(dataset, classnames=classnames, **listed, source=source, part=part)


# ---- split files


def write_split(dataset: Dataset, path: str | os.PathLike) -> None:
    """Writes the three lists as JSON, in the split format that few-shot research uses.

    `{"train": [[path below root, label, class name], ...], "val": ..., "test": ...}`, with "name",
    "root", "template" and "classnames" beside them, "drawn" and "part" (`Dataset`); one picture a
    line. Replaces the file at once.
    Raises ValueError if it would lie in one of the data set's folders.
    """
    path, root = Path(path), dataset.root.resolve()
    for folder in dataset.folders():
        if path.resolve().is_relative_to(folder):
            raise ValueError(
                f"split file {path}: expected a place outside the data folder {folder}"
            )
    described = {
        "name": dataset.name,
        "root": str(root),
        "template": dataset.template,
        "classnames": dataset.classnames,
        "drawn": dataset.drawn,
        "part": dataset.part,
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in described.items()]
    for part in PARTS:
        rows = (
            [Path(os.path.relpath(item.path, dataset.root)).as_posix(), item.label, item.classname]
            for item in getattr(dataset, part)
        )
        lines.append(f'"{part}": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]")
    with replacing(path) as unfinished:
        unfinished.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def split_content(path: str | os.PathLike) -> dict[str, Any]:
    """What a split file says, ours or a published one, types and labels checked.

    "train", "val", "test": lists, perhaps empty, of [path, label, class name]; "classnames" by
    label; perhaps "name", "root", "template", "drawn". Raises FileNotFoundError or ValueError.
    """
    where = f"split file {path}"
    kinds = dict.fromkeys(("name", "root", "template", "part"), str | None)
    kinds |= dict.fromkeys(("classnames", "drawn", *PARTS), list | None)
    most = 5 * MAX_PICTURES  # separators: a row ["a.png", 0, "a"], and its line's end have 5
    content = entries(read_json(path, where, most), where, **kinds)
    content |= {part: content.get(part) or [] for part in PARTS}
    expected = f"{where}: expected lists train, val, test of [path, label from 0, class name]"
    named: dict[int, str] = {}
    for part in PARTS:
        for row in content[part]:
            good = type(row) is list and list(map(type, row)) == [str, int, str]
            if not good or named.setdefault(row[1], row[2]) != row[2]:
                got = ", ".join(map(shown, row[:4])) if type(row) is list else shown(row)
                raise ValueError(f"{expected}, one name for each label, got [{got}] in {part}")
    names = content.get("classnames") or [named.get(label) for label in range(len(named))]
    count = len(names)
    wrong = [label for label in named if not 0 <= label < count or names[label] != named[label]]
    if wrong or not 1 <= count <= MAX_CLASSES:
        got = f"label {wrong[0]}, {shown(named[wrong[0]])}, of " if wrong else ""
        raise ValueError(f"{expected} with every label in use, got {got}{count:,} classes")
    content["classnames"] = [good_name(name, f"{where}, class {n}") for n, name in enumerate(names)]
    return content


@one_line_errors
@collector_paused()
def read_split(
    path: str | os.PathLike, root: str | os.PathLike | None = None, name: str | None = None
) -> Dataset:
    """The data set of a split file, ours or a published one.

    `root` is the folder that its paths start from; None takes the one noted in the file. Raises
    FileNotFoundError if the file, the folder or a listed picture is missing, and ValueError if the
    file is not a split.
    """
    path, content = Path(path), split_content(path)
    classnames, noted = content["classnames"], content.get("root") if root is None else root
    shared = ((name, count) for name, count in Counter(classnames).items() if count > 1)
    notes = [f"{count} classes are called '{name}'" for name, count in shared]
    if noted is None or not os.path.isdir(noted):
        raise FileNotFoundError(
            f"split file {path}: expected its image folder, got {noted}: name it (eval.py: --root)"
        )
    root = os.path.realpath(noted) if root is None else root
    start, listed = os.path.join(root, ""), {}
    for part in PARTS:
        listed[part] = [
            Item(file if os.path.isabs(file) else start + file.replace("/", os.sep), label, name)
            for file, label, name in content.pop(part)
        ]
    missing = missing_files(item.path for own in listed.values() for item in own)
    if missing:
        raise FileNotFoundError(
            f"split file {path}: expected all its pictures in {root}, got {told(missing)}"
        )
    name = name or content.get("name") or path.stem
    template = content.get("template") or DEFAULT_TEMPLATE
    dataset = make_dataset(name, Path(root), classnames, template, listed, path.name, notes)
    drawn = tuple(content.get("drawn") or ()) or None
    return replace(dataset, drawn=drawn, part=content.get("part") or "all")


def told(missing: list[str]) -> str:
    """How many files are missing, and the first of them."""
    more = " or more" * (len(missing) == MANY)
    there = " (which is no regular file)" * os.path.lexists(missing[0])
    return f"{len(missing)}{more} missing, the first {missing[0]}{there}"


def missing_files(paths: Iterable[str]) -> list[str]:
    """Those of the paths that are no regular files, nor links to one; not more than `MANY`.

    Folders of which many files are asked for are listed, which on a network disk is much faster
    than to ask for each file.
    """
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        by_folder.setdefault(os.path.dirname(path), []).append(path)
    missing: list[str] = []
    for folder, own in by_folder.items():
        if len(own) > 20 and os.path.isdir(folder):
            wanted = set(map(os.path.basename, own))
            with os.scandir(folder) as found:
                there = {entry.name for entry in found if entry.name in wanted and entry.is_file()}
            own = [path for path in own if os.path.basename(path) not in there]
        others = (path for path in dict.fromkeys(own) if not os.path.isfile(path))
        missing += islice(others, MANY - len(missing))
        if len(missing) == MANY:
            break
    return missing
