"""Images with class names: a data set's lists, the few-shot draw, base and new classes, copies.

open_dataset (datasets.py) or read_split (splits.py) -> few_shot, select_classes -> batches.py
"""

import hashlib
import json
import math
import os
import random
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..support.files import input_error, shorten, validate_name

DEFAULT_TEMPLATE = "a photo of a {}."
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ReadOptions:
    """How data of the user's own are read, where it cannot be told from them."""

    folders_are_classes: bool = False  # also if they hold the same folders, or are called train
    columns: str | None = None  # of a CSV file: "image=photo,label=art,split=x"
    image_root: str | None = None  # that a CSV file's paths start from; None for its own folder


DEFAULT_READ = ReadOptions()


class Sample(NamedTuple):
    """One image: its file, its class as a number from 0, and as a name."""

    path: str
    label: int
    classname: str


@dataclass(frozen=True)
class Dataset:
    """Three lists of samples with the names that they share."""

    name: str
    root: Path  # the folder that all paths lie in
    classnames: list[str]  # by label, for prompts
    template: str | tuple[str, ...]  # such as "a photo of a {}.", or several
    train: list[Sample]
    val: list[Sample]
    test: list[Sample]
    source: str  # a line: what was recognised from which files
    notes: tuple[str, ...] = ()  # lines that the user should see
    drawn: tuple[int, int] | None = None  # shots and seed of the draw that gave train and val
    subset: str = "all"  # of the classes
    class_keys: list[str] | None = None  # by label: its folder or label; None for `classnames`
    is_split_drawn: bool = False  # the data set had none
    allow_duplicates: bool = False  # classes of one name, as in a published list

    @property
    def splits(self) -> dict[str, list[Sample]]:
        """The samples of each split, in the order of `SPLITS`."""
        return {split: getattr(self, split) for split in SPLITS}

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of classes, and of samples in train, val and test."""
        return len(self.classnames), *map(len, self.splits.values())

    def with_notes(self, *notes: str) -> "Dataset":
        """Return the same data set with more notes."""
        return replace(self, notes=(*self.notes, *notes))

    def renamed(self, classnames: list[str], template: str | tuple[str, ...]) -> "Dataset":
        """Return the same data set with these class names and this template."""
        listed = {
            split: [s._replace(classname=classnames[s.label]) for s in samples]
            for split, samples in self.splits.items()
        }
        return replace(self, classnames=classnames, template=template, **listed)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the class names and each split's paths below `root`, and labels."""
        start = os.path.join(self.root, "")
        listed = [
            [(path.removeprefix(start), label) for path, label, _ in samples]
            for samples in self.splits.values()
        ]
        return hashlib.sha256(json.dumps([self.classnames, *listed]).encode()).hexdigest()


def make_dataset(
    name: str, root: Path, classnames: list[str], listed: dict[str, list], how: str, **fields: Any
) -> Dataset:
    """Build a Dataset; raises ValueError for a name that is no folder's, or one for all classes."""
    validate_name(name, f"data in {root}", folder=True)
    if len(classnames) > 1 == len(set(classnames)):
        raise input_error(f"data set {name} in {root}", "several names", classnames[:3])
    counts = "/".join(str(len(listed[split])) for split in SPLITS)
    source = f"{name}: {len(classnames)} classes, {how}, {counts} images (train/val/test)"
    untested = set(range(len(classnames))) - {sample.label for sample in listed["test"]}
    dataset = Dataset(name, root, classnames, **listed, source=source, **fields)
    names = [f"'{classnames[label]}'" for label in sorted(untested)]
    return dataset.with_notes(f"without a test image: {shorten(names)}") if names else dataset


def few_shot(dataset: Dataset, shots: int, seed: int) -> Dataset:
    """Draw `shots` training images of each class, min(shots, 4) of val; the test set stays.

    The published draw, image for image (CoOp's protocol): one generator, classes in the order of
    their first image, first train, then val. A class with fewer images gives all, with a note. What
    this very draw has left stays. Raises ValueError without a shot or training images.
    """
    if shots < 1:
        raise input_error("shots", "at least 1", shots)
    if not dataset.train:
        raise input_error(dataset.name, "training images", "only a test set")
    train, val, generator = dataset.train, dataset.val, random.Random(seed)
    if dataset.drawn != (shots, seed):
        train = _draw(train, shots, generator)
        val = _draw(val, min(shots, 4), generator)
    counts = Counter(sample.label for sample in train)
    dataset = replace(dataset, train=train, val=val, drawn=(shots, seed))
    named = enumerate(dataset.classnames)
    fewer = [f"'{name}' {counts[label]}" for label, name in named if counts[label] < shots]
    note = f"{shots} shots wanted, but these classes have fewer images: {shorten(fewer)}"
    return dataset.with_notes(note) if fewer else dataset


