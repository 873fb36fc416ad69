"""The precision of the frozen CLIP: as set, what is usual on the device, or the faster one.

How fast a CPU computes in bf16 is measured, not looked up: up to several times as fast as in fp32
where the processor has it, many times slower where not. Nearly all of a training step is products
of rows with CLIP's weights, so a few of these tell (`tests/benchmarks/products.py`).
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ..clip.network import CLIP
from ..files import shown
from ..model import PromptedCLIP
from .folders import CONFIG, Run

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AUTO = "auto"
WORTH_IT = 1.5  # times as fast as fp32: then bf16 is taken
LONG = 600  # seconds of a run in fp32: then bf16 is worth a line
ROWS = 256  # of the products that are timed; a step of ViT-B/32 has 1,600
TRIES = 5
WARM_UP = 0.05  # seconds that the tries of one product may take beyond all products in fp32


def choose_precision(
    name: str | None, device: torch.device, clip: CLIP | None = None, noted: str | None = None
) -> tuple[str, str]:
    """The precision the frozen CLIP is stored and computed in, and the reason for it.

    name: as set; None for the usual one; "auto" for the `noted` one of earlier runs if there are
        any, else on a CPU the faster one for `clip`, on a GPU the usual one.
    """
    if name == AUTO and noted is not None:
        return noted, "as its runs have it"
    if name == AUTO and device.type == "cpu":
        times = ProductTimes.of(clip)
        return ("bf16" if times.ratio >= WORTH_IT else "fp32"), str(times)
    if name not in (None, AUTO):
        return name, "as set"
    if device.type != "cuda":
        return "fp32", "the processor's plain precision"
    if torch.cuda.get_device_capability(device)[0] >= 8:
        return "bf16", "this GPU computes in it, and its range is fp32's"
    return "fp16", "this GPU does not compute in bf16"


def noted_precision(runs: Iterable[Run]) -> str | None:
    """What the first of these runs that has begun has noted; None if none has.

    Raises ValueError if its config.json is damaged.
    """
    for run in runs:
        if run.path(CONFIG).is_file():
            noted = run.read_json(CONFIG, precision=str)["precision"]
            if noted not in PRECISIONS:
                expected = f"precision {', '.join(PRECISIONS)}"
                raise ValueError(f"{run.path(CONFIG)}: expected {expected}, got {shown(noted)}")
            return noted
    return None


def slow_note(model: PromptedCLIP, steps: int, trained: int, tested: int) -> str:
    """A line if a run will take long in fp32 on this CPU, and much less in bf16; else an empty one.

    steps: of training; trained, tested: pictures that pass in all of them, and in one test.
    """
    clip = model.clip
    if clip.device.type != "cpu" or clip.dtype != torch.float32:
        return ""
    widths = widths_of(clip)
    rate = product_operations(widths) / product_seconds(widths, torch.float32)
    seconds = weight_operations(model, steps, trained, tested) / rate
    if seconds < LONG:
        return ""
    times = ProductTimes.of(clip)
    if times.ratio < WORTH_IT:
        return ""
    span = f"{seconds / 3600:.1f} hours" if seconds > 3600 else f"{seconds / 60:.0f} minutes"
    return (
        f"this run will take some {span} in fp32, reckoned from its operations and how long {times}"
        f": pass --precision bf16, {times.ratio:.1f} times as fast, or auto"
    )


def weight_operations(model: PromptedCLIP, steps: int, trained: int, tested: int) -> int:
    """Multiplications and additions of the products with the weights of CLIP's layers in a run.

    Arguments as in `slow_note`. As the weights are frozen, a backward pass is as many as a forward
    one. That some passes are left out (`PromptedCLIP.forward`) is not counted off.
    """
    config, clip = model.config, model.clip
    frozen = config.guided or not config.learns_image
    image_passes = trained * (frozen + 2 * config.learns_image) + tested * (1 + config.learns_image)
    total = image_passes * len(clip.visual.positional_embedding) * weights(clip.visual.transformer)
    if model.text_prompts is not None:
        again = model.class_chunk is not None
        total += steps * (2 + again) * len(model.text_prompts.rows) * weights(clip.transformer)
    return 2 * total


def weights(transformer: nn.Module) -> int:
    """The number of those in its matrices: what a row is multiplied with."""
    return sum(parameter.numel() for parameter in transformer.parameters() if parameter.ndim == 2)


class ProductTimes(NamedTuple):
    """Seconds that some products of a CLIP's sizes take on this CPU, see `product_seconds`."""

    fp32: float
    bf16: float  # at least that, where it is more than in fp32

    @classmethod
    def of(cls, clip: CLIP) -> ProductTimes:
        """Those of a CLIP; measured once in a process."""
        widths = widths_of(clip)
        fp32 = product_seconds(widths, torch.float32)
        return cls(fp32, product_seconds(widths, torch.bfloat16, most=fp32))

    @property
    def ratio(self) -> float:
        """How many times as fast bf16 is."""
        return self.fp32 / self.bf16

    def __str__(self) -> str:
        over = "over " if self.bf16 > self.fp32 else ""
        return (
            f"products of its sizes take {1e3 * self.fp32:.1f} ms in fp32, "
            f"{over}{1e3 * self.bf16:.1f} ms in bf16"
        )


def widths_of(clip: CLIP) -> tuple[int, int]:
    """Of its image and its text side."""
    return clip.visual.positional_embedding.shape[1], clip.positional_embedding.shape[1]


@functools.cache
def product_seconds(widths: tuple[int, ...], dtype: torch.dtype, most: float = math.inf) -> float:
    """How long the qkv and MLP products of layers of these widths take on the CPU: best of five.

    (ROWS, W) by (W, 3W) and (W, 4W) each, added up. Once they have taken more than `most`, the rest
    is left out: without bf16 in hardware a single product takes ten times as long as in fp32.
    """
    total = 0.0
    for width, factor in product(sorted(widths), (3, 4)):
        rows = torch.ones(ROWS, width, dtype=dtype)
        matrix = torch.ones(factor * width, width, dtype=dtype)
        best, started = math.inf, time.perf_counter()
        for _ in range(TRIES):
            begun = time.perf_counter()
            F.linear(rows, matrix)
            best = min(best, time.perf_counter() - begun)
            if time.perf_counter() - started > most + WARM_UP:
                break
        total += best
        if total > most:
            break
    return total


def product_operations(widths: tuple[int, ...]) -> int:
    """Multiplications and additions of these products."""
    return sum(2 * ROWS * (3 + 4) * width**2 for width in widths)
