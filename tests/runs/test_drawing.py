"""What is drawn: maps over images, texts in any script, bars."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from minidpt.runs import attention_pngs
from minidpt.runs.attention_pngs import (
    BRIGHTEST,
    COVER,
    coloured,
    compose,
    ellipsize,
    font_for,
    overlay,
    write,
)


def grey_image(side: int = 70) -> Image.Image:
    """With black and white in it, or the contrast would be stretched."""
    pixels = np.full((side, side, 3), 128, np.uint8)
    pixels[:5], pixels[-5:] = 0, 255
    return Image.fromarray(pixels)


def test_an_overlay_is_yellow_with_attention_and_blue_without():
    attention = torch.zeros(7, 7)
    attention[2, 5] = 1
    drawn = overlay(grey_image(), attention)
    assert (drawn.mode, drawn.size) == ("RGB", (70, 70))
    red, green, blue = drawn.getpixel((55, 25))
    assert min(red, green) > 160 and blue < 110
    red, green, blue = drawn.getpixel((15, 45))
    assert max(red, green) < blue


def test_maps_have_one_scale_and_shares_beyond_it_one_colour():
    at_the_end, beyond = torch.zeros(4, 4), torch.zeros(4, 4)
    at_the_end[0], beyond[0, 1:] = BRIGHTEST / 16, 1 / 3
    yellow = (1 - COVER) * 128 + COVER * np.array([255, 234, 70])
    for attention in (at_the_end, beyond):
        drawn = overlay(grey_image(), attention).getpixel((50, 7))
        np.testing.assert_allclose(drawn, yellow, atol=3)


LONG = {
    "latin": "a quite rare, long-named species of deep-sea anglerfish",
    "hebrew": "סוס ים ארוך מאוד שחי במים העמוקים של האוקיינוס",
    "accents": "e\u0301" * 60,  # each letter and its accent two characters
    "cyrillic": "очень длинное название глубоководной рыбы",
    "no spaces": "x" * 400,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
@pytest.mark.parametrize("width", [40, 101, 224])
def test_a_long_name_is_cut_at_its_logical_end_where_it_fits(text, width):
    shown = ellipsize(text, width, 14)
    assert shown.endswith("…") and text.startswith(shown[:-1])
    assert font_for(shown, 14).getlength(shown) <= width
    rest = text[len(shown) - 1 :]
    assert not unicodedata.combining(rest[0])
    more = shown[:-1] + rest[:4] + "…"  # a letter with its accents, and a space
    assert font_for(more, 14).getlength(more) > width


def test_a_name_that_fits_is_unchanged_and_missing_glyphs_are_spelt_out():
    assert ellipsize("sea horse", 224, 14) == "sea horse"
    assert ellipsize("a\nb\u202ec", 224, 14) == r"a\nb\u202ec"


def drawn(text: str) -> np.ndarray:
    image = Image.new("L", (200, 30), 255)
    write(ImageDraw.Draw(image), (5, 20), text, 190)
    return np.asarray(image)


def test_every_text_is_drawn_without_an_error():
    for text in ("ox", "морской конёк", "סוס ים", "日本語", "🦊", "\ud800", "", " ", "\u0301"):
        assert drawn(text).shape == (30, 200)
    assert (drawn("ox") < 128).any() and (drawn("") == 255).all()


def test_panels_texts_and_bars_lie_where_they_are_meant_to(monkeypatch):
    texts, boxes, rectangle = [], [], ImageDraw.ImageDraw.rectangle

    def note(draw, box, fill):
        boxes.append((*box, fill))
        rectangle(draw, box, fill=fill)

    monkeypatch.setattr(attention_pngs, "write", lambda draw, *text, **_: texts.append(text))
    monkeypatch.setattr(ImageDraw.ImageDraw, "rectangle", note)
    red, blue = (Image.new("RGB", (224, 224), colour) for colour in ("red", "blue"))
    rows = {"": [("seen", red), ("before", blue)], "likeliest": [("ox", blue)]}
    bars = [("dpt", "#0072b2", [0.75, 0.25]), ("zero-shot", "#e69f00", [0.5, 0.0])]
    page = compose("a.jpg", rows, ["ox", "gnu"], bars)
    assert page.size == (752, 796)
    assert texts == [
        ((24, 42), "a.jpg", 704, 20), ((24, 78), "seen", 224, 13), ((264, 78), "before", 224, 13),
        ((24, 340), "likeliest", 704), ((24, 364), "ox", 224, 13),
        ((264, 620), "attention of a patch: 0 to 4 times the average, or more", 464, 13),
        ((282, 667), "dpt", 90, 13), ((392, 667), "zero-shot", 90, 13),
        ((254, 701), "ox", 224), ((573, 694), "75.0 %", 60, 12), ((472, 708), "50.0 %", 60, 12),
        ((254, 739), "gnu", 224), ((371, 732), "25.0 %", 60, 12), ((270, 746), "0.0 %", 60, 12),
    ]  # fmt: skip
    assert boxes == [
        (264, 656, 275, 667, "#0072b2"), (374, 656, 385, 667, "#e69f00"),
        (264, 683, 567, 694, "#0072b2"), (264, 697, 466, 708, "#e69f00"),
        (264, 721, 365, 732, "#0072b2"), (264, 735, 265, 746, "#e69f00"),
    ]  # fmt: skip
    pixels = np.asarray(page)
    for colour, corners in (((255, 0, 0), (24, 86, 248, 310)), ((0, 0, 255), (264, 86, 488, 310))):
        lit = np.argwhere((pixels[:330] == colour).all(axis=-1))  # of the first row
        assert (*lit.min(0)[::-1], *lit.max(0)[::-1] + 1) == corners
    scale = pixels[612, 24:248].tolist()  # of the colours
    assert (scale[0], scale[-1]) == ([0, 32, 77], [255, 234, 70])
    assert (pixels[330:, 24] == (0, 32, 77)).all(axis=-1).nonzero()[0].tolist() == [
        *range(280, 290)
    ]


def test_colours_go_from_blue_to_yellow_and_no_further():
    scale = np.asarray(coloured(np.array([[-1, 0, 1, 2]])))
    assert scale[0].tolist() == [[0, 32, 77]] * 2 + [[255, 234, 70]] * 2
