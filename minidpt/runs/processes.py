"""Several processes on one command: which one writes, and which tells.

How they compute together is in `support/distributed.py`.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    redirect_stderr,
    redirect_stdout,
)
from pathlib import Path
from typing import Any, TypeVar

from ..support.distributed import SINGLE, World

Held = TypeVar("Held")


def relaunch_command(script: str, world: World = SINGLE) -> list[str]:
    """What starts train or eval as this command was started, also in as many processes."""
    called = Path(sys.argv[0])
    installed = called.stem.startswith("minidpt-")
    file = f"minidpt-{script}" if installed else str(called.with_name(f"{script}.py"))
    if world.size == 1:
        return [file] if installed else ["python", file]
    nodes = -(-world.size // world.local_size)
    several = [f"--nnodes={nodes}"] * (nodes > 1)
    start = ["torchrun", *several, f"--nproc_per_node={world.local_size}"]
    return [*start, *["--no-python"] * installed, file]


@contextmanager
def main_process_first(
    world: World, claim: AbstractContextManager[Held], kind: Callable[[str], Held]
) -> Iterator[Held]:
    """What the first rank claims, a folder's `kind`; to the others, which read it, when it has.

    Its lock is the first one's. On several machines it is a folder that all of them have.
    """
    if world.is_main:
        with claim as held:
            world.all_gather_object(str(held.folder))
            yield held
    else:
        yield kind(world.all_gather_object(None)[0])


@contextmanager
def mute_output(are_others: bool) -> Iterator[None]:
    """In the block nothing is printed, if these are not the ones to tell."""
    with ExitStack() as printing:
        if are_others:
            nowhere = printing.enter_context(open(os.devnull, "w"))
            printing.enter_context(redirect_stdout(nowhere))
            printing.enter_context(redirect_stderr(nowhere))
        yield


@contextmanager
def prefix_output(name: str, world: World) -> Iterator[None]:
    """In the block each of several ranks prints, also one that is `silent`: lines behind a name."""
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
        """Keeps what has no end yet."""
        *lines, self.line = (self.line + text).split("\n")
        self.stream.write("".join(f"{self.name}: {line}\n" for line in lines))
        return len(text)

    def flush(self) -> None:
        """Of the stream."""
        self.stream.flush()
