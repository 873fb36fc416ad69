"""One picture explained: what the model sees, where it looks, and what it takes it for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from ..files import replacing
from ..images.transforms import eval_pixels
from ..maps import attention_maps
from ..model import PromptedCLIP
from .drawing import BRIGHTEST, PALE, bar, colour_scale, overlay, write
from .folders import claimed

PANEL, GAP, MARGIN = 224, 16, 24  # pixels
WIDTH = 3 * PANEL + 2 * GAP + 2 * MARGIN
ROW = 38  # of a class with two bars
LEARNED, ZERO_SHOT = "#0072b2", "#e69f00"  # told apart by the colour-blind (Okabe, Ito 2008)
MOST_CLASSES = 10
Panel = tuple[str, Image.Image]


class Explanations:
    """PNG files in a folder, named after the pictures that they explain."""

    def __init__(self, folder: Path, model: PromptedCLIP, top: int):
        self.folder, self.model, self.top, self.taken = folder, model, top, set()

    @classmethod
    @contextmanager
    def new(
        cls, folder: str | os.PathLike, data: Iterable[Path], model: PromptedCLIP, top: int = 5
    ) -> Iterator[Explanations]:
        """To be written to a new or empty folder outside the data; raises as `claimed`.

        top: how many of the likeliest classes have bars, at most `MOST_CLASSES`.
        """

        def unfinished(held: set[str]) -> bool:  # what a killed process has left
            return all(name.endswith(".png.part") for name in held)

        with claimed(Path(folder), data, unfinished, "--attention-maps"):
            yield cls(Path(folder), model, top)

    def write(self, path: str | os.PathLike) -> Path:
        """Explain one picture: a.jpg in a.png, or in a-2.png; raises as `PromptedCLIP.predict`."""
        stem = os.fsdecode(os.fsencode(Path(path).stem)[:200])
        numbered = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
        name = next(name for name in numbered if name.casefold() not in self.taken)
        self.taken.add(name.casefold())
        file = self.folder / f"{name}.png"
        with replacing(file) as unfinished:
            explained(self.model, path, self.top).save(unfinished, format="PNG", optimize=True)
        return file


@torch.no_grad()
def explained(model: PromptedCLIP, path: str | os.PathLike, top: int = 5) -> Image.Image:
    """The picture as the model sees it, attention before and after tuning, of DPT also that of the
    three likeliest of its selected classes, and bars of probabilities.
    """
    pixels = eval_pixels(path, model.clip.visual.resolution, model.white_level)
    images = model.clip.normalize(torch.from_numpy(pixels)[None])
    maps = attention_maps(model, images)
    learned = model(images.to(model.clip.device), branches=False).logits[0].softmax(dim=-1).cpu()
    zero_shot = zero_shot_probabilities(model, images)

    seen = Image.fromarray(pixels.transpose(1, 2, 0))
    seen = seen.resize((PANEL, PANEL), Image.Resampling.BICUBIC)
    rows: list[tuple[str, list[Panel]]] = [("", [("What the model sees", seen)])]
    if model.config.learns_image:
        rows[0][1].append(("Attention before tuning", overlay(seen, maps.zero_shot[0])))
        rows[0][1].append(("Attention after tuning", overlay(seen, maps.tuned[0])))
    else:
        rows[0][1].append(("Attention (not tuned)", overlay(seen, maps.zero_shot[0])))
    if maps.class_aware is not None:
        selected = maps.top_classes[0].cpu()
        likeliest = learned[selected].topk(min(3, len(selected))).indices.tolist()
        rows.append(("Where the prompts of the likeliest classes look (class-aware attention)", [
            (model.classnames[selected[slot]], overlay(seen, maps.class_aware[0, slot]))
            for slot in likeliest
        ]))  # fmt: skip
    classes = learned.topk(min(top, MOST_CLASSES, len(learned))).indices.tolist()
    best = int(zero_shot.argmax())
    classes += [] if best in classes else [best]
    series = [("zero-shot", ZERO_SHOT, zero_shot)]
    if model.config.method != "zeroshot":
        series.insert(0, (model.config.method, LEARNED, learned))
    names = [model.classnames[c] for c in classes]
    bars = [(label, colour, values[classes].tolist()) for label, colour, values in series]
    return composed(Path(path).name, rows, names, bars)


def zero_shot_probabilities(model: PromptedCLIP, images: Tensor) -> Tensor:
    """(C,) of one image (1, 3, R, R), by the template."""
    frozen = model.clip.encode_image(images.to(model.clip.device)).float()
    logits = model.scaled_cosines(F.normalize(frozen, dim=-1), model.template_features)
    return logits[0].softmax(dim=-1).cpu()


def composed(
    title: str,
    rows: list[tuple[str, list[Panel]]],
    names: list[str],
    bars: list[tuple[str, str, list[float]]],
) -> Image.Image:
    """One image of all of it; `bars`: a label, a colour and a share (0–1) for each name."""
    height = 64 + sum(PANEL + 34 + (28 if head else 0) for head, _ in rows) + 44
    height += 44 + ROW * len(names) + MARGIN
    page = Image.new("RGB", (WIDTH, height), "white")
    draw, room = ImageDraw.Draw(page), WIDTH - 2 * MARGIN
    write(draw, (MARGIN, 42), title, room, 20)

    y = 64
    for head, panels in rows:
        if head:
            write(draw, (MARGIN, y + 18), head, room)
            y += 28
        for place, (caption, picture) in enumerate(panels):
            x = MARGIN + place * (PANEL + GAP)
            write(draw, (x, y + 14), caption, PANEL, 13, fill=PALE)
            page.paste(picture, (x, y + 22))
        y += PANEL + 34
    page.paste(colour_scale(PANEL, 10), (MARGIN, y + 2))
    scale = f"attention of a patch: 0 to {BRIGHTEST} times its even share, or more"
    write(draw, (MARGIN + PANEL + GAP, y + 12), scale, room - PANEL - GAP, 13, fill=PALE)

    y += 44
    left = MARGIN + PANEL + GAP
    for place, (label, colour, _) in enumerate(bars):
        x = left + 110 * place
        draw.rectangle((x, y + 4, x + 11, y + 15), fill=colour)
        write(draw, (x + 18, y + 15), label, 90, 13, fill=PALE)
    y += 28
    for number, name in enumerate(names):
        top = y + ROW * number
        write(draw, (left - 10, top + 21), name, PANEL, anchor="rs")
        for place, (_, colour, shares) in enumerate(bars):
            high = top + 3 + 14 * place
            bar(draw, (left, high, WIDTH - MARGIN - 60, high + 11), shares[number], colour)
    return page
