"""Folders of runs and of sweeps: what lies in them, and whose they are."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

from .. import __version__
from ..data.folders import describe_missing, missing_files
from ..data.layouts import LAYOUTS, plain
from ..data.samples import PARTS, Dataset
from ..data.splits import split_content
from ..files import entries, locked, one_line_errors, read_json, replacing
from .parser import flag

CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"
SPLIT, MODEL, STATE, TRANSFER = "split.json", "model.pt", "state.pt", "transfer.json"
SWEEP, LOCK, TRANSFER_LOCK = "sweep.json", ".minidpt.lock", f"{TRANSFER}.lock"
PREDICTIONS, WORDS, REPORT = "predictions.csv", "words.json", "report.html"
RUN_FILES = (SUMMARY, METRICS, MODEL, STATE, SPLIT, PREDICTIONS, WORDS, REPORT, TRANSFER,
             TRANSFER_LOCK, CONFIG)  # fmt: skip
OF_ALL = {"data", "model", "method"}  # settings that config.json of every run has
SWEEP_FILES = (SWEEP, "table.md", "table.csv", REPORT)
# Settings that change no more than the last digits of a result, and what is no setting or follows
# from the pictures; runs of earlier versions lack some of them.
NOT_COMPARED = ("out", "workers", "versions", "device", "class_chunk", "compile", "max_pixels",
                "white", "prompts")  # fmt: skip
# Where CLIP and the pictures are, and what follows from it: fingerprints tell if they are the same.
MAY_MOVE = ("data", "model", "name")
# What config.json says of the frozen CLIP's weights and of the lists of pictures, and of what.
FINGERPRINTS = {"clip_fingerprint": "CLIP", "data_fingerprint": "data"}
BUSY = "output folder {}: another process writes to it: wait for its end"
ANEW = "begin it anew with --config and --out"  # instead of --resume


def decisive(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of a run's settings that decide its result."""
    no_matter = NOT_COMPARED + MAY_MOVE
    return {name: value for name, value in settings.items() if name not in no_matter}


