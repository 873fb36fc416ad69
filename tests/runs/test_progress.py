"""How far a job is: one line on a terminal, ten lines elsewhere."""

from __future__ import annotations

import io
import os
import re
from contextlib import redirect_stderr

import pytest

from minidpt.support import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 99


def test_progress_is_one_line_on_a_terminal_and_ten_elsewhere(monkeypatch):
    now = iter([100.0, 130.0, 160.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with redirect_stderr(Terminal()) as terminal, progress.Progress("epoch", 8, after=0) as tell:
        tell(1, "loss 2.5")
        tell(4)
    shown = [line.rstrip() for line in terminal.getvalue().split("\r")]
    assert shown == ["", "epoch 1/8 · 3:30 left · loss 2.5", "epoch 4/8 · 1:00 left"]

    now = iter([100.0, 130.0])
    with redirect_stderr(Terminal()) as terminal, progress.Progress("epoch", 8, 0, 4) as tell:
        tell(5)  # in 30 s, the only one of this process
    assert terminal.getvalue() == "\repoch 5/8 · 1:30 left\n"

    monkeypatch.setattr(progress.time, "monotonic", lambda: 0.0)
    with redirect_stderr(io.StringIO()) as stream, progress.Progress("epoch", 30, after=0) as tell:
        for epoch in range(1, 31):  # as a log file
            tell(epoch)
    shown = stream.getvalue().splitlines()
    assert shown == [f"epoch {epoch}/30 · 0:00 left" for epoch in range(3, 31, 3)]


@pytest.mark.parametrize("width", [1, 20, 40])
def test_the_progress_never_wraps_and_has_no_escape_sequence(monkeypatch, width):
    sizes = {99: os.terminal_size((width, 24))}
    monkeypatch.setattr(progress.os, "get_terminal_size", sizes.__getitem__)
    with redirect_stderr(Terminal()) as terminal, progress.Progress("epoch", 9, after=0) as tell:
        for epoch in range(1, 10):
            tell(epoch, "loss 1.234 · a\x1b[31m b\nc")
    lines = terminal.getvalue().removesuffix("\n").split("\r")
    assert len(lines) == 10 and max(map(len, lines)) == min(width - 1, 39)
    assert terminal.getvalue().count("\n") == 1 and "\x1b" not in terminal.getvalue()


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()], ids=["terminal", "log file"])
def test_a_job_of_less_than_two_seconds_shows_nothing(monkeypatch, stream):
    monkeypatch.setattr(progress.time, "monotonic", lambda: 1.9 * len(passed))
    passed: list[int] = []
    with redirect_stderr(stream), progress.Progress("images", 10) as tell:
        passed.append(1)
        tell(9)
        assert stream.getvalue() == ""
        passed.append(2)
        tell(10)
    assert stream.getvalue().startswith(("\rimages 10/10 · 0:00 left", "images 10/10"))


def test_what_is_said_beside_the_progress_has_a_line_of_its_own():
    with redirect_stderr(Terminal()) as terminal, progress.Progress("images", 4, after=0) as tell:
        tell(1, "slow")
        progress.print_line("note: so", stream=terminal)
        tell(2, "slow")
    assert re.fullmatch(
        r"\rimages 1/4 .*slow\nnote: so\n\rimages 2/4 .*slow\n", terminal.getvalue()
    )


def test_the_time_for_which_items_are_waited_for_adds_up(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def items():
        for _ in range(3):
            now[0] += 2
            yield now

    for _ in (timed := progress.TimedIterator(items())):
        now[0] += 5
    assert timed.waited == 6


def test_times_are_written_as_on_a_clock():
    assert [progress.format_duration(s) for s in (0, 7.4, 59.6, 61, 3600, 7325)] == [
        *("0:00", "0:07", "1:00", "1:01", "1:00:00", "2:02:05")
    ]


def test_a_job_within_a_job_leaves_nothing_of_the_others_line():
    is_late = dict(after=1e-9)
    with redirect_stderr(Terminal()) as terminal, progress.Progress("texts", 9, **is_late) as outer:
        outer(1)
        with progress.Progress("images", 2, **is_late) as inner:
            inner(1)
        outer(9)
    shown = [""]
    for line in terminal.getvalue().split("\r"):
        shown.append(line + shown[-1][len(line) :])  # what stood further right stays
    assert [line.rstrip() for line in shown if line.strip()] == [
        "texts 1/9 · 0:00 left", "images 1/2 · 0:00 left", "texts 9/9 · 0:00 left",
    ]  # fmt: skip
