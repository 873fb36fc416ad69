"""Cross-entropy and DPT's auxiliary loss, means over a batch.

Several ranks that share a batch pass its `GlobalCounts`: each divides by those, so that the losses
of all ranks, and their gradients, sum to those of the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .support.distributed import NO_LABEL, World


class GlobalCounts(NamedTuple):
    """Of a batch on all ranks: images with a label, and selected classes that are the label."""

    images: Tensor
    hits: Tensor


def global_counts(labels: Tensor, top_classes: Tensor | None, world: World) -> GlobalCounts | None:
    """Count over all ranks: labels (B,), top_classes (B, K) or none; None for a single process."""
    if world.size == 1:
        return None
    images, hits = (labels != NO_LABEL).sum(), labels.new_zeros(())
    if top_classes is not None:
        hits = (top_classes == labels.unsqueeze(1)).sum()
    return GlobalCounts(*world.all_reduce_sum(torch.stack([images, hits])))


def cross_entropy(logits: Tensor, labels: Tensor, counts: GlobalCounts | None = None) -> Tensor:
    """Compute the mean cross-entropy of logits (B, C)."""
    if counts is None:
        return F.cross_entropy(logits, labels)
    return F.cross_entropy(logits, labels, reduction="sum") / counts.images


def auxiliary_loss(
    logits: Tensor, top_classes: Tensor, labels: Tensor, counts: GlobalCounts | None = None
) -> Tensor:
    """Compute the cross-entropy of logits (B, layers, K, C) where the selected class is the label.

    The mean over just those of the top_classes (B, K), in all layers; 0 if there is none, where the
    published code divides by zero.
    """
    hits = top_classes == labels.unsqueeze(1)  # (B, K)
    targets = labels.view(-1, 1, 1).expand(logits.shape[:-1])  # (B, layers, K)
    losses = F.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none")
    losses = losses.view_as(targets)
    count = hits.sum() if counts is None else counts.hits
    return (losses.mean(dim=1) * hits).sum() / count.clamp(min=1)
