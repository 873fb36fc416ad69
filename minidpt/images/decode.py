"""Open an image file: upright, RGB, 8 bits a colour, as a person sees it."""

from __future__ import annotations

import os
import stat
import threading
import warnings
from contextlib import nullcontext
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from ..support.files import single_line_errors
from .white_level import WhiteLevel

# Only image formats: Pillow also opens EPS, for which it starts another program (Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
MORE_FORMATS = {"AVIF": (".avif",), "HEIF": (".heic", ".heif", ".hif"), "JXL": (".jxl",)}

MAX_PIXELS = 200_000_000  # of an image that a script opens, unless told otherwise
LARGE = 2**24  # pixels; larger images are decoded one at a time

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


def set_max_pixels(max_pixels: int) -> None:
    """Let Pillow open images of up to so many pixels in this process, without a warning.

    For scripts. Without it Pillow's own limit counts: a warning from 89 megapixels, an error from
    179.
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

    Raises FileNotFoundError if there is no such file, and a ValueError that names the file if it is
    damaged, cut short, not an image or too large. Pillow's warnings about odd metadata are left to
    the caller: silencing them here would change the filters of other threads.
    """
    if isinstance(source, Image.Image):
        source.load()  # before EXIF is asked: only then has Pillow turned TIFF files itself
        return _to_rgb(source, white_level)
    is_path = isinstance(source, (str, os.PathLike))
    name = source if is_path else getattr(source, "name", "file object")
    where = f"image {name if name != '' else repr('')}"
    fix = "replace or remove it"
    expected = f"{where}: expected a readable picture ({', '.join(formats())})"
    try:
        mode = os.stat(source).st_mode if is_path else stat.S_IFREG
        if stat.S_ISDIR(mode):
            raise ValueError(f"{where}: expected a picture, got a folder: pass its pictures")
        if not stat.S_ISREG(mode):  # would be waited for
            raise ValueError(f"{expected}, got a pipe, socket or device: {fix}")
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
    except FileNotFoundError:
        raise FileNotFoundError(f"{where}: expected a picture, got nothing there") from None
    except MemoryError:
        raise ValueError(f"{where}: out of memory: make it smaller") from None
    except UnidentifiedImageError as error:
        raise ValueError(f"{expected}, got something else: {fix}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = str(error).split(",")[0]
        fix = "make it smaller, or raise the limit (--max-pixels)"
        raise ValueError(f"{where}: expected fewer pixels, got: {reason}: {fix}") from error
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        if str(error).startswith(where):
            raise
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
