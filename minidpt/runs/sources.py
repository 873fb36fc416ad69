"""Which data eval.py tests a run on: its own test pictures, or what its options name."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..data.copies import copies_note
from ..data.datasets import open_dataset
from ..data.samples import Dataset, select_classes
from ..data.splits import read_split, split_content
from ..demo.demo import is_demo
from .config import RunConfig
from .eval_options import evaluates_other_data
from .evaluation import TestSet
from .folders import SPLIT, RunFolder
from .results import tested_on


def tests_of(
    args: Namespace, runs: list[RunFolder], configs: list[RunConfig]
) -> list[tuple[Dataset, list[int]]]:
    """Data sets to test on, and the numbers of the runs to test on each."""
    tests = {}
    if not evaluates_other_data(args):
        for number, run in enumerate(runs):
            dataset = read_split(run.path(SPLIT), args.image_root)
            tests.setdefault(tuple(dataset.test), (dataset, []))[1].append(number)
        return list(tests.values())
    for number, config in enumerate(configs):
        if args.dataset and args.data is None and is_demo(config.data):
            raise ValueError(
                "--dataset: expected --data, the folder it lies in: "
                f"{runs[number].folder} was trained on the demo's drawings"
            )
        for source in sources_of(args, config):
            if source not in tests:
                tests[source] = source.open(), []
            tests[source][1].append(number)
    return list(tests.values())


class Source(NamedTuple):
    """All that decides on pictures and classes of a test."""

    data: str
    dataset: str | None
    classnames: str | None
    template: str | None
    classes: str

    def open(self) -> Dataset:
        """The data set, or the part of it; its name says which."""
        dataset = open_dataset(
            self.data, self.dataset, classnames=self.classnames, template=self.template
        )
        dataset = select_classes(dataset, self.classes)
        return replace(dataset, name=tested_on(dataset.name, self.classes))


def sources_of(args: Namespace, config: RunConfig) -> list[Source]:
    """What the command line names, completed by where and what a run was trained on."""
    data = config.data if args.data is None else args.data
    classes = args.classes or "all"
    if args.data is not None or args.dataset:
        return [
            Source(data, name, args.classnames, args.template, classes)
            for name in args.dataset or [None]
        ]
    classnames = args.classnames or config.classnames
    template = args.template or config.template
    return [Source(data, config.dataset, classnames, template, classes)]


def data_folders(run: RunFolder) -> list[Path]:
    """Return the folders that the run's images are in."""
    places = run.read_config()[0].data, split_content(run.path(SPLIT)).get("root")
    return [Path(place) for place in places if place]


def train_images(run: RunFolder, root: str | None) -> set[str]:
    """Return the files that a run has learned from, links resolved, in `root` if they moved."""
    split = split_content(run.path(SPLIT))
    files = (os.path.join(root or split.get("root") or "", file) for file, _, _ in split["train"])
    return set(map(os.path.realpath, files))


def seen_notes(learned_from: set[str], eval_set: TestSet) -> Iterator[str]:
    """Yield what of the test images was trained on, by name or as a copy."""
    if seen := sum(file in learned_from for file in eval_set.files):
        yield f"{seen} of the test images were trained on"
    others = [file for file in eval_set.files if file not in learned_from]
    if eval_set.ranks.first and (note := copies_note(learned_from, others)):
        yield note
