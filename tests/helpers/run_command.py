"""Run train.py and eval.py as a user does, in this process or in one of their own."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from helpers.tiny_models import WIDE, clip_state
from minidpt.runs import entrypoint

ROOT = Path(__file__).resolve().parents[2]
SHORT = [  # options of a run that takes a second and learns something
    *("--shots", "3", "--epochs", "6", "--batch-size", "5", "--warmup-epochs", "1"),
    *("--guidance-epochs", "2", "--n-ctx", "3", "--n-visual", "2", "--top-k", "3"),
]


class Result(NamedTuple):
    """Exit status and output of a command; `progress`: stderr's progress lines, `err`: the rest."""

    status: int
    out: str
    err: str
    progress: str = ""


def split_progress(status: int, out: str, err: str) -> Result:
    """Build a `Result`, with the progress lines taken out of `err`."""
    lines = err.splitlines(keepends=True)
    pattern = r"[^·]+ \d+/\d+[^·]* · [\d:]+ left.*\n"
    progress = [line for line in lines if re.fullmatch(pattern, line)]
    errors = [line for line in lines if line not in progress]
    return Result(status, out, "".join(errors), "".join(progress))


def save_clip(path: Path, sizes=WIDE, seed: int = 0) -> Path:
    """Write a tiny random CLIP's state dict in fp16, and return its path."""
    torch.save({name: value.half() for name, value in clip_state(sizes, seed).items()}, path)
    return path


def run_process(cwd: Path, script: str, *arguments: object) -> Result:
    """Run a script in a process of its own, in the folder `cwd`."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8")
    return split_progress(done.returncode, done.stdout, done.stderr)


@functools.lru_cache(maxsize=1)
def start_fork_server() -> str:
    """Start the fork server, which ends with this process; return the path of its socket."""
    path = Path(tempfile.mkdtemp()) / "socket"
    script = str(Path(__file__).with_name("fork_server.py"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        number = listener.fileno()
        server = subprocess.Popen(
            [sys.executable, script, "--serve", str(number)], pass_fds=[number], cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
    atexit.register(shutil.rmtree, path.parent)
    atexit.register(server.kill)
    return str(path)


def fork_command(script: str | Path, *arguments: object) -> list[str]:
    """Return a command that runs a script (an absolute path) in a fork: no wait for imports."""
    client = [sys.executable, "-I", "-S", str(Path(__file__).with_name("fork_server.py"))]
    return [*client, start_fork_server(), str(script), *map(str, arguments)]


def load_script(name: str) -> ModuleType:
    """Import train.py or eval.py, which are in no package."""
    spec = importlib.util.spec_from_file_location(f"script_{name[:-3]}", ROOT / name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the types of their fields
    spec.loader.exec_module(module)
    return module


SCRIPTS = {name: load_script(name) for name in ("train.py", "eval.py")}


def run_command(script: str, *arguments: object) -> Result:
    """Run a script in this process, its output captured."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        patch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back at the end
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            with pytest.raises(SystemExit) as ended:
                entrypoint.run_command(SCRIPTS[script].main)
    return split_progress(ended.value.code or 0, out.getvalue(), err.getvalue())


def read_summary(run: str | Path) -> dict:
    """Read the summary.json of a run's folder."""
    return json.loads((Path(run) / "summary.json").read_text(encoding="utf-8"))


def assert_one_line(result: Result, script: str, *words: str) -> None:
    """Assert a user's error: status 2 and one line of stderr, which has all these words."""
    assert result.status == 2, result
    assert result.err.startswith(f"{script}: error: "), result.err
    assert result.err.count("\n") == 1 and result.err.endswith("\n"), result.err
    for word in words:
        assert word in result.err, result.err
