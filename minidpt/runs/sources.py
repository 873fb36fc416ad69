"""What eval.py works on: the models of run folders, their own test images or other data."""

import functools
import os
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from ..checkpoints.prompt_file import SavedModel, read_model
from ..data.datasets import open_dataset
from ..data.labels_csv import describe_missing, missing_files
from ..data.layouts import LAYOUTS
from ..data.naming import match_classes, read_classnames
from ..data.samples import Dataset, find_copies, select_classes
from ..data.splits import read_split, split_content
from ..model import PromptedCLIP, load_model
from ..support.distributed import world_from_environment
from ..support.files import to_single_line
from ..support.progress import print_notes
from .command_line import evaluates_other_data
from .config import RunConfig, merge_read_options
from .devices import choose_device, choose_precision, load_clip, move_clip
from .entrypoint import format_command
from .folders import MODEL, SPLIT, SUMMARY, RunFolder
from .results import tested_on

KNOWN = {layout.name for layout in LAYOUTS}  # data sets with names and a template of their own


def eval_datasets(
    args: Namespace, runs: list[RunFolder], configs: list[RunConfig]
) -> list[tuple[Dataset, list[int]]]:
    """Return the data sets to test on, each with the numbers of the runs to test on it."""
    tests, open_once = {}, functools.cache(open_dataset)
    for number, (run, config) in enumerate(zip(runs, configs)):
        if evaluates_other_data(args):
            datasets = other_datasets(args, config, open_once, run)
        else:
            datasets = [read_split(run.path(SPLIT), args.image_root)]
        for dataset in datasets:
            key = dataset.name, dataset.template, *dataset.notes, *dataset.classnames, *dataset.test
            tests.setdefault(key, (dataset, []))[1].append(number)
    return list(tests.values())


def other_datasets(
    args: Namespace, config: RunConfig, load: Callable = open_dataset, run: RunFolder | None = None
) -> list[Dataset]:
    """Open what the command line names, completed by what a run was trained on.

    A subset of the classes has a name that says so. run: to adapt them to, if there is one.
    """
    data = args.data or config.data
    if args.data is not None or args.dataset:
        names, classnames, template = args.dataset or [None], args.classnames, args.template
    else:
        names, classnames = [config.dataset], args.classnames or config.classnames
        template = args.template or config.template
    read = merge_read_options(*([config] if args.data is None else []), args)
    subset, datasets = args.classes or "all", []
    for name in names:
        reopen = functools.partial(
            load, data, name, classnames=classnames, template=template, read=read,
            least_classes=1 if args.among_all else 2,
        )  # fmt: skip
        dataset, saved = reopen(), read_model(run.path(MODEL)) if run else None
        if run and args.data is not None and dataset.name not in KNOWN:
            dataset = adapt_to_run(dataset, reopen, run, saved, args)
        dataset = select_classes(dataset, subset)
        dataset = replace(dataset, name=tested_on(dataset.name, subset))
        datasets.append(compare_classes(dataset, saved, args.among_all) if run else dataset)
    return datasets


def adapt_to_run(
    dataset: Dataset, reopen: Callable, run: RunFolder, saved: SavedModel, args: Namespace
) -> Dataset:
    """Name the classes of a user's own data as the run does, where they are the run's.

    Other data than the run's, if they have no split, are tested whole, without the images that the
    run was trained on.
    """
    config, record = run.read_config()
    known = dict(zip(saved.class_keys or saved.classnames, saved.classnames))
    if config.classnames and os.path.isfile(config.classnames):  # also of the new classes
        known |= read_classnames(config.classnames) | known
    theirs = list(known.values())
    matches = match_classes(dataset, list(known), theirs)
    names = [old if n is None else theirs[n] for old, n in zip(dataset.classnames, matches)]
    fingerprint = replace(dataset, classnames=names).fingerprint()
    if dataset.is_split_drawn and fingerprint != record.data_fingerprint:
        dataset = leave_out_trained(reopen(draw_split=False), train_images(run, None))
    count = len(matches) - matches.count(None)
    if count < min(len(saved.classnames), len(matches) / 2):  # a few are alike by chance
        return dataset
    overrides = read_classnames(args.classnames).values() if args.classnames else ()
    names = [old if old in overrides else new for old, new in zip(dataset.classnames, names)]
    template = dataset.template if args.template else saved.template
    words = to_single_line(repr(template), 100)
    note = f"{count} of {len(names)} classes are the run's: its names and template {words} are kept"
    note += " (else --classnames, --template)"
    return dataset.renamed(names, template).with_notes(note)


