"""Whole commands: the demo, and a sweep of 15 runs against the same 15 runs one by one.

    python tests/benchmarks/commands.py [--data DIR --model MODEL --epochs N]

Without --data the sweep is on the demo's pictures. Both ways use 1, 2, 4, 8, 16 shots and seeds 1,
2, 3 of CoOp and give the same accuracies, which is checked.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
SHOTS, SEEDS = (1, 2, 4, 8, 16), (1, 2, 3)


def call(folder: str, *options: object) -> float:
    """Seconds of one call of train.py."""
    command = [sys.executable, str(TRAIN), *map(str, options)]
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def accuracies(folder: Path) -> dict[tuple[int, int], float]:
    """The accuracy of each (shots, seed) in a folder of runs."""
    summaries = [json.loads(path.read_text()) for path in folder.glob("*/summary.json")]
    return {(each["shots"], each["seed"]): each["accuracy"] for each in summaries}


def main() -> None:
    """Print seconds and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of pictures; without it the demo's")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--method", default="coop")
    parser.add_argument("--epochs", type=int, help="of each run; without it the published number")
    args = parser.parse_args()
    common = ["--model", str(Path(args.model).resolve() if args.model != "tiny" else "tiny")]
    common += ["--method", args.method]
    common += ["--data", str(Path(args.data).resolve())] if args.data else []
    common += ["--epochs", args.epochs] if args.epochs is not None else []
    with tempfile.TemporaryDirectory() as folder:
        if not args.data:
            print(f"the demo, python train.py: {call(folder):.1f} s")
        sweep = call(folder, *common, "--shots", *SHOTS, "--seed", *SEEDS, "--out", "sweep")
        alone = sum(
            call(
                folder, *common, "--shots", shots, "--seed", seed, "--out", f"alone/{shots}-{seed}"
            )
            for shots in SHOTS
            for seed in SEEDS
        )
        learned = accuracies(Path(folder, "sweep"))
        assert len(learned) == 15 and learned == accuracies(Path(folder, "alone"))
    print(f"15 runs one by one {alone:.1f} s, as one sweep {sweep:.1f} s: {alone / sweep:.1f}×")


if __name__ == "__main__":
    main()
