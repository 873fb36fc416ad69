"""What the command lines share: options, devices, the progress line, errors."""

from __future__ import annotations

import argparse
import ctypes
import io
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TextIO

import torch

from ..clip.network import CLIP, MAX_RESOLUTION
from ..config import BOUNDS as OF_PROMPTS
from ..files import one_line, printable
from ..progress import watched_by
from ..ranks import ALONE, LostRank, Ranks, leave, started
from .precision import PRECISIONS
from .processes import silent

AFTER = 2.0  # seconds that a job takes before anything is shown of it
# The least and the greatest value of each option of the scripts: more is a slip of the hand, and
# would end in want of memory, of threads or of bits.
BOUNDS = {
    "shots": (1, 10**6), "seed": (0, 2**63 - 1), "epochs": (0, 10**6), "batch_size": (1, 10**5),
    "class_chunk": (0, 10**6), "workers": (0, 1000), "max_pixels": (1, 10**12), "top": (1, 10**6),
    "guidance_epochs": (0, 10**6), "warmup_epochs": (0, 10**6), "visual_lr": (0, math.inf),
    "text_lr": (0, math.inf), "image_size": (1, MAX_RESOLUTION), "head_width": (1, 10**4),
    **OF_PROMPTS,
}  # fmt: skip
ACCELERATORS = ("cuda", "xpu", "mps")  # of torch, the first of them that is there
OUT_OF_MEMORY = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)  # new in 2.5
TORCHRUN_SEES = 6  # seconds after which torchrun has seen that a process has ended


