"""Transform images the plain way: convert all of an image, then resize it, then crop it.

minidpt.images must give the same bits. Views are uint8 arrays (size, size, 3).
"""

import io
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from minidpt.images.transforms import random_resized_crop_box


def to_rgb(path) -> Image.Image:
    """Decode an image: turned as its EXIF says, on white where transparent, as RGB."""
    # As bytes: from a path, Pillow (12, 13) maps an uncompressed TIFF into memory, and if it is to
    # be turned on its side, with width for height.
    with Image.open(io.BytesIO(Path(path).read_bytes())) as image:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode == "F" or image.mode.startswith("I"):
            image = grey(image)
        if image.mode.endswith(("A", "a")) or "transparency" in image.info:
            rgba = image.convert("RGBA")
            white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, rgba)
        return image.convert("RGB")


def grey(image: Image.Image) -> Image.Image:
    """Scale an image of more than 8 bits to 8 bits, by the least usual white level."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0, 2.0**31 - 1)
    white = next((scale for scale in scales if values.max() <= scale), values.max())
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        values[values == transparent] = white
    return Image.fromarray((values.clip(0, white) * (255 / white)).round().astype(np.uint8))


def eval_view(path, size: int) -> np.ndarray:
    """Resize the shorter side to `size`, and crop the center."""
    image = to_rgb(path)
    width, height = image.size
    if width <= height:
        new_size = (size, int(size * height / width))
    else:
        new_size = (int(size * width / height), size)
    image = image.resize(new_size, Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def train_view(path, size: int, seed: int) -> np.ndarray:
    """Crop at random, resize to `size`, and mirror half of the views."""
    image, generator = to_rgb(path), random.Random(seed)
    box = random_resized_crop_box(*image.size, generator)
    view = image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(view)[:, ::-1] if generator.random() < 0.5 else np.asarray(view)


def draw_pattern() -> Image.Image:
    """Draw an image of 13 x 11 pixels without any symmetry."""
    y, x, c = np.mgrid[0:11, 0:13, 0:3]
    return Image.fromarray(((x * x * 7 + y * 23 + x * y * 5 + c * 41) % 256).astype(np.uint8))
