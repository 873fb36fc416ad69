"""What eval.py works on: the models of run folders, their own test images or other data."""

from __future__ import annotations

import os
import shlex
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from ..data.copies import copies_note
from ..data.datasets import open_dataset
from ..data.samples import Dataset, select_classes
from ..data.splits import read_split, split_content
from ..demo.demo import is_demo
from ..model import PromptedCLIP, load_model
from ..support.distributed import world_from_environment
from ..support.progress import print_line
from .config import RunConfig, RunRecord
from .devices import choose_device, load_clip, place
from .eval_options import evaluates_other_data
from .evaluation import EvalSet
from .folders import MODEL, SPLIT, SUMMARY, RunFolder
from .precision import AUTO, choose_precision
from .processes import relaunch_command
from .results import tested_on


def eval_datasets(
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


def seen_notes(learned_from: set[str], eval_set: EvalSet) -> Iterator[str]:
    """Yield what of the test images was trained on, by name or as a copy."""
    if seen := sum(file in learned_from for file in eval_set.files):
        yield f"{seen} of the test images were trained on"
    others = [file for file in eval_set.files if file not in learned_from]
    if eval_set.world.is_main and (note := copies_note(learned_from, others)):
        yield note


def load_runs(runs: list[RunFolder], args: Namespace) -> tuple[list[PromptedCLIP], str]:
    """Return the models of runs, which must have one CLIP, and the precision they compute in."""
    settings = [run.read_config() for run in runs]
    config, record = settings[0]
    for other, other_record in settings[1:]:
        check_same_clip(args, (config, record), (other, other_record))
    device = device_of_runs(runs, args)
    precision, reason = choose_precision(args.precision or record.precision, device)
    clip = load_clip(replace(config, quick_gelu=record.quick_gelu), args.model)
    if args.precision == AUTO:
        print_line(f"CLIP {clip.name} on {device} in {precision} ({reason})")
    clip = place(clip, device, precision)
    for run in runs:
        if not run.path(SUMMARY).is_file():
            again = shlex.join([*relaunch_command("train"), "--resume", str(run.folder)])
            print_line(f"note: the training of {run.folder} was stopped before its end, or still runs; "
                f"to resume it: {again}")  # fmt: skip
    models = [load_model(run.path(MODEL), clip) for run in runs]
    return models, precision


def check_same_clip(
    args: Namespace, first: tuple[RunConfig, RunRecord], other: tuple[RunConfig, RunRecord]
) -> None:
    """Raise ValueError if two runs need different CLIPs, or compute otherwise."""
    for name in ("clip_fingerprint", "device", "precision"):
        values = [getattr(record, name) for _, record in (first, other)]
        if values[0] != values[1] and getattr(args, name, None) is None:
            fix = "" if name == "clip_fingerprint" else f", or pass --{name}"
            raise ValueError(
                f"expected runs with one CLIP, got {name} {values[0]} and {values[1]}: test them "
                f"one by one{fix}"
            )


def device_of_runs(runs: list[RunFolder], args: Namespace) -> torch.device:
    """Return the device that was asked for, or the runs' if it is on this machine."""
    if args.device is None:
        try:
            return choose_device(runs[0].read_config()[1].device, world_from_environment())
        except ValueError:
            pass  # it is not here
    return choose_device(args.device, world_from_environment())
