"""Calls train.py and eval.py as a user does, in this process or in one of their own."""

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
from tiny_models import WIDE, clip_state

from minidpt.runs import entrypoint

ROOT = Path(__file__).resolve().parents[1]
SHORT = [  # a run of a second that learns something
    *("--shots", "3", "--epochs", "6", "--batch-size", "5", "--warmup-epochs", "1"),
    *("--guidance-epochs", "2", "--n-ctx", "3", "--n-visual", "2", "--top-k", "3"),
]


class Result(NamedTuple):
    """`progress`: the lines of stderr that tell how far a job is; `err`: the others."""

    status: int
    out: str
    err: str
    progress: str = ""


def result(status: int, out: str, err: str) -> Result:
    lines = err.splitlines(keepends=True)
    told = r"[^·]+ \d+/\d+[^·]* · [\d:]+ left.*\n"
    shown = [line for line in lines if re.fullmatch(told, line)]
    return Result(status, out, "".join(line for line in lines if line not in shown), "".join(shown))


def save_clip(path: Path, sizes=WIDE, seed: int = 0) -> Path:
    torch.save({name: value.half() for name, value in clip_state(sizes, seed).items()}, path)
    return path


def environment() -> dict[str, str]:
    """With one thread as in these tests (`conftest`): sums' order and last bit depend on it."""
    return {**os.environ, "PYTHONUTF8": "1"}


def process(cwd: Path, script: str, *arguments: object) -> Result:
    """A script run by Python, from another folder than its own."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, encoding="utf-8"
    )
    return result(done.returncode, done.stdout, done.stderr)


@functools.lru_cache(maxsize=1)
def fork_server() -> str:
    """The socket of a process that has imported everything; it ends with this one."""
    path = Path(tempfile.mkdtemp()) / "socket"
    script = str(Path(__file__).with_name("forked.py"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        number = listener.fileno()
        server = subprocess.Popen(
            [sys.executable, script, "--serve", str(number)], pass_fds=[number], cwd=ROOT,
            env={**environment(), "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
    atexit.register(shutil.rmtree, path.parent)
    atexit.register(server.kill)
    return str(path)


def forked(script: str | Path, *arguments: object) -> list[str]:
    """The command that runs a script, whose path is absolute, without waiting for its imports."""
    client = [sys.executable, "-I", "-S", str(Path(__file__).with_name("forked.py"))]
    return [*client, fork_server(), str(script), *map(str, arguments)]


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{name[:-3]}", ROOT / name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the types of their fields
    spec.loader.exec_module(module)
    return module


SCRIPTS = {name: load_script(name) for name in ("train.py", "eval.py")}


def inside(script: str, *arguments: object) -> Result:
    """The same in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        patch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back at the end
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            with pytest.raises(SystemExit) as ended:
                entrypoint.run_command(SCRIPTS[script].main)
    return result(ended.value.code or 0, out.getvalue(), err.getvalue())


def summary(run: str | Path) -> dict:
    return json.loads((Path(run) / "summary.json").read_text(encoding="utf-8"))


def assert_one_line(result: Result, script: str, *words: str) -> None:
    """A user's mistake: one line that says all these words, exit status 2, nothing else."""
    assert result.status == 2, result
    assert result.err.startswith(f"{script}: error: "), result.err
    assert result.err.count("\n") == 1 and result.err.endswith("\n"), result.err
    for word in words:
        assert word in result.err, result.err
