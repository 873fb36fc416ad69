"""How long a large tree of pictures takes to be listed, and few shots to be drawn from it.

    python tests/benchmarks/listing.py [--files 100000]

Makes ImageNet's layout of empty files, 1000 classes with two or more each, in a temporary folder.
The first time shows names that the system has just written and so still knows; a slow disk adds
its own.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from minidpt.data.datasets import open_dataset
from minidpt.data.naming import imagenet_classnames
from minidpt.data.samples import few_shot

IMAGENET = 1_281_167 + 50_000


def main() -> None:
    """Print a line for each step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    files = parser.parse_args().files
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        counts = {"train": max(1, files * 96 // 100_000), "val": max(1, files * 4 // 100_000)}
        files = 1000 * sum(counts.values())
        for wordnet_id in imagenet_classnames():
            for part, count in counts.items():
                where = Path(folder, "images", part, wordnet_id)
                where.mkdir(parents=True)
                for number in range(count):
                    Path(where, f"{wordnet_id}_{number * 7919 % 99991}.JPEG").touch()
        print(f"made {files:,} files in {time.perf_counter() - started:.2f} s")

        started, busy = time.perf_counter(), time.process_time()
        dataset = open_dataset(folder)
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
        print(dataset.source)
        print(f"listed in {seconds:.2f} s, {busy:.2f} s of them on the processor")
        print(f"at this rate, all of ImageNet: {seconds * IMAGENET / files:.1f} s")
        started = time.perf_counter()
        few_shot(dataset, 16, seed=1)
        print(f"16 shots drawn in {time.perf_counter() - started:.2f} s")


if __name__ == "__main__":
    main()
