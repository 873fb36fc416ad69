"""Open an image file: upright, RGB, 8 bits a colour, as a person sees it.

Of images of more than 8 bits, the white level is the value that is shown as 255. Files do not say
it. All images of a run share it: by kind of values, the least usual value that none of its training
images (else of its test images) exceeds; brighter values are clipped. Pillow's own conversion would
clip all beyond 255.
"""

import math
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..support.distributed import SINGLE, World
from ..support.files import check_fields, check_is_file, short_repr, single_line_errors

# Only image formats: Pillow also opens EPS, for which it starts another program (Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
MORE_FORMATS = {"AVIF": (".avif",), "HEIF": (".heic", ".heif", ".hif"), "JXL": (".jxl",)}

MAX_PIXELS = 200_000_000  # of an image that a script opens, unless told otherwise
LARGE = 2**24  # pixels; larger images are decoded one at a time
LEVELS = {"integer": (255, 1023, 4095, 65535, 2**31 - 1), "float": (1, 255, 65535)}
BLOCK = 2**20  # pixels of more than 8 bits that are converted at a time

ImageSource = Image.Image | str | os.PathLike | BinaryIO
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
_large_image_lock = threading.Lock()
_white_level_lock = threading.Lock()


class WhiteLevel(dict[str, float]):
    """Kind of values ("integer", "float") -> the value that is white.

    An image of a kind that is not there is shown by its own: by what its largest value suggests,
    which is noted in `max_values`, so that `settle` can choose a level for all that were read.
    """

    def __init__(self, *args: Any, **levels: float):
        super().__init__(*args, **levels)
        self.max_values: dict[str, float] = {}

    def open(self, source: ImageSource) -> Image.Image:
        """Open an image, as `open_image`, by this white level."""
        return open_image(source, self)

    def convert(self, image: Image.Image) -> Image.Image:
        """Convert an image of more than 8 bits to 8-bit grey ("L"); return others as they are."""
        if image.mode != "F" and not image.mode.startswith("I"):
            return image
        kind = "float" if image.mode == "F" else "integer"
        white = self.get(kind)
        if white is None:
            largest = max(float(values.max()) for _, values in _blocks(image))
            with _white_level_lock:
                self.max_values[kind] = max(largest, self.max_values.get(kind, largest))
            white = _least((65535, 2**31 - 1) if kind == "integer" else LEVELS[kind], largest)
        grey, transparent = Image.new("L", image.size), image.info.get("transparency")
        for top, values in _blocks(image):
            if isinstance(transparent, int):  # PNG: pixels of just this value are see-through
                values[values == transparent] = white
            values = (values.clip(0, white) * (255 / white)).round()
            grey.paste(Image.fromarray(values.astype(np.uint8)), (0, top))
        return grey

    def settle(self, world: World = SINGLE) -> bool:
        """Choose the levels of the kinds that were read and have none yet, the same on all ranks.

        Returns whether there were some: what was read must be converted again, then.
        """
        for max_values in world.all_gather_object(self.max_values):
            for kind, value in max_values.items():
                self.max_values[kind] = max(value, self.max_values.get(kind, value))
        kinds = self.max_values.keys() - self.keys()
        self.update({kind: _least(LEVELS[kind], self.max_values[kind]) for kind in kinds})
        return bool(kinds)

    def notes(self) -> list[str]:
        """Describe the levels in a line, if there are some."""
        levels = " and ".join(f"{value:g} ({kind})" for kind, value in sorted(self.items()))
        return [f"in images of more than 8 bits, white is {levels}"] if levels else []


def check_white_level(levels: object) -> WhiteLevel:
    """Return the white level that a file holds. Raises ValueError for anything else."""
    if levels is None:
        return WhiteLevel()
    for kind, value in check_fields(levels, "white").items():
        if kind not in LEVELS or type(value) not in (int, float) or not 0 < value < math.inf:
            raise ValueError(f"white: expected numbers for {list(LEVELS)}, got {short_repr(value)}")
    return WhiteLevel(levels)


