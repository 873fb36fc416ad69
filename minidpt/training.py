"""What the training loop is made of: parameter groups, learning-rate schedule, accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from .data import Batch, Item, test_batches
from .model import PromptedCLIP
from .transforms import normalize

WARMUP_LR = 1e-5


def parameter_groups(
    model: PromptedCLIP, visual_lr: float = 0.01, text_lr: float = 0.002
) -> list[dict[str, Any]]:
    """Parameter groups for `torch.optim`: image side, then text side; neither if it is empty.

    Each has a "name", "visual" or "text", beside its learning rate.
    """
    text = [] if model.text_prompts is None else [model.text_prompts.ctx]
    visual = [p for name, p in model.learned().items() if not name.startswith("text_prompts.")]
    groups = [
        {"name": "visual", "params": visual, "lr": visual_lr},
        {"name": "text", "params": text, "lr": text_lr},
    ]
    return [group for group in groups if group["params"]]


def learning_rate(epoch: int, base_lr: float, epochs: int, warmup_epochs: int) -> float:
    """The learning rate of an epoch, counted from 0 (CoOp's schedule).

    1e-5 while warming up, then a cosine over all `epochs`; starting late, it does not reach 0.
    """
    if epoch < warmup_epochs:
        return WARMUP_LR
    return base_lr / 2 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / epochs))


def default_epochs(method: str, shots: int, dataset: str = "") -> int:
    """Epochs of the published configurations: CoOp's by number of shots, and 50 on ImageNet.

    The published DPT code gives 60 for its one example, with 1 shot, and 100 elsewhere.
    """
    if method == "zeroshot":
        return 0
    if method == "coop":
        if dataset == "ImageNet":
            return 50
        return 50 if shots == 1 else 100 if shots <= 4 else 200
    return 60 if shots == 1 else 100


class TestImages:
    """Test pictures as batches (images (B, 3, R, R) uint8, labels (B,)), decoded once.

    The batches are kept after the first pass if they fit in `max_bytes` (default 1 GiB: 7,000
    pictures at 224 pixels); otherwise each pass decodes again. Raises ValueError without items.
    """

    def __init__(
        self,
        items: list[Item],
        resolution: int,
        batch_size: int = 100,
        workers: int = 2,
        max_bytes: int = 1024**3,
    ):
        if not items:
            raise ValueError("expected test images, got none: give every class at least two images")
        self.items, self.resolution = items, resolution
        self.batch_size, self.workers = batch_size, workers
        self.keep = len(items) * 3 * resolution**2 <= max_bytes
        self._kept: list[Batch] = []

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Batch]:
        if self._kept:
            yield from self._kept
            return
        batches = []
        for batch in test_batches(self.items, self.resolution, self.batch_size, self.workers):
            if self.keep:
                batches.append(batch)
            yield batch
        self._kept = batches


@torch.no_grad()
def accuracy(logits_of: Callable[[Tensor], Tensor], batches: Iterable[Batch], device) -> float:
    """Top-1 accuracy in percent.

    Args:
        logits_of: preprocessed images (B, 3, R, R) → logits (B, C).
        batches: of uint8 images and labels, from `TestImages` for instance.
    """
    correct = total = 0
    for images, labels in batches:
        logits = logits_of(normalize(images.to(device)))
        correct += (logits.argmax(dim=-1).cpu() == labels).sum().item()
        total += len(labels)
    return 100 * correct / total
