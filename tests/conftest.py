"""One torch thread for all tests, and the README's demo beside them.

Tensors this small gain nothing from more threads; a second processor has the demo to run, or, with
`-n 2`, half of the tests.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Of this process and of those that tests start: sums' order and last bit depend on the threads.
os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
# A shell may ignore these for what it starts in the background, and processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
pytest.register_assert_rewrite("helpers")  # before they are imported
ROOT = Path(__file__).resolve().parent.parent


def waits_for_the_demo(item: pytest.Item) -> bool:
    return "demo" in getattr(item, "fixturenames", ())


def of_several(config: pytest.Config) -> bool:
    """Whether this is one of pytest-xdist's processes (`-n 2`)."""
    return hasattr(config, "workerinput")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The tests of the demo last; in one of several processes, which can wait for it, first."""
    items.sort(key=waits_for_the_demo, reverse=of_several(config))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Each file to one process, so that what its tests share is made once, in the files' order."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session")
def begun_demo(tmp_path_factory) -> Iterator[tuple[Path, subprocess.Popen]]:
    """`python train.py` in a folder of its own."""
    folder = tmp_path_factory.mktemp("demo")
    for script in ("train.py", "eval.py"):
        shutil.copy(ROOT / script, folder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "train.py"], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE
    ) as process:
        yield folder, process
        process.kill()  # where a test has failed or the user has had enough


@pytest.fixture(scope="session", autouse=True)
def demo_beside_the_tests(request) -> None:
    """Begins it before the first test if any waits for it."""
    if not of_several(request.config) and any(map(waits_for_the_demo, request.session.items)):
        request.getfixturevalue("begun_demo")


@pytest.fixture(scope="module")
def clips_stay_as_they_are() -> Iterator[None]:
    """The CLIPs that tests share are the same after a file as before it."""
    import torch  # not where `-n 2` only begins other processes
    from helpers.tiny_models import DEEP, WIDE, clip_state, shared_clip

    yield
    for sizes in (WIDE, DEEP):
        for name, value in shared_clip(sizes).state_dict().items():
            assert torch.equal(value, clip_state(sizes)[name]), name
