"""Progress callbacks for long operations, and one line on the terminal that shows them.

The package reports to what `use_progress` names; without it nothing is shown.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import ClassVar, TypeVar

from .files import printable

Value = TypeVar("Value")
ProgressCallback = Callable[[int], None]  # takes how much is done
Watch = Callable[[str, "int | None"], AbstractContextManager[ProgressCallback]]

_watch: ContextVar[Watch] = ContextVar("watch", default=lambda *_: nullcontext(lambda done: None))
_printed: ContextVar[set[str] | None] = ContextVar("printed", default=None)  # notes, see notes_once
_prefix = ContextVar("prefix", default="")  # of printed lines
AFTER = 2.0  # seconds that a task takes before anything is shown of it


@contextmanager
def _set(variable: ContextVar[Value], value: Value) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def use_progress(watch: Watch) -> AbstractContextManager[None]:
    """Report the long operations of the block to `watch(task, total)`."""
    return _set(_watch, watch)


def notes_once() -> AbstractContextManager[None]:
    """Print each note of the block once only, such as those that all runs of a sweep share."""
    return _set(_printed, set())


def prefix_lines(name: str) -> AbstractContextManager[None]:
    """Print each line of the block behind a name, and progress by lines."""
    return _set(_prefix, f"{name}: ")


def task_progress(task: str, total: int | None) -> AbstractContextManager[ProgressCallback]:
    """Enter a long operation: yields the callback that takes how much of `total` is done."""
    return _watch.get()(task, total)


def track(items: Iterable[Value], task: str, total: int) -> Iterator[Value]:
    """Yield the same items, counted as the progress of a long operation."""
    with task_progress(task, total) as update:
        for done, item in enumerate(items, start=1):
            yield item
            update(done)


class Progress:
    """One line that shows how far a task is: rewritten on a terminal, elsewhere one for each tenth.

    task, total: "epoch" of 100; without a total nothing is known of the time left.
    after: seconds before anything is shown (None: `AFTER`); with 0 the last line stays.
    done: how much was done before.

    The line is cut to the terminal's width and holds neither colours nor other escape sequences.
    """

    shown: ClassVar["Progress | None"] = None  # whose line the cursor stands in

    def __init__(self, task: str, total: int | None, after: float | None = None, done: int = 0):
        self.task, self.total = task, total
        self.after = AFTER if after is None else after
        self.first, self.stream, self.length = done, sys.stderr, 0
        self.tenths = done * 10 // total if total else 0
        self.started, self.updated = time.monotonic(), -math.inf
        is_terminal = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self.is_rewritten = is_terminal and not _prefix.get()

    def __enter__(self) -> "Progress":
        return self

    def __call__(self, done: int, text: str = "") -> None:
        """Show that `done` is done, and a text beside it."""
        now = time.monotonic()
        if now - self.started < self.after:
            return
        tenths = done * 10 // self.total if self.total else 0
        if not self.is_rewritten:
            if tenths > self.tenths:
                self.tenths = tenths
                print_line(self._line(done, now, text), stream=self.stream)
        elif text or done == self.total or now - self.updated > 0.1:
            if Progress.shown is not self:
                self.end_line()  # another's line
            Progress.shown, self.updated = self, now
            self._rewrite(self._line(done, now, text))

    def _line(self, done: int, now: float, text: str) -> str:
        parts = [f"{self.task} {done}"]
        if self.total:
            seconds = (now - self.started) / max(done - self.first, 1)  # for each
            left = format_duration(seconds * max(self.total - done, 0))
            parts = [f"{self.task} {done}/{self.total}", f"{left} left"]
        return " · ".join([*parts, text] if text else parts)

    def _rewrite(self, line: str) -> None:
        """Replace the line; the cursor stays out of the last column, where some terminals wrap."""
        width = 80
        with suppress(OSError, ValueError):  # a stream without a size
            width = os.get_terminal_size(self.stream.fileno()).columns or width
        line = printable(line)[: width - 1]
        print(f"\r{line.ljust(self.length)}", end="", file=self.stream, flush=True)
        self.length = len(line)

    @staticmethod
    def end_line() -> None:
        """End or clear the line that the cursor stands in, if there is one."""
        if shown := Progress.shown:
            end = f"\r{' ' * shown.length}\r" if shown.after else "\n"
            print(end=end, file=shown.stream, flush=True)
            Progress.shown, shown.length = None, 0

    def __exit__(self, *error: object) -> None:
        if Progress.shown is self:
            self.end_line()


def format_duration(seconds: float) -> str:
    """Write seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class TimedIterator:
    """Iterates and adds up the seconds for which the items were waited for."""

    def __init__(self, iterable: Iterable[Value]):
        self.iterable, self.waited = iterable, 0.0

    def __iter__(self) -> Iterator[Value]:
        started = time.monotonic()
        for item in self.iterable:
            self.waited += time.monotonic() - started
            yield item
            started = time.monotonic()


def print_line(*lines: object, stream=None) -> None:
    """Print lines at once; names of files and classes in them may hold anything, even newlines."""
    Progress.end_line()
    for line in lines:  # each in one write, as other processes may print, too
        print(f"{printable(f'{_prefix.get()}{line}')}\n", end="", file=stream, flush=True)


def print_notes(notes: Iterable[object]) -> None:
    """Print notes, a line each."""
    printed = _printed.get()
    lines = [f"note: {note}" for note in notes]
    print_line(*(line for line in lines if printed is None or line not in printed))
    if printed is not None:
        printed.update(lines)
