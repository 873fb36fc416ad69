"""The few-shot draw, and the half of the classes that a protocol takes."""

import math
import random
from collections import Counter
from dataclasses import replace

from .items import PARTS, Dataset, Item


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
