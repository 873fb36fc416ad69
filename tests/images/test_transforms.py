"""Images are transformed exactly as torchvision does."""

import math
import random

import numpy as np
import pytest
import torch
from helpers.reference_images import draw_pattern
from PIL import Image

from minidpt.images import transforms


def row(*values: int) -> Image.Image:
    """A grey image, one pixel high, of these values."""
    return Image.fromarray(np.array([values], np.uint8)).convert("RGB")


# ---- geometry; stored values: torchvision 0.29 of `draw_pattern()`, green channel


def test_central_view_equals_resize_and_center_crop_of_torchvision():
    assert np.asarray(transforms.eval_transform(draw_pattern(), 5))[..., 1].tolist() == [
        [69, 140, 116, 145, 120],
        [132, 135, 139, 132, 102],
        [170, 105, 150, 134, 136],
        [146, 129, 126, 140, 135],
        [104, 137, 103, 113, 104],
    ]


def test_resized_crop_equals_torchvision_and_looks_at_no_pixel_outside_the_box():
    expected = [
        [138, 141, 106, 137, 117],
        [179, 120, 143, 137, 147],
        [127, 80, 174, 146, 75],
        [93, 148, 140, 129, 154],
        [65, 152, 114, 119, 171],
    ]
    box = (2, 1, 11, 8)
    assert np.asarray(transforms.resized_crop(draw_pattern(), box, 5))[..., 1].tolist() == expected
    framed = Image.new("RGB", (13, 11), "white")
    framed.paste(draw_pattern().crop(box), box)
    assert np.asarray(transforms.resized_crop(framed, box, 5))[..., 1].tolist() == expected


def test_preprocess_equals_the_whole_chain_of_torchvision():
    # made as above: Resize(5), CenterCrop(5), ToTensor, Normalize; pixels (2, 1) and (2, 2)
    expected = [
        [0.3537062108516693, -0.1426403522491455],
        [-0.17628143727779388, 0.4990682005882263],
        [0.15508782863616943, 0.31150853633880615],
    ]
    images = transforms.Preprocess(5)(draw_pattern())
    assert images.shape == (3, 5, 5) and images.dtype == torch.float32
    assert torch.equal(images[:, 2, 1:3], torch.tensor(expected))


def test_short_side_is_exact_and_long_side_rounded_down():
    assert transforms.resize_short_side(Image.new("RGB", (13, 11)), 7).size == (8, 7)  # 8.27
    assert transforms.resize_short_side(Image.new("RGB", (11, 17)), 7).size == (7, 10)  # 10.8
    assert transforms.resize_short_side(Image.new("RGB", (5, 5)), 7).size == (7, 7)


