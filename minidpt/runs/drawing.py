"""Drawn with Pillow: attention over a picture, texts in any script, bars."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

BRIGHTEST = 4  # times the share that even attention gives a patch: from there on full colour
COVER = 0.62  # how much of a picture the colours cover
# Cividis (Nuñez, Anderton, Renslow 2018): dark blue to yellow, the same to the colour-blind, and
# lighter with every step.
CIVIDIS = (
    (0, 32, 77), (0, 52, 110), (60, 77, 108), (102, 105, 112), (124, 123, 120), (148, 142, 119),
    (187, 175, 106), (222, 203, 87), (255, 234, 70),
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
