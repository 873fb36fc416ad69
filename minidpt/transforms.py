"""From an image file to CLIP's input, equal to torchvision on Pillow images to the last bit.

open_image -> random_view (training) or central_view (test) -> to_uint8 -> normalize

Sizes follow Pillow, (width, height); arrays and tensors are (3, height, width). Resampling is
Pillow's bicubic filter, which averages over all source pixels when it shrinks (antialiasing).
Pictures travel as 8-bit values, a quarter of the bytes of floats; `normalize` runs where the model
is.
"""

from __future__ import annotations

import functools
import math
import os
import random
import stat
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from .files import entries, one_line_errors, shown

# Colour statistics of CLIP's training pictures, on the scale 0..1 (OpenAI's clip/clip.py).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Only picture formats: Pillow also opens EPS, for which it starts another program (Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
MORE_FORMATS = {"AVIF": (".avif",), "HEIF": (".heic", ".heif", ".hif"), "JXL": (".jxl",)}

MAX_PIXELS = 200_000_000  # of a picture that is opened; to be set as Pillow's MAX_IMAGE_PIXELS is
PILLOWS_LIMIT = 1024**3 // 12  # which warns from here, and raises at twice as many
LARGE = 2**24  # pixels; what is larger is never converted whole
STRIP = 2**20  # pixels that are converted or resized at a time
THIN = 16  # times as long as wide: the long side is not resized whole
MAX_PIECES = 200_000  # that a file is read in, see `_Bounded`
MAX_TIFF_VALUES = 2**20  # of a tag: tiles of 16 x 16 in a picture of MAX_PIXELS are fewer

# Kind of picture -> the value that is white: {"integer": 4095, "float": 1.0}.
White = Mapping[str, float]
Picture = Image.Image | str | os.PathLike | BinaryIO
_AT_MOST_8_BITS = (b"\xff\xd8", b"GI", b"RI", b"BM")  # JPEG, GIF, WebP, BMP
_WHITES = {"integer": (255, 1023, 4095, 65535, 2**31 - 1), "float": (1, 255, 65535)}

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
_SIDEWAYS = [_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)]
_MIRRORED = [_UPRIGHT[orientation] for orientation in (2, 3, 6, 7)]  # left is stored right, ...
_UPSIDE_DOWN = [_UPRIGHT[orientation] for orientation in (3, 4, 7, 8)]


# ---- files to RGB


@one_line_errors
def open_image(
    source: str | os.PathLike | BinaryIO, white: White | None = None
) -> Image.Image | StoredPicture:
    """The picture in a file as a person sees it: upright, RGB, transparent parts white.

    Of an animation, the first frame. `source` is the path of a regular file, or a file object;
    `white` as in `to_rgb`. More than `LARGE` pixels stay as they are stored, 1 to 4 bytes each, and
    are converted where a view looks. (Each thread may hold one; and until it is read, the decoders
    of WebP, AVIF, progressive JPEG and TIFF in one strip take up to 12 bytes a pixel beside it.)

    Raises FileNotFoundError if there is no such file, and a ValueError that names the file if it is
    damaged, cut short, not a picture, or has more than `MAX_PIXELS`. Pillow's warnings about odd
    metadata are left to the caller: silencing them here would change the filters of other threads.
    """
    with _opened(source) as image:
        # Pillow turns TIFF files itself while it reads them, with a second copy of all pixels.
        orientation = _orientation(image, take=True) if image.format == "TIFF" else None
        image.load()
        stored = image._new(image.im)  # without the file's decoder, which may hold all of it again
        stored.info = {key: image.info[key] for key in ("transparency",) if key in image.info}
        return _shown(stored, white, orientation or _orientation(image))


def to_rgb(image: Image.Image, white: White | None = None) -> Image.Image:
    """A new RGB image that shows what a person sees: upright by its EXIF tag, alpha over white.

    Grey values of more than 8 bits are scaled to 0..255 (Pillow's own conversion would clip them).
    Files do not say which value is white: it is that of `white` for their kind, brighter ones are
    clipped, or else the least usual one that the picture's values do not exceed (integers 65535 or
    2^31 - 1; floats 1, 255 or 65535). The result carries no metadata, so that a second call does
    not turn it again.
    """
    image.load()  # before EXIF is asked: only then has Pillow turned TIFF files itself
    picture = StoredPicture(image, white, _orientation(image))
    rgb = picture.crop((0, 0, *picture.size))
    rgb = rgb.copy() if rgb is image else rgb
    rgb.info = {}
    return rgb


