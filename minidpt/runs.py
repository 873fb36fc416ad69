"""What the command lines share: run folders, devices and precisions, the progress line, errors."""

from __future__ import annotations

import argparse
import ctypes
import io
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import PIL
import torch

from . import __version__
from .clip import CLIP
from .data import Dataset
from .files import (
    entries,
    locked,
    naming,
    one_line,
    one_line_errors,
    printable,
    read_json,
    replacing,
)
from .layouts import LAYOUTS, plain

CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"
SPLIT, MODEL, TRANSFER = "split.json", "model.pt", "transfer.json"
SWEEP, LOCK = "sweep.json", ".minidpt.lock"
RUN_FILES = (SUMMARY, METRICS, MODEL, SPLIT, TRANSFER, CONFIG)
SWEEP_FILES = (SWEEP, "table.md", "table.csv")
# Settings that change no more than the last digits of a result, and what is no setting.
NOT_COMPARED = (
    "out",
    "workers",
    "versions",
    "device",
    "class_chunk",
    "compile",
    "white",
)
# What config.json says of the frozen CLIP's weights and of the lists of pictures, and of what.
FINGERPRINTS = {"clip_fingerprint": "CLIP", "data_fingerprint": "data"}
# The least and the greatest value of each option of the scripts: more is a slip of the hand, and
# would end in want of memory, of threads or of bits.
BOUNDS = {
    "shots": (1, 10**6), "seed": (0, 2**63 - 1), "epochs": (0, 10**6), "batch_size": (1, 10**5),
    "class_chunk": (0, 10**6), "workers": (0, 1000), "n_ctx": (1, 1000), "n_visual": (0, 1000),
    "max_pixels": (1, 10**12), "visual_layers": (1, 1000), "class_aware_from": (1, 1000),
    "top_k": (1, 10**6), "guidance_epochs": (0, 10**6), "warmup_epochs": (0, 10**6),
    "top": (1, 10**6), "alpha": (0, math.inf), "visual_lr": (0, math.inf), "text_lr": (0, math.inf),
}  # fmt: skip
BUSY = "output folder {}: another process writes to it: wait for its end, or pass another --out"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Run:
    """A run's folder.

    config.json: all settings, and fingerprints of CLIP and of the data; metrics.jsonl: a line for
    each epoch; split.json: the pictures used; model.pt: the learned prompts, after each epoch;
    summary.json: the result, written last; transfer.json: results of eval.py on other data.
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
            with ExitStack() as claim, suppress(FileExistsError, BlockingIOError):
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
                raise FileNotFoundError(
                    f"run folder {folder}: expected {name} in it, got none: "
                    "pass the folder that train.py printed"
                )
        return run

    def create(self) -> None:
        """Make the folder, without what an interrupted run has left in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in RUN_FILES:  # it is a run to the last
            self.path(name).unlink(missing_ok=True)
            self.path(f"{name}.part").unlink(missing_ok=True)

    @one_line_errors
    def finished(self, settings: dict[str, Any]) -> bool:
        """Whether the folder holds a run of these settings, and its result.

        Raises ValueError if what it holds is another run, a damaged one, or none.
        """
        if not held_in(self.folder):
            return False
        if not self.path(CONFIG).is_file():
            raise ValueError(f"run folder {self.folder}: expected a run in it, got other files")
        there = self.read_json(CONFIG)
        for name, value in settings.items():
            if name in NOT_COMPARED or there.get(name) == value:
                continue
            wanted, got, fix = f"{name} {value}", f"{there.get(name)}", ""
            if type(there.get(name)) in (str, int, float) and name not in FINGERPRINTS:  # no bool
                fix = f"pass --{name.replace('_', '-')} {got}, or "
            if name in FINGERPRINTS:
                wanted = f"the same {FINGERPRINTS[name]} (fingerprint {value[:8]})"
                got = f"other {FINGERPRINTS[name]} (fingerprint {got[:8]})"
            raise ValueError(
                f"run folder {self.folder}: expected to go on with {wanted}, got a run with {got}: "
                f"{fix}pass another --out, or remove it"
            )
        return self.path(SUMMARY).is_file() and bool(self.read_json(SUMMARY, tests=dict))

    def path(self, name: str) -> Path:
        """The file of that name in the folder."""
        return self.folder / name

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file whole: no half of it is ever there."""
        with replacing(self.path(name)) as unfinished:
            unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @one_line_errors
    def read_json(self, name: str, **needed: Any) -> dict[str, Any]:
        """Read a JSON file of the run.

        Raises ValueError if it is damaged, or lacks a `needed` entry of that type.
        """
        where = str(self.path(name))
        return entries(read_json(where, where), where, **needed)

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl, or nothing if there is no room for all of it."""
        path = self.path(METRICS)
        size = path.stat().st_size if path.exists() else 0
        try:
            with naming(path), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError:
            os.truncate(path, size)
            raise


