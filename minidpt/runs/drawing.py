"""Drawn with Pillow: attention over a picture, texts in any script, bars."""

from __future__ import annotations

import functools
import unicodedata
from bisect import bisect
from collections.abc import Iterable
from contextlib import suppress

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, features
from torch import Tensor

from ..files import printable

Point = tuple[float, float]
Box = tuple[int, int, int, int]  # left, top, right, bottom

INK, PALE = "#1a1a1a", "#666666"
BRIGHTEST = 4  # times the share that even attention gives a patch: from there on full colour
COVER = 0.68  # how much of a picture the colours cover
# Cividis (Nuñez, Anderton, Renslow 2018): dark blue to yellow, the same to the colour-blind, and
# lighter with every step.
CIVIDIS = (
    (0, 32, 77), (0, 52, 110), (60, 77, 108), (102, 105, 112), (124, 123, 120), (148, 142, 119),
    (187, 175, 106), (222, 203, 87), (255, 234, 70),
)  # fmt: skip
# Looked for by name where the system keeps its fonts (Linux, macOS, Windows): for names that are
# not ASCII, which is all that Pillow's own font has.
MORE_FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc",
    "NotoSansArabic-Regular.ttf", "NotoSansHebrew-Regular.ttf", "NotoSansDevanagari-Regular.ttf",
    "NotoSansThai-Regular.ttf", "Arial Unicode.ttf", "Arial.ttf", "PingFang.ttc", "msyh.ttc",
    "malgun.ttf", "Nirmala.ttf", "seguisym.ttf",
)  # fmt: skip


def overlay(picture: Image.Image, attention: Tensor) -> Image.Image:
    """A picture in grey under the colours of a map of attention: blue 0, yellow `BRIGHTEST`.

    Args:
        picture: square, as the model sees it; any size, which the result has.
        attention: (g, g), summing to 1 (`maps.py`). Every map has the same scale, so that two can
            be compared.
    """
    grey = np.asarray(ImageOps.autocontrast(picture.convert("L"), 1), np.float32)
    times_even = attention.float().cpu().numpy() * attention.numel()
    smooth = Image.fromarray(np.minimum(times_even / BRIGHTEST, 1))
    smooth = np.asarray(smooth.resize(picture.size, Image.Resampling.BICUBIC))
    mixed = (1 - COVER) * grey[..., None] + COVER * colours(smooth)
    return Image.fromarray(np.uint8(mixed.round()))


def colours(values: np.ndarray) -> np.ndarray:
    """Values 0–1 (…) → RGB in 0–255 (…, 3); what is below or above has the colour of the end."""
    steps, table = np.linspace(0, 1, len(CIVIDIS)), np.array(CIVIDIS)
    return np.stack([np.interp(values, steps, channel) for channel in table.T], axis=-1)


@functools.cache
def font_named(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    """The system's font of that name, None if it has none; "" is Pillow's own, which has ASCII.

    Raises ValueError if this Pillow cannot draw with such fonts.
    """
    if not features.check("freetype2"):
        raise ValueError("expected a Pillow with FreeType, got one without: reinstall pillow")
    if not name:
        return ImageFont.load_default(size)
    with suppress(OSError):
        return ImageFont.truetype(name, size)
    return None


@functools.cache
def lacks(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether the font draws a letter as it draws what is none."""
    if not letter.isprintable() or letter.isspace():
        return False
    return bytes(font.getmask(letter)) == bytes(font.getmask("\uffff"))


def missing(font: ImageFont.FreeTypeFont, text: str) -> list[str]:
    """The letters of a text that the font has not."""
    return [letter for letter in dict.fromkeys(text) if lacks(font, letter)]


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """The first font that has all letters of a text, or else the one that lacks the fewest."""
    found = {}
    for name in ("", *MORE_FONTS):
        if font := font_named(name, size):
            lacking = len(missing(font, text))
            found.setdefault(lacking, font)
            if not lacking:
                break
    return found[min(found)]


def font_notes(texts: Iterable[str]) -> list[str]:
    """What of these texts cannot be drawn as it should be here, and what helps; a line each."""
    notes, rest = [], [text for text in texts if not text.isascii()]
    letters = dict.fromkeys(c for text in rest for c in missing(font_for(text, 14), text))
    if letters:
        some = "".join(letters)[:20]
        notes.append(f"no font here has {some}: drawn as boxes; install one, such as Noto's")
    if not features.check("raqm") and any(map(is_rtl, "".join(rest))):
        notes.append("right-to-left text is drawn in reverse order: install FriBiDi (libfribidi)")
    return notes


def is_rtl(letter: str) -> bool:
    """Whether a letter is of a script that is written from right to left."""
    return unicodedata.bidirectional(letter) in ("R", "AL")


def cut(text: str, width: int, size: int) -> str:
    """A text in one line, and as much of it as is at most `width` pixels wide, then "…".

    It ends where it would be read to, from right to left too, and never within a letter and its
    accents.
    """
    text = printable(text)
    font = font_for(text, size)
    if font.getlength(text) <= width:
        return text
    kept = bisect(range(len(text)), width, key=lambda n: font.getlength(f"{text[:n]}…")) - 1
    kept = max(kept, 0)
    while kept and unicodedata.category(text[kept])[0] == "M":
        kept -= 1
    return f"{text[:kept].rstrip()}…"


def write(draw: ImageDraw.ImageDraw, at: Point, text: str, width: int, size: int = 14, **look):
    """One line of text, cut to a width in pixels. `at`: its left or right end, on its baseline."""
    text = cut(text, width, size)
    look = {"fill": INK, "anchor": "ls", **look}
    draw.text(at, text, font=font_for(text, size), **look)


def bar(draw: ImageDraw.ImageDraw, box: Box, share: float, colour: str) -> None:
    """A bar that fills a share (0–1) of its box, and the share in percent behind it."""
    left, top, right, bottom = box
    end = left + round(share * (right - left))
    draw.rectangle((left, top, max(end, left + 1), bottom), fill=colour)
    write(draw, (end + 6, bottom), f"{100 * share:.1f} %", 60, 12, fill=PALE)


def colour_scale(width: int, height: int) -> Image.Image:
    """The colours of `overlay` from 0 to `BRIGHTEST`, left to right."""
    row = np.uint8(colours(np.linspace(0, 1, width)).round())
    return Image.fromarray(np.tile(row, (height, 1, 1)))