def choose_device(name: str | None, ranks: Ranks = ALONE) -> torch.device:
    """The named device, or the accelerator that torch offers here, if any; each rank has its own.

    Raises ValueError if it is not there.
    """
    if name is None:
        name = next((kind for kind in ACCELERATORS if is_there(torch.device(kind))), "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if ranks.size > 1 and device.type != "cpu":
        if device.index is not None or device.type == "mps":
            raise ValueError(
                f"--device {name}: expected a device for each of {ranks.size} processes, got one: "
                "pass --device cpu, or cuda without a number"
            )
        device = torch.device(device.type, ranks.local_rank)
    if not is_there(device):
        raise ValueError(
            f"--device {name}: expected cpu, cuda or cuda:N, or what else this torch offers on "
            f"this machine, there is no {device if device.type != 'meta' else name}: pass "
            "--device cpu"
        )
    return device


def is_there(device: torch.device) -> bool:
    """Whether torch can have a tensor with values on the device."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ImportError):  # by kind of device
        return False
    return device.type != "meta"


def need_compiler(device: torch.device) -> None:
    """ValueError if torch.compile would not find the C++ compiler that it calls for a CPU."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and sys.platform != "win32" and not shutil.which(compiler):
        raise ValueError(
            f"--compile: expected the C++ compiler {compiler}, found none: install it, name "
            "another in the environment variable CXX, or leave --compile out"
        )


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
    """How far a job is: one line on a terminal, rewritten in place; elsewhere one for each tenth.

    what, total, unit: "epoch" of 100; without a total nothing is known of the time left.
    after: seconds before anything is shown (None: `AFTER`); with some the line goes at the end.
    done: what was done of it before.

    The line is cut to the terminal's width and holds neither colours nor other escape sequences.
    """

    shown: ClassVar[Progress | None] = None  # whose line the cursor stands in

    def __init__(
        self,
        what: str,
        total: int | None,
        unit: str = "",
        after: float | None = None,
        done: int = 0,
        stream: TextIO | None = None,
    ):
        self.what, self.total, self.unit = what, total, unit
        self.after = AFTER if after is None else after
        self.first, self.stream, self.length = done, stream or sys.stderr, 0
        self.tenths = done * 10 // total if total else 0
        self.started, self.told = time.monotonic(), -math.inf
        self.rewritten = self.stream.isatty() and os.environ.get("TERM") != "dumb"

    def __enter__(self) -> Progress:
        return self

    def __call__(self, done: int, text: str = "") -> None:
        """Tell that `done` is done, and what else is known."""
        now = time.monotonic()
        tenths = done * 10 // self.total if self.total else self.tenths
        if now - self.started < self.after:
            return
        if self.rewritten:
            if now - self.told > 0.1 or done == self.total or text:
                self._rewrite(self._line(done, now - self.started, text))
                self.told, Progress.shown = now, self
        elif tenths > self.tenths:
            self.tenths = tenths
            say(self._line(done, now - self.started, text), stream=self.stream)

    def _line(self, done: int, seconds: float, text: str) -> str:
        scale, unit = (1e6, " MB") if self.unit == "bytes" else (1, f" {self.unit}".rstrip())
        counts = [f"{count / scale:.0f}" for count in (done, self.total) if count is not None]
        parts = [f"{self.what} {'/'.join(counts)}{unit}"]
        if self.total:
            left = seconds / max(done - self.first, 1) * max(self.total - done, 0)
            parts.append(f"{clock(left)} left")
        return " · ".join([*parts, text] if text else parts)

    def _rewrite(self, line: str) -> None:
        """Replace the line; the cursor stays out of the last column, where some terminals wrap."""
        line = printable(line)[: max(columns(self.stream) - 1, 0)]
        blank = " " * (self.length - len(line))
        print(f"\r{line}{blank}", end="", file=self.stream, flush=True)
        self.length = len(line)

    @staticmethod
    def leave() -> None:
        """Make room for another line, if the cursor stands in one of these."""
        if shown := Progress.shown:
            Progress.shown = None
            if shown.after:
                shown._rewrite("")
            print(end="\r" if shown.after else "\n", file=shown.stream, flush=True)
            shown.length = 0

    def __exit__(self, *error: object) -> None:
        """Leave the line, also when interrupted."""
        if Progress.shown is self:
            self.leave()


def columns(stream: TextIO) -> int:
    """The width of the terminal that a stream writes to; 80 if it does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):
        return 80


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


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Short: one column of options, choices and defaults behind what an option is."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=26)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said, default = action.help, action.default
        if action.choices:
            said = f"{said}: {', '.join(action.choices)}"
        if default in (None, False, argparse.SUPPRESS):
            return said
        default = " ".join(map(str, default)) if isinstance(default, list) else default
        return f"{said} (default: {default})"

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        name = action.metavar or ("N" if action.type is int else default_metavar)
        return f"{name} ..." if action.nargs == "+" else "" if action.nargs == 0 else name

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return action.dest.rpartition("_")[2].upper()


class Parser(argparse.ArgumentParser):
    """An argument parser that knows `BOUNDS`, and whose errors are one line.

    text: a script's docstring; its first lines and examples are shown by --help.
    given: the names of the options that the last command line had.
    """

    def __init__(self, text: str):
        about = "\n\n".join(text.split("\n\n")[:2])
        super().__init__(
            usage="%(prog)s [options]",
            description=about,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
        self.given: set[str] = set()

    def parse_args(self, arguments: Any = None, namespace: Any = None) -> argparse.Namespace:
        """The options; exits as `error` if a number is out of bounds."""
        defaults = {one.dest: one.default for one in self._actions if one.dest != "help"}
        absent = object()
        args = super().parse_args(arguments, argparse.Namespace(**dict.fromkeys(defaults, absent)))
        self.given = {name for name, value in vars(args).items() if value is not absent}
        for name in defaults.keys() - self.given:
            setattr(args, name, defaults[name])
        for name, (least, most) in BOUNDS.items():
            given = getattr(args, name, None)
            for value in given if isinstance(given, list) else [given]:
                if value is not None and not least <= value <= most:
                    bound = f"least {least}" if value < least else f"most {most:,}"
                    self.error(f"--{name.replace('_', '-')}: expected at {bound}, got {value}")
        return args

    def command_line(self, settings: Mapping[str, Any]) -> list[str]:
        """The arguments that say these settings; what has the name of no option is left out."""
        said = []
        for action in self._actions:
            flag, value = action.option_strings[-1], settings.get(action.dest)
            if isinstance(value, list):
                said += [flag, *map(str, value)]
            elif action.nargs == 0:
                said += [flag] * (value is True)
            elif value is not None:
                said.append(f"{flag}={value}")
        return said

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
    Progress.leave()
    for line in lines:
        print(printable(str(line)), file=stream, flush=True)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, and if known the command that goes on with what was begun."""

    def __init__(self, number: int):
        super().__init__()
        self.status, self.go_on = 128 + number, ""


class AfterTheStep:
    """In the block Ctrl-C and SIGTERM wait for `check` or its end; the second one does not wait."""

    def __enter__(self) -> AfterTheStep:
        self.caught: int | None = None
        self._before = catch_signals(self._catch)
        return self

    def _catch(self, number: int, frame: object) -> None:
        if self.caught is not None:
            raise Interrupted(number)
        self.caught = number

    def check(self) -> None:
        """Raises Interrupted if there was a signal."""
        if self.caught is not None:
            raise Interrupted(self.caught)

    def __exit__(self, kind: type | None, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind in (None, LostRank):  # by the signal, which the other got, too
            self.check()


def catch_signals(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Have Ctrl-C and SIGTERM call this, where they are not ignored; what they called before."""
    before = {}
    if threading.current_thread() is threading.main_thread():  # no other gets signals
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # such as behind nohup
                before[number] = signal.signal(number, handler)
    return before


def interrupt(number: int, frame: object) -> NoReturn:
    """A handler of signals."""
    raise Interrupted(number)


def is_expected(error: Exception) -> bool:
    """Whether an error is the user's or the machine's, which `report` tells in one line."""
    if isinstance(error, RuntimeError):
        return bool(memory_of(error))
    return isinstance(error, (ValueError, OSError, MemoryError))


def memory_of(error: Exception) -> str:
    """Which memory was too small, if that is what an error says."""
    if isinstance(error, OUT_OF_MEMORY) or "backend out of memory" in str(error):  # of MPS
        return "the device's memory"
    return "memory" if "DefaultCPUAlloc" in str(error) or isinstance(error, MemoryError) else ""


def report(error: object, where: str = "") -> None:
    """Print what went wrong, and in which run of a sweep, as one line."""
    text = str(error)
    if isinstance(error, (RuntimeError, MemoryError)):
        text = (
            f"out of {memory_of(error)}: pass a smaller --batch-size, or --class-chunk with many "
            "classes, or --precision bf16 or fp16"
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
    catch_signals(interrupt)
    ranks = ALONE
    try:
        ranks = started()
        with silent(not ranks.first), watched_by(Progress):
            status = main()
        leave()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads the output, `head` say, has had enough
        status = 141  # as a shell tells it of a program that does not catch the signal
    except KeyboardInterrupt as stop:
        status, go_on = getattr(stop, "status", 130), getattr(stop, "go_on", "")
        if ranks.first:
            report("interrupted" + (go_on and f"; to go on: {go_on}"))
    except Exception as error:
        if not is_expected(error):
            raise
        status = 2
        if not ranks.first:  # has what ends this one ended the first, that has told it
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(TORCHRUN_SEES)
        go_on = getattr(error, "go_on", "")
        report(f"{error}; to go on: {go_on}" if go_on else error)
    for stream in (sys.stdout, sys.stderr):  # what was not printed cannot be at exit, either
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)
