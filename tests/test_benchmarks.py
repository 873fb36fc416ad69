"""What the benchmarks count: their ratios of operations are only as good as this."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parent / "benchmarks"))

import attention_share  # noqa: E402
import concentration  # noqa: E402
from attention_share import covered, shares  # noqa: E402
from launches import Launches, build, forward_pass, training_step  # noqa: E402
from launches import counted as launched  # noqa: E402
from products import Products  # noqa: E402

from minidpt.demo import demo  # noqa: E402
from minidpt.demo.demo import STREET_STYLE  # noqa: E402
from minidpt.maps import AttentionMaps  # noqa: E402


def counted(run) -> int:
    with Products() as products:
        run()
    return products.operations()


def test_operations_of_matrix_products_are_counted():
    x, weight, bias = torch.randn(6, 5), torch.randn(7, 5), torch.randn(7)
    assert counted(lambda: x @ weight.t()) == 2 * 6 * 5 * 7
    assert counted(lambda: F.linear(x, weight, bias)) == 2 * 6 * 5 * 7
    assert counted(lambda: torch.randn(3, 6, 5) @ torch.randn(3, 5, 2)) == 3 * 2 * 6 * 5 * 2
    assert counted(lambda: F.gelu(x) + x) == 0


def test_the_backward_pass_counts_a_product_for_each_gradient():
    x, weight = torch.randn(6, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    assert counted(lambda: F.linear(x, weight).sum().backward()) == 3 * 2 * 6 * 5 * 7
    frozen = weight.detach()
    assert counted(lambda: F.linear(x, frozen).sum().backward()) == 2 * 2 * 6 * 5 * 7


@pytest.mark.parametrize(("learned", "products"), [(False, 2), (True, 2 + 5)])
def test_attention_counts_two_products_forward_and_five_backward(learned, products):
    q = torch.randn(2, 3, 4, 8, requires_grad=learned)
    k, v = torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8)

    def run():
        out = F.scaled_dot_product_attention(q, k, v)
        if learned:
            out.sum().backward()

    assert counted(run) == products * 2 * (2 * 3) * 4 * 8 * 9


def test_a_view_is_an_operation_but_no_kernel():
    x = torch.randn(4, 6)
    with Launches() as launches:
        (x.view(2, 12).t()[0] + 1).add_(2).sum()
    assert launches.kernels == {"add": 1, "add_": 1, "sum": 1}
    assert launches.operations == 6


def test_a_step_of_dpt_is_few_launches_for_any_number_of_classes():
    """Bounds: the published way's own 1,263 kernels and 3,592 operations, and room above."""
    few, many = (launched(training_step(build("dpt", count))) for count in (100, 397))
    assert few.kernels.total() <= 1250 and few.operations <= 3500
    assert many.operations == few.operations and many.kernels == few.kernels
    assert launched(forward_pass(build("dpt", 100))).kernels.total() <= 300


def test_the_main_things_are_those_of_the_demos_test_images(tmp_path, monkeypatch):
    alone = replace(STREET_STYLE, noise=0, clutter=(0, 0), others=(0, 0), outline=0)
    for module in (demo, attention_share):
        monkeypatch.setattr(module, "STREET_STYLE", alone)
    monkeypatch.setattr(demo, "TRAIN_IMAGES", 1)
    monkeypatch.setattr(demo, "TEST_IMAGES", 2)
    folder, masks = demo.draw_demo(tmp_path), attention_share.main_things()
    assert len(masks) == 24
    for file, mask in masks.items():
        with Image.open(folder / "test" / file) as image:
            ground = max(image.getcolors(96 * 96))[1]
            drawn = np.any(np.asarray(image) != np.array(ground), axis=-1)
        assert np.array_equal(drawn, np.asarray(mask) > 0), file


def test_the_share_of_attention_is_that_on_the_covered_patches():
    mask = Image.new("L", (4, 4))
    mask.paste(255, (0, 0, 2, 2))
    mask.paste(255, (2, 0, 3, 2))  # the first patch of 2 × 2, and half of the second
    thing = covered(mask, 2)
    assert thing.tolist() == [[1, 0.5], [0, 0]]

    attention = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    by_class = torch.stack([attention, attention.t(), attention.flip(0)])[None]
    maps = AttentionMaps(attention[None], attention.t()[None], torch.tensor([[4, 0, 2]]), by_class)
    actual = shares(maps, thing[None], torch.tensor([0]))
    expected = {
        "area": 0.375, "zero-shot": 0.1 + 0.1, "tuned": 0.1 + 0.15, "true class": 0.1 + 0.15,
        "other classes": (0.2 + 0.5) / 2, "strongest": 0.4,
    }  # fmt: skip
    assert {name: value.item() for name, value in actual.items()} == pytest.approx(expected)
    assert shares(maps, thing[None], torch.tensor([3]))["true class"].isnan()


def test_images_drawn_again_lack_the_surroundings_alone(monkeypatch):
    monkeypatch.setattr(demo, "TRAIN_IMAGES", 1)
    monkeypatch.setattr(demo, "TEST_IMAGES", 1)
    with_others, alone = (
        [np.array(image, int) for _, image in concentration.draw_images(("cup", "fish"), each)]
        for each in (False, True)
    )
    for image, image_alone in zip(with_others, alone, strict=True):
        differs = (image != image_alone).any(axis=2)
        assert 0 < differs.mean() < 0.5  # the main thing, the ground and the grain are the same


def test_share_of_the_surroundings_is_worked_out_by_hand():
    def unit(*degrees: float) -> torch.Tensor:
        angles = torch.deg2rad(torch.tensor(degrees))
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    labels = torch.tensor([0, 0, 1])
    features = unit(0, 0, 90)  # cosines to other classes: all 0
    unmoved = concentration.surroundings_share(features, features, labels)
    assert unmoved == pytest.approx(0, abs=1e-6)
    moved = unit(60, 0, 90)  # one of three moves by 1 - cos 60°
    share = concentration.surroundings_share(features, moved, labels)
    assert share == pytest.approx(0.5 / 3)
