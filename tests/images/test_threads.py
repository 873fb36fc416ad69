"""Threads that work ahead: their order, their number, and how far ahead they are."""

from __future__ import annotations

import os
import threading
import time

import pytest

from minidpt.images import threads
from minidpt.images.threads import default_workers, map_ordered


@pytest.mark.parametrize("count", [0, 1, 3])
def test_results_come_in_order_with_any_number_of_threads(count):
    def slow_first(job: int) -> int:
        time.sleep(0.02 if job == 0 else 0)
        return job * job

    assert list(map_ordered(slow_first, range(7), count)) == [job * job for job in range(7)]


@pytest.mark.parametrize(("ahead", "most"), [(5, 6), (None, 5)])  # twice as many as threads
def test_jobs_are_begun_at_most_that_many_ahead(ahead, most):
    begun, until = [], time.monotonic() + 5
    results = map_ordered(begun.append, range(99), 2, ahead)
    assert begun == []  # nothing starts before it is asked for
    next(results)
    while len(begun) < most and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(begun) == most
    results.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("minidpt")]


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Sets what a machine has: processors, its container's share (a text), processes of a run."""

    def has(processors: int, share: str | None = None, processes: str | None = None) -> None:
        monkeypatch.setattr(os, "cpu_count", lambda: processors)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(pid, processors), False)
        monkeypatch.setattr(threads, "CONTAINER", tmp_path / "cpu.max")
        if share is not None:
            (tmp_path / "cpu.max").write_text(share)
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        if processes is not None:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)

    return has


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ((1,), 1),
        ((2,), 2),
        ((16,), 16),
        ((224,), 32),
        ((16, "max 100000\n"), 16),
        ((16, "250000 100000\n"), 3),
        ((16, "50000 100000\n"), 1),
        ((2, "800000 100000\n"), 2),
        ((16, None, "4"), 4),
        ((224, None, "2"), 32),
        ((16, "400000 100000\n", "2"), 2),
        ((2, None, "8"), 1),
        ((4, None, ""), 4),
        ((4, None, "0"), 4),
    ],
    ids=str,
)
def test_as_many_threads_read_as_there_are_processors_for_them(machine, there, expected):
    machine(*there)
    assert default_workers() == expected