@pytest.mark.parametrize(
    ("values", "size", "expected"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], 5, [3, 4, 5, 6, 7]),  # margin 1.5 -> 2, the even one
        ([1, 2, 3, 4, 5, 6], 5, [1, 2, 3, 4, 5]),  # margin 0.5 -> 0, the even one
        ([1, 2, 3, 4, 5], 3, [2, 3, 4]),
        ([1, 2, 3, 4], 7, [0, 1, 2, 3, 4, 0, 0]),  # 3 pixels are missing: 1 at the left
    ],
)
def test_center_crop_of_odd_margins_and_of_smaller_images(values, size, expected):
    actual = np.asarray(transforms.center_crop(row(*values), size))
    assert actual.shape == (size, size, 3)
    assert actual[(size - 1) // 2, :, 0].tolist() == expected  # the only row; black above, below


class Scripted(random.Random):
    """A generator whose numbers are given: on 0..1, and for randrange the last one but `back`."""

    def __new__(cls, *_, **__):
        return super().__new__(cls)  # Python 3.10's takes but a seed

    def __init__(self, *values, back=0):
        super().__init__()
        self.values, self.back = list(values), back

    def random(self):
        return self.values.pop(0)

    def randrange(self, stop):
        return stop - 1 - self.back


def test_crop_box_worked_out_by_hand():
    # area: 60 * 50 * (0.08 + 0.92 / 4) = 930; shape e^0 = 1: sqrt(930) = 30.496 -> 30 x 30, and
    # the corner as far right and down as it goes: 60 - 30 = 30, 50 - 30 = 20; then two back
    assert transforms.random_resized_crop_box(60, 50, Scripted(0.25, 0.5)) == (30, 20, 60, 50)
    box = transforms.random_resized_crop_box(60, 50, Scripted(0.25, 0.5, back=2))
    assert box == (28, 18, 58, 48)
    # area 3000 * 0.54 = 1620, shape 4/3: sqrt(2160) = 46.5 -> 46 wide, sqrt(1215) = 34.9 -> 35
    left, top, right, bottom = transforms.random_resized_crop_box(60, 50, Scripted(0.5, 1.0))
    assert (right - left, bottom - top) == (46, 35)


def test_crop_box_that_does_not_fit_is_drawn_again():
    too_large = [1.0, 1.0]  # the whole area at 4:3 is higher or wider than a square
    box = transforms.random_resized_crop_box(50, 50, Scripted(*too_large * 9, 0.0, 0.5))
    assert box == (36, 36, 50, 50)  # tenth try: sqrt(200) = 14.14 -> 14


def test_crop_box_falls_back_to_the_centre_of_thin_images():
    box = transforms.random_resized_crop_box
    assert box(500, 10, random.Random(0)) == (243, 0, 256, 10)  # 4:3: 13 wide, (500 - 13) // 2
    assert box(10, 500, random.Random(0)) == (0, 243, 10, 256)
    assert box(60, 50, Scripted(*[1.0] * 20)) == (0, 0, 60, 50)


def test_a_crop_of_an_image_of_one_pixel_is_that_pixel():
    boxes = {transforms.random_resized_crop_box(1, 1, random.Random(seed)) for seed in range(50)}
    assert boxes == {(0, 0, 1, 1)}  # 8 % of it would be rounded to no pixel


def test_crop_boxes_have_the_published_distribution():
    generator, numpy = random.Random(3), np.random.default_rng(5)
    boxes = [transforms.random_resized_crop_box(900, 600, generator) for _ in range(4000)]
    left, top, right, bottom = np.array(boxes, np.float64).T
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 900 and bottom.max() <= 600

    area = numpy.uniform(0.08, 1, 8000) * 900 * 600
    shape = np.exp(numpy.uniform(math.log(3 / 4), math.log(4 / 3), 8000))
    w, h = np.sqrt(area * shape), np.sqrt(area / shape)
    fits = (w <= 900) & (h <= 600)
    w, h = w[fits], h[fits]
    quantiles = np.linspace(0.05, 0.95, 19)
    for actual, expected in [
        (right - left, w),
        (bottom - top, h),
        (left, numpy.uniform(0, 1, len(w)) * (900 - w)),
        (top, numpy.uniform(0, 1, len(h)) * (600 - h)),
    ]:
        difference = np.quantile(actual, quantiles) - np.quantile(expected, quantiles)
        assert np.abs(difference).max() < 0.035 * 900  # about four standard errors


def test_random_view_is_the_crop_or_its_mirror_image():
    mirrored = []
    for seed in range(300):
        box = transforms.random_resized_crop_box(13, 11, random.Random(seed))
        crop = np.asarray(transforms.resized_crop(draw_pattern(), box, 5))
        view = np.asarray(transforms.train_transform(draw_pattern(), 5, random.Random(seed)))
        mirrored.append(np.array_equal(view, crop[:, ::-1]))
        assert mirrored[-1] or np.array_equal(view, crop)
    assert 110 < sum(mirrored) < 190  # binomial, n = 300: more than four standard deviations


# ---- numbers


def test_normalize_equals_float32_arithmetic_to_the_last_bit():
    values = torch.arange(256, dtype=torch.uint8).repeat(6).view(2, 3, 16, 16)
    mean = np.array([0.48145466, 0.4578275, 0.40821073], np.float32).reshape(3, 1, 1)
    std = np.array([0.26862954, 0.26130258, 0.27577711], np.float32).reshape(3, 1, 1)
    expected = (values.numpy().astype(np.float32) / np.float32(255) - mean) / std
    assert expected.dtype == np.float32
    assert np.array_equal(transforms.normalize(values).numpy(), expected)


def test_normalize_refuses_what_is_normalised_already():
    with pytest.raises(ValueError, match="expected uint8 pixels, got torch.float32"):
        transforms.normalize(torch.zeros(3, 2, 2))


def test_preprocess_states_its_resolution_and_takes_any_mode():
    preprocess = transforms.Preprocess(224)
    assert repr(preprocess).startswith("Preprocess(resolution=224") and preprocess.resolution == 224
    see_through = Image.new("LA", (300, 250), (0, 0))
    white = transforms.normalize(torch.full((3, 224, 224), 255, dtype=torch.uint8))
    assert torch.equal(preprocess(see_through), white)
