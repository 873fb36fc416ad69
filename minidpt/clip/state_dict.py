"""From a state dict to a CLIP: sizes read off the shapes of the tensors, all of which must fit."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..files import entries, one_line_errors, shown
from .network import CLIP, HEAD_WIDTH, MAX_RESOLUTION, TransformerSizes

VIT_L_WIDTH = 1024  # of wider ones the heads differ: H, g and bigG have 80, 88 and 104
MAX_LAYERS = 256  # of a side; bigG has 48
MAX_LENGTH = 2**20  # of a side of a tensor that tells the sizes of the model
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # numbers in OpenAI's archives


@one_line_errors
def build_clip(
    state_dict: Mapping[str, Tensor],
    quick_gelu: bool | None = None,
    exact_gelu: bool = False,
    head_width: int | None = None,
    text_head_width: int | None = None,
) -> CLIP:
    """A frozen fp32 CLIP from tensors under OpenAI's names; all sizes are read off their shapes.

    Args:
        state_dict: name → tensor of any floating dtype.
        quick_gelu: the opposite of `exact_gelu`, where it is given.
        exact_gelu: most models trained elsewhere need it; OpenAI's weights need the quick one,
            x·σ(1.702x). A state dict does not say which.
        head_width, text_head_width: of an attention head, which no shape tells; None for 64, as
            in all models up to ViT-L. A wider image side needs `head_width`.

    Raises ValueError if the model is not a ViT, or a tensor is missing, unknown, of a wrong shape,
    or holds something else than finite numbers.
    """
    named = entries(dict(state_dict), "state dict")
    weights = {name: value for name, value in named.items() if name not in NOT_WEIGHTS}
    if any(name.startswith("visual.layer1.") for name in weights):
        raise ValueError("this is a ResNet CLIP; expected a ViT such as ViT-B/32: only ViT works")
    with torch.device("meta"):
        exact = exact_gelu if quick_gelu is None else not quick_gelu
        clip = CLIP(**infer_sizes(weights, head_width, text_head_width), exact_gelu=exact)
    check_tensors(weights, clip.state_dict(), "not the weights of this model")
    # A copy also of fp32 tensors: the given ones may be a mapped file that somebody overwrites.
    plain = dict(dtype=torch.float32, copy=True, memory_format=torch.contiguous_format)
    copies = {name: value.to(**plain) for name, value in weights.items()}
    clip.load_state_dict(copies, assign=True)
    if not clip.logit_scale.exp().isfinite():
        raise ValueError(f"logit_scale: expected less than 88, got {clip.logit_scale.item():.3g}")
    return clip.requires_grad_(False).eval()


def infer_sizes(
    weights: Mapping[str, Tensor],
    head_width: int | None = None,
    text_head_width: int | None = None,
) -> dict[str, int | TransformerSizes]:
    """The arguments of `CLIP` that fit these tensors; head widths as in `build_clip`."""
    dimensions = {
        "visual.conv1.weight": 4,
        "visual.positional_embedding": 2,
        "positional_embedding": 2,
        "token_embedding.weight": 2,
        "text_projection": 2,
    }
    if missing := [name for name in dimensions if name not in weights]:
        raise ValueError(
            f"expected a CLIP state dict with OpenAI's names, got one without {listed(missing)}"
        )
    for name, count in dimensions.items():
        shape = tuple(weights[name].shape) if isinstance(weights[name], Tensor) else ()
        if len(shape) != count or not all(1 <= length <= MAX_LENGTH for length in shape):
            got = f"shape {shape}" if shape else shown(weights[name])
            raise ValueError(f"{name}: expected a tensor of {count} dimensions, got {got}")
    width, _, patch, _ = weights["visual.conv1.weight"].shape
    grid = math.isqrt(weights["visual.positional_embedding"].shape[0] - 1)
    vocab_size, text_width = weights["token_embedding.weight"].shape
    if not 1 <= grid * patch <= MAX_RESOLUTION:
        got = f"{grid} × {grid} patches of {patch} pixels"
        raise ValueError(f"expected images of 1 to {MAX_RESOLUTION} pixels a side, got {got}")
    if width > VIT_L_WIDTH and head_width is None:
        raise ValueError(
            f"vision width {width}: expected head_width (--head-width), which no file of weights "
            "alone tells: it is 80 in ViT-H/14, 88 in g/14, 104 in bigG/14"
        )
    return dict(
        embed_dim=weights["text_projection"].shape[1],
        resolution=grid * patch,
        patch=patch,
        vision=transformer_sizes(weights, "visual.transformer.resblocks.", width, head_width),
        text=transformer_sizes(weights, "transformer.resblocks.", text_width, text_head_width),
        context_length=weights["positional_embedding"].shape[0],
        vocab_size=vocab_size,
    )


def transformer_sizes(
    weights: Mapping[str, Tensor], prefix: str, width: int, head_width: int | None
) -> TransformerSizes:
    """Those of the blocks whose tensors' names begin with `prefix` and a number."""
    head_width = HEAD_WIDTH if head_width is None else head_width
    if not 1 <= head_width <= width or width % head_width:
        side = "vision" if prefix.startswith("visual") else "text"
        expected = f"a multiple of the {head_width} of its heads"
        raise ValueError(f"{side} width {width}: expected {expected}: pass their head_width")
    first = getattr(weights.get(f"{prefix}0.mlp.c_fc.bias"), "shape", ())
    inner = first[0] if len(first) == 1 and 1 <= first[0] <= MAX_LENGTH else 4 * width
    return TransformerSizes(width, count_layers(weights, prefix), width // head_width, inner)


def count_layers(weights: Mapping[str, Tensor], prefix: str) -> int:
    """The number of blocks whose tensors' names begin with `prefix` and a number."""
    own = (name[len(prefix) :] for name in weights if name.startswith(prefix))
    numbers = {name.partition(".")[0] for name in own}
    if not 1 <= len(numbers) <= MAX_LAYERS:
        expected = f"a CLIP state dict with tensors {prefix}0…, 1 to {MAX_LAYERS} blocks"
        raise ValueError(f"expected {expected}, got {len(numbers):,} blocks")
    return len(numbers)


def check_tensors(got: Mapping[str, object], expected: Mapping[str, Tensor], what: str) -> None:
    """ValueError, which `what` begins, unless names, shapes and kind of the tensors are right.

    They must hold floating-point numbers that are finite in fp32; `expected` may be on any device.
    """
    problems = []
    if missing := sorted(expected.keys() - got.keys()):
        problems.append(f"missing {listed(missing)}")
    if unknown := sorted(got.keys() - expected.keys()):
        problems.append(f"unknown {listed(unknown)}")
    for name in sorted(expected.keys() & got.keys()):
        value, shape = got[name], tuple(expected[name].shape)
        if not isinstance(value, Tensor):
            problems.append(f"{name} is {shown(value)}, expected a tensor")
        elif value.shape != shape:
            problems.append(f"{name} is {tuple(value.shape)}, expected {shape}")
        elif not value.is_floating_point():
            problems.append(f"{name} is {value.dtype}, expected floating-point numbers")
        elif value.numel() and not all(end.isfinite() for end in value.float().aminmax()):
            problems.append(f"{name} is not finite: it holds NaN or infinity, or fp64 beyond fp32")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{what}: {'; '.join(problems[:5])}{more}")


def listed(names: list[str]) -> str:
    """The first five names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
