"""How much of the attention falls on the main thing of the demo's test pictures.

    python train.py --method vpt vlp dpt --seed 1 2 3 --out runs/looks
    python tests/benchmarks/attention_share.py runs/looks

The demo is drawn from a seed: where the main thing lies is known to the pixel (`main_things`).
Reported is the mean over the test pictures, then mean ± deviation over the runs that differ in
their seed, of the share of attention over the patches that falls on it: the class token's in the
last layer without and with the learned prompts (`minidpt.attention_maps`), and of DPT the true
class's, where it is selected, and the other selected classes'. Even attention would have the
thing's share of the area. Beside them: what the class token gives to the prompts of the last layer,
what the class-aware attention gives to patches (the rest goes to the class token and to learned
tokens), and the share of its strongest patch. A run's folder in place of a sweep's gives its own.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import minidpt  # noqa: E402
from minidpt.data.splits import read_split  # noqa: E402
from minidpt.demo.demo import SEED, STREET_STYLE, demo_files, draw_scene  # noqa: E402
from minidpt.images.transforms import eval_pixels, normalize  # noqa: E402
from minidpt.maps import AttentionMaps  # noqa: E402
from minidpt.model import PromptedCLIP  # noqa: E402
from minidpt.runs.folders import MODEL, SPLIT, RunFolder  # noqa: E402

BATCH = 96
COLUMNS = ("area", "zero-shot", "tuned", "to prompts", "true class", "other classes", "on patches",
           "strongest")  # fmt: skip


def main_things() -> dict[str, Image.Image]:
    """Where the main thing of each test picture of the demo lies: "fish/fish_000.png" → its mask.

    Masks are as large as the pictures, 255 where a pixel is the thing's, 0 where it is not, and
    between at its edge. All pictures are drawn again for them, in a second or two.
    """
    rng, masks = random.Random(SEED), {}
    for file in demo_files():
        outlines, mask = [], Image.new("L", (192, 192))
        draw_scene(file.parent.name, rng, STREET_STYLE, outlines=outlines)
        for polygon in outlines:
            ImageDraw.Draw(mask).polygon(polygon, fill=255)
        mask = mask.resize((96, 96), Image.BOX)
        if file.parts[0] == "test":
            masks["/".join(file.parts[1:])] = mask
    return masks


def covered(mask: Image.Image, side: int) -> Tensor:
    """How much of each of side × side patches is the thing's, 0–1."""
    shares = Image.fromarray(np.asarray(mask, np.float32) / 255).resize((side, side), Image.BOX)
    return torch.from_numpy(np.array(shares))


def watched(model: PromptedCLIP, images: Tensor) -> tuple[AttentionMaps, dict[str, Tensor]]:
    """The maps, and what they leave out: column → a share for each image (B,).

    "to prompts": of the class token's attention in the last layer; "on patches": of the class-aware
    attention, mean over classes.
    """
    last, left_out = model.clip.visual.transformer.resblocks[-1], {}
    tokens, real = len(model.clip.visual.positional_embedding), last.cls_attention_weights

    def cls_attention_weights(x: Tensor, prompts: Tensor | None = None) -> Tensor:
        weights = real(x, prompts)
        left_out["to prompts"] = weights[..., tokens:].sum(dim=-1).mean(dim=1)
        return weights

    def generated(module, inputs, output) -> None:
        left_out["on patches"] = output.weights[..., 1:tokens].sum(dim=-1).mean(dim=1)

    hooks = [generator.register_forward_hook(generated) for generator in model.class_aware]
    last.cls_attention_weights = cls_attention_weights  # called last with the prompts
    try:
        return minidpt.attention_maps(model, images), left_out
    finally:
        del last.cls_attention_weights
        for hook in hooks:
            hook.remove()


def shares(maps: AttentionMaps, thing: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Column → a value for each image, NaN where it has none; thing (B, g, g), labels (B,)."""

    def on_thing(values: Tensor) -> Tensor:
        return (values * thing).sum(dim=(-2, -1))

    found = {
        "area": thing.mean(dim=(-2, -1)),
        "zero-shot": on_thing(maps.zero_shot),
        "tuned": on_thing(maps.tuned),
    }
    if maps.class_aware is not None:
        by_class = on_thing(maps.class_aware.transpose(0, 1)).t()  # (B, K)
        true = maps.top_classes == labels.unsqueeze(1)
        found["true class"] = torch.where(true, by_class, torch.nan).nanmean(dim=1)
        found["other classes"] = torch.where(true, torch.nan, by_class).nanmean(dim=1)
        found["strongest"] = maps.class_aware.amax(dim=(-2, -1)).mean(dim=1)
    return found


def measured(run: RunFolder, clip: minidpt.CLIP, masks: dict[str, Image.Image]) -> dict[str, float]:
    """Column → the mean over the test pictures."""
    model, test = minidpt.load_model(run.path(MODEL), clip), read_split(run.path(SPLIT)).test
    resolution, values = clip.visual.resolution, defaultdict(list)
    for first in range(0, len(test), BATCH):
        items = test[first : first + BATCH]
        opened = (model.white_level.open(item.path) for item in items)
        pixels = np.stack([eval_pixels(image, resolution) for image in opened])
        images = normalize(torch.from_numpy(pixels))
        maps, left_out = watched(model, images)
        files = ["/".join(Path(item.path).parts[-2:]) for item in items]
        thing = torch.stack([covered(masks[file], maps.tuned.shape[-1]) for file in files])
        labels = torch.tensor([item.label for item in items])
        for column, found in (shares(maps, thing, labels) | left_out).items():
            values[column].append(found)
    return {column: 100 * torch.cat(found).nanmean().item() for column, found in values.items()}


def main() -> None:
    """Print a table, a row for the runs that differ in their seed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="a sweep of train.py on the demo, or a run")
    folder = Path(parser.parse_args().folder)
    found = sorted(path.parent for path in [*folder.glob(MODEL), *folder.glob(f"*/{MODEL}")])
    clip, masks, rows = minidpt.load("tiny")[0], main_things(), defaultdict(list)
    for run in found:
        rows[re.sub(r"-seed\d+$", "", run.name)].append(measured(RunFolder.open(run), clip, masks))
    print(f"| share of attention, % | seeds | {' | '.join(COLUMNS)} |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    for name, results in rows.items():
        cells = [f"{name} | {len(results)}"]
        for column in COLUMNS:
            values = [result[column] for result in results if column in result]
            cells.append(f"{fmean(values):.1f} ± {pstdev(values):.1f}" if values else "–")
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
