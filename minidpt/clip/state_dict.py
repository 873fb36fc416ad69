"""From a state dict to a CLIP: sizes read off the shapes of the tensors, all of which must fit."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..support.files import check_fields, short_repr
from .network import CLIP, HEAD_WIDTH, MAX_RESOLUTION, TransformerSizes, is_integer

VIT_L_WIDTH = 1024  # of wider ones the heads differ: H, g and bigG have 80, 88 and 104
MAX_LAYERS = 256  # of a side; bigG has 48
MAX_LENGTH = 2**20  # of a side of a tensor that tells the sizes of the model
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # numbers in OpenAI's archives


def build_clip(
    state_dict: Mapping[str, Tensor],
    quick_gelu: bool = True,
    head_width: int | None = None,
    text_head_width: int | None = None,
) -> CLIP:
    """Build a frozen fp32 CLIP from tensors under OpenAI's names, its sizes read off their shapes.

    Args:
        state_dict: name → tensor of any floating dtype.
        quick_gelu: x·σ(1.702x), which OpenAI's weights need. Most models trained elsewhere need
            the exact GELU (False); a state dict does not say which.
        head_width, text_head_width: of an attention head, which no shape tells; None for 64, as
            in all models up to ViT-L. A wider image side needs `head_width`.

    Raises ValueError if the model is not a ViT, or a tensor is missing, unknown, of a wrong shape,
    or holds something else than finite numbers, or an option is none.
    """
    if not isinstance(quick_gelu, (bool, np.bool_)):
        raise ValueError(f"quick_gelu: expected True or False, got {short_repr(quick_gelu)}")
    named = check_fields(dict(state_dict), "state dict")
    weights = {name: value for name, value in named.items() if name not in NOT_WEIGHTS}
    if any(name.startswith("visual.layer1.") for name in weights):
        raise ValueError("this is a ResNet CLIP; expected a ViT such as ViT-B/32: only ViT works")
    with torch.device("meta"):
        sizes = infer_sizes(weights, head_width, text_head_width)
        clip = CLIP(**sizes, quick_gelu=bool(quick_gelu))
    check_tensors(weights, clip.state_dict(), "not the weights of this model")
    # A copy also of fp32 tensors: the given ones may be a mapped file that somebody overwrites.
    plain = dict(dtype=torch.float32, copy=True, memory_format=torch.contiguous_format)
    copies = {name: value.to(**plain) for name, value in weights.items()}
    clip.load_state_dict(copies, assign=True)
    if not clip.logit_scale.exp().isfinite():
        raise ValueError(f"logit_scale: expected less than 88, got {clip.logit_scale.item():.3g}")
    return clip.requires_grad_(False).eval()


def infer_sizes(
    weights: Mapping[str, Tensor], head_width: int | None = None, text_head_width: int | None = None
) -> dict[str, int | TransformerSizes]:
    """Infer the arguments of `CLIP` from shapes of tensors; head widths as in `build_clip`."""
    matrices = "visual.positional_embedding positional_embedding token_embedding.weight"
    matrices = [*matrices.split(), "text_projection"]
    for name, count in {"visual.conv1.weight": 4, **dict.fromkeys(matrices, 2)}.items():
        shape = tuple(getattr(weights.get(name), "shape", ()))
        if len(shape) != count or not all(1 <= length <= MAX_LENGTH for length in shape):
            got = f"shape {shape}" if shape else short_repr(weights.get(name))
            raise ValueError(f"CLIP's {name}: expected {count} dimensions, got {got}")
    width, _, patch, _ = weights["visual.conv1.weight"].shape
    grid = math.isqrt(weights["visual.positional_embedding"].shape[0] - 1)
    vocab_size, text_width = weights["token_embedding.weight"].shape
    if not 1 <= grid * patch <= MAX_RESOLUTION:
        got = f"{grid} × {grid} patches of {patch} pixels"
        raise ValueError(f"expected images of 1 to {MAX_RESOLUTION} pixels a side, got {got}")
    if width > VIT_L_WIDTH and head_width is None:
        raise ValueError(f"vision width {width}: pass --head-width 80 (ViT-H), 88 (g), 104 (bigG)")
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
    """Infer the sizes of the blocks whose tensors' names begin with `prefix` and a number."""
    head_width = HEAD_WIDTH if head_width is None else head_width
    if not is_integer(head_width) or not 1 <= head_width <= width or width % head_width:
        option = "head_width" if prefix.startswith("visual.") else "text_head_width"
        raise ValueError(f"{option}: expected a divisor of {width}, got {short_repr(head_width)}")
    in_blocks = (name[len(prefix) :] for name in weights if name.startswith(prefix))
    layers = len({name.partition(".")[0] for name in in_blocks})
    if not 1 <= layers <= MAX_LAYERS:
        raise ValueError(f"expected 1 to {MAX_LAYERS} blocks {prefix}0…, got {layers:,}")
    shape = getattr(weights.get(f"{prefix}0.mlp.c_fc.bias"), "shape", ())
    mlp_width = shape[0] if len(shape) == 1 and 1 <= shape[0] <= MAX_LENGTH else 4 * width
    return TransformerSizes(width, layers, width // int(head_width), mlp_width)


def check_tensors(got: Mapping[str, object], expected: Mapping[str, Tensor], subject: str) -> None:
    """Raise ValueError, which `subject` begins, unless names, shapes and kind of tensors are right.

    They must hold floating-point numbers that are finite in fp32; `expected` may be on any device.
    """
    missing, unknown = expected.keys() - got.keys(), got.keys() - expected.keys()
    problems = [f"missing {listed(sorted(missing))}"] if missing else []
    problems += [f"unknown {listed(sorted(unknown))}"] if unknown else []
    for name in sorted(expected.keys() & got.keys()):
        value, shape = got[name], tuple(expected[name].shape)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else short_repr(value)
            problems.append(f"{name} is {kind}, expected a tensor of floats")
        elif value.shape != shape:
            problems.append(f"{name} is {tuple(value.shape)}, expected {shape}")
        elif value.numel() and not all(end.isfinite() for end in value.float().aminmax()):
            problems.append(f"{name} is not finite: it holds NaN or infinity, or fp64 beyond fp32")
    if problems:
        raise ValueError(f"{subject}: {listed(problems, '; ')}")


def listed(names: list[str], separator: str = ", ") -> str:
    """Join the first five names, and say how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return separator.join(names[:5]) + more
