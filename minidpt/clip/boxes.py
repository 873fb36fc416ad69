"""Boxes of pixels, and the strips that a large one is worked through in."""

from collections.abc import Iterator

STRIP = 2**20  # pixels that are converted or resized at a time

Box = tuple[int, int, int, int]  # left, top, right, bottom


def strips(box: Box, columns: bool = False) -> Iterator[Box]:
    """A box in strips of about STRIP pixels: some of its rows each, or of its columns."""
    left, top, right, bottom = box
    across, first, last = (bottom - top, left, right) if columns else (right - left, top, bottom)
    step = max(1, STRIP // across)
    for start in range(first, last, step):
        end = min(start + step, last)
        yield (start, top, end, bottom) if columns else (left, start, right, end)
