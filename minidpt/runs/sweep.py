"""Plan the runs of a train.py command, make them in turn or deal them out, write their table.

One run, or those of a sweep, share CLIP, data sets and test images.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch

from ..clip.network import CLIP
from ..config import METHODS
from ..data.batches import IMAGE_MEMORY, ImageCache
from ..data.datasets import folders_of, open_dataset
from ..data.layouts import layout_of
from ..data.samples import Dataset, few_shot, select_classes
from ..demo.demo import draw_demo
from ..model import build_model
from ..support.distributed import PeerLost, World, join_world, world_from_environment
from ..support.files import input_error, validate_name
from ..support.progress import notes_once, print_line, print_notes
from . import entrypoint, folders
from .command_line import TrainCommand
from .config import RunConfig, RunRecord, expand_grid, merge_read_options
from .devices import choose_device, choose_precision, load_clip, move_clip
from .evaluation import EvalSet
from .folders import RunFolder, is_sweep, list_contents
from .report import write_report
from .results import read_rows
from .tables import markdown, write_tables


@dataclass(frozen=True)
class PlannedRun:
    """A run to make."""

    config: RunConfig
    dataset: Dataset
    subsets: dict[str, Dataset]  # of its classes, by name; the first is the one to train on
    folder: RunFolder | None = None  # once it is locked
    record: RunRecord | None = None  # before the run begins

    @property
    def name(self) -> str:
        return self.config.run_name(self.dataset.name)


@dataclass
class Shared:
    """Resources that the runs of a command share."""

    clip: CLIP  # on its device, in its precision
    images: ImageCache  # decoded training images
    world: World  # the processes that share a run
    is_sweep: bool
    _opened: tuple = (None, {})  # the last data set, its evaluation sets

    def eval_sets(self, run: PlannedRun) -> dict[str, EvalSet]:
        """Return the test images of a run by subset of the classes, made once for a data set."""
        if run.dataset is not self._opened[0]:
            options, eval_sets = {"workers": run.config.workers, "world": self.world}, {}
            for subset, dataset in run.subsets.items():
                eval_sets[subset] = EvalSet(dataset.test, self.clip, **options)
            self._opened = run.dataset, eval_sets
        return self._opened[1]


RunOnce = Callable[[PlannedRun, Shared], None]


def is_finished(folder: str) -> bool:
    """Whether the run that --resume names has its result; of a sweep each run says so itself.

    Raises ValueError if there is nothing to resume.
    """
    run_folder = RunFolder(folder)
    if is_sweep(folder):
        return False
    if run_folder.path(folders.SUMMARY).is_file():
        if world_from_environment().is_main:  # else the processes would find each other's lock
            folders.check_unlocked(run_folder.folder)  # removes that of a process killed just then
        return run_folder.has_result()
    is_begun = all(run_folder.path(name).is_file() for name in (folders.METRICS, folders.MODEL))
    if is_begun and not run_folder.path(folders.STATE).is_file():
        got = f"got none: {folders.START_OVER_HINT}"
        raise ValueError(f"--resume {folder}: expected {folders.STATE} in it, {got}")
    return False


def plan_runs(command: TrainCommand) -> list[PlannedRun]:
    """Open the data sets and return the runs on them, data set by data set, one of each name.

    Raises ValueError if a data set is only a test.
    """
    configs = expand_grid(command.options)
    model = configs[0].model or ("tiny" if configs[0].data is None else "ViT-B/32")
    datasets, planned, drawn = {}, {}, set()
    for number, config in enumerate(configs):
        root = Path(config.data or draw_demo("runs")).expanduser()
        name = config.dataset and layout_of(config.dataset).name
        config = replace(config, data=str(root.resolve()), dataset=name, model=model)
        configs[number], key = config, (config.data, name)
        if key not in datasets:
            options = {"classnames": config.classnames, "template": config.template}
            datasets[key] = open_dataset(root, name, **options, read=merge_read_options(config))
            print_line(datasets[key].source)
            print_notes(datasets[key].notes)
    names = distinct_names([(dataset.name, path) for (path, _), dataset in datasets.items()])
    for (key, dataset), name in zip(list(datasets.items()), names):
        subsets = ("base", "new") if configs[0].classes == "base" else (configs[0].classes,)
        dataset = replace(dataset, name=name)
        datasets[key] = dataset, {each: select_classes(dataset, each) for each in subsets}
    for config in configs:
        dataset, subsets = datasets[config.data, config.dataset]
        if config.prompts.method != "zeroshot" and dataset.name not in drawn:
            few_shot(dataset, config.shots, config.seed)
            drawn.add(dataset.name)
        run = PlannedRun(config.resolve(dataset.name, dataset.template), dataset, subsets)
        planned[run.name] = run
    return sorted(planned.values(), key=lambda run: names.index(run.dataset.name))


def distinct_names(paths: list[tuple[str, str]]) -> list[str]:
    """Return the names of data sets, given with paths, with what tells apart those that are alike.

    That is the first folder in which they differ, or the path from there on where some share it.
    """
    distinct = []
    for name, path in paths:
        alike = [other for each, other in paths if each.casefold() == name.casefold()]
        if len(alike) > 1:
            start = len(Path(os.path.commonpath(map(os.path.dirname, alike))).parts)
            is_enough = len({Path(other).parts[start] for other in alike}) == len(alike)
            end = "-".join(Path(path).parts[start : start + 1 if is_enough else None])
            name = validate_name(f"{name}-{end}", "--data", folder=True)
        distinct.append(name)
    if len(set(map(str.casefold, distinct))) < len(distinct):
        raise input_error("--data", "data sets of different names", distinct, "rename a folder")
    return distinct


@contextmanager
def open_output(
    command: TrainCommand, runs: list[PlannedRun], world: World
) -> Iterator[tuple[list[PlannedRun], Path | None]]:
    """Lock where the results go, a run folder or a sweep; yield the runs with their folders."""
    paths = [Path(path) for path in dict.fromkeys(run.config.data for run in runs)]
    datasets = {run.dataset.name: run.dataset for run in runs}.values()
    data = [*paths, *chain.from_iterable(map(folders_of, datasets))]
    out = command.out
    if len(runs) == 1 and not (out and is_sweep(out)):
        lock = folders.lock_numbered_folder(Path("runs") / runs[0].name, data)
        if out:
            lock = folders.lock_output_folder(Path(out), data, folders.CONFIG)
        with entrypoint.main_process_first(world, lock) as folder:
            yield [replace(runs[0], folder=RunFolder(folder))], None
        return
    out = Path(out or Path("runs") / f"{'-'.join(path.name for path in paths)[:100]}-sweep")
    with entrypoint.main_process_first(world, folders.lock_output_folder(out, data, folders.SWEEP)):
        yield [replace(run, folder=RunFolder(out / run.name)) for run in runs], out


def make_runs(command: TrainCommand, run_once: RunOnce) -> int:
    """Make every run that has no result yet, with one frozen CLIP; then the table of a sweep.

    Several processes share one run; of a sweep each makes whole runs, dealt out as they become
    free. Returns 2 if runs of the sweep failed, or its table could not be written.
    """
    device = choose_device(command.options.get("device"), world_from_environment())
    world = join_world(device)
    planned = plan_runs(command)
    with open_output(command, planned, world) as (runs, sweep):
        try:
            todo, clip = prepare(command, runs, sweep, device, world)
            world.barrier()  # all have seen what is there, before any of them writes
            images = ImageCache(IMAGE_MEMORY // world.local_size)
            if sweep:
                shared = Shared(clip, images, world.single(), True)
                with notes_once():
                    failed = make_runs_of_sweep(todo, shared, world, run_once)
                return finish_sweep(sweep, runs, failed) if world.is_main else 0
            for run in todo:
                run_once(run, Shared(clip, images, world, False))
            return 0
        except (KeyboardInterrupt, PeerLost) as stop:
            stop.how_to_resume = resume_command(runs, sweep, world)
            raise


def make_runs_of_sweep(
    todo: list[PlannedRun], shared: Shared, world: World, run_once: RunOnce
) -> list[str]:
    """Make runs, dealt out to the processes; return the names of those that failed in any."""
    failed = []
    for number in world.work_queue(len(todo)):
        run = todo[number]
        with entrypoint.prefix_output(run.name, world):
            print_line(f"[{number + 1}/{len(todo)}] {run.name}")
            try:
                run_once(run, shared)
            except Exception as error:
                is_fatal = isinstance(error, (BrokenPipeError, PeerLost))
                if is_fatal or not entrypoint.is_user_error(error):
                    raise
                entrypoint.print_error(error, f"{run.name}: " if world.size == 1 else "")
                failed.append(run.name)
    return list(chain.from_iterable(world.all_gather_object(failed)))


def finish_sweep(sweep: Path, runs: list[PlannedRun], failed: list[str]) -> int:
    """Print and write the table and report of a sweep; return 2 if the table, or a run, failed."""
    status = 2 if failed else 0
    if len(failed) < len(runs):
        try:
            text = f"{write_tables(sweep)}\n{sweep}: table.md, table.csv"
        except OSError as error:
            entrypoint.print_error(error)
            text, status = markdown(read_rows(sweep)[0]), 2
        print_line("", *text.splitlines())
        if not runs[0].config.no_report:
            with optional_output(sweep, "the report"):
                write_report(sweep)
                print_line(sweep / folders.REPORT)
    if failed:
        entrypoint.print_error(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")
    return status


def resume_command(runs: list[PlannedRun], sweep: Path | None, world: World) -> str:
    """Return the command that resumes what was begun; "" if there is nothing left to do."""
    folder, arguments = runs[0].folder, sys.argv[1:]
    if not sweep and folder.path(folders.SUMMARY).is_file():
        return ""
    if not sweep and folder.path(folders.CONFIG).is_file():
        no_report = ["--no-report"] if runs[0].config.no_report else []
        arguments = ["--resume", folder.folder, *no_report]
    return entrypoint.format_command("train", *arguments, world=world)


def prepare(
    command: TrainCommand,
    runs: list[PlannedRun],
    sweep: Path | None,
    device: torch.device,
    world: World,
) -> tuple[list[PlannedRun], CLIP]:
    """Return the runs without a result in order, with records, and CLIP on its device.

    Raises ValueError if a run was begun with other weights or other data, or if the prompts of one
    do not fit this CLIP.
    """
    config = runs[0].config
    clip = load_clip(config)
    precision, reason = choose_precision(config.precision, device)
    reason = "the run's" if command.resume else reason
    where = str(device) if world.size == 1 else device.type
    of_clip, datasets = clip.fingerprint(), {run.dataset.name: run.dataset for run in runs}
    of_data = {name: dataset.fingerprint() for name, dataset in datasets.items()}
    fix = folders.START_OVER_HINT if command.resume else "pass another --out, or remove it"
    todo = []
    for run in runs:
        fingerprints = of_clip, of_data[run.dataset.name]
        record = RunRecord(*fingerprints, where, precision, clip.quick_gelu)
        if not run.folder.is_finished(run.config, record, fix):
            todo.append(replace(run, record=record))
    if world.size > 1:
        todo.sort(key=dealing_order)
    print_output_folder(sweep, runs, todo)
    kinds = {(run.config.prompts, run.config.template): run for run in runs}
    for (prompts, template), run in kinds.items():
        build_model(clip, run.dataset.classnames[:2], template, prompts, allow_duplicates=True)
    if todo:
        clip = move_clip(clip, device, precision)
        print_line(f"CLIP {clip.name} on {device} in {precision} ({reason})")
        if sweep and world.is_main:
            data = list(dict.fromkeys(run.config.data for run in runs))
            chosen = {"data": data, "model": config.model, "precision": precision}
            RunFolder(sweep).write_json(folders.SWEEP, {**command.options, **chosen})
    return todo, clip


def print_output_folder(sweep: Path | None, runs: list[PlannedRun], todo: list[PlannedRun]) -> None:
    """Print where the results go, and what is there already."""
    if sweep:
        plural, finished = "s" if len(runs) > 1 else "", len(runs) - len(todo)
        print_line(f"{len(runs)} run{plural} in {sweep}, {finished} of them finished")
        return
    folder = runs[0].folder
    resumed = "resumed" if folder.path(folders.STATE).is_file() else "begun anew"
    state = f", {resumed}" if list_contents(folder.folder) else ""
    print_line(f"run folder {folder.folder}{state}")


@contextmanager
def optional_output(folder: Path, output: str) -> Iterator[None]:
    """Print an error of the block instead of raising it; the run goes on without the output."""
    try:
        yield
    except Exception as error:
        if isinstance(error, BrokenPipeError):
            raise
        entrypoint.print_error(f"{folder}: {output} is left out: {error or type(error).__name__}")


def dealing_order(run: PlannedRun) -> tuple[int, str, int]:
    """Return the key that sorts the runs to deal out: the longest first, to end together.

    Runs on one data set stay together, as its images are read once. A step of a method takes
    longer than one of those before it in `METHODS`.
    """
    config = run.config
    training = config.epochs * config.shots * METHODS.index(config.prompts.method)
    return -len(run.dataset.classnames), run.dataset.name, -training
