"""Attention maps: where in an image the model looks, without and with learned prompts.

Letters of shapes as in `model.py`; g: patches a side, so that N = 1 + g².
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .model import PromptedCLIP


class AttentionMaps(NamedTuple):
    """B images of g × g patches, K selected classes. Every map (g, g) sums to 1; all are in fp32.

    zero_shot: (B, g, g), the class token's attention over the patches in the last layer without
        learned prompts: the mean over heads, what goes to the class token itself left out.
    tuned: (B, g, g), the same with them, what goes to prompts left out, too.
    top_classes: (B, K), the classes zero-shot CLIP finds likeliest, best first.
    class_aware: (B, K, g, g), the attention by which each of them makes its prompt for the last
        layer (`ClassAwarePrompts`); what goes to the class token and to learned tokens left out.
    """

    zero_shot: Tensor
    tuned: Tensor
    top_classes: Tensor | None = None  # DPT
    class_aware: Tensor | None = None  # DPT


@torch.no_grad()
def attention_maps(model: PromptedCLIP, images: Tensor) -> AttentionMaps:
    """Compute the attention over the patches of preprocessed images (B, 3, R, R).

    Where the image side learns nothing, `tuned` is `zero_shot`. Raises ValueError for images of
    another shape.
    """
    visual, cached = model.clip.visual, model.prompt_features()
    tokens = visual.embed(images.to(model.clip.device))  # (B, N, D)
    plain, last = visual.forward_before_last(tokens), visual.transformer.resblocks[-1]
    zero_shot = over_patches(last.cls_attention_weights(plain).mean(dim=1), tokens)
    if not model.config.learns_image:
        return AttentionMaps(zero_shot, zero_shot)

    top_classes = class_features = class_aware = None
    if model.config.method == "dpt":
        frozen_features = F.normalize(visual.project_cls(last.forward_cls(plain)).float(), dim=-1)
        text_features = cached.text_features
        top_classes, class_features = model.select(frozen_features, text_features, len(images))
    prompted = model.forward_to_last_layer(tokens, cached.prompt_kv, class_features)
    weights = last.cls_attention_weights(prompted.tokens, prompted.prompts)  # (B, H, N+P)
    tuned = over_patches(weights.mean(dim=1), tokens)
    if prompted.class_aware_weights is not None:
        class_aware = over_patches(prompted.class_aware_weights, tokens)
    return AttentionMaps(zero_shot, tuned, top_classes, class_aware)


def over_patches(weights: Tensor, tokens: Tensor) -> Tensor:
    """Normalise attention weights to maps (..., g, g) over the patches, which sum to 1.

    weights: (..., N+P), of the tokens (B, N, D), class token first, then of any prompts.
    """
    patches = weights[..., 1 : tokens.shape[1]].float()
    side = math.isqrt(patches.shape[-1])
    return (patches / patches.sum(dim=-1, keepdim=True)).unflatten(-1, (side, side))
