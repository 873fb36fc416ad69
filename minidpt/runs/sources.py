"""Which data eval.py tests a run on: its own test pictures, or what its options name."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import NamedTuple

from ..data.datasets import open_dataset
from ..data.samples import Dataset, select_classes
from ..data.splits import read_split
from ..demo.demo import is_demo
from .eval_options import is_elsewhere
from .folders import SPLIT, Run
from .results import tested_on


def tests_of(
    args: Namespace, runs: list[Run], configs: list[dict]
) -> list[tuple[Dataset, list[int]]]:
    """Data sets to test on, and the numbers of the runs to test on each."""
    tests = {}
    if not is_elsewhere(args):
        for number, run in enumerate(runs):
            dataset = read_split(run.path(SPLIT), args.root)
            tests.setdefault(tuple(dataset.test), (dataset, []))[1].append(number)
        return list(tests.values())
    for number, config in enumerate(configs):
        if args.dataset and args.data is None and is_demo(config["data"]):
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


def sources_of(args: Namespace, config: dict) -> list[Source]:
    """What the command line names, completed by where and what a run was trained on."""
    data = config["data"] if args.data is None else args.data
    classes = args.classes or "all"
    if args.data is not None or args.dataset:
        return [
            Source(data, name, args.classnames, args.template, classes)
            for name in args.dataset or [None]
        ]
    classnames = args.classnames or config.get("classnames")
    template = args.template or config.get("template")
    return [Source(data, config.get("dataset"), classnames, template, classes)]
