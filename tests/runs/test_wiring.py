"""What train.py alone decides: a run is held equal to the same training written out by hand."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.short_runs import RunInputs, read_metrics, read_prompts, train

import minidpt
from minidpt.data.splits import read_split
from minidpt.images.decode import open_image
from minidpt.images.transforms import to_uint8, train_transform

EPOCHS, BATCH, MOMENTUM, WEIGHT_DECAY = 6, 5, 0.9, 5e-4


def scheduled_rate(epoch: int, base: float, warmup: int) -> float:
    """Return the learning rate of an epoch from 0, as CoOp's code has it."""
    after = base / 2 * (1 + math.cos(math.pi * (epoch - warmup) / EPOCHS))
    return 1e-5 if epoch < warmup else after


def train_by_hand(
    inputs: RunInputs, split: Path, seed: int, warmup: int, guidance_epochs: int, size: int
) -> tuple[minidpt.PromptedCLIP, list[float], list[float]]:
    """Train DPT with the options of `SHORT`; return the model, losses and accuracies by epoch."""
    clip, _ = minidpt.load(inputs.clip)
    side = clip.visual.resolution
    samples, names = read_split(split).train, read_split(split).classnames
    torch.manual_seed(seed)
    config = minidpt.PromptConfig(n_ctx=3, n_visual=2, top_k=3)
    model = minidpt.build_model(clip, names, "a photo of a {}.", config).train()
    learned = model.prompt_state_dict()
    velocity = {name: torch.zeros_like(value) for name, value in learned.items()}
    losses, accuracies = [], []
    for epoch in range(EPOCHS):
        order = list(range(len(samples)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        rates = {True: scheduled_rate(epoch, 0.002, 1), False: scheduled_rate(epoch, 0.01, warmup)}
        total, right, seen, steps = 0.0, 0, 0, 0
        for start in range(0, max(len(order) // size, 1) * size, size):
            views = []
            for number in range(start, min(start + size, len(order))):
                image = open_image(samples[order[number]].path)
                generator = random.Random(f"{seed}/{epoch}/{number}")
                views.append(to_uint8(train_transform(image, side, generator)))
            images = clip.normalize(torch.from_numpy(np.stack(views)))
            labels = torch.tensor([samples[n].label for n in order[start : start + size]])
            output = model(images)
            loss = model.loss(output, labels, guidance=epoch < guidance_epochs)
            gradients = torch.autograd.grad(loss, list(learned.values()), allow_unused=True)
            with torch.no_grad():
                for (name, value), gradient in zip(learned.items(), gradients, strict=True):
                    if gradient is None:
                        continue
                    step = gradient + WEIGHT_DECAY * value
                    velocity[name] = MOMENTUM * velocity[name] + step
                    value -= rates[name == "text_prompts.ctx"] * velocity[name]
            total, steps = total + loss.item(), steps + 1
            right += int((output.logits.argmax(dim=-1) == labels).sum())
            seen += len(labels)
        losses.append(total / steps)
        accuracies.append(100 * right / seen)
    return model, losses, accuracies


@pytest.mark.parametrize(("seed", "warmup", "guidance", "size"), [(7, 3, 2, BATCH), (0, 0, 4, 50)])
def test_a_run_is_the_training_written_by_hand(inputs, seed, warmup, guidance, size):
    """Also with fewer images than a batch, all of which count in the accuracy."""
    options = ("--seed", seed, "--warmup-epochs", warmup, "--guidance-epochs", guidance)
    train(inputs, "run", *options, "--batch-size", size)
    split = Path("run/split.json")
    model, losses, accuracies = train_by_hand(inputs, split, seed, warmup, guidance, size)
    for name, value in model.prompt_state_dict().items():
        torch.testing.assert_close(read_prompts("run")[name], value.data, rtol=1e-4, atol=1e-6)
    records = read_metrics("run")
    for epoch, record in enumerate(records):
        rates = scheduled_rate(epoch, 0.01, warmup), scheduled_rate(epoch, 0.002, 1)
        assert record["epoch"] == epoch + 1
        assert (record["lr"]["visual"], record["lr"]["text"]) == pytest.approx(rates)
    assert [each["loss"] for each in records] == pytest.approx(losses, rel=1e-4)
    assert [each["train_accuracy"] for each in records] == pytest.approx(accuracies)
