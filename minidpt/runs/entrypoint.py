"""How a command runs and ends: signals, errors of one line, the exit status, several processes."""

import io
import logging
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NoReturn

from ..support.distributed import SINGLE, World, leave_world, world_from_environment
from ..support.files import to_single_line
from ..support.progress import Progress, prefix_lines, print_line, print_notes, use_progress

SIGNALS = [  # Ctrl-C, what ends a job, a terminal that is closed (not on Windows)
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
SIGNAL_SECONDS = 5  # after a signal in which others are not heard
TORCHRUN_POLL_SECONDS = 6  # seconds after which torchrun has seen that a process has ended


def catch_signals() -> None:
    """Raise KeyboardInterrupt, with the exit status, at `SIGNALS` that are not ignored (nohup).

    For some seconds after one no other is heard, so that the first can end the command in order:
    torchrun sends SIGTERM after Ctrl-C, and wrappers send on what the terminal has sent.
    """
    heard = -math.inf

    def interrupt(number: int, frame: object) -> None:
        nonlocal heard
        if time.monotonic() - heard > SIGNAL_SECONDS:
            heard = time.monotonic()
            raise KeyboardInterrupt(128 + number)

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def is_user_error(error: Exception) -> bool:
    """Whether an error is the user's or the machine's, which `print_error` prints in one line."""
    is_unknown_home = isinstance(error, RuntimeError) and "home directory" in str(error)  # of "~x"
    return isinstance(error, (ValueError, OSError)) or is_unknown_home or is_out_of_memory(error)


def is_out_of_memory(error: object) -> bool:
    """Whether an error says that memory was too small, the machine's or a device's."""
    words = ("out of memory", "DefaultCPUAlloc")  # of torch's RuntimeError
    is_torch = isinstance(error, RuntimeError) and any(text in str(error) for text in words)
    return is_torch or isinstance(error, MemoryError)


def print_error(error: object, where: str = "") -> None:
    """Print what went wrong, in which run of a sweep, and how to resume, as one line."""
    text = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
    if is_out_of_memory(error):
        fix = ", a smaller --batch-size, or --class-chunk N with many classes"
        fix = " or --device cpu" if Path(sys.argv[0]).name == "eval.py" else fix
        text = f"out of memory: pass --precision bf16 or fp16{fix}"
    if how_to_resume := getattr(error, "how_to_resume", ""):
        text += f"; to resume: {how_to_resume}"
    with suppress(OSError):  # stderr may be what is full
        text = to_single_line(where + text, 3000)
        print_line(f"{Path(sys.argv[0]).name}: error: {text}", stream=sys.stderr)


@contextmanager
def print_log() -> Iterator[None]:
    """Print the records of the logger `minidpt` in the block, as notes."""
    logger, handler = logging.getLogger("minidpt"), logging.Handler()
    handler.emit = lambda record: print_notes([record.getMessage()])
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's main: a user's mistake becomes one line and exit status 2."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the script
            setattr(sys, name, open(os.devnull, "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be text in any encoding
            stream.reconfigure(errors="backslashreplace")
    catch_signals()
    world = SINGLE
    try:
        world = world_from_environment()
        output = nullcontext() if world.is_main else mute_output()
        with output, use_progress(Progress), print_log():
            status = main()
        leave_world()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads the output, `head` say, has had enough
        status = 141  # as a shell tells it of a program that does not catch the signal
    except KeyboardInterrupt as stop:
        status = stop.args[0] if stop.args else 130
        if world.is_main:
            print_error(stop)
    except Exception as error:
        if not is_user_error(error):
            raise
        status = 2
        if not world.is_main:  # has what ends this one ended the first, that has told it
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(TORCHRUN_POLL_SECONDS)
        print_error(error)
    for stream in (sys.stdout, sys.stderr):  # what was not printed cannot be at exit, either
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)


def format_command(script: str, *arguments: Path | str, world: World = SINGLE) -> str:
    """Return a command for the user to paste: train or eval, started as this one was.

    It has as many processes as `world`; a path that begins with "-" is no option.
    """
    called = Path(sys.argv[0])
    installed = called.stem.startswith("minidpt-")
    file = f"minidpt-{script}" if installed else str(called.with_name(f"{script}.py"))
    start = [] if installed else ["python"]
    if world.size > 1:
        nodes = -(-world.size // world.local_size)
        start = ["torchrun", f"--nproc_per_node={world.local_size}"]
        if nodes > 1:
            start.insert(1, f"--nnodes={nodes}")
        if installed:
            start.append("--no-python")
    is_path = [isinstance(each, Path) and str(each).startswith("-") for each in arguments]
    words = [f"./{each}" if path else str(each) for each, path in zip(arguments, is_path)]
    return shlex.join([*start, file, *words])


@contextmanager
def main_process_first(world: World, lock: Any) -> Iterator[Path]:
    """Create and lock a folder in the main process; the others wait, then get its path.

    lock: a context that yields the folder; on several machines it is one that all of them have.
    """
    if world.is_main:
        with lock as folder:
            world.all_gather_object(str(folder))
            yield folder
    else:
        yield Path(world.all_gather_object(None)[0])


@contextmanager
def mute_output() -> Iterator[None]:
    """Print nothing in the block."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


@contextmanager
def prefix_output(name: str, world: World) -> Iterator[None]:
    """Print the block's lines behind a name, in each of several processes, also a muted one."""
    if world.size == 1:
        yield
        return
    with redirect_stdout(sys.__stdout__), redirect_stderr(sys.__stderr__), prefix_lines(name):
        yield
