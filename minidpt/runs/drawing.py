"""Drawn with Pillow: attention over an image, texts in any script, bars."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable
from contextlib import suppress

import numpy as np
import regex
from PIL import Image, ImageDraw, ImageFont, ImageOps, features
from torch import Tensor

from ..support.files import printable

INK, PALE = "#1a1a1a", "#666666"
BRIGHTEST = 4  # times the share that even attention gives a patch: from there on full colour
COVER = 0.68  # how much of an image the colours cover
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


def overlay(image: Image.Image, attention: Tensor) -> Image.Image:
    """Draw an image in grey under the colours of a map of attention: blue 0, yellow `BRIGHTEST`.

    Args:
        image: square, as the model sees it; any size, which the result has.
        attention: (g, g), summing to 1 (`maps.py`). Every map has the same scale, so that two can
            be compared.
    """
    grey = ImageOps.autocontrast(image.convert("L"), 1).convert("RGB")
    times_even = attention.float().cpu().numpy() * attention.numel()
    smooth = Image.fromarray(np.minimum(times_even / BRIGHTEST, 1))
    return Image.blend(grey, coloured(smooth.resize(image.size, Image.Resampling.BICUBIC)), COVER)


def coloured(values: Image.Image | np.ndarray) -> Image.Image:
    """Return values (H, W) as colours; what is below 0 or above 1 has the colour of the end."""
    steps = np.linspace(0, 1, len(CIVIDIS))
    channels = [np.interp(values, steps, channel) for channel in zip(*CIVIDIS)]
    return Image.fromarray(np.uint8(np.stack(channels, axis=-1).round()))


def colour_scale(width: int, height: int) -> Image.Image:
    """Draw the colours of `overlay` from 0 to `BRIGHTEST`, left to right."""
    return coloured(np.tile(np.linspace(0, 1, width), (height, 1)))


@functools.cache
def fonts(size: int) -> list[ImageFont.FreeTypeFont]:
    """Return Pillow's own font, and those of `MORE_FONTS` that this system has."""
    there = [ImageFont.load_default(size)]
    for name in MORE_FONTS:
        with suppress(OSError):
            there.append(ImageFont.truetype(name, size))
    return there


@functools.cache
def missing_glyph(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Return whether the font draws a letter as it draws what is none."""
    drawn = letter.isprintable() and not letter.isspace()
    return drawn and bytes(font.getmask(letter)) == bytes(font.getmask("\uffff"))


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Return the first font that lacks the fewest letters of a text."""
    return min(fonts(size), key=lambda font: sum(missing_glyph(font, c) for c in set(text)))


def font_notes(texts: Iterable[str]) -> list[str]:
    """Say which of these texts cannot be drawn as they should be here, and what helps."""
    notes, texts = [], [text for text in texts if not text.isascii()]
    missing = dict.fromkeys(c for t in texts for c in t if missing_glyph(font_for(t, 14), c))
    if missing:
        some = "".join(missing)[:20]
        notes.append(f"no font here has {some}: drawn as boxes; install one, such as Noto's")
    to_left = any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in "".join(texts))
    if to_left and not features.check("raqm"):
        notes.append("right-to-left text is drawn in reverse order: install FriBiDi (libfribidi)")
    return notes


def ellipsize(text: str, width: int, size: int) -> str:
    """Return a text in one line, and as much of it as is at most `width` pixels wide, then "…".

    It ends where it would be read to, from right to left too, and never within a letter and its
    accents.
    """
    text = printable(text)
    font, letters = font_for(text, size), regex.findall(r"\X", text)[:width]  # none has less than 1
    while letters and font.getlength(text) > width:
        letters.pop()
        text = f"{''.join(letters).rstrip()}…"
    return text


def write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, width: int, size: int = 14, **look
) -> None:
    """Draw one line of text, cut to a width in pixels. at: one end of it, on its baseline."""
    text = ellipsize(text, width, size)
    draw.text(at, text, font=font_for(text, size), **{"fill": INK, "anchor": "ls", **look})


def bar(draw: ImageDraw.ImageDraw, box: tuple, share: float, colour: str) -> None:
    """Draw a bar that fills a share (0–1) of its box, and the share in percent behind it."""
    left, top, right, bottom = box
    end = left + round(share * (right - left))
    draw.rectangle((left, top, max(end, left + 1), bottom), fill=colour)
    write(draw, (end + 6, bottom), f"{100 * share:.1f} %", 60, 12, fill=PALE)
