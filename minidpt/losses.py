"""Cross-entropy and DPT's auxiliary loss, means over a batch.

Of a batch that several ranks share, each computes what its images add to the mean: all ranks' sum
to it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .ranks import NO_LABEL, Ranks


class Counts(NamedTuple):
    """Of a batch: images with a label, and those of its selected classes that are the label."""

    images: Tensor
    hits: Tensor


def counts(labels: Tensor, top_classes: Tensor | None, ranks: Ranks) -> Counts:
    """`Counts` of the batch that all ranks make up: labels (B,), top_classes (B, K) or none."""
    images, hits = (labels != NO_LABEL).sum(), labels.new_zeros(())
    if top_classes is not None:
        hits = (top_classes == labels.unsqueeze(1)).sum()
    return Counts(*ranks.add(torch.stack([images, hits])))


def cross_entropy(logits: Tensor, labels: Tensor, whole: Counts | None = None) -> Tensor:
    """The mean over the images (B, C), or what they add to the mean over a `whole` batch."""
    if whole is None:
        return F.cross_entropy(logits, labels)
    return F.cross_entropy(logits, labels, reduction="sum") / whole.images


def auxiliary_loss(
    class_aware_logits: Tensor, top_classes: Tensor, labels: Tensor, whole: Counts | None = None
) -> Tensor:
    """Cross-entropy of class-aware logits (B, layers, K, C) where the slot's class is the label.

    Averaged over just those (image, layer, slot); 0 if there is none, where the published code
    divides by zero. top_classes are the slots' (B, K); `whole` as in `cross_entropy`.
    """
    _, layers, _, classes = class_aware_logits.shape
    hits = (top_classes == labels.unsqueeze(1)).float()  # (B, K)
    logits = class_aware_logits.transpose(1, 2).flatten(0, 1)  # (B·K, layers, C)
    targets = labels.repeat_interleave(hits.shape[1])  # (B·K,)
    losses = F.cross_entropy(
        logits.reshape(-1, classes), targets.repeat_interleave(layers), reduction="none"
    )
    losses = losses.view(*hits.shape, layers).mean(dim=-1)  # (B, K)
    count = hits.sum() if whole is None else whole.hits
    return (losses * hits).sum() / count.clamp(min=1)