def _least(levels: tuple[float, ...], value: float) -> float:
    return next((level for level in levels if value <= level), value)


def _blocks(image: Image.Image) -> Iterator[tuple[int, np.ndarray]]:
    """Yield some rows at a time: the first one's number, and their values (rows, width)."""
    rows = max(1, BLOCK // image.width)
    for top in range(0, image.height, rows):
        block = image.crop((0, top, image.width, min(top + rows, image.height)))
        yield top, np.nan_to_num(np.asarray(block).astype(np.float64), copy=False)


def set_max_pixels(max_pixels: int) -> None:
    """Let Pillow open images of up to so many pixels in this process, without a warning.

    For scripts. Pillow's own limit is a warning from 89 megapixels, an error from 179.
    """
    Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2  # Pillow raises beyond twice its limit
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def formats() -> tuple[str, ...]:
    """Return `FORMATS`, and AVIF, HEIF and JPEG XL (JXL) where this Pillow or a plugin has them."""
    registered = Image.registered_extensions()
    return (*FORMATS, *(name for name, s in MORE_FORMATS.items() if registered.get(s[0]) == name))


@single_line_errors
def open_image(source: ImageSource, white_level: WhiteLevel | None = None) -> Image.Image:
    """Open an image as a person sees it: upright, RGB, transparent parts white.

    Of an animation, the first frame. `source` is the path of a regular file, a file object, or a
    Pillow image. white_level: of a run; None: the image's own.

    Raises FileNotFoundError if it is no file, and a ValueError that names the file if it is
    damaged, cut short, not an image or too large.
    """
    if isinstance(source, Image.Image):
        source.load()  # before EXIF is asked: only then has Pillow turned TIFF files itself
        return _to_rgb(source, white_level)
    is_path = isinstance(source, (str, os.PathLike))
    if not (is_path or hasattr(source, "read")):
        expected = "a path, a Pillow image or a binary file object (io.BytesIO for bytes)"
        raise ValueError(f"image: expected {expected}, got a {type(source).__name__}")
    name = source if is_path else getattr(source, "name", "file object")
    where = f"image {name if name != '' else repr('')}"
    fix = "replace or remove it"
    expected = f"{where}: expected a readable image ({', '.join(formats())})"
    if is_path:
        check_is_file(source, where)  # a pipe would be waited for
    try:
        with (
            open(source, "rb") if is_path else nullcontext(source) as file,
            Image.open(file, formats=formats()) as image,
            _large_image_lock if image.width * image.height > LARGE else nullcontext(),
        ):
            image.load()
            rgb = _to_rgb(image, white_level)
            if rgb is image:  # without the file's decoder, which may hold all pixels again
                rgb = image._new(image.im)
            rgb.info = {}
            return rgb
    except MemoryError:
        raise ValueError(f"{where}: out of memory: shrink the image") from None
    except UnidentifiedImageError as error:
        raise ValueError(f"{expected}, got something else: {fix}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = str(error).split(",")[0]
        fix = "make it smaller, or raise the limit (--max-pixels)"
        raise ValueError(f"{where}: expected fewer pixels, got: {reason}: {fix}") from error
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        reason = f"{type(error).__name__}: {error}".replace(str(source), "it")
        raise ValueError(f"{expected}, got {reason}: {fix}") from error


def _to_rgb(image: Image.Image, white_level: WhiteLevel | None) -> Image.Image:
    """Convert a loaded image; a new one, or itself where nothing is to be done."""
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION))
    except Exception:  # metadata are an untrusted byte string of their own; the image is fine
        turn = None
    image = (WhiteLevel() if white_level is None else white_level).convert(image)
    if "transparency" in image.info or image.mode in ("PA", "La", "RGBa"):
        image = image.convert("RGBA")
    if image.mode in ("LA", "RGBA"):
        background = Image.new("RGB", image.size, "white")
        background.paste(image, mask=image)
        image = background
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)
