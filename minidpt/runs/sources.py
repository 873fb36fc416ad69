"""What eval.py works on: the models of run folders, their own test images or other data."""

from __future__ import annotations

import functools
import os
import shlex
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..data.copies import copies_note
from ..data.datasets import open_dataset
from ..data.samples import Dataset, select_classes
from ..data.splits import read_split, split_content
from ..demo.demo import is_demo
from ..model import PromptedCLIP, load_model
from ..support.distributed import world_from_environment
from ..support.progress import print_line
from .command_line import evaluates_other_data
from .config import AUTO, RunConfig, read_options
from .devices import choose_device, choose_precision, load_clip, place
from .entrypoint import relaunch_command
from .evaluation import EvalSet
from .folders import MODEL, SPLIT, SUMMARY, RunFolder
from .results import tested_on


def eval_datasets(
    args: Namespace, runs: list[RunFolder], configs: list[RunConfig]
) -> list[tuple[Dataset, list[int]]]:
    """Return the data sets to test on, each with the numbers of the runs to test on it."""
    tests, open_once = {}, functools.cache(open_subset)
    for number, (run, config) in enumerate(zip(runs, configs)):
        if not evaluates_other_data(args):
            datasets = [read_split(run.path(SPLIT), args.image_root)]
        elif args.dataset and args.data is None and is_demo(config.data):
            raise ValueError(
                f"--dataset: expected --data, the folder it lies in: {run.folder} was trained on "
                "the demo's drawings"
            )
        else:
            datasets = other_datasets(args, config, open_once)
        for dataset in datasets:
            key = dataset.name, dataset.template, *dataset.classnames, *dataset.test
            tests.setdefault(key, (dataset, []))[1].append(number)
    return list(tests.values())


def other_datasets(
    args: Namespace, config: RunConfig, open_subset: Callable[..., Dataset]
) -> list[Dataset]:
    """Open what the command line names, completed by what a run was trained on."""
    data = args.data or config.data
    if args.data is not None or args.dataset:
        names, classnames, template = args.dataset or [None], args.classnames, args.template
    else:
        names, classnames = [config.dataset], args.classnames or config.classnames
        template = args.template or config.template
    read = read_options(*([config] if args.data is None else []), args)
    options = {"classnames": classnames, "template": template, "read": read}
    return [open_subset(data, name, args.classes or "all", **options) for name in names]


def open_subset(data: str, name: str | None, subset: str, **options: Any) -> Dataset:
    """Open a data set or a subset of its classes, which its name says."""
    dataset = select_classes(open_dataset(data, name, **options), subset)
    return replace(dataset, name=tested_on(dataset.name, subset))


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
    files = [os.path.realpath(sample.path) for sample in eval_set.samples]
    if seen := sum(file in learned_from for file in files):
        yield f"{seen} of the test images were trained on"
    others = [file for file in files if file not in learned_from]
    if eval_set.world.is_main and (note := copies_note(learned_from, others)):
        yield note


def load_runs(runs: list[RunFolder], args: Namespace) -> tuple[list[PromptedCLIP], str]:
    """Return the models of runs, which must have one CLIP, and the precision they compute in."""
    settings = [run.read_config() for run in runs]
    config, record = settings[0]
    for name in ("clip_fingerprint", "device", "precision"):
        values = list(dict.fromkeys(getattr(other, name) for _, other in settings))
        if len(values) > 1 and getattr(args, name, None) is None:
            fix = "" if name == "clip_fingerprint" else f", or pass --{name}"
            got = f"{name} {' and '.join(values)}"
            raise ValueError(f"expected runs with one CLIP, got {got}: test them one by one{fix}")
    device = device_of_runs(runs, args)
    precision, reason = choose_precision(args.precision or record.precision, device)
    clip = load_clip(replace(config, quick_gelu=record.quick_gelu), args.model)
    if args.precision == AUTO:
        print_line(f"CLIP {clip.name} on {device} in {precision} ({reason})")
    clip = place(clip, device, precision)
    for run in runs:
        if not run.path(SUMMARY).is_file():
            again = shlex.join([*relaunch_command("train"), "--resume", str(run.folder)])
            print_line(
                f"note: the training of {run.folder} was stopped before its end, or still runs; "
                f"to resume it: {again}"
            )
    return [load_model(run.path(MODEL), clip) for run in runs], precision


def device_of_runs(runs: list[RunFolder], args: Namespace) -> torch.device:
    """Return the device that was asked for, or the runs' if it is on this machine."""
    if args.device is None:
        try:
            return choose_device(runs[0].read_config()[1].device, world_from_environment())
        except ValueError:
            pass  # it is not here
    return choose_device(args.device, world_from_environment())
