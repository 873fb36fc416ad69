"""What the command lines share: run folders, devices and precisions, the progress line, errors."""

from __future__ import annotations

import argparse
import ctypes
import io
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import PIL
import torch

from . import __version__
from .clip import CLIP
from .data import Dataset
from .files import entries, read_json, replacing
from .layouts import LAYOUTS, plain

CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"
SPLIT, MODEL, TRANSFER = "split.json", "model.pt", "transfer.json"
SWEEP = "sweep.json"
# Settings that change no more than the last digits of a result, and what is no setting.
NOT_COMPARED = (
    "out",
    "workers",
    "versions",
    "device",
    "class_chunk",
    "compile",
    "max_pixels",
    "white",
)
# What config.json says of the frozen CLIP's weights and of the lists of pictures, and of what.
FINGERPRINTS = {"clip_fingerprint": "CLIP", "data_fingerprint": "data"}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Run:
    """A run's folder.

    config.json: all settings, and fingerprints of CLIP and of the data; metrics.jsonl: a line for
    each epoch; split.json: the pictures used; model.pt: the learned prompts, after each epoch;
    summary.json: the result, written last; transfer.json: results of eval.py on other data.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    @classmethod
    def new(cls, folder: str | os.PathLike, data: Iterable[Path]) -> Run:
        """A run to be written to a new folder (`create` makes it).

        Raises ValueError if the folder holds something, or lies within one of the data folders.
        """
        path = Path(folder)
        check_outside(path, data)
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            held = "another run" if (path / CONFIG).exists() else "other files"
            raise ValueError(
                f"output folder {path}: expected a new or empty one, got one with {held}: "
                "pass another --out or remove it"
            )
        return cls(path)

    @classmethod
    def new_numbered(cls, folder: Path, data: Iterable[Path]) -> Run:
        """A run to be written to this folder, or with -2, -3, … behind it if that is taken."""
        number, path = 1, folder
        while path.exists() and any(path.iterdir()):
            number += 1
            path = folder.with_name(f"{folder.name}-{number}")
        return cls.new(path, data)

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
        for name in (SUMMARY, METRICS, MODEL, SPLIT, TRANSFER, CONFIG):  # it is a run to the last
            self.path(name).unlink(missing_ok=True)

    def finished(self, settings: dict[str, Any]) -> bool:
        """Whether the folder holds a run of these settings, and its result.

        Raises ValueError if what it holds is another run, a damaged one, or none.
        """
        if not self.folder.exists() or not any(self.folder.iterdir()):
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

    def read_json(self, name: str, **needed: type) -> dict[str, Any]:
        """Read a JSON file of the run.

        Raises ValueError if it is damaged, or lacks a `needed` entry of that type.
        """
        where = str(self.path(name))
        return entries(read_json(where, where), where, **needed)

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        with self.path(METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


class Sweep:
    """A folder of runs that can be stopped and continued.

    sweep.json: what was asked for last; table.md, table.csv: all results; features/: what the
    frozen CLIP makes of the test pictures.
    """

    def __init__(self, folder: str | os.PathLike, data: Iterable[Path]):
        """Raises ValueError if the folder holds something else, or lies within the data."""
        self.folder = Path(folder)
        check_outside(self.folder, data)
        held = self.folder.is_file() or (self.folder.is_dir() and any(self.folder.iterdir()))
        if held and not self.is_in(self.folder):
            raise ValueError(
                f"output folder {self.folder}: expected a new or empty one, or a sweep to go on "
                "with, got one with other files: pass another --out"
            )

    def create(self, settings: dict[str, Any]) -> None:
        """Make the folder and note what was asked for."""
        self.folder.mkdir(parents=True, exist_ok=True)
        Run(self.folder).write_json(SWEEP, settings)

    @staticmethod
    def is_in(folder: str | os.PathLike) -> bool:
        """Whether the folder holds a sweep."""
        return (Path(folder) / SWEEP).is_file()

    def run(self, name: str) -> Run:
        """The run of that name."""
        return Run(self.folder / name)


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
    """One line on a terminal, rewritten in place; silent elsewhere."""

    def __init__(self, total: int, stream=None):
        self.total, self.stream = total, stream or sys.stderr
        self.started, self.shown = time.monotonic(), self.stream.isatty()

    def show(self, done: int, text: str) -> None:
        """Report `done` of `total` and what is known; adds the time left."""
        if self.shown:
            spent = time.monotonic() - self.started
            left = spent / max(done, 1) * (self.total - done)
            print(f"\r{text} · {clock(left)} left\x1b[K", end="", file=self.stream, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the line, also when interrupted."""
        if self.shown:
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
    """An argument parser whose errors are one line."""

    def __init__(self, **settings: Any):
        super().__init__(formatter_class=HelpFormatter, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message} (--help lists all options)\n")


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


def report(error: object, where: str = "") -> None:
    """Print what went wrong, and in which run of a sweep, as one line."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        error = (
            "out of GPU memory: pass a smaller --batch-size, or --class-chunk with many classes, "
            "or --precision bf16 or fp16"
        )
    text = " ".join(f"{where}{error}".split())
    print(f"{Path(sys.argv[0]).name}: error: {text}", file=sys.stderr)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's main: a user's mistake becomes one line and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be text in any encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads the output, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141  # as a shell tells it of a program that does not catch the signal
    except (ValueError, OSError, torch.cuda.OutOfMemoryError) as error:
        report(error)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)
