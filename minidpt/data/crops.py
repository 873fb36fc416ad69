"""The training view of a picture: a random part of it, mirrored half of the time."""

from __future__ import annotations

import math
import random

from PIL import Image

from ..clip.boxes import Box
from ..clip.pictures import StoredPicture
from ..clip.transforms import resized


def random_resized_crop_box(
    width: int,
    height: int,
    generator: random.Random,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Draws the crop of RandomResizedCrop: (left, top, right, bottom) in pixels.

    Its area is uniform in `scale` (of the image's area), its width / height log-uniform in `ratio`.
    Ten tries to draw one that fits into the image, then the largest central crop whose shape is
    within `ratio` (Szegedy et al., "Going deeper with convolutions", section 6, as in torchvision).
    """
    for _ in range(10):
        area = width * height * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = generator.randrange(height - h + 1)
            left = generator.randrange(width - w + 1)
            return left, top, left + w, top + h

    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def resized_crop(image: Image.Image | StoredPicture, box: Box, resolution: int) -> Image.Image:
    """The part of the image in `box`, as `resolution` x `resolution` pixels, bicubic.

    Crops first and resizes then, as torchvision does.
    """
    return resized(image, box, (resolution, resolution))


def random_view(
    image: Image.Image | StoredPicture, resolution: int, generator: random.Random
) -> Image.Image:
    """Training: a random resized crop of `resolution` x `resolution`, mirrored half of the time."""
    view = resized_crop(image, random_resized_crop_box(*image.size, generator), resolution)
    if generator.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return view