class Run:
    """A run's folder.

    config.json: all settings, and fingerprints of CLIP and of the data; split.json: the pictures
    used; state.pt: what going on needs (`state.TrainingState`), after each epoch, and from it
    model.pt: the learned prompts, metrics.jsonl: a line for each epoch; predictions.csv: what each
    test picture is taken for; words.json: the nearest words of the learned context; summary.json:
    the result, written last, when state.pt goes; report.html: all of it to look at; transfer.json:
    results of eval.py on other data.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    @classmethod
    @contextmanager
    def new(cls, folder: str | os.PathLike, data: Iterable[Path]) -> Iterator[Run]:
        """A run to be written to a folder: a new or empty one, or of a run without a result.

        Raises as `claimed`. What is in the folder is compared by `finished`, removed by `create`.
        """
        run, begun = cls(folder), lambda held: CONFIG in held and SUMMARY not in held
        with claimed(run.folder, data, begun) as run.notes:
            yield run

    @classmethod
    @contextmanager
    def new_numbered(cls, folder: Path, data: Iterable[Path]) -> Iterator[Run]:
        """A run to be written to this folder, or with -2, -3, … behind it if that is taken."""
        numbered = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
        for run in map(cls, chain([folder], numbered)):
            with ExitStack() as claim, suppress(FolderTaken, BlockingIOError):
                run.notes = claim.enter_context(claimed(run.folder, data, lambda held: False))
                claim = claim.pop_all()
                break
        with claim:
            yield run

    @classmethod
    def open(cls, folder: str | os.PathLike) -> Run:
        """A finished or interrupted run. Raises FileNotFoundError if the folder holds none."""
        run = cls(folder)
        for name in (CONFIG, SPLIT, MODEL):
            if not (run.folder / name).is_file():
                within = next((each for each in run.folder.glob("*") if is_run(each)), None)
                fix = f"a run in it, such as {within}" if within else "a folder of train.py"
                raise FileNotFoundError(
                    f"run folder {folder}: expected {name} in it, got none: pass {fix}"
                )
        return run

    def create(self) -> None:
        """Make the folder, without what an interrupted run has left in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in RUN_FILES:  # it is a run to the last
            self.path(name).unlink(missing_ok=True)
            self.path(f"{name}.part").unlink(missing_ok=True)

    @one_line_errors
    def finished(
        self, settings: dict[str, Any], fix: str = "pass another --out, or remove it"
    ) -> bool:
        """Whether the folder holds a run of these settings, and its result.

        Raises ValueError, which `fix` ends, if it holds another run, a damaged one, or none.
        """
        if not held_in(self.folder):
            return False
        if not self.path(CONFIG).is_file():
            raise ValueError(f"run folder {self.folder}: expected a run in it, got other files")
        there = self.read_json(CONFIG)
        for name, value in decisive(settings).items():
            if there.get(name) == value:
                continue
            wanted, got = f"{name} {value}", f"{there.get(name)}"
            if type(there.get(name)) in (str, int, float) and name not in FINGERPRINTS:  # no bool
                fix = f"pass {flag(name)} {got}, or {fix}"
            if name in FINGERPRINTS:
                wanted = f"the same {FINGERPRINTS[name]} (fingerprint {value[:8]})"
                got = f"other {FINGERPRINTS[name]} (fingerprint {got[:8]})"
            if name == "data_fingerprint" and (gone := self._missing_pictures()):
                got, fix = f"{got}, {describe_missing(gone)}", f"put back what is missing, or {fix}"
            raise ValueError(
                f"run folder {self.folder}: expected to go on with {wanted}, got a run with {got}: "
                f"{fix}"
            )
        if not self.path(SUMMARY).is_file():
            return False
        self.path(STATE).unlink(missing_ok=True)  # of a process that was killed just then
        return bool(self.read_json(SUMMARY, tests=dict))

    def _missing_pictures(self) -> list[str]:
        """Those of split.json that are not in its folder, if that is still there."""
        with suppress(ValueError, OSError):
            split = split_content(self.path(SPLIT))
            if os.path.isdir(root := split.get("root") or ""):
                rows = chain.from_iterable(split[part] for part in PARTS)
                return missing_files(os.path.join(root, path) for path, *_ in rows)
        return []

    def path(self, name: str) -> Path:
        """The file of that name in the folder."""
        return self.folder / name

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file whole: no half of it is ever there."""
        self.write_text(name, json.dumps(content, indent=2) + "\n")

    def write_text(self, name: str, content: str) -> None:
        """Write a text file whole."""
        with replacing(self.path(name)) as unfinished:
            unfinished.write_text(content, encoding="utf-8")

    @one_line_errors
    def read_json(self, name: str, **needed: Any) -> dict[str, Any]:
        """Read a JSON file of the run.

        Raises ValueError if it is damaged, or lacks a `needed` entry of that type.
        """
        where = str(self.path(name))
        return entries(read_json(where, where), where, **needed)


class Sweep:
    """A folder of runs that can be stopped and continued.

    sweep.json: what was asked for last; table.md, table.csv, report.html: all results; features/:
    what the frozen CLIP makes of the test pictures.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    @classmethod
    @contextmanager
    def new(
        cls, folder: str | os.PathLike, data: Iterable[Path], runs: Iterable[str]
    ) -> Iterator[Sweep]:
        """A sweep of runs of these names in a new or empty folder, or one to go on with.

        Raises as `claimed`, and ValueError if another process writes to one of the runs.
        """
        sweep = cls(folder)
        with claimed(sweep.folder, data, lambda held: SWEEP in held) as sweep.notes:
            for name in runs:
                check_free(sweep.folder / name)
            yield sweep

    def create(self, settings: dict[str, Any]) -> None:
        """Note what was asked for, and remove what a killed process has left unfinished."""
        for name in SWEEP_FILES:
            (self.folder / f"{name}.part").unlink(missing_ok=True)
        for path in self.folder.glob("features/*.npy.part"):
            path.unlink()
        Run(self.folder).write_json(SWEEP, settings)

    @staticmethod
    def is_in(folder: str | os.PathLike) -> bool:
        """Whether the folder holds a sweep."""
        return (Path(folder) / SWEEP).is_file()

    def run(self, name: str) -> Run:
        """The run of that name."""
        return Run(self.folder / name)