class StoredPicture:
    """A picture as it is stored. What `crop` gives of it is, bit for bit, the part of `to_rgb`.

    size: (width, height) of the upright picture.
    """

    def __init__(self, image: Image.Image, white: White | None, orientation: int):
        self._image, self._turn = image, _UPRIGHT.get(orientation)
        self.size = image.size[::-1] if self._turn in _SIDEWAYS else image.size
        self.width, self.height = self.size
        self._white = None
        if kind := _kind(image):
            self._white = (white or {}).get(kind)
            if self._white is None:
                self._white = _least((65535, 2**31 - 1) if kind == "integer" else _WHITES[kind],
                                     _brightest(image))  # fmt: skip

    def crop(self, box: Box) -> Image.Image:
        """The part in `box` (left, top, right, bottom) as RGB. Not to be changed."""
        piece = self._image
        if box != (0, 0, *self.size):
            left, top, right, bottom = box
            if self._turn in _MIRRORED:
                left, right = self.width - right, self.width - left
            if self._turn in _UPSIDE_DOWN:
                top, bottom = self.height - bottom, self.height - top
            sideways = self._turn in _SIDEWAYS
            piece = piece.crop(
                (top, left, bottom, right) if sideways else (left, top, right, bottom)
            )
        if self._turn is not None:
            piece = piece.transpose(self._turn)
        if self._white is not None:
            piece = _grey_to_8_bits(piece, self._white)
        if piece.mode.endswith(("A", "a")) or "transparency" in piece.info:
            rgba = piece.convert("RGBA")
            white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            piece = Image.alpha_composite(white, rgba)
        return piece if piece.mode == "RGB" else piece.convert("RGB")


def _shown(image: Image.Image, white: White | None, orientation: int):
    """The picture in RGB; a large one as a StoredPicture."""
    picture = StoredPicture(image, white, orientation)
    large = picture.width * picture.height > LARGE
    return picture if large else picture.crop((0, 0, *picture.size))


@contextmanager
def _opened(source: str | os.PathLike | BinaryIO) -> Iterator[Image.Image]:
    """The picture in a file, its header read; an error of the block is one that names the file."""
    is_path = isinstance(source, (str, os.PathLike))
    where = f"image {source if is_path else getattr(source, 'name', 'file object')}"
    fix = "replace or remove it"
    expected = f"{where}: expected a readable picture ({', '.join(formats())})"
    try:
        status = os.stat(source) if is_path else None
        if status and not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            # would be waited for; a folder raises of itself
            raise ValueError(f"{expected}, got a pipe, socket or device: {fix}")
        small = status and status.st_size < 2**21  # and so is what its header can do
        with (
            open(source, "rb") if is_path else nullcontext(source) as file,
            _OwnLimit(),
            Image.open(file if small else _Bounded(file), formats=formats()) as image,
        ):
            pixels = max(image.width, 8) * image.height  # Pillow keeps 8 bytes for each row
            if pixels > MAX_PIXELS:
                raise ValueError(
                    f"{where}: expected at most {MAX_PIXELS:,} pixels, got {pixels:,} "
                    f"({image.width} x {image.height}): make it smaller, or raise the limit "
                    f"(--max-pixels)"
                )
            if image.format in ("BMP", "PPM"):  # some of which are read byte by byte
                image.fp = file
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(f"{where}: expected a picture, got nothing there") from None
    except MemoryError:
        raise ValueError(f"{where}: out of memory: make it smaller") from None
    except UnidentifiedImageError as error:
        raise ValueError(f"{expected}, got something else: {fix}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{where}: too large, make it smaller ({error})") from error
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        if str(error).startswith(where):
            raise
        reason = f"{type(error).__name__}: {error}".replace(str(source), "it")
        raise ValueError(f"{expected}, got {reason}: {fix}") from error


