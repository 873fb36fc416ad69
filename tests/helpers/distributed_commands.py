"""Run commands as torchrun does, in processes that are forked after the imports.

    python tests/helpers/distributed_commands.py FILE

FILE is a JSON list of {folder, processes, arguments, ...}. Prints a JSON list: of each command the
exit statuses by rank, and what all printed. Like torchrun, when a process ends with an error it
ends the others (SIGTERM). `kill`: the rank that is to end by
SIGKILL, once `when`, a file in the folder, is there. `stop`: after how many epochs of a run each
process gets SIGTERM, as by torchrun. `copy`: of which folder the command's is to be a copy.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch._dynamo  # noqa: E402, F401 (which each process would import for its first optimizer)

from minidpt.runs import entrypoint  # noqa: E402

LIMIT = 60  # seconds


def stopped_after(epochs: int, train_one_epoch: Any) -> Any:
    """Wrap `train_one_epoch`: SIGTERM to the process itself, after that many epochs."""

    calls = itertools.count()

    def signalled(*arguments: Any, **options: Any) -> Any:
        if next(calls) == epochs:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_one_epoch(*arguments, **options)

    return signalled


def begin(script: Any, job: dict, rank: int, port: int) -> int:
    """Fork one process of a command, and return its id."""
    if child := os.fork():
        return child
    os.chdir(job["folder"])
    if "stop" in job:
        script.train_one_epoch = stopped_after(job["stop"], script.train_one_epoch)
    size = job["processes"]
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(f"{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
    sys.argv = job["arguments"]
    status = 1
    try:
        entrypoint.run_command(script.main)
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def run(script: Any, job: dict) -> dict:
    """Run all processes of a command to their end."""
    if "copy" in job:
        shutil.copytree(job["copy"], job["folder"])
        for name in ("out.txt", "err.txt"):
            (Path(job["folder"]) / name).unlink()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # torchrun has the store, which outlives its processes
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
    options = dict(is_master=True, wait_for_workers=False)
    store = torch.distributed.TCPStore("127.0.0.1", port, None, **options)
    running = {begin(script, job, rank, port): rank for rank in range(job["processes"])}
    statuses, began = {}, time.monotonic()
    while running:
        if "kill" in job and (Path(job["folder"]) / job["when"]).exists():
            victim = job.pop("kill")
            os.kill(next(c for c, rank in running.items() if rank == victim), signal.SIGKILL)
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            statuses[running.pop(child)] = os.waitstatus_to_exitcode(status)
        late = time.monotonic() - began > LIMIT
        if (child and status) or late:
            time.sleep(0.1)
            for other in running:
                os.kill(other, signal.SIGKILL if late else signal.SIGTERM)
        time.sleep(0.01)
    del store
    out, err = ((Path(job["folder"]) / f"{name}.txt").read_text() for name in ("out", "err"))
    return {"statuses": [statuses[rank] for rank in sorted(statuses)], "out": out, "err": err}


def main() -> None:
    """Run all commands of the file."""
    torch.set_num_threads(1)
    entrypoint.TORCHRUN_POLL_SECONDS = 1  # not as long as torchrun takes
    scripts = {}
    for name in ("train.py", "eval.py"):
        spec = importlib.util.spec_from_file_location(name[:-3] + "_script", ROOT / name)
        scripts[name] = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = scripts[name]
        spec.loader.exec_module(scripts[name])
    jobs = json.loads(Path(sys.argv[1]).read_text())
    json.dump([run(scripts[job["arguments"][0]], job) for job in jobs], sys.stdout)


if __name__ == "__main__":
    main()