def is_run(folder: Path) -> bool:
    """Whether it is a run's: config.json of others, Hugging Face's say, lies in many folders."""
    try:
        return entries(read_json(folder / CONFIG, CONFIG), CONFIG).keys() >= OF_ALL
    except (OSError, ValueError):
        return (folder / SPLIT).is_file()  # of a run, and damaged


def held_in(folder: Path) -> set[str]:
    """What is in the folder, if there is one, but for what a killed process of ours has left."""
    ours = {LOCK, TRANSFER_LOCK, *(f"{name}.part" for name in RUN_FILES + SWEEP_FILES)}
    if folder.is_dir():
        return set(os.listdir(folder)) - ours
    return {folder.name} if os.path.lexists(folder) else set()


class FolderTaken(FileExistsError):
    """A folder to write to holds what is not ours to go on with: another name will do."""


@contextmanager
def claimed(
    folder: Path,
    data: Iterable[Path],
    may_hold: Callable[[set[str]], bool],
    option: str = "--out",
) -> Iterator[tuple[str, ...]]:
    """Makes a folder, which is this process's alone during the block: by a lock on a file in it.

    Yields notes: that there are no locks here. Folders that the block leaves empty go again.
    Raises ValueError if the folder lies within one of the data folders, or in a sweep that another
    process writes; FolderTaken if it holds what it may not, BlockingIOError if another process
    has it.
    """

    def check() -> None:
        held = held_in(folder)
        if held and not may_hold(held):
            kinds = {SWEEP: "a sweep", SUMMARY: "a finished run", CONFIG: "another run"}
            got = next((kind for name, kind in kinds.items() if name in held), "other files")
            ours = ", or one that this command goes on with" if option == "--out" else ""
            raise FolderTaken(
                f"output folder {folder}: expected a new or empty one{ours}, got one with {got}: "
                f"pass another {option} or remove it"
            )

    check_outside(folder, data, option=option)
    check()
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / LOCK, BUSY.format(folder)) as held:
            check()  # nobody else writes to it now
            check_free(folder.parent)
            yield () if held else (f"no locks here: start nothing else that writes to {folder}",)
    finally:
        with suppress(OSError):
            for path in made:
                path.rmdir()


def check_free(folder: Path) -> None:
    """ValueError if another process writes to the folder."""
    try:
        if (folder / LOCK).exists():
            with locked(folder / LOCK, BUSY.format(folder)):
                pass
    except BlockingIOError as error:
        raise ValueError(error) from None


def check_outside(
    place: Path, data: Iterable[Path], what: str = "output folder", option: str = "--out"
) -> None:
    """ValueError if a place to write to lies within one of the data folders."""
    resolved = place.resolve()
    for root in data:
        if root.is_dir() and resolved.is_relative_to(root.resolve()):
            raise ValueError(
                f"{what} {place}: expected one outside the data folder {root}: pass another "
                f"{option}"
            )


def folders_of(dataset: Dataset) -> list[Path]:
    """`Dataset.folders`, and of a known data set the folder that its pictures' folder belongs to.

    caltech-101/ of caltech-101/101_ObjectCategories/, though the latter is all that --data names.
    """
    found, root = dataset.folders(), Path(os.path.abspath(dataset.root))
    for layout in LAYOUTS:
        if layout.name == dataset.name and root.name in layout.images:
            folder = root.parent
            names = map(plain, layout.folders)
            if folder.name == layout.inner and plain(folder.parent.name) in names:
                folder = folder.parent  # dtd/ of torchvision's dtd/dtd/images/
            found.append(folder)
    return found


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {
        "minidpt": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
