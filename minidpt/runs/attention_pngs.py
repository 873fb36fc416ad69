"""PNGs of attention: what the model sees, where it looks, and what it takes it for."""

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path

import numpy as np
import regex
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torch.nn import functional as F

from ..images.transforms import eval_transform, to_uint8
from ..maps import AttentionMaps, attention_maps
from ..model import PromptedCLIP
from ..support.files import atomic_write, printable
from .folders import lock_output_folder

PANEL, GAP, MARGIN = 224, 16, 24  # pixels
WIDTH = 3 * PANEL + 2 * GAP + 2 * MARGIN
ROW = 38  # of a class with two bars
INK, PALE = "#1a1a1a", "#666666"
LEARNED, ZERO_SHOT = "#0072b2", "#e69f00"  # told apart by the colour-blind (Okabe, Ito 2008)
MOST_CLASSES = 10
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
Panel = tuple[str, Image.Image]  # with a caption
Bars = tuple[str, str, list[float]]  # a label, a colour and a share (0–1) for each name


@contextmanager
def attention_map_folder(
    folder: str | os.PathLike, data: Iterable[Path], model: PromptedCLIP, top: int = 5
) -> Iterator[Callable[[str | os.PathLike], Path]]:
    """Lock a new or empty folder outside the data; raises as `lock_output_folder`.

    top: how many of the likeliest classes have bars, at most `MOST_CLASSES`.
    Yields a function that draws the maps of a.jpg in a.png, or in a-2.png, and returns that path;
    it raises as `PromptedCLIP.predict`.
    """
    taken: set[str] = set()

    def draw(path: str | os.PathLike) -> Path:
        stem = os.fsdecode(os.fsencode(Path(path).stem)[:200])
        numbered = chain([stem], (f"{stem}-{number}" for number in count(2)))
        name = next(name for name in numbered if name.casefold() not in taken)
        taken.add(name.casefold())
        file = Path(folder, f"{name}.png")
        with atomic_write(file) as unfinished:
            draw_attention(model, path, top).save(unfinished, format="PNG", optimize=True)
        return file

    with lock_output_folder(Path(folder), data, option="--attention-maps"):
        yield draw


@torch.no_grad()
def draw_attention(model: PromptedCLIP, path: str | os.PathLike, top: int = 5) -> Image.Image:
    """Draw an image as the model sees it, attention before and after tuning, of DPT also that of
    the three likeliest of its selected classes, and bars of probabilities.
    """
    panels, images, maps = attention_panels(model, path, PANEL)
    learned = model(images.to(model.clip.device), branches=False).logits[0].softmax(dim=-1).cpu()
    frozen = F.normalize(model.clip.encode_image(images.to(model.clip.device)).float(), dim=-1)
    zero_shot = model.scaled_cosines(frozen, model.template_features)[0].softmax(dim=-1).cpu()
    rows = {"": panels}
    if maps.class_aware is not None:
        selected = maps.top_classes[0].cpu()
        likeliest = learned[selected].topk(min(3, len(selected))).indices.tolist()
        head = "Patches that class-aware prompts of likely classes are made from (cross attention)"
        rows[head] = [
            (model.classnames[selected[slot]], overlay(panels[0][1], maps.class_aware[0, slot]))
            for slot in likeliest
        ]
    classes = learned.topk(min(top, MOST_CLASSES, len(learned))).indices.tolist()
    classes = list(dict.fromkeys([*classes, int(zero_shot.argmax())]))
    bars = [("zero-shot", ZERO_SHOT, zero_shot[classes].tolist())]
    if model.config.method != "zeroshot":
        bars.insert(0, (model.config.method, LEARNED, learned[classes].tolist()))
    return compose(Path(path).name, rows, [model.classnames[label] for label in classes], bars)


def attention_panels(
    model: PromptedCLIP, path: str | os.PathLike, side: int
) -> tuple[list[Panel], Tensor, AttentionMaps]:
    """Draw an image as the model sees it, and attention over it without and with learned prompts.

    Returns square images of `side` pixels under captions, the model's input (1, 3, R, R), its maps.
    """
    view = eval_transform(model.white_level.open(path), model.clip.visual.resolution)
    images = model.clip.normalize(torch.from_numpy(to_uint8(view))[None])
    maps = attention_maps(model, images)
    seen = view.resize((side, side), Image.Resampling.BICUBIC)
    captions = {"Attention (not tuned)": maps.zero_shot}
    if model.config.learns_image:
        captions = {"Attention before tuning": maps.zero_shot, "Attention after tuning": maps.tuned}
    panels = [(caption, overlay(seen, weights[0])) for caption, weights in captions.items()]
    return [("What the model sees", seen), *panels], images, maps


