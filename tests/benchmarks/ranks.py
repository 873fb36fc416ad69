"""What several processes gain, each with one thread: a training step, and a sweep.

    python tests/benchmarks/ranks.py                     # both
    python tests/benchmarks/ranks.py --only step --classes 100 --runs 1

Step: ViT-B/32 with random weights, ImageNet's class names, DPT, a batch of 32: seconds and peak
memory of each process, by one process and by two that share the batch and the classes. Sweep: six
runs of the demo's pictures with the small CLIP, by one process, by two, and by one with two
threads; all three give the same accuracies, which is checked for those with one thread. The
fewer the epochs, the more counts what each process does for itself: some 8 s of imports, reading
and the frozen pass.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[1]), str(HERE.parent)]
TRAIN = HERE.parents[2] / "train.py"
SWEEP = ("--method", "coop", "dpt", "--seed", "1", "2", "3", "--guidance-epochs", "1")
SWEEP += ("--warmup-epochs", "1")


def step(connection, rank: int, size: int, store: str, classes: int, runs: int) -> None:
    """A rank's seconds of the median step, and its peak MB before the first step and after all."""
    import torch
    from helpers import tiny_models
    from steps import VIT_B_32, classnames, weights
    from torch import distributed

    import minidpt
    from minidpt.runs.devices import keep_freed_memory
    from minidpt.support.distributed import SINGLE, World

    torch.set_num_threads(1)
    keep_freed_memory()
    world = SINGLE
    if size > 1:
        file = distributed.FileStore(store, size)
        distributed.init_process_group(
            "gloo", store=file, rank=rank, world_size=size, timeout=timedelta(minutes=10)
        )
        world = World(rank, size, rank, size, file)
    torch.manual_seed(0)
    clip = minidpt.build_clip(weights())
    tiny_models.clip_state.cache_clear()  # CLIP has its own copies
    model = minidpt.build_model(clip, classnames(classes), "a photo of a {}.", world=world).train()
    model.class_chunk = None
    learned = model.learned_parameters()
    optimizer = torch.optim.SGD(minidpt.parameter_groups(model), momentum=0.9)
    images = world.shard(torch.randn(32, 3, VIT_B_32.patch * VIT_B_32.grid, 224))
    labels = world.shard(torch.randint(0, classes, (32,)))

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    seconds, before = [], peak()
    for _ in range(runs + 1):
        started = time.perf_counter()
        loss = model.loss(model(images, branches=False), labels)
        optimizer.zero_grad()
        loss.backward()
        world.all_reduce_gradients(learned)
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    connection.send(
        (statistics.median(seconds[1:]), before, peak(), world.all_reduce_sum(loss.detach()).item())
    )


def steps(size: int, classes: int, runs: int) -> tuple:
    """Of the slowest process."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ends, started = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            job = (theirs, rank, size, f"{folder}/store", classes, runs)
            started.append(context.Process(target=step, args=job))
            started[-1].start()
            ends.append(ours)
        results = [end.recv() for end in ends]
        for process in started:
            process.join()
    return tuple(map(max, zip(*results, strict=True)))


def sweep(folder: str, processes: int, threads: int, epochs: int) -> float:
    """Seconds of the sweep, after the pictures are drawn."""
    several = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(several if processes > 1 else []), str(TRAIN), *SWEEP]
    command += ["--epochs", str(epochs), "--out", f"{processes}-{threads}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    started = time.perf_counter()
    subprocess.run(
        command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return time.perf_counter() - started


def accuracies(folder: Path) -> dict[str, float]:
    """By the run's name."""
    paths = folder.glob("*/summary.json")
    return {path.parent.name: json.loads(path.read_text())["accuracy"] for path in paths}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("step", "sweep"))
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30, help="of each run of the sweep")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are spawned
    if args.only != "sweep":
        print(f"a step at {args.classes} classes, one thread a process, median of {args.runs}\n")
        print(
            "| processes | seconds | peak MB | of it by the steps | loss |\n|---|---|---|---|---|"
        )
        for size in (1, 2):
            seconds, before, peak, loss = steps(size, args.classes, args.runs)
            print(
                f"| {size} | {seconds:.2f} | {peak:.0f} | {peak - before:.0f} | {loss:.5f} |",
                flush=True,
            )
    if args.only != "step":
        with tempfile.TemporaryDirectory() as folder:
            draw = "from minidpt.demo.demo import draw_demo; draw_demo('runs')"
            environment = {**os.environ, "PYTHONPATH": str(TRAIN.parent)}
            subprocess.run([sys.executable, "-c", draw], cwd=folder, env=environment, check=True)
            one, two, threads = (
                sweep(folder, *how, args.epochs) for how in ((1, 1), (2, 1), (1, 2))
            )
            alone, shared = (accuracies(Path(folder, name)) for name in ("1-1", "2-1"))
            assert len(alone) == 6 and alone == shared, (alone, shared)
        print(
            f"\na sweep of 6 runs, {args.epochs} epochs each: one process with one thread "
            f"{one:.1f} s, two processes {two:.1f} s ({one / two:.2f}×), one process with two "
            f"threads {threads:.1f} s (two processes: {threads / two:.2f}×)"
        )


if __name__ == "__main__":
    main()