class _Bounded:
    """A file for Pillow, which ends a header that goes on in thousands of pieces.

    Pillow puts pieces together one by one, each time anew; and it makes an object of each number.
    """

    def __init__(self, file: BinaryIO):
        self._file, self._pieces = file, 0
        if file.seekable() and file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            self._check_tiff()

    def read(self, size: int = -1) -> bytes:
        """As the file's; OSError after MAX_PIECES, where 64 kB and more count as 512."""
        self._pieces += 1 + min(max(size, 0) >> 7, 511)
        if self._pieces > MAX_PIECES:
            raise OSError("a header in too many pieces")
        return self._file.read(size)

    def _check_tiff(self) -> None:
        self._file.seek(0)
        head = self._file.read(16).ljust(16)
        order, big = "<" if head[:1] == b"I" else ">", b"+" in head[:4]
        self._file.seek(struct.unpack_from(order + "IQ"[big], head, 8 if big else 4)[0])
        (count,) = struct.unpack(order + "HQ"[big], self._file.read(8 if big else 2))
        entry = struct.Struct(order + ("HHQ8x" if big else "HHI4x"))  # tag, type, values
        table = self._file.read(min(count, 4096) * entry.size)
        for _, kind, values in entry.iter_unpack(table[: len(table) // entry.size * entry.size]):
            if kind not in (1, 2, 6, 7) and values > MAX_TIFF_VALUES:  # no bytes and no text
                raise OSError(f"a TIFF tag of {values:,} numbers")

    def __getattr__(self, name: str):
        return getattr(self._file, name)


def formats() -> tuple[str, ...]:
    """`FORMATS`, and AVIF, HEIF and JPEG XL (JXL) where this Pillow or a plugin has them."""
    registered = Image.registered_extensions()
    return (*FORMATS, *(name for name, s in MORE_FORMATS.items() if registered.get(s[0]) == name))


class _OwnLimit:
    """`MAX_PIXELS` in place of Pillow's default limit, an error from 179 megapixels.

    Another limit than the default is somebody's wish and stays. It is a global of Pillow's: the
    last thread to leave puts it back.
    """

    inside, lifted, lock = 0, False, threading.Lock()

    def __enter__(self):
        with self.lock:
            if Image.MAX_IMAGE_PIXELS == PILLOWS_LIMIT:
                Image.MAX_IMAGE_PIXELS, _OwnLimit.lifted = None, True
            _OwnLimit.inside += 1

    def __exit__(self, *error: object):
        with self.lock:
            _OwnLimit.inside -= 1
            if _OwnLimit.lifted and not _OwnLimit.inside:
                Image.MAX_IMAGE_PIXELS, _OwnLimit.lifted = PILLOWS_LIMIT, False


def _orientation(image: Image.Image, take: bool = False) -> int:
    """The EXIF orientation, 1 to 8; unreadable metadata count as upright, as in image viewers.

    `take`: it is not in the image any longer.
    """
    try:
        exif = image.getexif()
        return exif.pop(_ORIENTATION, 1) if take else exif.get(_ORIENTATION, 1)
    except Exception:  # metadata are an untrusted byte string of their own; the picture is fine
        return 1


# ---- grey values of more than 8 bits


def _kind(image: Image.Image) -> str | None:
    """Whether a picture's values are "integer" or "float"; None for 8 bits and less."""
    return "float" if image.mode == "F" else "integer" if image.mode.startswith("I") else None


def kind_of(path: str | os.PathLike) -> str | None:
    """`_kind` of the picture in a file, by its header alone. Raises as `open_image`.

    "colour": 16 bits a colour, or of grey beside alpha, of which Pillow reads the upper 8 only.
    """
    with open(path, "rb") if os.path.isfile(path) else nullcontext() as file:
        if file and file.read(2) in _AT_MOST_8_BITS:
            return None
    with _opened(path) as image:
        return _kind(image) or ("colour" if ";16" in str(image.tile) else None)


def brightest(path: str | os.PathLike) -> float:
    """The largest value of a picture of more than 8 bits. Raises as `open_image`."""
    with _opened(path) as image:
        image.load()
        return _brightest(image)


def _brightest(image: Image.Image) -> float:
    largest = []
    for strip in _strips((0, 0, *image.size)):
        piece = image.crop(strip)
        value = float(np.asarray(piece).max())
        largest.append(value if math.isfinite(value) else float(_floats(piece).max()))
    return max(largest)


def white_level(brightest: Mapping[str, float]) -> White:
    """The white of many pictures: by kind, the least usual value that none of them exceeds."""
    return {kind: _least(_WHITES[kind], value) for kind, value in brightest.items()}


def checked_white(white: object) -> White | None:
    """The white level that a file holds, or None. Raises ValueError for anything else."""
    if white is None:
        return None
    entries(white, "white")
    for kind, value in white.items():
        if kind not in _WHITES or type(value) not in (int, float) or not 0 < value < math.inf:
            raise ValueError(f"white: expected numbers for {list(_WHITES)}, got {shown(value)}")
    return white


def white_notes(white: White, kinds: Iterable[str]) -> list[str]:
    """The lines that say what is white in pictures of these kinds (`kind_of`)."""
    notes = []
    if white:
        values = " and ".join(f"{value:g} ({kind})" for kind, value in white.items())
        notes.append(f"in pictures of more than 8 bits, white is {values}")
    if colours := list(kinds).count("colour"):
        notes.append(f"{colours} pictures have 16 bits a colour, of which the upper 8 are read: "
                     "convert them to 8 bits if their values need no more than 12")  # fmt: skip
    return notes


def _least(whites: Iterable[float], value: float) -> float:
    return next((white for white in whites if value <= white), value)


def _floats(image: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(image).astype(np.float64), copy=False)


def _grey_to_8_bits(image: Image.Image, white: float) -> Image.Image:
    """A picture of 16 or 32 bits or floats a pixel as 8-bit grey ("L"), `white` as 255."""
    values = np.asarray(image)
    transparent = image.info.get("transparency")
    if values.dtype.itemsize == 2:
        table = _to_8_bits(np.arange(65536.0), white, transparent)
        return Image.fromarray(table[values])
    return Image.fromarray(_to_8_bits(_floats(image), white, transparent))


def _to_8_bits(values: np.ndarray, white: float, transparent: object) -> np.ndarray:
    if isinstance(transparent, int):  # PNG: pixels of just this value are see-through
        values[values == transparent] = white
    values = values.clip(0, white, out=values)
    values *= 255 / white
    return values.round(out=values).astype(np.uint8)


# ---- geometry


Box = tuple[int, int, int, int]  # left, top, right, bottom


def _strips(box: Box, columns: bool = False) -> Iterator[Box]:
    """A box in strips of about STRIP pixels: some of its rows each, or of its columns."""
    left, top, right, bottom = box
    across, first, last = (bottom - top, left, right) if columns else (right - left, top, bottom)
    step = max(1, STRIP // across)
    for start in range(first, last, step):
        end = min(start + step, last)
        yield (start, top, end, bottom) if columns else (left, start, right, end)


def _resized(image: Image.Image | StoredPicture, box: Box, size: tuple[int, int]) -> Image.Image:
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
    for strip in _strips(box, columns):
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
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """The image with its shorter side at `size` pixels, bicubic; as torchvision's Resize(size).

    The longer side is rounded down. Returns a new image.
    """
    return _resized(image, (0, 0, *image.size), _short_side_at(image.size, size))


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


def resized_crop(image: Image.Image | StoredPicture, box: Box, resolution: int) -> Image.Image:
    """The part of the image in `box`, as `resolution` x `resolution` pixels, bicubic.

    Crops first and resizes then, as torchvision does.
    """
    return _resized(image, box, (resolution, resolution))


def _central_part(image: Image.Image | StoredPicture, resolution: int) -> Image.Image:
    """`central_view` of a thin picture, to the last bit: only what the square keeps is computed."""
    (width, height), size = image.size, _short_side_at(image.size, resolution)
    tall, first = height > width, round((max(size) - resolution) / 2)
    start, weights = _bicubic(max(width, height), max(size), range(first, first + resolution))
    stop = start + weights.shape[1]
    box = (0, start, width, stop) if tall else (start, 0, stop, height)
    if tall and not _columns_first(image.size, size):
        rows = _resized(image, box, (resolution, stop - start))
        return Image.fromarray(_weighted(np.asarray(rows), weights, axis=0))
    axis = 0 if tall else 1
    strips = [
        _weighted(np.asarray(image.crop(strip)), weights, axis) for strip in _strips(box, tall)
    ]
    half_done = Image.fromarray(np.concatenate(strips, axis=1 - axis))
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


# ---- views: what the model gets to see of an image


def random_view(
    image: Image.Image | StoredPicture, resolution: int, generator: random.Random
) -> Image.Image:
    """Training: a random resized crop of `resolution` x `resolution`, mirrored half of the time."""
    view = resized_crop(image, random_resized_crop_box(*image.size, generator), resolution)
    if generator.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return view


def central_view(image: Image.Image | StoredPicture, resolution: int) -> Image.Image:
    """Test: the shorter side resized to `resolution`, then the central square."""
    if max(image.size) > THIN * min(image.size):
        return _central_part(image, resolution)
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


@one_line_errors
def test_pixels(picture: Picture, resolution: int, white: White | None = None) -> np.ndarray:
    """The central view (3, resolution, resolution), uint8. Raises ValueError for no `Picture`."""
    if isinstance(picture, Image.Image):
        picture.load()  # before EXIF is asked, see `to_rgb`
        image = _shown(picture, white, _orientation(picture))
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

    Short side to R (bicubic), central square, CLIP's mean and std.
    """

    resolution: int

    def __post_init__(self):
        if self.resolution < 1:
            raise ValueError(f"resolution: expected at least 1 pixel, got {self.resolution}")

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return normalize(torch.from_numpy(test_pixels(image, self.resolution)))
