"""Classifying files of pictures beside the encoder alone: ViT-B/32, random weights.

    python tests/benchmarks/predicting.py                     # zero-shot and DPT, 1,000 JPEGs
    python tests/benchmarks/predicting.py --pictures 300 --workers 0 1 2 4

JPEGs of 500 x 400 pixels are made up: smooth shapes under fine grain, so that each takes about as
long to decode as a photograph. For each number of threads that read, the files go through
`PromptedCLIP.predict_each`, as `eval.py predict` takes them, and ready tensors in the same batches
through `encode_image` (zero-shot) or through the model with both passes (DPT). The two take turns:
the ratio, the median of pairs, holds when the machine's speed drifts.

The bound is what reading costs by itself: the ratio if the time of reading a picture, measured
alone in one thread, came on top of the encoder's, shared by all processors, and nothing else did.
On a GPU it is the share of the encoder's rate that all processors can read at.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[1])]

from steps import classnames, weights  # noqa: E402

import minidpt  # noqa: E402
from minidpt.images.decode import open_image  # noqa: E402
from minidpt.images.threads import default_workers  # noqa: E402
from minidpt.images.transforms import eval_pixels  # noqa: E402
from minidpt.inference import PREDICT_BATCH  # noqa: E402
from minidpt.runs.config import PRECISIONS  # noqa: E402
from minidpt.runs.devices import keep_freed_memory, move_clip  # noqa: E402

SIZE = 500, 400


def write_pictures(folder: Path, count: int) -> list[str]:
    """Paths of `count` different JPEGs."""
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        shapes = Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8))
        pixels = np.asarray(shapes.resize(SIZE, Image.Resampling.BICUBIC)).astype(np.int16)
        pixels += rng.integers(-12, 13, (SIZE[1], SIZE[0], 1), np.int16)
        paths.append(str(folder / f"{number:05}.jpg"))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def seconds_to_read(paths: list[str], resolution: int) -> float:
    """Of one picture, in one thread."""
    started = time.perf_counter()
    for path in paths:
        eval_pixels(open_image(path), resolution)
    return (time.perf_counter() - started) / len(paths)


def rates(model: minidpt.PromptedCLIP, paths: list[str], workers: int) -> tuple[float, float]:
    """Pictures per second of the model from files, and of its encoder from ready tensors."""
    images = torch.randn(PREDICT_BATCH, 3, *2 * (model.clip.visual.resolution,))
    images = images.to(model.clip.device)

    @torch.no_grad()
    def encode(count: int) -> None:
        if model.config.learns_image:
            model(images[:count], branches=False)
        else:
            model.clip.encode_image(images[:count])
        if images.is_cuda:
            torch.cuda.synchronize()

    started = time.perf_counter()
    for _ in model.predict_each(paths, workers=workers):
        pass
    between = time.perf_counter()
    for first in range(0, len(paths), PREDICT_BATCH):
        encode(min(PREDICT_BATCH, len(paths) - first))
    seconds = between - started, time.perf_counter() - between
    return len(paths) / seconds[0], len(paths) / seconds[1]


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--method", nargs="+", default=["zeroshot", "dpt"])
    parser.add_argument("--workers", type=int, nargs="+", default=[default_workers()])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32")
    args = parser.parse_args()
    keep_freed_memory()
    clip = move_clip(minidpt.build_clip(weights()), torch.device(args.device), args.precision)
    processors = default_workers()
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pictures(Path(folder), args.pictures)
        kilobytes = sum(map(os.path.getsize, paths)) / len(paths) / 1000
        reading = seconds_to_read(paths[:200], clip.visual.resolution)
        print(
            f"{len(paths)} JPEGs of {SIZE[0]} x {SIZE[1]}, {kilobytes:.0f} kB, "
            f"{1000 * reading:.1f} ms to read each; {clip.device} in {args.precision}, "
            f"torch {torch.__version__}, {processors} processors\n"
        )
        print("| method | workers | files, pictures/s | tensors, pictures/s | ratio | bound |")
        print("|---|---|---|---|---|---|")
        for method in args.method:
            config = minidpt.PromptConfig(method=method)
            model = minidpt.build_model(clip, classnames(args.classes), "a photo of a {}.", config)
            model.eval()
            rates(model, paths[:PREDICT_BATCH], args.workers[0])  # and its text side, once
            for workers in args.workers:
                turns = [rates(model, paths, workers) for _ in range(args.runs)]
                files, tensors = (statistics.median(side) for side in zip(*turns, strict=True))
                ratio = statistics.median(ours / theirs for ours, theirs in turns)
                beside = tensors * reading / processors  # seconds of reading in one of encoding
                bound = 1 / (1 + beside) if args.device == "cpu" else min(1, 1 / beside)
                print(
                    f"| {method} | {workers} | {files:.1f} | {tensors:.1f} | {ratio:.3f} "
                    f"| {bound:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