def leave_out_trained(dataset: Dataset, learned_from: set[str]) -> Dataset:
    """Leave out test images that a run was trained on, and copies of them; a note counts them."""
    trained = set(find_copies(learned_from, [sample.path for sample in dataset.test]))
    if missing := missing_files(learned_from):
        got = describe_missing(missing)
        dataset = dataset.with_notes(f"training images that cannot be left out: {got}")
    if not trained:
        return dataset
    test = [sample for sample in dataset.test if sample.path not in trained]
    note = f"left out {len(trained)} of {len(dataset.test)} images: the run was trained on them"
    if not test:
        raise ValueError(f"{dataset.name}: expected images new to the run, got none; {note}")
    return replace(dataset, test=test).with_notes(note)


def compare_classes(dataset: Dataset, saved: SavedModel, among_all: bool | None) -> Dataset:
    """Note if the classes are some of the run's; `among_all` takes all of these to tell apart.

    Raises ValueError then for a class that is none of the run's.
    """
    classnames = list(saved.classnames)
    matches = match_classes(dataset, saved.class_keys or classnames, classnames)
    if among_all and None in matches:
        got = f"'{dataset.classnames[matches.index(None)]}': remove it, or leave the option out"
        raise ValueError(f"--among-all: expected classes of the run in {dataset.name}, got {got}")
    if None in matches or len(matches) == len(classnames):
        return dataset
    few = f"{len(matches)} of the run's {len(classnames)} classes, told apart among"
    if not among_all:
        return dataset.with_notes(f"{few} these {len(matches)} (among all: --among-all)")
    for name, number in zip(dataset.classnames, matches):
        classnames[number] = name
    test = [sample._replace(label=matches[sample.label]) for sample in dataset.test]
    return replace(
        dataset, name=f"{dataset.name}, among {len(classnames)} classes", classnames=classnames,
        class_keys=saved.class_keys, train=[], val=[], test=test,
        allow_duplicates=saved.allow_duplicates,
    ).with_notes(f"{few} all {len(classnames)}")  # fmt: skip


def data_folders(run: RunFolder) -> list[Path]:
    """Return the folders that the run's images are in."""
    places = run.read_config()[0].data, split_content(run.path(SPLIT)).get("root")
    return [Path(path) for path in places if path]


def train_images(run: RunFolder, root: str | None) -> set[str]:
    """Return the files that a run has learned from, links resolved, in `root` if they moved."""
    split = split_content(run.path(SPLIT))
    files = (os.path.join(root or split.get("root") or "", file) for file, _, _ in split["train"])
    return set(map(os.path.realpath, files))


def load_runs(runs: list[RunFolder], args: Namespace) -> tuple[list[PromptedCLIP], str]:
    """Return the models of runs, which must have one CLIP, and the precision they compute in."""
    settings = [run.read_config() for run in runs]
    config, record = settings[0]
    for name in ("clip_fingerprint", "device", "precision"):
        values = list(dict.fromkeys(getattr(other, name) for _, other in settings))
        if len(values) > 1 and getattr(args, name, None) is None:
            is_clip, got = name == "clip_fingerprint", " and ".join(values)
            kind, fix = ("CLIP", "") if is_clip else (name, f", or pass --{name}")
            raise ValueError(f"expected runs with one {kind}, got {got}: test them one by one{fix}")
    device = device_of_runs(runs, args)
    precision, _ = choose_precision(args.precision or record.precision, device)
    clip = load_clip(replace(config, quick_gelu=record.quick_gelu), args.model)
    clip = move_clip(clip, device, precision)
    for run in runs:
        if not run.path(SUMMARY).is_file():
            again = format_command("train", "--resume", run.folder)
            state = "was stopped before its end, or still runs"
            print_notes([f"the training of {run.folder} {state}; to resume it: {again}"])
    return [load_model(run.path(MODEL), clip) for run in runs], precision


def device_of_runs(runs: list[RunFolder], args: Namespace) -> torch.device:
    """Return the device that was asked for, or the runs' if it is on this machine."""
    with suppress(ValueError):  # it is not here
        if args.device is None:
            return choose_device(runs[0].read_config()[1].device, world_from_environment())
    return choose_device(args.device, world_from_environment())
