"""Cross-entropy and DPT's auxiliary loss, means over a batch.

Letters of shapes as in `model.py`. Where several processes share the batch, each sums over its own
images and divides by the `GlobalCounts`, so that losses and gradients of all sum to the batch's.
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


def global_counts(labels: Tensor, top_classes: Tensor | None, world: World) -> GlobalCounts:
    """Count over all ranks: labels (B,), top_classes (B, K) or none."""
    images, hits = (labels != NO_LABEL).sum(), labels.new_zeros(())
    if top_classes is not None:
        hits = (top_classes == labels.unsqueeze(1)).sum()
    return GlobalCounts(*world.all_reduce_sum(torch.stack([images, hits])))


def cross_entropy(logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
    """Compute the mean cross-entropy of logits (B, C) over so many images."""
    return F.cross_entropy(logits, labels, reduction="sum") / images


def auxiliary_loss(
    class_aware_logits: Tensor, top_classes: Tensor, labels: Tensor, hits: Tensor
) -> Tensor:
    """Compute the cross-entropy of logits (B, layers, K, C) where the selected class is the label.

    The mean over just those of the top_classes (B, K), `hits` in number, in all layers; 0 if there
    is none, where the published code divides by zero.
    """
    is_label = top_classes == labels.unsqueeze(1)  # (B, K)
    targets = labels.view(-1, 1, 1).expand(class_aware_logits.shape[:-1])  # (B, layers, K)
    losses = F.cross_entropy(
        class_aware_logits.flatten(0, 2), targets.flatten(), reduction="none"
    ).view_as(targets)
    return (losses.mean(dim=1) * is_label).sum() / hits.clamp(min=1)
