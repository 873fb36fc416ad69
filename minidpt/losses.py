"""Cross-entropy and DPT's auxiliary loss, means over a batch.

Labels are class indices; `NO_LABEL` (-100) marks an image that does not count. If several ranks
share a batch, each divides its sum by the global counts, so that the losses of all ranks, and their
gradients, sum to those of the batch. Letters of shapes as in `model.py`.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .support.distributed import NO_LABEL, World


class GlobalCounts(NamedTuple):
    """Numbers of images with a label, and of those with it among the K classes, on all ranks."""

    images: Tensor
    hits: Tensor


def global_counts(labels: Tensor, top_classes: Tensor | None, world: World) -> GlobalCounts | None:
    """Count over all ranks, labels (B,) and top_classes (B, K); None for a single process."""
    if world.size == 1:
        return None
    images, hits = (labels != NO_LABEL).sum(), labels.new_zeros(())
    if top_classes is not None:
        hits = (top_classes == labels.unsqueeze(1)).sum()  # NO_LABEL equals no class
    return GlobalCounts(*world.all_reduce_sum(torch.stack([images, hits])))


def cross_entropy(logits: Tensor, labels: Tensor, counts: GlobalCounts | None = None) -> Tensor:
    """Compute the mean cross-entropy of logits (B, C) and labels (B,); with counts, a share."""
    if counts is None:
        return F.cross_entropy(logits, labels)
    return F.cross_entropy(logits, labels, reduction="sum") / counts.images


def auxiliary_loss(
    logits: Tensor, top_classes: Tensor, labels: Tensor, counts: GlobalCounts | None = None
) -> Tensor:
    """Compute DPT's auxiliary loss of logits (B, J, K, C) and labels (B,).

        mean of CE(logits[image, layer, k], label[image])
        over all image, layer, k with top_classes[image, k] = label[image]

    0 if there is none, where the published code divides by zero. With counts, a share.
    """
    hits = top_classes == labels.unsqueeze(1)  # (B, K)
    targets = labels.view(-1, 1, 1).expand(logits.shape[:-1])  # (B, J, K)
    losses = F.cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none")
    losses = losses.view_as(targets)
    count = hits.sum() if counts is None else counts.hits
    return (losses.mean(dim=1) * hits).sum() / count.clamp(min=1)
