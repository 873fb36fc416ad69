"""From an image file to CLIP's input, equal to torchvision on Pillow images to the last bit.

open_image -> random_view (training) or central_view (test) -> to_uint8 -> normalize

Sizes follow Pillow, (width, height); arrays and tensors are (3, height, width). Resampling is
Pillow's bicubic filter, which averages over all source pixels when it shrinks (antialiasing).
Pictures travel as 8-bit values, a quarter of the bytes of floats; `normalize` runs where the model
is.
"""

import functools
import math
import os
import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

# Colour statistics of CLIP's training pictures, on the scale 0..1 (OpenAI's clip/clip.py).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Only picture formats: Pillow also opens EPS, for which it starts another program (Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")

_ORIENTATION = 0x0112  # EXIF tag; 1 is upright, the others say what undoes the camera's position
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# ---- files to RGB


def open_image(path: str | os.PathLike) -> Image.Image:
    """The picture in a file as a person sees it: upright, RGB, transparent parts white.

    Of an animation, the first frame. Raises FileNotFoundError if there is no such file, and a
    ValueError that names the file if it is damaged, cut short, not a picture, or so large that
    Pillow takes it for an attack (its `MAX_IMAGE_PIXELS`, by default an error from 179 million).
    Pillow's warnings, about half that size or odd metadata, are left to the caller: silencing them
    here would change the filters of other threads.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return to_rgb(image)
    except MemoryError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"image {path}: expected a picture, got nothing there") from None
    except UnidentifiedImageError as error:
        raise ValueError(
            f"image {path}: expected a readable picture ({', '.join(FORMATS)}), got something "
            "else: replace or remove it"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"image {path}: too large, make it smaller ({error})") from error
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        reason = f"{type(error).__name__}: {error}".replace(str(path), "it").replace("\n", " ")
        raise ValueError(
            f"image {path}: expected a readable picture ({', '.join(FORMATS)}), "
            f"got {reason}: replace or remove it"
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """A new RGB image that shows what a person sees: upright by its EXIF tag, alpha over white.

    Grey values of more than 8 bits are scaled to 0..255 (Pillow's own conversion would clip them).
    The result carries no metadata, so that a second call does not turn it again.
    """
    image.load()  # before EXIF is asked: only then has Pillow turned TIFF files itself
    upright = _UPRIGHT.get(_orientation(image))
    if upright is not None:
        image = image.transpose(upright)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _grey_to_8_bits(image)
    if image.mode.endswith(("A", "a")) or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    rgb = image.convert("RGB")
    rgb.info = {}
    return rgb


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; unreadable metadata count as upright, as in image viewers."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # metadata are an untrusted byte string of their own; the picture is fine
        return 1


def _grey_to_8_bits(image: Image.Image) -> Image.Image:
    """A picture of 16 or 32 bits or floats a pixel as 8-bit grey ("L").

    Files do not say which value is white: the smallest usual one that holds all values is taken
    (integers 65535 or 2^31 - 1; floats 1, 255 or 65535).
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0, 2.0**31 - 1)
    white = next((scale for scale in scales if values.max() <= scale), values.max())
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # PNG: pixels of just this value are see-through
        values[values == transparent] = white
    return Image.fromarray((values.clip(0, white) * (255 / white)).round().astype(np.uint8))


# ---- geometry


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """The image with its shorter side at `size` pixels, bicubic; as torchvision's Resize(size).

    The longer side is rounded down. Returns a new image.
    """
    width, height = image.size
    if width <= height:
        new_size = (size, int(size * height / width))
    else:
        new_size = (int(size * width / height), size)
    return image.resize(new_size, Image.Resampling.BICUBIC)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The middle `size` x `size` pixels; as torchvision's CenterCrop(size).

    With an odd margin the half pixel is rounded to the even side; where the image is smaller, black
    is added, with the odd pixel at the right and at the bottom.
    """
    left, top = (
        round((side - size) / 2) if side >= size else -((size - side) // 2) for side in image.size
    )
    return image.crop((left, top, left + size, top + size))  # Pillow fills what lies outside, black


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


def resized_crop(
    image: Image.Image, box: tuple[int, int, int, int], resolution: int
) -> Image.Image:
    """The part of the image in `box`, as `resolution` x `resolution` pixels, bicubic.

    Crops first and resizes then, as torchvision does. Pillow's `resize(..., box=box)` would save a
    copy, but lets the filter look at pixels outside the box, which changes values at the border.
    """
    return image.crop(box).resize((resolution, resolution), Image.Resampling.BICUBIC)


# ---- views: what the model gets to see of an image


def random_view(image: Image.Image, resolution: int, generator: random.Random) -> Image.Image:
    """Training: a random resized crop of `resolution` x `resolution`, mirrored half of the time."""
    view = resized_crop(image, random_resized_crop_box(*image.size, generator), resolution)
    if generator.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return view


def central_view(image: Image.Image, resolution: int) -> Image.Image:
    """Test: the shorter side resized to `resolution`, then the central square."""
    return center_crop(resize_short_side(image, resolution), resolution)


# ---- pixels to model input


def to_uint8(image: Image.Image) -> np.ndarray:
    """The pixels of an RGB image as a contiguous (3, height, width) array, uint8.

    NumPy, not torch: data threads call it, and torch would start its own threads in each of them.
    """
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def normalize(images: torch.Tensor) -> torch.Tensor:
    """CLIP's input from 8-bit pixels: (..., 3, R, R) uint8 -> float32, on the same device.

    `(x / 255 - mean) / std` in exactly this order: bit-equal to ToTensor, then Normalize.
    Raises ValueError for anything but uint8, which is most likely normalised already.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"expected uint8 pixels, got {images.dtype}: normalize only once")
    white, mean, std = _constants(images.device)
    return images.to(torch.float32).div_(white).sub_(mean).div_(std)


@functools.cache
def _constants(device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """255, mean and std on the device, made once: a copy in each step would wait for the GPU.

    255 is a tensor because CUDA replaces division by a number with a (less exact) multiplication.
    """
    with torch.inference_mode(False):
        mean = torch.tensor(CLIP_MEAN, dtype=torch.float32, device=device).view(3, 1, 1)
        std = torch.tensor(CLIP_STD, dtype=torch.float32, device=device).view(3, 1, 1)
        return torch.tensor(255.0, dtype=torch.float32, device=device), mean, std


@dataclass(frozen=True)
class Preprocess:
    """The test transform: a Pillow image of any mode and size -> (3, R, R) float32, R = resolution.

    Short side to R (bicubic), central square, CLIP's mean and std.
    """

    resolution: int

    def __post_init__(self):
        if self.resolution < 1:
            raise ValueError(f"resolution: expected at least 1 pixel, got {self.resolution}")

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels = to_uint8(central_view(to_rgb(image), self.resolution))
        return normalize(torch.from_numpy(pixels))
