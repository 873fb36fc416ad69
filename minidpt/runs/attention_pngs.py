"""PNGs of attention: what the model sees, where it looks, and what it takes it for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from ..images.transforms import eval_pixels
from ..maps import AttentionMaps, attention_maps
from ..model import PromptedCLIP
from ..support.files import atomic_write
from .drawing import BRIGHTEST, PALE, bar, colour_scale, overlay, write
from .folders import lock_output_folder

PANEL, GAP, MARGIN = 224, 16, 24  # pixels
WIDTH = 3 * PANEL + 2 * GAP + 2 * MARGIN
ROW = 38  # of a class with two bars
LEARNED, ZERO_SHOT = "#0072b2", "#e69f00"  # told apart by the colour-blind (Okabe, Ito 2008)
MOST_CLASSES = 10
Panel = tuple[str, Image.Image]  # with a caption
Row = tuple[str, list[Panel]]  # with a heading
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

    def is_unfinished(contents: set[str]) -> bool:  # what a killed process has left
        return all(name.endswith(".png.part") for name in contents)

    with lock_output_folder(Path(folder), data, is_unfinished, "--attention-maps"):
        yield draw


def attention_panels(
    model: PromptedCLIP, path: str | os.PathLike, side: int
) -> tuple[list[Panel], Tensor, AttentionMaps]:
    """Draw an image as the model sees it, and attention over it without and with learned prompts.

    Returns square images of `side` pixels under captions, the model's input (1, 3, R, R), its maps.
    """
    pixels = eval_pixels(path, model.clip.visual.resolution, model.white_level)
    images = model.clip.normalize(torch.from_numpy(pixels)[None])
    maps = attention_maps(model, images)
    seen = Image.fromarray(pixels.transpose(1, 2, 0))
    seen = seen.resize((side, side), Image.Resampling.BICUBIC)
    captions = {"Attention (not tuned)": maps.zero_shot}
    if model.config.learns_image:
        captions = {"Attention before tuning": maps.zero_shot, "Attention after tuning": maps.tuned}
    panels = [(caption, overlay(seen, weights[0])) for caption, weights in captions.items()]
    return [("What the model sees", seen), *panels], images, maps


@torch.no_grad()
def draw_attention(model: PromptedCLIP, path: str | os.PathLike, top: int = 5) -> Image.Image:
    """Draw an image as the model sees it, attention before and after tuning, of DPT also that of
    the three likeliest of its selected classes, and bars of probabilities.
    """
    panels, images, maps = attention_panels(model, path, PANEL)
    learned = model(images.to(model.clip.device), branches=False).logits[0].softmax(dim=-1).cpu()
    zero_shot = zero_shot_probabilities(model, images)
    rows: list[Row] = [("", panels)]
    if maps.class_aware is not None:
        selected = maps.top_classes[0].cpu()
        likeliest = learned[selected].topk(min(3, len(selected))).indices.tolist()
        rows.append(("Where the prompts of the likeliest classes look (class-aware attention)", [
            (model.classnames[selected[slot]], overlay(panels[0][1], maps.class_aware[0, slot]))
            for slot in likeliest
        ]))  # fmt: skip
    classes = learned.topk(min(top, MOST_CLASSES, len(learned))).indices.tolist()
    classes = list(dict.fromkeys([*classes, int(zero_shot.argmax())]))
    bars = [(model.config.method, LEARNED, learned[classes].tolist())]
    bars = [] if model.config.method == "zeroshot" else bars
    bars.append(("zero-shot", ZERO_SHOT, zero_shot[classes].tolist()))
    return compose(Path(path).name, rows, [model.classnames[label] for label in classes], bars)


def zero_shot_probabilities(model: PromptedCLIP, images: Tensor) -> Tensor:
    """Return (C,) of one image (1, 3, R, R), by the template."""
    frozen = model.clip.encode_image(images.to(model.clip.device)).float()
    logits = model.scaled_cosines(F.normalize(frozen, dim=-1), model.template_features)
    return logits[0].softmax(dim=-1).cpu()


def compose(title: str, rows: list[Row], names: list[str], bars: list[Bars]) -> Image.Image:
    """Draw rows of panels and, for each name of a class, bars into one image."""
    height = sum(PANEL + 34 + (28 if head else 0) for head, _ in rows)
    height += 152 + ROW * len(names) + MARGIN
    page = Image.new("RGB", (WIDTH, height), "white")
    draw, room = ImageDraw.Draw(page), WIDTH - 2 * MARGIN
    write(draw, (MARGIN, 42), title, room, 20)
    y = 64
    for head, panels in rows:
        if head:
            write(draw, (MARGIN, y + 18), head, room)
            y += 28
        for x, (caption, panel) in zip(range(MARGIN, WIDTH, PANEL + GAP), panels):
            write(draw, (x, y + 14), caption, PANEL, 13, fill=PALE)
            page.paste(panel, (x, y + 22))
        y += PANEL + 34
    left = MARGIN + PANEL + GAP
    page.paste(colour_scale(PANEL, 10), (MARGIN, y + 2))
    scale = f"attention of a patch: 0 to {BRIGHTEST} times its even share, or more"
    write(draw, (left, y + 12), scale, room - PANEL - GAP, 13, fill=PALE)
    y += 44
    for x, (label, colour, _) in zip(range(left, WIDTH, 110), bars):
        draw.rectangle((x, y + 4, x + 11, y + 15), fill=colour)
        write(draw, (x + 18, y + 15), label, 90, 13, fill=PALE)
    for number, name in enumerate(names):
        top = y + 28 + ROW * number
        write(draw, (left - 10, top + 21), name, PANEL, anchor="rs")
        for high, (_, colour, shares) in zip((top + 3, top + 17), bars):
            bar(draw, (left, high, WIDTH - MARGIN - 60, high + 11), shares[number], colour)
    return page