class Sweep:
    """A folder of runs that can be stopped and continued.

    sweep.json: what was asked for last; table.md, table.csv: all results; features/: what the
    frozen CLIP makes of the test pictures.
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


def held_in(folder: Path) -> set[str]:
    """What is in the folder, if there is one, but for what a killed process of ours has left."""
    ours = {LOCK, *(f"{name}.part" for name in RUN_FILES + SWEEP_FILES)}
    if folder.is_dir():
        return set(os.listdir(folder)) - ours
    return {folder.name} if os.path.lexists(folder) else set()


@contextmanager
def claimed(
    folder: Path, data: Iterable[Path], may_hold: Callable[[set[str]], bool]
) -> Iterator[tuple[str, ...]]:
    """Makes a folder, which is this process's alone during the block: by a lock on a file in it.

    Yields notes: that there are no locks here. Folders that the block leaves empty go again.
    Raises ValueError if the folder lies within one of the data folders, or in a sweep that another
    process writes; FileExistsError if it holds what it may not, BlockingIOError if another process
    has it.
    """

    def check() -> None:
        held = held_in(folder)
        if held and not may_hold(held):
            got = "a sweep" if SWEEP in held else "another run" if CONFIG in held else "other files"
            raise FileExistsError(
                f"output folder {folder}: expected a new or empty one, or one that this command "
                f"goes on with, got one with {got}: pass another --out or remove it"
            )

    check_outside(folder, data)
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


def check_outside(folder: Path, data: Iterable[Path]) -> None:
    """ValueError if a folder to write to lies within one of the data folders."""
    resolved = folder.resolve()
    for root in data:
        if root.is_dir() and resolved.is_relative_to(root.resolve()):
            raise ValueError(
                f"output folder {folder}: expected one outside the data folder {root}: pass --out"
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


def choose_device(name: str | None) -> torch.device:
    """The named device, or CUDA where there is one. Raises ValueError if it is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name}: expected cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: expected cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {name}: expected one of the CUDA devices, this machine (or this build of "
            f"torch) has {torch.cuda.device_count()}: pass --device cpu"
        )
    return device


def need_compiler(device: torch.device) -> None:
    """ValueError if torch.compile would not find the C++ compiler that it calls for a CPU."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and sys.platform != "win32" and not shutil.which(compiler):
        raise ValueError(
            f"--compile: expected the C++ compiler {compiler}, found none: install it, name "
            "another in the environment variable CXX, or leave --compile out"
        )


def choose_precision(name: str | None, device: torch.device) -> tuple[str, str]:
    """The precision the frozen CLIP is stored and computed in, and the reason for it."""
    if name is not None:
        return name, "as asked"
    if device.type != "cuda":
        return "fp32", "the processor's plain precision"
    if torch.cuda.get_device_capability(device)[0] >= 8:
        return "bf16", "this GPU computes in it, and its range is fp32's"
    return "fp16", "this GPU does not compute in bf16"


def place(clip: CLIP, device: torch.device, precision: str) -> CLIP:
    """CLIP on the device, stored in the precision."""
    if precision == "fp32":
        torch.backends.cudnn.allow_tf32 = False  # the patch embedding's, 10 bits by default
    else:
        clip = clip.cast(PRECISIONS[precision])
    return clip.to(device)


def keep_freed_memory() -> None:
    """Have the C library keep the memory of freed tensors for the next ones, where it is glibc.

    By default it returns each large block to the system, which has to clear its pages before the
    next tensor gets them: up to a fifth of a training step on a CPU. A step's peak is no higher.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


