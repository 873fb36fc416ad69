"""Several processes on one command: which one writes, and which tells.

How they compute together is in `support/distributed.py`.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    redirect_stderr,
    redirect_stdout,
)
from pathlib import Path
from typing import Any

from ..support.distributed import SINGLE, World


def relaunch_command(script: str, world: World = SINGLE) -> list[str]:
    """Return the command that starts train or eval as this one was, in as many processes."""
    called = Path(sys.argv[0])
    installed = called.stem.startswith("minidpt-")
    file = f"minidpt-{script}" if installed else str(called.with_name(f"{script}.py"))
    if world.size == 1:
        return [file] if installed else ["python", file]
    nodes = -(-world.size // world.local_size)
    start = ["torchrun", f"--nproc_per_node={world.local_size}"]
    if nodes > 1:
        start.insert(1, f"--nnodes={nodes}")
    return [*start, "--no-python", file] if installed else [*start, file]


@contextmanager
def main_process_first(world: World, lock: AbstractContextManager[Path]) -> Iterator[Path]:
    """Create and lock a folder in the main process; the others wait, then get its path.

    On several machines it is a folder that all of them have.
    """
    if world.is_main:
        with lock as folder:
            world.all_gather_object(str(folder))
            yield folder
    else:
        yield Path(world.all_gather_object(None)[0])


@contextmanager
def mute_output(are_others: bool) -> Iterator[None]:
    """Print nothing in the block, if these processes are not the main one."""
    with ExitStack() as printing:
        if are_others:
            nowhere = printing.enter_context(open(os.devnull, "w"))
            printing.enter_context(redirect_stdout(nowhere))
            printing.enter_context(redirect_stderr(nowhere))
        yield


@contextmanager
def prefix_output(name: str, world: World) -> Iterator[None]:
    """Print the block's lines behind a name, in each of several processes, also a muted one."""
    with ExitStack() as printing:
        if world.size > 1:
            printing.enter_context(redirect_stdout(PrefixedStream(sys.__stdout__, name)))
            printing.enter_context(redirect_stderr(PrefixedStream(sys.__stderr__, name)))
        yield


class PrefixedStream(io.TextIOBase):
    """Writes whole lines to a stream, each behind a name."""

    def __init__(self, stream: Any, name: str):
        self.stream, self.name, self.line = stream, name, ""

    def write(self, text: str) -> int:
        """Write whole lines; the rest waits for its end."""
        *lines, self.line = (self.line + text).split("\n")
        self.stream.write("".join(f"{self.name}: {line}\n" for line in lines))
        return len(text)

    def flush(self) -> None:
        """Write what the stream has buffered."""
        self.stream.flush()
