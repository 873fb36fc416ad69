"""How much of an image's feature, and of the accuracy, its surroundings decide.

    python tests/benchmarks/concentration.py --draw runs/all24      # all 24 things, not only 12
    python train.py --data runs/all24 --model tiny --epochs 60 \\
        --method zeroshot coop vpt vlp dpt --seed 1 2 3 --out runs/methods24
    python tests/benchmarks/concentration.py runs/methods24

The demo's images have two or three smaller things around the main one. Each test image is drawn
again without them, all else the same to the pixel. What they decide of the feature f is

    (1 − mean cos(f with, f without)) / (1 − mean cos(f with, f with of other classes))

0 if they do not matter, 1 if an image without them is as far away as one of another class. Prints
that share and the accuracy with and without them, in percent: mean ± deviation over the runs that
differ in their seed. A sweep on the demo itself (`python train.py --method … --out DIR`) has 12
classes.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from statistics import fmean, pstdev

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import minidpt  # noqa: E402
from minidpt.config import METHODS  # noqa: E402
from minidpt.data.splits import read_split  # noqa: E402
from minidpt.demo.demo import SEED, STREET_STYLE, demo_files, draw_scene  # noqa: E402
from minidpt.demo.things import THINGS  # noqa: E402
from minidpt.images.transforms import eval_pixels, normalize  # noqa: E402
from minidpt.runs.folders import MODEL, SPLIT, RunFolder  # noqa: E402
from minidpt.runs.results import METHOD_NAMES  # noqa: E402

BATCH = 96
COLUMNS = ("surroundings decide", "accuracy with", "accuracy without")


def draw_images(
    classes: Iterable[str], alone: bool = False
) -> Iterator[tuple[PurePath, Image.Image]]:
    """Draw the demo's images of these classes, with the things around the main one or `alone`."""
    rng = random.Random(SEED)
    for file in demo_files(classes):
        yield file, draw_scene(file.parent.name, rng, STREET_STYLE, alone=alone)


def draw_data_set(folder: Path) -> None:
    """Write the images of all 24 things as train/ and test/ of class folders."""
    for file, image in draw_images(THINGS):
        (folder / file.parent).mkdir(parents=True, exist_ok=True)
        image.save(folder / file, compress_level=1)


def with_and_without(run: RunFolder, resolution: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a run's test images (N, 3, R, R), those without surroundings, and labels (N,).

    Raises ValueError if what is drawn again is not what the run was tested on.
    """
    split = read_split(run.path(SPLIT))
    drawn_with, drawn_without = (
        {file.parts[1:]: image for file, image in draw_images(sorted_as_drawn(split), alone)
         if file.parts[0] == "test"}
        for alone in (False, True)
    )  # fmt: skip
    batches = ([], [])
    for sample in split.test:
        key = Path(sample.path).parts[-2:]
        opened = Image.open(sample.path)
        if opened.tobytes() != drawn_with[key].tobytes():
            raise ValueError(f"{sample.path}: expected the demo's image, got another")
        for batch, image in zip(batches, (drawn_with[key], drawn_without[key]), strict=True):
            batch.append(eval_pixels(image, resolution))
    tensors = (normalize(torch.from_numpy(np.stack(batch))) for batch in batches)
    return *tensors, torch.tensor([sample.label for sample in split.test])


def sorted_as_drawn(split: minidpt.data.samples.Dataset) -> list[str]:
    """Return the classes of a data set in the order in which the demo draws them."""
    return [name for name in THINGS if name in split.classnames]


@torch.no_grad()
def features_and_labels(model: minidpt.PromptedCLIP, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return normalised image features (N, E) and the predicted labels (N,)."""
    features, predicted = [], []
    for batch in images.split(BATCH):
        output = model(batch, branches=False)
        features.append(F.normalize(output.image_features, dim=-1))
        predicted.append(output.logits.argmax(dim=-1))
    return torch.cat(features), torch.cat(predicted)


def surroundings_share(with_others: Tensor, alone: Tensor, labels: Tensor) -> float:
    """Return what the surroundings decide of normalised features (N, E), see above."""
    changed = 1 - F.cosine_similarity(with_others, alone).mean()
    is_other_class = labels.unsqueeze(0) != labels.unsqueeze(1)
    others = 1 - (with_others @ with_others.t())[is_other_class].mean()
    return (changed / others).item()


def measure(
    model: minidpt.PromptedCLIP, with_others: Tensor, alone: Tensor, labels: Tensor
) -> dict[str, float]:
    """Return a value for each of `COLUMNS`."""
    model.eval()
    (features, predicted), (features_alone, predicted_alone) = (
        features_and_labels(model, images) for images in (with_others, alone)
    )
    values = (
        100 * surroundings_share(features, features_alone, labels),
        100 * (predicted == labels).float().mean().item(),
        100 * (predicted_alone == labels).float().mean().item(),
    )
    return dict(zip(COLUMNS, values, strict=True))


def row_name(run: RunFolder, folder: Path) -> str:
    """Return a run's method, and of several sweeps in a folder the run's."""
    method = METHOD_NAMES[run.read_config()[0].prompts.method]
    sweep = run.folder.parent.relative_to(folder)
    return f"{method} ({sweep.name})" if sweep.name else method


def main() -> None:
    """Draw the images, or print a table with a row for the runs that differ in their seed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a sweep of train.py on the demo, or of sweeps")
    parser.add_argument("--draw", action="store_true", help="draw all 24 things into the folder")
    args = parser.parse_args()
    if args.draw:
        return draw_data_set(args.folder)
    clip, rows, images = minidpt.load("tiny")[0], defaultdict(list), None
    runs = [RunFolder.open(path.parent) for path in sorted(args.folder.rglob(MODEL))]
    for run in sorted(runs, key=lambda run: METHODS.index(run.read_config()[0].prompts.method)):
        images = images or with_and_without(run, clip.visual.resolution)
        results = measure(minidpt.load_model(run.path(MODEL), clip), *images)
        rows[row_name(run, args.folder)].append(results)
    print(f"| % | seeds | {' | '.join(COLUMNS)} |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    for name, results in rows.items():
        values = ([result[column] for result in results] for column in COLUMNS)
        cells = [f"{fmean(column):.1f} ± {pstdev(column):.1f}" for column in values]
        print(f"| {name} | {len(results)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
