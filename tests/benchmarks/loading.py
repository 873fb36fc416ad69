"""Loading a ViT-B/32 archive, tokenizing, and reading pictures.

    python tests/benchmarks/loading.py
    python tests/benchmarks/loading.py --part pictures --workers 1 2 4 8 16

An archive of random fp16 weights is made as OpenAI made theirs (TorchScript, 300 MB, in a temporary
folder) and loaded by `minidpt.load` and by `torch.jit.load` with `build_clip`, in turns, each time
in a process of its own; without the time of imports. The tokenizer reads made-up English, words
seen and unseen; open_clip's runs beside it where it is installed. The loader of pictures runs
alone, with nobody computing beside it: JPEGs of 500 x 400 pixels, test views from files, and
training views from the store, as an epoch sees them, by number of threads.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("archive", "tokenizer", "pictures")
LOADERS = {
    "minidpt.load": "minidpt.load(path)",
    "torch.jit.load + build_clip": "minidpt.build_clip(torch.jit.load(path).state_dict())",
}
PROGRAM = """
import resource, sys, time
import torch
sys.path.insert(0, {root!r})
import minidpt
path = {path!r}
started = time.perf_counter()
{call}
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def archive_times(runs: int) -> None:
    """`load_times` of an archive that is made for it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ViT-B-32.pt"
        # Not in this process: Linux counts a parent's peak memory as its children's.
        writer = multiprocessing.get_context("spawn").Process(target=write_archive, args=(path,))
        writer.start()
        writer.join()
        load_times(path, runs)


def load_times(path: Path, runs: int) -> None:
    """Print medians of seconds and the peak memory of the process."""
    times = {name: [] for name in LOADERS}
    for _ in range(runs + 1):
        for name, call in LOADERS.items():
            program = PROGRAM.format(root=str(ROOT), path=str(path), call=call)
            out = subprocess.check_output([sys.executable, "-W", "ignore", "-c", program])
            times[name].append(tuple(map(float, out.split())))
    print("| loading a ViT-B/32 archive | seconds | peak MB |\n|---|---|---|")
    for name, measured in times.items():
        seconds, peak = zip(*measured[1:], strict=True)  # the first also warms the file cache
        print(f"| {name} | {statistics.median(seconds):.2f} | {max(peak):.0f} |")


def write_archive(path: Path) -> None:
    """ViT-B/32 with random weights as a traced fp16 archive."""
    import torch
    from steps import VIT_B_32, weights

    import minidpt

    warnings.simplefilter("ignore", torch.jit.TracerWarning)  # the weights count, not the trace
    clip = minidpt.build_clip(weights()).cast(torch.half)
    side = VIT_B_32.patch * VIT_B_32.grid
    images = torch.zeros(1, 3, side, side, dtype=torch.half)
    traced = torch.jit.trace(clip, (images, minidpt.tokenize("a dog")), check_trace=False)
    torch.jit.save(traced, str(path))


def tokenizer_rate(characters: int, runs: int) -> None:
    """Print characters per second of one long text."""
    sys.path.insert(0, str(ROOT))
    from minidpt.clip.tokenizer import encode

    rng = random.Random(0)
    syllables = "ba con der fin gle ing ly men ous pre ra ter un ver wi yo".split()
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(5000)]
    text = " ".join(rng.choices(words, k=characters // 6))
    sides = {"minidpt": encode}
    try:
        from open_clip.tokenizer import SimpleTokenizer

        sides["open_clip"] = SimpleTokenizer().encode
    except ImportError:
        print("\n(open_clip is not installed: no comparison)")
    times = {name: [] for name in sides}
    for _ in range(runs):
        for name, function in sides.items():
            started = time.perf_counter()
            tokens = function(text)
            times[name].append(time.perf_counter() - started)
    print(f"\n{len(text):,} characters, {len(tokens):,} tokens")
    for name, measured in times.items():
        print(f"{name}: {len(text) / statistics.median(measured) / 1e6:.2f} M characters/s")


def picture_rates(count: int, threads: list[int], runs: int) -> None:
    """Print pictures per second of the loader alone."""
    from predicting import write_pictures

    from minidpt.data.batches import ImageCache, eval_batches, train_batches
    from minidpt.data.samples import Sample

    with tempfile.TemporaryDirectory() as folder:
        paths, store = write_pictures(Path(folder), count), ImageCache()
        items = [Sample(path, 0, "a") for path in paths]
        store.fill(paths)
        print(
            "\n| threads | test pictures/s | training pictures/s, decoded before |\n|---|---|---|"
        )
        for workers in threads:
            rates = [[], []]
            for _ in range(runs):
                for own, batches in zip(rates, (
                    eval_batches(items, 224, 100, workers),
                    train_batches(items, 224, 32, 0, 0, store.get, workers),
                )):  # fmt: skip
                    started = time.perf_counter()
                    seen = sum(len(batch.labels) for batch in batches)
                    own.append(seen / (time.perf_counter() - started))
            test, train = map(statistics.median, rates)
            print(f"| {workers} | {test:.0f} | {train:.0f} |", flush=True)


def main() -> None:
    """Print all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--characters", type=int, default=1_000_000)
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    args = parser.parse_args()
    if "archive" in args.part:
        archive_times(args.runs)
    if "tokenizer" in args.part:
        tokenizer_rate(args.characters, args.runs)
    if "pictures" in args.part:
        picture_rates(args.pictures, args.workers, args.runs)


if __name__ == "__main__":
    main()
