"""Time and peak memory of minidpt against the published way of computing, ViT-B/32, random weights.

    python tests/benchmarks/steps.py                          # train step and test batch
    python tests/benchmarks/steps.py --part text image        # encoders alone, forward + backward
    python tests/benchmarks/steps.py --precision bf16 --classes 100

The published way is `tests/helpers/reference.py` with torch's fused primitives in place of its
spelled-out ones, and the template classifier computed once: every class padded to 77 tokens, in
training and in each test batch; visual prompts carried as full tokens. minidpt's process keeps
freed memory, as train.py does (`keep_freed_memory`); a process of the published way does not by
itself, so that one is measured as it comes, and once more keeping memory, too.

Each side is a process of its own, two at a time, which take turns (A B A B …), one measurement
each, so the ratios hold when the machine's speed drifts. Medians are printed. Above
`--reference-limit` classes the references are not run: their times and operations are extrapolated
by a straight line through those at the two largest numbers of classes that were run.

"Fewer operations" counts the matrix products, attention included, of a step on either side. It is
what the ratio of times would be if both did nothing but matrix products, at one speed; what the
ratio has beyond it is memory that is not touched.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional as F

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[1])]

from helpers import reference, tiny_models  # noqa: E402
from products import Products  # noqa: E402

import minidpt  # noqa: E402
from minidpt.data.naming import imagenet_classnames  # noqa: E402
from minidpt.runs.config import PRECISIONS  # noqa: E402
from minidpt.runs.devices import keep_freed_memory, move_clip  # noqa: E402

VIT_B_32 = tiny_models.Sizes(
    embedding=512, vision_width=768, vision_layers=12, text_width=512, text_layers=12, patch=32,
    grid=7,
)  # fmt: skip
CPU = torch.device("cpu")
ZERO_SHOT = reference.zero_shot_classifier  # before `Reference` replaces it by its result
PARTS = ("train", "test", "text", "image")


def classnames(count: int) -> list[str]:
    """Evenly spread over ImageNet's: 4.2 tokens of their own, with stop and EOT, on average."""
    names = [*dict.fromkeys(imagenet_classnames().values()), "guided missile", "dark glasses"]
    return [names[i * len(names) // count] for i in range(count)]


class Ours:
    """The package's model."""

    def __init__(self, count: int, precision: str, device: torch.device = CPU):
        keep_freed_memory()
        clip = move_clip(minidpt.build_clip(weights()), device, precision)
        tiny_models.clip_state.cache_clear()  # CLIP has its own copies
        self.model = minidpt.build_model(clip, classnames(count), "a photo of a {}.")
        self.forward = self.model

    def train(self, images, labels):
        self.model.train().zero_grad()
        self.model.loss(self.forward(images), labels).backward()

    @torch.no_grad()
    def test(self, images, labels):
        self.model.eval()(images)

    def text(self, images, labels):
        self.model.train().zero_grad()
        self.model.text_features().sum().backward()

    def image(self, images, labels):
        self.model.zero_grad()
        features = self.model.template_features[: self.model.config.top_k]
        visual, *blocks = self.model.clip.visual, *self.model.clip.visual.transformer.resblocks
        prompts = self.model.visual_prompts.prompts
        keys = [block.project_prompts(own) for block, own in zip(blocks[:-1], prompts)]
        class_features = features.expand(len(images), -1, -1)
        last = self.model.forward_to_last_layer(visual.embed(images), keys, class_features)
        x = blocks[-1].forward_cls(last.tokens, last.prompts)
        visual.project_cls(x).sum().backward()


class Reference:
    """The naive reference in fp32, its primitives replaced by torch's fused ones."""

    def __init__(self, count: int, precision: str, sizes: tiny_models.Sizes = VIT_B_32):
        reference.linear = F.linear
        reference.layer_norm = lambda x, w, b: F.layer_norm(x, w.shape, w, b)
        reference.attention = F.scaled_dot_product_attention
        self.names, self.clip = classnames(count), tiny_models.clip_state(sizes)
        shapes = tiny_models.learned_shapes(sizes, count, {"method": "dpt"})
        self.learned = {
            name: (0.02 * torch.randn(shape)).requires_grad_() for name, shape in shapes.items()
        }
        with torch.no_grad():
            parts = [
                ZERO_SHOT(self.clip, self.names[i : i + 100], "a photo of a {}.", minidpt.tokenize)
                for i in range(0, count, 100)
            ]
        self.classifier = torch.cat(parts)
        reference.zero_shot_classifier = lambda *_: self.classifier

    def forward(self, images):
        return reference.forward(
            self.clip, self.learned, images, self.names, "a photo of a {}.", minidpt.tokenize,
            method="dpt",
        )  # fmt: skip

    def backward(self, loss):
        for value in self.learned.values():
            value.grad = None
        loss.backward()

    def train(self, images, labels):
        self.backward(
            reference.losses(self.forward(images), labels, method="dpt", guidance=False).total
        )

    @torch.no_grad()
    def test(self, images, labels):
        self.forward(images)

    def text(self, images, labels):
        ctx = self.learned[reference.CONTEXT]
        self.backward(
            reference.learned_text_features(
                self.clip, ctx, self.names, "end", minidpt.tokenize
            ).sum()
        )

    def image(self, images, labels):
        selected = self.classifier[:10].expand(len(images), -1, -1)
        features, _ = reference.prompted_image_feature(self.clip, self.learned, images, selected)
        self.backward(features.sum())


class KeepingReference(Reference):
    """The published way, in a process that keeps freed memory as minidpt's does."""

    def __init__(self, count: int, precision: str):
        keep_freed_memory()
        super().__init__(count, precision)


def weights():
    """Random weights of ViT-B/32's sizes, scaled so that activations stay moderate."""
    return tiny_models.clip_state(VIT_B_32)


class Step(NamedTuple):
    """A step's seconds, the peak MB of its process so far, the operations of its products."""

    seconds: float
    megabytes: float
    operations: int


def serve(connection, side: type, count: int, part: str, precision: str, batch: int) -> None:
    """A process that makes a step each time it is asked, and answers with a `Step`."""
    torch.manual_seed(0)
    model = side(count, precision)
    images = torch.randn(batch, 3, 224, 224)
    labels = torch.randint(0, count, (batch,))
    products = Products()
    while connection.recv():
        started = time.perf_counter()
        with nullcontext() if products.noted else products:  # noted in the first, which warms up
            getattr(model, part)(images, labels)
        seconds = time.perf_counter() - started
        megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        connection.send(Step(seconds, megabytes, products.operations()))


class Worker:
    """A process running `serve`."""

    def __init__(self, *job):
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, *job))
        self.process.start()

    def step(self) -> Step:
        self.connection.send(True)
        return self.connection.recv()

    def stop(self):
        self.connection.send(False)
        self.process.join()


