"""Grey values of more than 8 bits: which of them is white, and the 8 bits that show them.

Files do not say it. It is what a `White` holds for a picture's kind, and brighter values are
clipped; without one it is the least usual value that the picture's own do not exceed (integers
65535 or 2^31 - 1; floats 1, 255 or 65535). Pillow's own conversion would clip all beyond 255.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image

from ..files import entries, shown
from .boxes import strips

WHITES = {"integer": (255, 1023, 4095, 65535, 2**31 - 1), "float": (1, 255, 65535)}

# Kind of picture -> the value that is white: {"integer": 4095, "float": 1.0}.
White = Mapping[str, float]


def kind_in(image: Image.Image) -> str | None:
    """Whether a picture's values are "integer" or "float"; None for 8 bits and less."""
    return "float" if image.mode == "F" else "integer" if image.mode.startswith("I") else None


def own_white(image: Image.Image) -> float:
    """The white of a picture alone: the least usual value that none of its own exceeds."""
    kind = kind_in(image)
    return _least((65535, 2**31 - 1) if kind == "integer" else WHITES[kind], brightest_in(image))


def brightest_in(image: Image.Image) -> float:
    """The largest finite value of a picture of more than 8 bits."""
    largest = []
    for strip in strips((0, 0, *image.size)):
        piece = image.crop(strip)
        value = float(np.asarray(piece).max())
        largest.append(value if math.isfinite(value) else float(_floats(piece).max()))
    return max(largest)


def white_level(brightest: Mapping[str, float]) -> White:
    """The white of many pictures: by kind, the least usual value that none of them exceeds."""
    return {kind: _least(WHITES[kind], value) for kind, value in brightest.items()}


def checked_white(white: object) -> White | None:
    """The white level that a file holds, or None. Raises ValueError for anything else."""
    if white is None:
        return None
    entries(white, "white")
    for kind, value in white.items():
        if kind not in WHITES or type(value) not in (int, float) or not 0 < value < math.inf:
            raise ValueError(f"white: expected numbers for {list(WHITES)}, got {shown(value)}")
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


def grey_to_8_bits(image: Image.Image, white: float) -> Image.Image:
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
