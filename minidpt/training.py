"""Helpers of the loop in train.py: parameter groups, learning rate, NaN check, default epochs."""

import math
from typing import Any

import torch

from .model import PromptedCLIP

WARMUP_LR = 1e-5


def parameter_groups(
    model: PromptedCLIP, visual_lr: float = 0.01, text_lr: float = 0.002
) -> list[dict[str, Any]]:
    """Make parameter groups for `torch.optim`: image side, then text side; neither if it is empty.

    Each has a "name", "visual" or "text", beside its learning rate.
    """
    parameters = model.prompt_state_dict()
    text = [parameters.pop("text_prompts.ctx")] if model.config.learns_text else []
    groups = [
        {"name": "visual", "params": list(parameters.values()), "lr": visual_lr},
        {"name": "text", "params": text, "lr": text_lr},
    ]
    return [group for group in groups if group["params"]]


def learning_rate(epoch: int, base_lr: float, epochs: int, warmup_epochs: int) -> float:
    """Compute the learning rate of an epoch, counted from 0 (CoOp's schedule).

    1e-5 while warming up, then half a cosine as long as all `epochs`. As it starts only after
    warm-up, it ends above 0.
    """
    if epoch < warmup_epochs:
        return WARMUP_LR
    return base_lr / 2 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / epochs))


def check_finite(
    loss: float, model: PromptedCLIP, epoch: int, saved: str, precision: str = "fp32"
) -> None:
    """Raise ValueError if the loss or a learned value is infinite or NaN.

    saved: the file that holds the prompts of the epoch before.
    """
    learned = model.learned_parameters()
    if math.isfinite(loss) and torch.stack([value.isfinite().all() for value in learned]).all():
        return
    prompts = ", the prompts after it are not finite" if math.isfinite(loss) else ""
    lower = "" if precision == "fp32" else "--precision fp32 or "
    fix = f"{saved} is of the epoch before: try {lower}lower learning rates"
    raise ValueError(f"epoch {epoch}: the loss is {loss}{prompts}; {fix}")


def default_epochs(method: str, shots: int, dataset: str = "") -> int:
    """Return the published number of epochs: CoOp's by number of shots, and 50 on ImageNet.

    The published DPT code gives 60 for its one example, with 1 shot, and 100 elsewhere.
    """
    if method == "zeroshot":
        return 0
    if method != "coop":
        return 60 if shots == 1 else 100
    if shots == 1 or dataset == "ImageNet":
        return 50
    return 100 if shots <= 4 else 200
