"""The parts of the training loop: epochs, accuracy, kept test pictures, and that they train."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from image_folders import draw
from PIL import Image
from tiny_models import WIDE, clip_state, random_images
from torch import Tensor

import minidpt
from minidpt import data, training


@pytest.mark.parametrize(
    ("method", "by_shots"),
    [
        ("zeroshot", {1: 0, 16: 0}),
        ("coop", {1: 50, 2: 100, 4: 100, 8: 200, 16: 200}),
        ("vpt", {1: 60, 2: 100, 4: 100, 8: 100, 16: 100}),
        ("vlp", {1: 60, 2: 100, 4: 100, 8: 100, 16: 100}),
        ("dpt", {1: 60, 2: 100, 4: 100, 8: 100, 16: 100}),
    ],
)
def test_default_epochs_are_the_published_ones(method, by_shots):
    assert {shots: training.default_epochs(method, shots) for shots in by_shots} == by_shots


def batch(labels: list[int]) -> data.Batch:
    """Grey pictures whose brightness is their label."""
    pixels = torch.tensor(labels, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    return data.Batch(pixels, torch.tensor(labels))


def test_accuracy_is_the_share_of_images_and_not_of_batches():
    rows = iter([[[9.0, 1, 0], [0, 2, 1], [5, 4, 3]], [[1.0, 0, 0]]])  # says 0, 1, 0 and 0
    batches = [batch([0, 1, 2]), batch([0])]  # right, right, wrong; right
    result = training.accuracy(lambda images: torch.tensor(next(rows)), batches, "cpu")
    assert result == 75.0  # the mean of 2/3 and 1 would be 83.3


def test_accuracy_gives_the_model_normalised_pixels_and_no_gradient():
    weight = torch.ones((), requires_grad=True)
    seen = []

    def logits_of(images: Tensor) -> Tensor:
        logits = weight * images.mean(dim=(2, 3))
        assert not logits.requires_grad
        seen.append(images)
        return logits

    training.accuracy(logits_of, [batch([0, 255])], "cpu")
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[0][0, :, 0, 0], -mean / std)  # black
    torch.testing.assert_close(seen[0][1, :, 1, 1], (1 - mean) / std)  # white


@pytest.fixture
def items(tmp_path: Path) -> list[data.Item]:
    paths = [draw(tmp_path / f"{n}.png", color=(10 * n, 0, 99)) for n in range(7)]
    return [data.Item(str(path), n % 3, "abc"[n % 3]) for n, path in enumerate(paths)]


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The paths of pictures in the order in which they are decoded."""
    paths, open_image = [], data.open_image

    def counting(path: str) -> Image.Image:
        paths.append(path)
        return open_image(path)

    monkeypatch.setattr(data, "open_image", counting)
    return paths


def assert_same(first: list[data.Batch], second: list[data.Batch]) -> None:
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_test_images_are_decoded_once(items, decoded):
    test = training.TestImages(items, resolution=5, batch_size=3, workers=0)
    first, second = list(test), list(test)
    assert decoded == [item.path for item in items]
    assert len(test) == 7 and [len(part.labels) for part in first] == [3, 3, 1]
    assert_same(first, second)
    assert torch.cat([part.labels for part in second]).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert all(part.images.dtype == torch.uint8 for part in second)


@pytest.mark.parametrize(("max_bytes", "times"), [(7 * 75, 1), (7 * 75 - 1, 2)])
def test_test_images_that_take_too_much_memory_are_decoded_again(items, decoded, max_bytes, times):
    test = training.TestImages(items, 5, batch_size=3, workers=2, max_bytes=max_bytes)
    assert_same(list(test), list(test))
    assert len(decoded) == 7 * times


def test_a_pass_that_ends_early_keeps_no_part_of_the_test_images(items):
    test = training.TestImages(items, resolution=5, batch_size=3, workers=0)
    next(iter(test))
    assert sum(len(part.labels) for part in test) == 7


@pytest.mark.parametrize("method", ["coop", "vpt", "vlp", "dpt"])
def test_a_few_steps_lower_the_loss_and_change_nothing_but_what_is_learned(method):
    torch.manual_seed(0)
    clip = minidpt.build_clip(clip_state(WIDE))
    config = minidpt.PromptConfig(method=method, n_ctx=3, n_visual=2, top_k=3)
    model = minidpt.build_model(clip, ["ox", "owl", "gnu", "red fox"], "a {}.", config).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    template = model.template_features.clone()
    optimizer = torch.optim.SGD(minidpt.parameter_groups(model, text_lr=0.02), momentum=0.9)

    images, labels = random_images(WIDE, 8), torch.arange(8) % 4
    losses = []
    for _ in range(20):
        loss = model.loss(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses

    learned = model.learned().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in learned), name
    assert torch.equal(model.template_features, template)
    for name, value in clip.state_dict().items():
        assert torch.equal(value, clip_state(WIDE)[name]), name


def test_parameter_groups_say_which_side_they_are():
    clip = minidpt.build_clip(clip_state(WIDE))
    model = minidpt.build_model(clip, ["ox", "owl"], "a {}.")
    names = [(group["name"], group["lr"]) for group in minidpt.parameter_groups(model)]
    assert names == [("visual", 0.01), ("text", 0.002)]


@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_the_learning_rate_warms_up_then_falls_and_never_reaches_zero(warmup):
    rates = [minidpt.learning_rate(epoch, 0.01, 20, warmup) for epoch in range(20)]
    assert rates[:warmup] == [1e-5] * warmup
    assert rates[warmup] == 0.01 == max(rates)
    falling = rates[warmup:]
    assert falling == sorted(falling, reverse=True) and falling[-1] > 1e-5