def measure(
    sides: list[type], count: int, part: str, precision: str, batch: int, runs: int
) -> list[Step]:
    """For each side the median seconds and the peak MB, after one step that is not counted."""
    workers = [Worker(side, count, part, precision, batch) for side in sides]
    turns = [[worker.step() for worker in workers] for _ in range(runs + 1)][1:]
    for worker in workers:
        worker.stop()
    return [
        Step(
            statistics.median(step.seconds for step in steps),
            max(step.megabytes for step in steps),
            steps[0].operations,
        )
        for steps in zip(*turns, strict=True)
    ]


def main() -> None:
    """Measure and print one Markdown table for each part."""
    parser = argparse.ArgumentParser(description="minidpt against the published way.")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 397, 1000])
    parser.add_argument("--part", choices=PARTS, nargs="+", default=["train", "test"])
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--reference-limit", type=int, default=397)
    args = parser.parse_args()
    run = sum(count <= args.reference_limit for count in set(args.classes))
    if run < 2 and max(args.classes) > args.reference_limit:
        parser.error(f"to extrapolate, give two numbers of classes up to {args.reference_limit}")
    for part in args.part:
        batch = 50 if part == "test" else 32
        print(f"\n{part}, batch {batch}, {args.precision}, torch {torch.__version__}, "
              f"{torch.get_num_threads()} threads\n")  # fmt: skip
        print("| classes | published | keeping memory | minidpt | ratio | ratio, both keeping "
              "| fewer operations | MB published | MB minidpt |")  # fmt: skip
        print("|---|---|---|---|---|---|---|---|---|")
        known = []  # (classes, (seconds of the two references, operations))
        for count in sorted(set(args.classes)):
            runs = (count, part, args.precision, batch, args.runs)
            if count <= args.reference_limit:
                published, ours = measure([Reference, Ours], *runs)
                keeping, ours_beside = measure([KeepingReference, Ours], *runs)
                # as if measured when the others were
                keeping_seconds = keeping.seconds * ours.seconds / ours_beside.seconds
                known.append((count, (published.seconds, keeping_seconds, published.operations)))
                measured = known[-2:]
                note, memory = "", f"{published.megabytes:.0f}"
            else:
                (ours,) = measure([Ours], *runs)
                known.append((count, extrapolate(measured, count)))
                note, memory = " (extrapolated)", "–"
            plain, keeping_seconds, operations = known[-1][1]
            print(
                f"| {count} | {plain:.2f} s{note} | {keeping_seconds:.2f} s{note} "
                f"| {ours.seconds:.2f} s | {plain / ours.seconds:.1f}× "
                f"| {keeping_seconds / ours.seconds:.1f}× | {operations / ours.operations:.1f}× "
                f"| {memory} | {ours.megabytes:.0f} |",
                flush=True,
            )


def extrapolate(known: list[tuple[int, tuple[float, ...]]], count: int) -> tuple[float, ...]:
    """Where the straight lines through two known points are at `count` classes."""
    (c1, before), (c2, last) = known
    share = (count - c2) / (c2 - c1)
    return tuple(v2 + (v2 - v1) * share for v1, v2 in zip(before, last, strict=True))


if __name__ == "__main__":
    main()
