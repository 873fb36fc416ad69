"""How many operations a step asks torch for: what a GPU has to be told, one by one.

    python tests/benchmarks/launches.py                       # every method, 10 to 1000 classes
    python tests/benchmarks/launches.py --classes 100 --what  # and which, for DPT

A training step is `forward(images, branches=False)`, loss, backward and a step of SGD; a test batch
is a forward pass without gradient. Layers are ViT-B/32's, 12 and 12, but narrow: the counts do not
depend on width. Operations are what reaches torch's dispatcher below autograd; kernels are those of
them that are not mere views. Beside them the published way of computing (the naive
reference with torch's fused primitives) up to 100 classes.
"""

from __future__ import annotations

import argparse
import collections
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[1]), str(HERE.parent)]

from helpers.tiny_models import Sizes, clip_state  # noqa: E402
from steps import Reference, classnames  # noqa: E402

import minidpt  # noqa: E402

NARROW = Sizes(
    embedding=16, vision_width=64, vision_layers=12, text_width=64, text_layers=12, patch=32, grid=7
)


class Launches(TorchDispatchMode):
    """Counts operations by name, and apart from them those that return a view of an argument."""

    def __init__(self):
        super().__init__()
        self.kernels: collections.Counter[str] = collections.Counter()
        self.views = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        # An alias without a write in the operation's own description: view, slice, expand, …
        aliases = [ret.alias_info for ret in function._schema.returns]
        if any(alias is not None and not alias.is_write for alias in aliases):
            self.views += 1
        elif function not in (torch.ops.aten._unsafe_view.default, torch.ops.aten.detach.default):
            self.kernels[function.overloadpacket.__name__] += 1
        else:
            self.views += 1
        return function(*arguments, **(keywords or {}))

    @property
    def operations(self) -> int:
        """All of them."""
        return self.kernels.total() + self.views


def counted(work: Callable[[], object]) -> Launches:
    """The launches of `work` at its second time: the first may prepare something."""
    work()
    with Launches() as launches:
        work()
    return launches


def build(method: str, classes: int) -> minidpt.PromptedCLIP:
    """A model of the narrow CLIP."""
    clip = minidpt.build_clip(clip_state(NARROW))
    config = minidpt.PromptConfig(method=method)
    return minidpt.build_model(clip, classnames(classes), "a photo of a {}.", config)


def training_step(model: minidpt.PromptedCLIP, batch: int = 2) -> Callable[[], object]:
    """Forward, loss, backward, SGD."""
    groups = minidpt.parameter_groups(model)
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=5e-4)
    images, labels = torch.randn(batch, 3, 224, 224), torch.zeros(batch, dtype=torch.long)

    def step() -> None:
        loss = model.loss(model(images, branches=False), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def forward_pass(model: minidpt.PromptedCLIP, batch: int = 2) -> Callable[[], object]:
    """A forward pass without gradient."""
    images = torch.randn(batch, 3, 224, 224)
    return torch.no_grad()(lambda: model.eval()(images, branches=False))


def published_step(classes: int, batch: int = 2) -> Callable[[], object]:
    """A step of DPT, the published way."""
    reference = Reference(classes, "fp32", NARROW)
    optimizer = torch.optim.SGD(list(reference.learned.values()), lr=0.01, momentum=0.9)
    images, labels = torch.randn(batch, 3, 224, 224), torch.zeros(batch, dtype=torch.long)

    def step() -> None:
        reference.train(images, labels)
        optimizer.step()

    return step


def main() -> None:
    """Count and print a Markdown table."""
    parser = argparse.ArgumentParser(description="Operations and kernels of a step.")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 397, 1000])
    parser.add_argument("--what", action="store_true", help="which kernels, for DPT")
    args = parser.parse_args()
    print(f"torch {torch.__version__}; operations / kernels\n")
    print("| method | classes | training step | test batch |\n|---|---|---|---|")
    for count in args.classes:
        for method in ("coop", "vpt", "vlp", "dpt"):
            model = build(method, count)
            step, test = counted(training_step(model)), counted(forward_pass(model))
            cells = (f"{x.operations:,} / {x.kernels.total():,}" for x in (step, test))
            print(f"| {method} | {count} | " + " | ".join(cells) + " |", flush=True)
        if args.what:
            print("\n" + ", ".join(f"{name} {n}" for name, n in step.kernels.most_common()) + "\n")
        if count <= 100:
            step = counted(published_step(count))
            cell = f"{step.operations:,} / {step.kernels.total():,}"
            print(f"| dpt, published way | {count} | {cell} | |", flush=True)


if __name__ == "__main__":
    main()
