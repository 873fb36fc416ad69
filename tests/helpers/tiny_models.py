"""Make tiny random CLIPs and learned tensors of every method, to compare with `reference`."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

import minidpt
from helpers import reference

Tensors = dict[str, Tensor]


class Sizes(NamedTuple):
    """Heads are 64 wide, so widths are multiples of 64; all else is prime where it can be."""

    embedding: int = 37
    vision_width: int = 128
    vision_layers: int = 3
    text_width: int = 64
    text_layers: int = 3
    patch: int = 7
    grid: int = 3  # patches a side


WIDE = Sizes()
DEEP = Sizes(embedding=41, vision_width=64, vision_layers=5, text_width=128, text_layers=2)


@functools.lru_cache(maxsize=4)
def clip_state(sizes: Sizes, seed: int = 0) -> Tensors:
    """Make a CLIP state dict under OpenAI's names; do not change its tensors.

    Large enough that attention is far from uniform and that images and classes differ.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, std: float) -> Tensor:
        return torch.randn(shape, generator=generator) * std

    def matrix(outputs: int, inputs: int) -> Tensor:
        return random(outputs, inputs, std=1 / math.sqrt(inputs))

    def norm(name: str, width: int) -> Tensors:
        return {
            f"{name}.weight": 1 + random(width, std=0.2),
            f"{name}.bias": random(width, std=0.2),
        }

    def transformer(tower: str, layers: int, width: int) -> Tensors:
        tensors = {}
        for block in (f"{tower}.resblocks.{i}" for i in range(layers)):
            tensors |= norm(f"{block}.ln_1", width) | norm(f"{block}.ln_2", width)
            for name, outputs, inputs in (
                ("attn.in_proj_", 3 * width, width),
                ("attn.out_proj.", width, width),
                ("mlp.c_fc.", 4 * width, width),
                ("mlp.c_proj.", width, 4 * width),
            ):
                tensors[f"{block}.{name}weight"] = matrix(outputs, inputs)
                tensors[f"{block}.{name}bias"] = random(outputs, std=0.2)
        return tensors

    vision, text = sizes.vision_width, sizes.text_width
    return {
        "visual.class_embedding": random(vision, std=1),
        "visual.positional_embedding": random(sizes.grid**2 + 1, vision, std=0.5),
        "visual.conv1.weight": random(vision, 3, sizes.patch, sizes.patch, std=0.1),
        "visual.proj": matrix(vision, sizes.embedding),
        "positional_embedding": random(77, text, std=0.1),
        "text_projection": matrix(text, sizes.embedding),
        "token_embedding.weight": random(49408, text, std=0.3),
        "logit_scale": torch.tensor(math.log(1 / 0.07)),
        **norm("visual.ln_pre", vision),
        **norm("visual.ln_post", vision),
        **norm("ln_final", text),
        **transformer("visual.transformer", sizes.vision_layers, vision),
        **transformer("transformer", sizes.text_layers, text),
    }


@functools.lru_cache(maxsize=2)
def clip_state_in_double(sizes: Sizes) -> Tensors:
    """Return `clip_state` in float64; do not change its tensors."""
    return to_double(clip_state(sizes))


@functools.lru_cache(maxsize=2)
def shared_clip(sizes: Sizes) -> minidpt.CLIP:
    """Build the CLIP of `clip_state`, once for all tests; do not change it."""
    return minidpt.build_clip(clip_state(sizes))


def learned_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 1) -> Tensors:
    """Make learned tensors as they might be after training: nothing is small, no norm is 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in sorted(shapes.items()):
        std = 1 / math.sqrt(shape[-1]) if name.endswith("weight") else 0.3
        tensors[name] = torch.randn(shape, generator=generator) * std
        if ".lns" in name and name.endswith("weight"):
            tensors[name] = 1 + 0.3 * torch.randn(shape, generator=generator)
    return tensors


def random_images(sizes: Sizes, count: int, seed: int = 2) -> Tensor:
    """Make random images (count, 3, R, R) of the model's resolution R."""
    generator = torch.Generator().manual_seed(seed)
    resolution = sizes.patch * sizes.grid
    return torch.randn(count, 3, resolution, resolution, generator=generator)


def to_double(tensors: Tensors, requires_grad: bool = False) -> Tensors:
    """Copy tensors to float64, in which the reference has no rounding that counts."""
    return {name: value.double().requires_grad_(requires_grad) for name, value in tensors.items()}


def learned_shapes(sizes: Sizes, classes: int, config: dict) -> dict[str, tuple[int, ...]]:
    """Return `reference.learned_shapes` for the keyword arguments of a `PromptConfig`."""
    names = ("csc", "n_visual", "visual_layers", "class_aware_from")
    options = {name: config[name] for name in names if name in config}
    n_ctx = len(config["ctx_init"].split()) if config.get("ctx_init") else config.get("n_ctx", 16)
    return reference.learned_shapes(
        clip_state(sizes), classes, method=config["method"], n_ctx=n_ctx, **options
    )
