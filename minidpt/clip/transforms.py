"""From a picture to CLIP's input, equal to torchvision on Pillow images to the last bit.

open_image (pictures.py) -> central_view, or in training random_view (data/crops.py)
-> to_uint8 -> normalize

Sizes follow Pillow, (width, height); arrays and tensors are (3, height, width). Resampling is
Pillow's bicubic filter, which averages over all source pixels when it shrinks (antialiasing).
Pictures travel as 8-bit values, a quarter of the bytes of floats; `normalize` runs where the model
is.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ..files import one_line_errors
from .boxes import Box, strips
from .pictures import Picture, StoredPicture, in_rgb, open_image, orientation_of
from .white import White

Colours = tuple[float, float, float]  # red, green, blue on the scale 0..1

# Statistics of CLIP's training pictures (OpenAI's clip/clip.py).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
THIN = 16  # times as long as wide: the long side is not resized whole


def resized(image: Image.Image | StoredPicture, box: Box, size: tuple[int, int]) -> Image.Image:
    """`image.crop(box).resize(size)`, bicubic, to the last bit; of a StoredPicture in strips.

    That is exact as Pillow resizes along one axis, rounds to 8 bits, then along the other. Its own
    `resize(..., box=box)` lets the filter look at pixels outside the box.
    """
    if isinstance(image, Image.Image):
        part = image if box == (0, 0, *image.size) else image.crop(box)
        return part.resize(size, Image.Resampling.BICUBIC)
    left, top, right, bottom = box
    columns = _columns_first((right - left, bottom - top), size)
    between = (right - left, size[1]) if columns else (size[0], bottom - top)
    half_done = Image.new("RGB", between)
    for strip in strips(box, columns):
        piece = image.crop(strip)
        across = (piece.width, size[1]) if columns else (size[0], piece.height)
        piece = piece.resize(across, Image.Resampling.BICUBIC)
        half_done.paste(piece, (strip[0] - left, strip[1] - top))
    return half_done.resize(size, Image.Resampling.BICUBIC)


def _columns_first(size: tuple[int, int], new_size: tuple[int, int]) -> bool:
    """Whether Pillow resizes columns before rows: from version 13, where that is much less work."""
    (width, height), (new_width, new_height) = size, new_size
    return _has_columns_first() and height - new_height > max(0, 2 * (width - new_width))


@functools.cache
def _has_columns_first() -> bool:
    pixels = (np.arange(28 * 6) ** 2 % 251).astype(np.uint8).reshape(28, 6)
    image, bicubic = Image.fromarray(pixels), Image.Resampling.BICUBIC
    columns_first = image.resize((6, 5), bicubic).resize((5, 5), bicubic)
    return image.resize((5, 5), bicubic).tobytes() == columns_first.tobytes()


def _short_side_at(size: tuple[int, int], short: int) -> tuple[int, int]:
    width, height = size
    if not width * height:
        raise ValueError(f"expected a picture with pixels, got one of {width} x {height}")
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """The image with its shorter side at `size` pixels, bicubic; as torchvision's Resize(size).

    The longer side is rounded down. Returns a new image.
    """
    return resized(image, (0, 0, *image.size), _short_side_at(image.size, size))


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The middle `size` x `size` pixels; as torchvision's CenterCrop(size).

    With an odd margin the half pixel is rounded to the even side; where the image is smaller, black
    is added, with the odd pixel at the right and at the bottom.
    """
    left, top = (
        round((side - size) / 2) if side >= size else -((size - side) // 2) for side in image.size
    )
    return image.crop((left, top, left + size, top + size))  # Pillow fills what lies outside, black


def _central_part(image: Image.Image | StoredPicture, resolution: int) -> Image.Image:
    """`central_view` of a thin picture, to the last bit: only what the square keeps is computed."""
    (width, height), size = image.size, _short_side_at(image.size, resolution)
    tall, first = height > width, round((max(size) - resolution) / 2)
    start, weights = _bicubic(max(width, height), max(size), range(first, first + resolution))
    stop = start + weights.shape[1]
    box = (0, start, width, stop) if tall else (start, 0, stop, height)
    if tall and not _columns_first(image.size, size):
        rows = resized(image, box, (resolution, stop - start))
        return Image.fromarray(_weighted(np.asarray(rows), weights, axis=0))
    axis = 0 if tall else 1
    seen = (np.asarray(image.crop(strip)) for strip in strips(box, tall))
    summed = [_weighted(pixels, weights, axis) for pixels in seen]
    half_done = Image.fromarray(np.concatenate(summed, axis=1 - axis))
    return half_done.resize((resolution, resolution), Image.Resampling.BICUBIC)


def _bicubic(length: int, size: int, kept: range) -> tuple[int, np.ndarray]:
    """Pillow's weights for an axis of `length` pixels that becomes `size`, for the `kept` ones.

    Returns the first pixel with a weight, and whole numbers (kept, pixels from there) of 22 bits
    (`precompute_coeffs`, `normalize_coeffs_8bpc` and `bicubic_filter` of Pillow's Resample.c).
    """
    scale = length / size
    wide = max(scale, 1.0)
    rows = []
    for place in kept:
        center = (place + 0.5) * scale
        low = max(0, int(center - 2 * wide + 0.5))
        high = min(length, int(center + 2 * wide + 0.5))
        x = np.abs((np.arange(low, high) - center + 0.5) * (1 / wide))
        near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
        values = np.where(x < 1, near, np.where(x < 2, far, 0))
        values /= np.cumsum(values)[-1]  # summed one by one, as there: `sum` rounds otherwise
        rows.append((low, np.trunc(values * 2**22 + np.copysign(0.5, values))))
    start, stop = rows[0][0], max(low + len(values) for low, values in rows)
    weights = np.zeros((len(rows), stop - start))
    for row, (low, values) in zip(weights, rows, strict=True):
        row[low - start : low - start + len(values)] = values
    return start, weights


def _weighted(values: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """8-bit sums along an axis; exact, as whole numbers in float64, and rounded half up."""
    sums = np.moveaxis(np.tensordot(values.astype(np.float64), weights, (axis, 1)), -1, axis)
    return np.floor(sums / 2**22 + 0.5).clip(0, 255).astype(np.uint8)


def central_view(image: Image.Image | StoredPicture, resolution: int) -> Image.Image:
    """Test: the shorter side resized to `resolution`, then the central square."""
    if max(image.size) > THIN * min(image.size):
        return _central_part(image, resolution)
    return center_crop(resize_short_side(image, resolution), resolution)


def to_uint8(image: Image.Image) -> np.ndarray:
    """The pixels of an RGB image as a contiguous (3, height, width) array, uint8.

    NumPy, not torch: data threads call it, and torch would start its own threads in each of them.
    """
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def normalize(
    images: torch.Tensor, mean: Colours = CLIP_MEAN, std: Colours = CLIP_STD
) -> torch.Tensor:
    """A model's input from 8-bit pixels: (..., 3, R, R) uint8 -> float32, on the same device.

    `(x / 255 - mean) / std` in exactly this order: bit-equal to ToTensor, then Normalize. A CLIP
    has its own mean and std: `clip.normalize`.
    Raises ValueError for anything but uint8, which is most likely normalised already.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"expected uint8 pixels, got {images.dtype}: normalize only once")
    white, shift, scale = _constants(images.device, mean, std)
    return images.to(torch.float32).div_(white).sub_(shift).div_(scale)


@functools.cache
def _constants(
    device: torch.device, mean: Colours, std: Colours
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """255, mean and std on the device, made once: a copy in each step would wait for the GPU.

    255 is a tensor because CUDA replaces division by a number with a (less exact) multiplication.
    """
    with torch.inference_mode(False):
        white, *colours = (
            torch.tensor(value, dtype=torch.float32, device=device) for value in (255.0, mean, std)
        )
        return white, *(value.view(3, 1, 1) for value in colours)


@one_line_errors
def test_pixels(picture: Picture, resolution: int, white: White | None = None) -> np.ndarray:
    """The central view (3, resolution, resolution), uint8. Raises ValueError for no `Picture`."""
    if isinstance(picture, Image.Image):
        picture.load()  # before EXIF is asked: only then has Pillow turned TIFF files itself
        image = in_rgb(picture, white, orientation_of(picture))
    elif isinstance(picture, (str, os.PathLike)) or hasattr(picture, "read"):
        image = open_image(picture, white)
    else:
        raise ValueError(
            "picture: expected a path, a Pillow image or a binary file object (io.BytesIO for "
            f"bytes, Image.fromarray for an array), got a {type(picture).__name__}"
        )
    return to_uint8(central_view(image, resolution))


@dataclass(frozen=True)
class Preprocess:
    """The test transform: a Pillow image of any mode and size -> (3, R, R) float32, R = resolution.

    Short side to R (bicubic), central square, mean and std, CLIP's unless a model has others.
    """

    resolution: int
    mean: Colours = CLIP_MEAN
    std: Colours = CLIP_STD

    def __post_init__(self):
        if self.resolution < 1:
            raise ValueError(f"resolution: expected at least 1 pixel, got {self.resolution}")

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(test_pixels(image, self.resolution))
        return normalize(pixels, self.mean, self.std)
