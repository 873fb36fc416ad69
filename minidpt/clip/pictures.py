"""From an image file to the picture that a person sees, in bounded memory.

open_image -> a Pillow image, or a `StoredPicture` where all pixels at once would be too many
"""

from __future__ import annotations

import os
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from ..files import one_line_errors
from .boxes import Box
from .white import White, brightest_in, grey_to_8_bits, kind_in, own_white

# Only picture formats: Pillow also opens EPS, for which it starts another program (Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
MORE_FORMATS = {"AVIF": (".avif",), "HEIF": (".heic", ".heif", ".hif"), "JXL": (".jxl",)}

MAX_PIXELS = 200_000_000  # of a picture that is opened; to be set as Pillow's MAX_IMAGE_PIXELS is
PILLOWS_LIMIT = 1024**3 // 12  # which warns from here, and raises at twice as many
LARGE = 2**24  # pixels; what is larger is never converted whole
MAX_PIECES = 200_000  # that a file is read in, see `_Bounded`
MAX_TIFF_VALUES = 2**20  # of a tag: tiles of 16 x 16 in a picture of MAX_PIXELS are fewer

Picture = Image.Image | str | os.PathLike | BinaryIO
_AT_MOST_8_BITS = (b"\xff\xd8", b"GI", b"RI", b"BM")  # JPEG, GIF, WebP, BMP
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


@one_line_errors
def open_image(
    source: str | os.PathLike | BinaryIO, white: White | None = None
) -> Image.Image | StoredPicture:
    """The picture in a file as a person sees it: upright, RGB, transparent parts white.

    Of an animation, the first frame. `source` is the path of a regular file, or a file object;
    `white`: see `white.py`. More than `LARGE` pixels stay as they are stored, 1 to 4 bytes each,
    and are converted where a view looks. (Each thread may hold one; and until it is read, the
    decoders of WebP, AVIF, progressive JPEG and TIFF in one strip take up to 12 bytes a pixel.)

    Raises FileNotFoundError if there is no such file, and a ValueError that names the file if it is
    damaged, cut short, not a picture, or has more than `MAX_PIXELS`. Pillow's warnings about odd
    metadata are left to the caller: silencing them here would change the filters of other threads.
    """
    with _opened(source) as image:
        # Pillow turns TIFF files itself while it reads them, with a second copy of all pixels.
        orientation = orientation_of(image, take=True) if image.format == "TIFF" else None
        image.load()
        stored = image._new(image.im)  # without the file's decoder, which may hold all of it again
        stored.info = {key: image.info[key] for key in ("transparency",) if key in image.info}
        return in_rgb(stored, white, orientation or orientation_of(image))


class StoredPicture:
    """A picture as it is stored, and by `crop` as a person sees it.

    size: (width, height) of the upright picture.
    white: of grey values of more than 8 bits, see `white.py`; without it the picture's own.
    orientation: its EXIF tag.
    """

    def __init__(self, image: Image.Image, white: White | None, orientation: int):
        self._image, self._turn = image, _UPRIGHT.get(orientation)
        self.size = image.size[::-1] if self._turn in _SIDEWAYS else image.size
        self.width, self.height = self.size
        self._white = None
        if kind := kind_in(image):
            self._white = (white or {}).get(kind)
            if self._white is None:
                self._white = own_white(image)

    def crop(self, box: Box) -> Image.Image:
        """The part in `box` (left, top, right, bottom) as RGB, alpha over white, 8 bits a colour.

        Not to be changed: where nothing is to be done it is the stored picture itself.
        """
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
            piece = grey_to_8_bits(piece, self._white)
        if piece.mode.endswith(("A", "a")) or "transparency" in piece.info:
            rgba = piece.convert("RGBA")
            white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            piece = Image.alpha_composite(white, rgba)
        return piece if piece.mode == "RGB" else piece.convert("RGB")


def in_rgb(image: Image.Image, white: White | None, orientation: int):
    """The picture in RGB; a large one as a StoredPicture."""
    picture = StoredPicture(image, white, orientation)
    large = picture.width * picture.height > LARGE
    return picture if large else picture.crop((0, 0, *picture.size))


@contextmanager
def _opened(source: str | os.PathLike | BinaryIO) -> Iterator[Image.Image]:
    """The picture in a file, its header read; an error of the block is one that names the file."""
    is_path = isinstance(source, (str, os.PathLike))
    name = source if is_path else getattr(source, "name", "file object")
    where = f"image {name if name != '' else repr('')}"
    fix = "replace or remove it"
    expected = f"{where}: expected a readable picture ({', '.join(formats())})"
    try:
        status = os.stat(source) if is_path else None
        if status and stat.S_ISDIR(status.st_mode):
            raise ValueError(f"{where}: expected a picture, got a folder: pass its pictures")
        if status and not stat.S_ISREG(status.st_mode):  # would be waited for
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


def orientation_of(image: Image.Image, take: bool = False) -> int:
    """The EXIF orientation, 1 to 8; unreadable metadata count as upright, as in image viewers.

    `take`: it is not in the image any longer.
    """
    try:
        exif = image.getexif()
        return exif.pop(_ORIENTATION, 1) if take else exif.get(_ORIENTATION, 1)
    except Exception:  # metadata are an untrusted byte string of their own; the picture is fine
        return 1


def kind_of(path: str | os.PathLike) -> str | None:
    """`kind_in` of the picture in a file, by its header alone. Raises as `open_image`.

    "colour": 16 bits a colour, or of grey beside alpha, of which Pillow reads the upper 8 only.
    """
    with open(path, "rb") if os.path.isfile(path) else nullcontext() as file:
        if file and file.read(2) in _AT_MOST_8_BITS:
            return None
    with _opened(path) as image:
        return kind_in(image) or ("colour" if ";16" in str(image.tile) else None)


def brightest(path: str | os.PathLike) -> float:
    """The largest value of a picture of more than 8 bits. Raises as `open_image`."""
    with _opened(path) as image:
        image.load()
        return brightest_in(image)
