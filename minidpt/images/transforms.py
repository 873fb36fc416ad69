"""From an image to CLIP's input, equal to torchvision on Pillow images to the last bit.

open_image -> eval_transform, or in training train_transform -> to_uint8 -> normalize

Sizes follow Pillow, (width, height); arrays and tensors are (3, height, width). Resampling is
Pillow's bicubic filter, which averages over all source pixels when it shrinks (antialiasing).
Images travel as 8-bit values; `normalize` runs where the model is.
"""

import functools
import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from .decode import open_image

Box = tuple[int, int, int, int]  # left, top, right, bottom
Colours = tuple[float, float, float]  # red, green, blue on the scale 0..1

# Statistics of CLIP's training images (OpenAI's clip/clip.py).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_ASPECT = 50  # times as long as wide: what is thinner is cut before it is resized


def eval_transform(image: Image.Image, resolution: int) -> Image.Image:
    """Resize the shorter side to `resolution` and take the central square, for evaluation.

    Equal to torchvision's Resize and CenterCrop, unless a side is more than `MAX_ASPECT` times the
    other: then the middle is cut out first, as the image would become long without bound.
    """
    longest = MAX_ASPECT * min(image.size)
    if max(image.size) > longest:
        left, top = (max(0, side - longest) // 2 for side in image.size)
        image = image.crop((left, top, image.width - left, image.height - top))
    return center_crop(resize_short_side(image, resolution), resolution)


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` pixels, bicubic; as torchvision's Resize(size).

    The longer side is rounded down. Raises ValueError for an image without pixels.
    """
    short = min(image.size)
    if not short:
        raise ValueError(f"expected an image with pixels, got {image.width} x {image.height}")
    new_size = tuple(int(size * side / short) for side in image.size)
    return image.resize(new_size, Image.Resampling.BICUBIC)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Cut out the middle `size` x `size` pixels; as torchvision's CenterCrop(size).

    With an odd margin the half pixel is rounded to the even side; where the image is smaller, black
    is added, with the odd pixel at the right and at the bottom.
    """
    margins = (side - size for side in image.size)
    left, top = (round(m / 2) if m >= 0 else -(-m // 2) for m in margins)
    return image.crop((left, top, left + size, top + size))  # Pillow fills what lies outside, black


def train_transform(image: Image.Image, resolution: int, generator: random.Random) -> Image.Image:
    """Take a random resized crop, mirrored half of the time, for training."""
    view = resized_crop(image, random_resized_crop_box(*image.size, generator), resolution)
    if generator.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return view


def resized_crop(image: Image.Image, box: Box, resolution: int) -> Image.Image:
    """Crop to `box`, then resize to `resolution` x `resolution`, bicubic, as torchvision does.

    Pillow's `resize(..., box=box)` lets the filter look at pixels outside the box.
    """
    return image.crop(box).resize((resolution, resolution), Image.Resampling.BICUBIC)


def random_resized_crop_box(width: int, height: int, generator: random.Random) -> Box:
    """Draw the crop of torchvision's RandomResizedCrop.

    Its area is uniform from 8 % of the image's to all, its width / height log-uniform from 3:4 to
    4:3. Ten tries to draw one that fits into the image, then the largest central crop of such a
    shape (Szegedy et al., "Going deeper with convolutions", section 6).
    """
    for _ in range(10):
        area = width * height * generator.uniform(0.08, 1)
        aspect = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = generator.randrange(height - h + 1)
            left = generator.randrange(width - w + 1)
            return left, top, left + w, top + h

    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def to_uint8(image: Image.Image) -> np.ndarray:
    """Return the pixels of an RGB image as a contiguous (3, height, width) array, uint8.

    NumPy, not torch: data threads call it, and torch would start its own threads in each of them.
    """
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def normalize(
    images: torch.Tensor, mean: Colours = CLIP_MEAN, std: Colours = CLIP_STD
) -> torch.Tensor:
    """Normalize 8-bit pixels for a model: (..., 3, R, R) uint8 -> float32, on the same device.

    `(x / 255 - mean) / std` in exactly this order: bit-equal to ToTensor, then Normalize. A CLIP
    has its own mean and std: `clip.normalize`.
    Raises ValueError for anything but uint8, which is most likely normalised already.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"expected uint8 pixels, got {images.dtype}: normalize only once")
    white, shift, scale = _constants(images.device, mean, std)
    return images.to(torch.float32).div_(white).sub_(shift).div_(scale)


@functools.cache
def _constants(device: torch.device, mean: Colours, std: Colours) -> torch.Tensor:
    """255, mean and std on the device, made once: a copy in each step would wait for the GPU.

    255 is a tensor because CUDA replaces division by a number with a (less exact) multiplication.
    """
    with torch.inference_mode(False):
        rows = torch.tensor([(255.0,) * 3, mean, std], dtype=torch.float32, device=device)
        return rows.view(3, 3, 1, 1)


def eval_pixels(image: Image.Image, resolution: int) -> np.ndarray:
    """Transform an RGB image for evaluation: (3, resolution, resolution), uint8."""
    return to_uint8(eval_transform(image, resolution))


@dataclass(frozen=True)
class Preprocess:
    """The test transform: a Pillow image of any mode and size -> (3, R, R) float32, R = resolution.

    Short side to R (bicubic), central square, mean and std, CLIP's unless a model has others.
    """

    resolution: int
    mean: Colours = CLIP_MEAN
    std: Colours = CLIP_STD

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(eval_pixels(open_image(image), self.resolution))
        return normalize(pixels, self.mean, self.std)
