"""What is drawn: maps over pictures, texts in any script, bars."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from minidpt.runs.drawing import BRIGHTEST, COVER, overlay


def grey_picture(side: int = 70) -> Image.Image:
    """With black and white in it, or the contrast would be stretched."""
    pixels = np.full((side, side, 3), 128, np.uint8)
    pixels[:5], pixels[-5:] = 0, 255
    return Image.fromarray(pixels)


def test_an_overlay_is_yellow_where_attention_is_and_blue_where_it_is_not():
    attention = torch.zeros(7, 7)
    attention[2, 5] = 1
    drawn = overlay(grey_picture(), attention)
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
        drawn = overlay(grey_picture(), attention).getpixel((50, 7))
        np.testing.assert_allclose(drawn, yellow, atol=3)


@pytest.mark.parametrize("mode", ["L", "RGBA", "1"])
def test_a_picture_of_any_mode_is_taken(mode):
    assert overlay(grey_picture().convert(mode), torch.full((3, 3), 1 / 9)).mode == "RGB"