def _draw(samples: list[Sample], count: int, generator: random.Random) -> list[Sample]:
    by_label: dict[int, list[Sample]] = {}  # keeps the order of first appearance
    for sample in samples:
        by_label.setdefault(sample.label, []).append(sample)
    drawn = []
    for of_class in by_label.values():
        drawn += generator.sample(of_class, count) if len(of_class) >= count else of_class
    return drawn


def select_classes(dataset: Dataset, which: str) -> Dataset:
    """Select the "base" classes (the first half of the labels, rounded up), the "new", or "all".

    Labels of the result count from 0 (base-to-new generalisation, CoCoOp, section 4.1). The
    published protocol calls `few_shot` before. Raises ValueError for another word, or if fewer than
    two classes would be left.
    """
    count = len(dataset.classnames)
    half = math.ceil(count / 2)
    choices = {"all": range(count), "base": range(half), "new": range(half, count)}
    if which not in choices:
        raise input_error("classes", f"one of {', '.join(choices)}", f"'{which}'")
    if which != "all" != dataset.subset:
        got = f"a split with the {dataset.subset} ones"
        raise input_error(dataset.name, "all classes of a data set", got, "pass --classes all")
    labels = choices[which]
    if which != "all" and len(labels) < 2:
        got, fix = f"{len(labels)} of {count}", "use a data set of at least 4 classes"
        raise input_error(dataset.name, f"at least 2 {which} classes", got, fix)
    listed = {
        split: [s._replace(label=s.label - labels.start) for s in samples if s.label in labels]
        for split, samples in dataset.splits.items()
    }
    counts = "/".join(str(len(samples)) for samples in listed.values())
    source = f"{dataset.source}; {which}: {len(labels)} classes, {counts} images"
    numbers = slice(labels.start, labels.stop)
    return replace(
        dataset, classnames=dataset.classnames[numbers], **listed, source=source,
        subset=dataset.subset if which == "all" else which,
        class_keys=dataset.class_keys and dataset.class_keys[numbers],
    )  # fmt: skip


def copies_note(train: Iterable[str], test: Iterable[str]) -> str:
    """Name the test images that are, byte for byte, training images, in a line; "" if none is."""
    if not (copies := find_copies(train, test)):
        return ""
    return f"copies of training images among the test images: {len(copies)}, such as {copies[0]}"


def find_copies(train: Iterable[str], test: Iterable[str]) -> list[str]:
    """List the test images that are, byte for byte, training images."""
    labelled = [*((path, "train") for path in train), *((path, "test") for path in test)]
    return [path for group in _equal_files(labelled) for path, split in group if split == "test"]


def two_classes_note(samples: Iterable[Sample]) -> str:
    """Name training images that are, byte for byte, in two classes, in a line; "" if none are."""
    classnames = {(sample.path, sample.label): sample.classname for sample in samples}
    groups = _equal_files(classnames)
    if not groups:
        return ""
    first = groups[0][0]
    other = next(key for key in groups[0] if key[1] != first[1])
    both = " and ".join(f"{key[0]} of '{classnames[key]}'" for key in (first, other))
    return f"copies of a training image in two classes: {len(groups)}, such as {both}"


def _equal_files(labelled: Iterable[tuple[str, object]]) -> list[list[tuple[str, object]]]:
    """Group files that are the same, byte for byte, and do not all have the same label.

    Only files of the same size are opened, and only those that end alike are read: few. Files
    that are not there, or cannot be opened, are left out.
    """
    groups = [list(dict.fromkeys(labelled))]
    for read in (os.path.getsize, _end, file_digest):
        smaller: dict[tuple[int, object], list[tuple[str, object]]] = {}
        for number, group in enumerate(groups):
            for path, label in group:
                with suppress(OSError):
                    smaller.setdefault((number, read(path)), []).append((path, label))
        groups = [each for each in smaller.values() if len({label for _, label in each}) > 1]
    return groups


def file_digest(path: str) -> bytes:
    """Return the size of a file in 8 bytes, and the SHA-256 of its content in 32."""
    content = Path(path).read_bytes()
    return len(content).to_bytes(8, "big") + hashlib.sha256(content).digest()


def _end(path: str) -> bytes:
    with open(path, "rb") as file:
        file.seek(-min(1024, os.path.getsize(path)), os.SEEK_END)
        return file.read()
