"""Large pictures, thin ones and what is none: the same bits in little memory, or one line."""

import itertools
import random

import numpy as np
import plain_pictures
import pytest
from PIL import Image

from minidpt.clip import boxes, pictures, transforms
from minidpt.data import crops


def drawn(mode: str, size: tuple[int, int], seed: int = 0) -> tuple[Image.Image, dict]:
    """A picture of a mode, and what its file is to say of it."""
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
    if mode == "RGB, see-through":
        rgb = image.convert("RGB")
        return rgb, {"transparency": rgb.getpixel((0, 0))}
    if mode == "L, see-through":
        return image.convert("L"), {"transparency": image.convert("L").getpixel((0, 0))}
    if mode == "I;16, see-through":
        image, _ = drawn("I;16", size, seed)
        return image, {"transparency": image.getpixel((0, 0))}
    if mode == "CMYK":
        return Image.frombytes("CMYK", size, noise.tobytes()), {}
    if mode == "LA":
        grey = image.convert("L")
        return Image.merge("LA", (grey, image.getchannel("A"))), {}
    return image.convert(mode), {}


def saved(folder, mode: str, size: tuple[int, int], orientation: int = 1):
    image, options = drawn(mode, size)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = folder / ("a.tiff" if mode in ("CMYK", "F", "I") else "a.png")
    image.save(path, exif=exif, **options)
    return path


def assert_same_views(path, resolution: int) -> None:
    image = pictures.open_image(path)
    central = np.asarray(transforms.central_view(image, resolution))
    assert np.array_equal(central, plain_pictures.central(path, resolution))
    for seed in (1, 2):
        view = np.asarray(crops.random_view(image, resolution, random.Random(seed)))
        assert np.array_equal(view, plain_pictures.trained(path, resolution, seed))


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"]
MODES += [f"{mode}, see-through" for mode in ("L", "P", "RGB", "I;16")]


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_in_strips_gives_the_bits_of_the_whole(tmp_path, monkeypatch, mode):
    monkeypatch.setattr(pictures, "LARGE", 0)
    monkeypatch.setattr(boxes, "STRIP", 97)
    for orientation, size in itertools.product(range(1, 9), [(31, 17), (13, 41)]):
        path = saved(tmp_path, mode, size, orientation)
        assert isinstance(pictures.open_image(path), pictures.StoredPicture)
        assert_same_views(path, 11)
    assert_same_views(saved(tmp_path, mode, (5, 3)), 7)  # enlarged


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(
    "size", [(1, 400), (400, 1), (3, 500), (500, 3), (2, 33), (33, 2), (41, 700), (700, 41)]
)
def test_thin_pictures_give_the_bits_of_the_whole(tmp_path, monkeypatch, size, stored):
    monkeypatch.setattr(boxes, "STRIP", 997)
    if stored:
        monkeypatch.setattr(pictures, "LARGE", 0)
    for mode, orientation in [("RGB", 1), ("I;16", 6), ("LA", 7)]:
        path = saved(tmp_path, mode, size, orientation)
        for resolution in (7, 30):
            assert_same_views(path, resolution)


def test_weights_are_pillows_for_any_lengths():
    # of a column of 0 and 255, Pillow shows its weights; here for ordinary lengths, too
    numbers = random.Random(0)
    for _ in range(60):
        length, size = numbers.randint(1, 90), numbers.randint(1, 90)
        first = numbers.randrange(size)
        kept = range(first, numbers.randint(first, size - 1) + 1)
        column = np.random.default_rng(length).choice([0, 255, 128], (length, 1, 3)).astype("u1")
        expected = Image.fromarray(column).resize((1, size), Image.Resampling.BICUBIC)
        start, weights = transforms._bicubic(length, size, kept)
        found = transforms._weighted(column[start : start + weights.shape[1]], weights, 0)
        assert np.array_equal(found, np.asarray(expected)[kept.start : kept.stop])
