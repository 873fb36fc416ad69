"""White level of images of more than 8 bits: the value that is shown as 255.

Files do not say it. All images of a run share it: by kind of values, the least usual value that
none of its training images (else of its test images) exceeds; brighter values are clipped. Pillow's
own conversion would clip all beyond 255.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from ..support.distributed import SINGLE, World
from ..support.files import check_fields, short_repr

LEVELS = {"integer": (255, 1023, 4095, 65535, 2**31 - 1), "float": (1, 255, 65535)}
BLOCK = 2**20  # pixels that are converted at a time

_lock = threading.Lock()


class WhiteLevel(dict[str, float]):
    """Kind of values ("integer", "float") -> the value that is white.

    An image of a kind that is not there is shown by its own: by what its largest value suggests,
    which is noted in `max_values`, so that `settle` can choose a level for all that were read.
    """

    def __init__(self, *args: Any, **levels: float):
        super().__init__(*args, **levels)
        self.max_values: dict[str, float] = {}

    def convert(self, image: Image.Image) -> Image.Image:
        """Convert an image of more than 8 bits to 8-bit grey ("L"); return others as they are."""
        if image.mode != "F" and not image.mode.startswith("I"):
            return image
        kind = "float" if image.mode == "F" else "integer"
        white = self.get(kind)
        if white is None:
            largest = max(float(values.max()) for _, values in _blocks(image))
            with _lock:
                self.max_values[kind] = max(largest, self.max_values.get(kind, largest))
            white = _least((65535, 2**31 - 1) if kind == "integer" else LEVELS[kind], largest)
        return _to_8_bits(image, white)

    def settle(self, world: World = SINGLE) -> bool:
        """Choose the levels of the kinds that were read and have none yet, the same on all ranks.

        Returns whether there were some: what was read must be converted again, then.
        """
        settled = False
        for max_values in world.all_gather_object(self.max_values):
            for kind, value in max_values.items():
                self.max_values[kind] = max(value, self.max_values.get(kind, value))
        for kind in self.max_values.keys() - self.keys():
            self[kind], settled = _least(LEVELS[kind], self.max_values[kind]), True
        return settled

    def notes(self) -> list[str]:
        """Describe the levels in a line, if there are some."""
        levels = " and ".join(f"{value:g} ({kind})" for kind, value in sorted(self.items()))
        return [f"in pictures of more than 8 bits, white is {levels}"] if levels else []


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


def _to_8_bits(image: Image.Image, white: float) -> Image.Image:
    grey, transparent = Image.new("L", image.size), image.info.get("transparency")
    for top, values in _blocks(image):
        if isinstance(transparent, int):  # PNG: pixels of just this value are see-through
            values[values == transparent] = white
        values = (values.clip(0, white) * (255 / white)).round()
        grey.paste(Image.fromarray(values.astype(np.uint8)), (0, top))
    return grey
