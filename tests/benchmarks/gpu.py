"""A training step on a GPU, ViT-B/32, random weights: time, throughput, memory, in one table.

    python tests/benchmarks/gpu.py                     # C = 100, 397, 1000 in fp16 and bf16
    python tests/benchmarks/gpu.py --profile           # and where the time of a step goes

Against the published way of computing (`Reference` of steps.py) in the same precision and process,
taking turns; medians. The card's throughput is measured by a product of 8192×8192 matrices in that
precision; a step's share of it counts the operations of its matrix products and attention
(`torch.utils.flop_counter`). `--device cpu --batch 2 --classes 10` tries the script without a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from steps import Ours, Reference, reference
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import minidpt
from minidpt.runs.config import PRECISIONS


class Device:
    """Times and memory, on a GPU or for a try on the processor."""

    def __init__(self, name: str):
        self.device = torch.device(name)
        self.cuda = self.device.type == "cuda"

    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.cuda else "the processor"

    def seconds(self, work) -> float:
        """Of one call, with all that it has started."""
        if self.cuda:
            torch.cuda.synchronize(self.device)
        started = time.perf_counter()
        work()
        if self.cuda:
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started

    def allocated(self, peak: bool = False) -> float:
        """GB that tensors take now, or took at most since the last call without `peak`."""
        if not self.cuda:
            return float("nan")
        if peak:
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device) / 1e9

    def throughput(self, dtype: torch.dtype, size: int = 8192) -> float:
        """Operations a second of a large matrix product."""
        size = size if self.cuda else 1024
        a = torch.randn(size, size, device=self.device, dtype=dtype)
        times = [self.seconds(lambda: a @ a) for _ in range(12)][2:]
        return 2 * size**3 / statistics.median(times)


class Published(Reference):
    """The published way, on the device and wholly in the precision, as the published code is.

    Two loops of the reference that would have a GPU wait for the host are replaced, too: tokens are
    looked up once, and the auxiliary loss is computed for all images together.
    """

    def __init__(self, count: int, precision: str, device: torch.device):
        tokenize, dtype = minidpt.tokenize, PRECISIONS[precision]
        super().__init__(count, "fp32")
        self.tokenize = lambda texts: tokenize(texts).to(device)
        self.clip = {name: value.to(device, dtype) for name, value in self.clip.items()}
        self.learned = {
            name: value.detach().to(device, dtype).requires_grad_()
            for name, value in self.learned.items()
        }
        self.classifier = self.classifier.to(device, dtype)
        n_ctx = len(self.learned[reference.CONTEXT])
        tokens = self.tokenize([" ".join(["X"] * n_ctx) + f" {name}." for name in self.names])
        self.ends = reference.end_of_text(tokens)
        embedded = self.clip["token_embedding.weight"][tokens]  # (C, 77, W)
        self.before, self.after = embedded[:, :1], embedded[:, 1 + n_ctx :]
        reference.learned_text_features = self.text_features
        reference.auxiliary_loss = auxiliary_loss

    def text_features(self, clip, ctx, *_):
        context = ctx.expand(len(self.names), -1, -1)
        prompts = torch.cat([self.before, context, self.after], dim=1)
        return reference.encode_embedded_text(clip, prompts, self.ends)

    def forward(self, images):
        return reference.forward(
            self.clip, self.learned, images.to(self.classifier.dtype), self.names,
            "a photo of a {}.", self.tokenize, method="dpt",
        )  # fmt: skip


def auxiliary_loss(class_logits, top_classes, labels):
    """As `reference.auxiliary_loss`, without its loop."""
    images, layers, slots, classes = class_logits.shape
    target = labels.view(-1, 1, 1).expand(images, layers, slots)
    terms = F.cross_entropy(class_logits.reshape(-1, classes), target.flatten(), reduction="none")
    counted = (top_classes == labels.view(-1, 1)).unsqueeze(1).expand(images, layers, slots)
    return (terms * counted.flatten()).sum() / counted.sum().clamp(min=1)


def build(device: Device, ways: dict, count: int, precision: str, images, labels):
    """The sides that fit, and the peak GB of each one's first step, CLIP's weights included."""
    sides, gigabytes = {}, {}
    for name, way in ways.items():
        side = None  # a model that did not fit must go before the next one
        before = device.allocated()
        try:
            side = way(count, precision, device.device)
            device.seconds(lambda: side.train(images, labels))  # noqa: B023
        except torch.cuda.OutOfMemoryError:
            print(f"| {count} | {precision} | {name} | out of memory | | | | |")
            continue
        sides[name], gigabytes[name] = side, device.allocated(peak=True) - before
    return sides, gigabytes


def measure(device: Device, sides: dict, images, labels, runs: int) -> dict[str, float]:
    """Median seconds of a step of each side; they take turns."""
    times = {name: [] for name in sides}
    for _ in range(runs + 2):  # two to warm up
        for name, side in sides.items():
            times[name].append(device.seconds(lambda: side.train(images, labels)))  # noqa: B023
    return {name: statistics.median(own[2:]) for name, own in times.items()}


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[100, 397, 1000])
    parser.add_argument("--precision", nargs="+", default=["fp16", "bf16"], choices=PRECISIONS)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--profile", action="store_true", help="also print what a step consists of")
    args = parser.parse_args()
    device = Device(args.device)
    print(f"{device.name()}, torch {torch.__version__}, batch {args.batch}\n")
    print("| classes | precision | way | step | images/s | of the card's throughput | peak GB | "
          "ratio |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    ways = {"published way": Published, "minidpt": Ours}
    for precision in args.precision:
        best = device.throughput(PRECISIONS[precision])
        for count in args.classes:
            torch.manual_seed(0)
            images = torch.randn(args.batch, 3, 224, 224, device=device.device)
            labels = torch.randint(0, count, (args.batch,), device=device.device)
            sides, gigabytes = build(device, ways, count, precision, images, labels)
            seconds = measure(device, sides, images, labels, args.runs)
            with FlopCounterMode(display=False) as counter:
                sides["minidpt"].train(images, labels)
            for name, step in seconds.items():
                share = 100 * counter.get_total_flops() / step / best
                share = f"{share:.0f} %" if name != "published way" else ""
                ratio = seconds.get("published way", float("nan")) / step
                print(f"| {count} | {precision} | {name} | {1e3 * step:.1f} ms "
                      f"| {args.batch / step:.0f} | {share} | {gigabytes[name]:.1f} "
                      f"| {ratio:.1f}× |", flush=True)  # fmt: skip
            if args.profile:
                with torch.profiler.profile() as profile:
                    device.seconds(lambda: sides["minidpt"].train(images, labels))  # noqa: B023
                order = "self_cuda_time_total" if device.cuda else "self_cpu_time_total"
                print(profile.key_averages().table(sort_by=order, row_limit=20))


if __name__ == "__main__":
    main()
