"""Threads that read images ahead, in order."""

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

MOST = 32  # more threads would wait for Python's lock, which each image needs for a moment
CONTAINER = Path("/sys/fs/cgroup/cpu.max")  # its processors: microseconds of each period, or "max"


def default_workers() -> int:
    """Return how many threads read images by default, from 1 to `MOST`: the processors for them.

    The process's, or its container's if fewer, divided by the processes of torchrun on the machine.
    """
    processors = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on Windows and macOS
        processors = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):  # no container, or "max"
        share, period = map(int, CONTAINER.read_text().split())
        processors = min(processors, math.ceil(share / period))
    processes = os.environ.get("LOCAL_WORLD_SIZE", "")
    processors //= int(processes) if processes.isdecimal() and int(processes) else 1
    return min(max(processors, 1), MOST)


def map_ordered(
    function: Callable, jobs: Iterable, workers: int | None = None, ahead: int | None = None
) -> Iterator[Any]:
    """Yield function(job) for each job, in order, computed by threads up to `ahead` jobs early.

    workers: threads; Pillow works outside Python's lock. 0: in the caller's; None: by
        `default_workers`.
    ahead: None: twice as many as threads.

    When the consumer closes the generator early, the threads end.
    """
    workers = default_workers() if workers is None else workers
    ahead = 2 * workers if ahead is None else ahead
    if workers == 0:
        yield from map(function, jobs)
        return
    executor = ThreadPoolExecutor(workers, thread_name_prefix="minidpt-images")
    pending = deque()
    try:
        for job in jobs:
            pending.append(executor.submit(function, job))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
