"""Images of any mode, large and thin ones: the bits of the plain transforms."""

import itertools
import random
import time

import numpy as np
import pytest
from helpers import reference_images
from PIL import Image

from minidpt.images import decode, transforms
from minidpt.images.threads import map_ordered


def drawn(mode: str, size: tuple[int, int], seed: int = 0) -> tuple[Image.Image, dict]:
    """An image of a mode, and what its file is to say of it."""
    numbers, (width, height) = np.random.default_rng(seed), size
    noise = numbers.integers(0, 256, (height, width, 4), np.uint8)
    noise[: height // 2] //= 3  # two halves that are not alike
    if mode in ("I;16", "I", "F"):
        values = noise[..., 0].astype(np.float64) * {"I;16": 201, "I": 70001, "F": 1.7}[mode]
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        return Image.fromarray(values.astype(kind)), {}
    image = Image.fromarray(noise)  # RGBA
    if mode == "P":
        return image.convert("RGB").quantize(31), {}
    if mode == "P, see-through":
        return image.convert("RGB").quantize(31), {"transparency": bytes(range(0, 248, 8))}
    if mode.endswith(", see-through"):
        image, _ = drawn(mode.removesuffix(", see-through"), size, seed)
        return image, {"transparency": image.getpixel((0, 0))}
    if mode == "CMYK":
        return Image.frombytes("CMYK", size, noise.tobytes()), {}
    return image.convert(mode), {}


def saved(folder, mode: str, size: tuple[int, int], orientation: int = 1):
    image, options = drawn(mode, size)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = folder / ("a.tiff" if mode in ("CMYK", "F", "I") else "a.png")
    image.save(path, exif=exif, **options)
    return path


def assert_same_views(path, resolution: int) -> None:
    image = decode.open_image(path)
    central = np.asarray(transforms.eval_transform(image, resolution))
    assert np.array_equal(central, reference_images.eval_view(path, resolution))
    for seed in (1, 2):
        view = np.asarray(transforms.train_transform(image, resolution, random.Random(seed)))
        assert np.array_equal(view, reference_images.train_view(path, resolution, seed))


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"]
MODES += [f"{mode}, see-through" for mode in ("L", "P", "RGB", "I;16")]


@pytest.mark.parametrize("mode", MODES)
def test_an_image_of_any_mode_gives_the_bits_of_the_plain_transforms(tmp_path, monkeypatch, mode):
    monkeypatch.setattr(decode, "LARGE", 0)  # also one at a time
    monkeypatch.setattr(decode, "BLOCK", 97)
    for orientation, size in itertools.product(range(1, 9), [(31, 17), (13, 41)]):
        assert_same_views(saved(tmp_path, mode, size, orientation), 11)
    assert_same_views(saved(tmp_path, mode, (5, 3)), 7)  # enlarged
    assert_same_views(saved(tmp_path, mode, (3, 150)), 7)  # as thin as is resized whole


@pytest.mark.parametrize("size", [(1, 900_000), (900_000, 1), (3, 151), (151, 3)])
def test_a_thin_image_is_cut_to_its_middle_before_it_is_enlarged(size):
    shade = np.linspace(0, 255, max(size)).round().astype(np.uint8)
    grey = shade[:, None] if size[0] < size[1] else shade[None]
    image = Image.fromarray(np.broadcast_to(grey, size[::-1]).copy()).convert("RGB")
    view = np.asarray(transforms.eval_transform(image, 224))
    assert view.shape == (224, 224, 3)
    assert abs(view.mean() - 127.5) < 1  # of a square in the middle of a slow gradient


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "LARGE", 31 * 17 - 1)
    path, small = saved(tmp_path, "RGB", (31, 17)), saved(tmp_path, "F", (30, 17))
    busy, most, to_rgb = [], [], decode._to_rgb

    def slow(*arguments):
        busy.append(None)
        most.append(len(busy))
        time.sleep(0.02)
        busy.pop()
        return to_rgb(*arguments)

    monkeypatch.setattr(decode, "_to_rgb", slow)
    list(map_ordered(decode.open_image, [path] * 4, workers=4))
    assert max(most) == 1
    list(map_ordered(decode.open_image, [small] * 4, workers=4))
    assert max(most) > 1