def overlay(image: Image.Image, attention: Tensor) -> Image.Image:
    """Draw an image in grey under the colours of a map of attention: blue 0, yellow `BRIGHTEST`.

    image: square, of any size, which the result has. attention: (g, g), summing to 1 (`maps.py`);
    every map has the same scale, so that two can be compared.
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


def compose(
    title: str, rows: dict[str, list[Panel]], names: list[str], bars: list[Bars]
) -> Image.Image:
    """Draw rows of panels under headings and, for each name of a class, bars into one image."""
    height = 152 + MARGIN + ROW * len(names) + sum(PANEL + 34 + 28 * bool(head) for head in rows)
    page = Image.new("RGB", (WIDTH, height), "white")
    draw, room = ImageDraw.Draw(page), WIDTH - 2 * MARGIN
    write(draw, (MARGIN, 42), title, room, 20)
    y = 64
    for head, panels in rows.items():
        if head:
            write(draw, (MARGIN, y + 18), head, room)
            y += 28
        for x, (caption, panel) in zip(range(MARGIN, WIDTH, PANEL + GAP), panels):
            write(draw, (x, y + 14), caption, PANEL, 13, fill=PALE)
            page.paste(panel, (x, y + 22))
        y += PANEL + 34
    left = MARGIN + PANEL + GAP
    page.paste(coloured(np.tile(np.linspace(0, 1, PANEL), (10, 1))), (MARGIN, y + 2))
    scale = f"attention of a patch: 0 to {BRIGHTEST} times the average, or more"
    write(draw, (left, y + 12), scale, room - PANEL - GAP, 13, fill=PALE)
    y += 44
    for x, (label, colour, _) in zip(range(left, WIDTH, 110), bars):
        draw.rectangle((x, y + 4, x + 11, y + 15), fill=colour)
        write(draw, (x + 18, y + 15), label, 90, 13, fill=PALE)
    for number, name in enumerate(names):
        top = y + 28 + ROW * number
        write(draw, (left - 10, top + 21), name, PANEL, anchor="rs")
        for high, (_, colour, shares) in zip((top + 3, top + 17), bars):
            end = left + round(shares[number] * (WIDTH - MARGIN - 60 - left))
            draw.rectangle((left, high, max(end, left + 1), high + 11), fill=colour)
            share = f"{100 * shares[number]:.1f} %"
            write(draw, (end + 6, high + 11), share, 60, 12, fill=PALE)
    return page


def write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, width: int, size: int = 14, **look
) -> None:
    """Draw one line of text, cut to a width in pixels. at: one end of it, on its baseline."""
    text = ellipsize(text, width, size)
    draw.text(at, text, font=font_for(text, size), **{"fill": INK, "anchor": "ls", **look})


def ellipsize(text: str, width: int, size: int) -> str:
    """Return a text in one line, cut at its logical end, never within a letter and its accents.

    It is at most `width` pixels wide with the "…" behind it.
    """
    text = printable(text)
    font, letters = font_for(text, size), regex.findall(r"\X", text)[:width]  # none has less than 1
    while letters and font.getlength(text) > width:
        letters.pop()
        text = f"{''.join(letters).rstrip()}…"
    return text


@functools.cache
def fonts(size: int) -> list[ImageFont.FreeTypeFont]:
    """Return Pillow's own font, and those of `MORE_FONTS` that this system has."""
    available = [ImageFont.load_default(size)]
    for name in MORE_FONTS:
        with suppress(OSError):
            available.append(ImageFont.truetype(name, size))
    return available


@functools.cache
def missing_glyph(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Return whether the font draws a letter as it draws what is none."""
    return bytes(font.getmask(letter)) == bytes(font.getmask("\uffff"))


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Return the first font that lacks the fewest letters of a text."""
    return min(fonts(size), key=lambda font: sum(missing_glyph(font, c) for c in set(text)))
