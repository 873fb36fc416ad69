"""Damage files at random, in numbers, and see that each ends in a value or in one line.

    python tests/benchmarks/fuzz.py --checkpoints 60000 --texts 100000 --images 40000

The tests do the same with a few hundred. Prints a table; exit status 1 if an input ended wrongly:
in a traceback, in more than one line, in seconds of work, or in gigabytes.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), *(str(TESTS / name) for name in ("", "checkpoints", "data"))]
sys.path.append(str(TESTS / "images"))

import test_fuzz_checkpoints as checkpoints  # noqa: E402
import test_fuzz_images as images  # noqa: E402
import test_fuzz_texts as texts  # noqa: E402


def limit_memory() -> None:
    """Let the process have so many addresses beyond those it has now, and no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + checkpoints.MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> int:
    """Run the fuzzers that are asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for kind in ("checkpoints", "texts", "images"):
        parser.add_argument(f"--{kind}", type=int, default=0, metavar="COUNT")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.disable()
    limit_memory()
    fuzzers = {
        "checkpoints": (args.checkpoints, checkpoints.run),
        "folders of checkpoints": (args.checkpoints // 3, checkpoints.run_folders),
        "texts and arrays": (args.texts, texts.run),
        "images": (args.images, images.run),
    }
    status = 0
    print("| damaged | inputs | ended wrongly | minutes |\n|---|---|---|---|", flush=True)
    for name, (count, run) in fuzzers.items():
        if count:
            started = time.monotonic()
            failures = run(count, args.seed)
            minutes = (time.monotonic() - started) / 60
            print(f"| {name} | {count:,} | {len(failures)} | {minutes:.0f} |", flush=True)
            print(*failures[:20], sep="\n", end="", file=sys.stderr)
            status |= bool(failures)
    return status


if __name__ == "__main__":
    sys.exit(main())