class Progress:
    """One line on a terminal, rewritten in place; elsewhere a line for each tenth."""

    def __init__(self, total: int, stream=None):
        self.total, self.stream, self.tenths = total, stream or sys.stderr, 0
        self.started, self.rewritten = time.monotonic(), self.stream.isatty()

    def show(self, done: int, text: str) -> None:
        """Report `done` of `total` and what is known; adds the time left."""
        left = (time.monotonic() - self.started) / max(done, 1) * (self.total - done)
        if self.rewritten:
            print(f"\r{text} · {clock(left)} left\x1b[K", end="", file=self.stream, flush=True)
        elif done * 10 // self.total > self.tenths:
            self.tenths = done * 10 // self.total
            print(f"{text} · {clock(left)} left", file=self.stream, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the line, also when interrupted."""
        if self.rewritten:
            print(file=self.stream)


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Timed:
    """Iterates and adds up the seconds that whoever iterates has to wait."""

    def __init__(self, iterable: Iterable):
        self.iterator, self.waited = iter(iterable), 0.0

    def __iter__(self) -> Timed:
        return self

    def __next__(self) -> Any:
        started = time.monotonic()
        try:
            return next(self.iterator)
        finally:
            self.waited += time.monotonic() - started


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults of options that have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        if isinstance(action.default, list):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that knows `BOUNDS`, and whose errors are one line."""

    def __init__(self, **settings: Any):
        super().__init__(formatter_class=HelpFormatter, allow_abbrev=False, **settings)

    def parse_args(self, *arguments: Any) -> argparse.Namespace:
        """The options; exits as `error` if a number is out of bounds."""
        args = super().parse_args(*arguments)
        for name, (least, most) in BOUNDS.items():
            given = getattr(args, name, None)
            for value in given if isinstance(given, list) else [given]:
                if value is not None and not least <= value <= most:
                    bound = f"least {least}" if value < least else f"most {most:,}"
                    self.error(f"--{name.replace('_', '-')}: expected at {bound}, got {value}")
        return args

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: error: {one_line(message)} (--help lists all options)\n")


def path_option(text: str) -> str:
    """The type of an option that takes a path: no empty one, such as an unset variable gives."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty text")
    return text


def finite(text: str) -> float:
    """The type of an option that takes a number, finite in fp32; float takes nan and inf, too."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) <= torch.finfo(torch.float32).max:
        raise argparse.ArgumentTypeError(f"expected a finite number, got '{text}'")
    return value


def say(*lines: object, stream=None) -> None:
    """Print lines, now: names of files and classes in them may hold anything, even newlines."""
    for line in lines:
        print(printable(str(line)), file=stream, flush=True)


def is_expected(error: Exception) -> bool:
    """Whether an error is the user's or the machine's, which `report` tells in one line."""
    if isinstance(error, RuntimeError):
        return isinstance(error, torch.cuda.OutOfMemoryError) or "DefaultCPUAlloc" in str(error)
    return isinstance(error, (ValueError, OSError, MemoryError))


def report(error: object, where: str = "") -> None:
    """Print what went wrong, and in which run of a sweep, as one line."""
    text = str(error)
    if isinstance(error, (RuntimeError, MemoryError)):
        text = (
            f"out of {'GPU ' * isinstance(error, torch.cuda.OutOfMemoryError)}memory: pass a "
            "smaller --batch-size, or --class-chunk with many classes, or --precision bf16 or fp16"
        )
    with suppress(OSError):  # stderr may be what is full
        say(f"{Path(sys.argv[0]).name}: error: {one_line(where + text, 3000)}", stream=sys.stderr)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's main: a user's mistake becomes one line and exit status 2."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the script
            setattr(sys, name, open(os.devnull, "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be text in any encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        if os.environ.get("WORLD_SIZE", "1").strip() not in ("", "0", "1"):
            raise ValueError(
                f"expected one process, got WORLD_SIZE {os.environ['WORLD_SIZE']}: several are not "
                "supported yet: start it with python alone, or unset WORLD_SIZE"
            )
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads the output, `head` say, has had enough
        status = 141  # as a shell tells it of a program that does not catch the signal
    except KeyboardInterrupt:
        status = 130
        print("interrupted", file=sys.stderr)
    except Exception as error:
        if not is_expected(error):
            raise
        status = 2
        report(error)
    for stream in (sys.stdout, sys.stderr):  # what was not printed cannot be at exit, either
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)
