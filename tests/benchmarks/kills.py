"""Kills runs of train.py by SIGKILL at random moments, goes on, and compares with what was not.

    python tests/benchmarks/kills.py --kills 200

Each run, of CoOp or DPT on a two-layer CLIP, alone or in a sweep, is a process of its own, forked
after the imports. It is killed a few times, gone on with each time, and must then have the weights,
metrics and accuracy of one that was left alone, to the last bit, and nothing else in its folder.
Prints a table of counts; exit status 1 at the first difference.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch  # noqa: E402
from helpers.image_folders import draw_class_folders  # noqa: E402
from helpers.run_command import SHORT, run_command, save_clip  # noqa: E402

from minidpt.checkpoints.reader import read_checkpoint  # noqa: E402
from minidpt.runs import devices  # noqa: E402

TIMES = ("images_per_second", "waited_for_images")


def start(*command: object) -> int:
    """A process that runs train.py; its errors go to the file `errors`."""
    if pid := os.fork():
        return pid
    done = run_command("train.py", *command)
    with open("errors", "a") as file:
        file.write(done.err)
    os._exit(done.status)


def end(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def outcome(run: Path) -> tuple:
    """All that a run has come to, but for times and the clock."""
    learned = read_checkpoint(run / "model.pt")["learned"]
    path = run / "metrics.jsonl"  # zero-shot CLIP has none
    lines = path.read_text().splitlines() if path.exists() else []
    metrics = [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
    tests = json.loads((run / "summary.json").read_text())["tests"]
    tensors = {name: value.numpy().tobytes() for name, value in learned.items()}
    return tensors, metrics, tests, (run / "split.json").read_bytes()


def files(folder: Path) -> list[str]:
    found = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if not name.endswith(".npy"))


def compare(whole: Path, killed: Path) -> None:
    if files(whole) != files(killed):
        sys.exit(f"files differ: {files(whole)} and {files(killed)}")
    for path in whole.rglob("summary.json"):
        if outcome(path.parent) != outcome(killed / path.parent.relative_to(whole)):
            sys.exit(f"results differ: {killed / path.parent.relative_to(whole)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng, counts = random.Random(args.seed), Counter()
    folder = Path(tempfile.mkdtemp())
    os.chdir(folder)
    draw_class_folders(folder / "pictures", {"ox": 12, "gnu": 12, "yak": 12})
    clip = devices.load(save_clip(folder / "little.pt"))
    devices.load = lambda *_, **__: clip
    common = ("--data", "pictures", "--model", "little.pt", "--no-report", *SHORT)
    kinds = {
        "coop": ("--method", "coop"),
        "dpt": ("--method", "dpt"),
        "sweep": ("--method", "zeroshot", "coop", "--seed", 1, 2, "--epochs", 3),
    }
    seconds = {}
    for kind, options in kinds.items():
        run_command("train.py", *common, *options, "--out", f"first-{kind}")  # imports of torch
        started = time.monotonic()
        status = end(start(*common, *options, "--out", f"whole-{kind}"))
        seconds[kind] = time.monotonic() - started
        if status:
            sys.exit(Path("errors").read_text())

    while counts["kills"] < args.kills:
        kind = rng.choice(list(kinds))
        command, out, status = [*common, *kinds[kind], "--out", "out"], Path("out"), -9
        shutil.rmtree(out, ignore_errors=True)
        for _ in range(20):  # each time, there is less to do
            begun = (out / "config.json").is_file() or (out / "sweep.json").is_file()
            is_finished = (out / "summary.json").is_file()  # killed at its very end
            resume = begun and (is_finished or rng.random() < 0.8)  # else the same command
            pid = start(*(["--resume", "out", "--no-report"] if resume else command))
            counts["--resume" if resume else "the same command"] += 1
            if counts["kills"] < args.kills and rng.random() < 0.8:
                time.sleep(rng.random() * seconds[kind])
                os.kill(pid, signal.SIGKILL)
            status = end(pid)
            if status != -signal.SIGKILL:
                break
            counts["kills"] += 1
            counts["kills with a state to go on with"] += any(out.rglob("state.pt"))
        else:
            status = end(start(*command))
        if status:
            sys.exit(Path("errors").read_text())
        compare(Path(f"whole-{kind}"), out)
        counts[f"{kind} compared"] += 1
    print("| what | times |\n|---|---|")
    print(*(f"| {what} | {times} |" for what, times in counts.items()), sep="\n")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
