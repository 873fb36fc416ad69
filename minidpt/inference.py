"""Predict the classes of image files, and find the CLIP that a model file was trained on."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice, repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .checkpoints.pretrained import NAMES, load
from .checkpoints.prompt_file import SavedModel
from .clip.network import CLIP
from .images.decode import ImageSource
from .images.threads import map_ordered
from .images.transforms import eval_pixels
from .support.files import short_repr

PREDICT_BATCH = 100


class Prediction(NamedTuple):
    """A class name and its probability, 0–1."""

    classname: str
    probability: float


class Classification(NamedTuple):
    """Labels of an image's likeliest classes, best first, their probabilities, and its features."""

    labels: list[int]
    probabilities: list[float]
    features: Tensor  # (E,), with the learned prompts, normalised, on the CPU

    def predictions(self, classnames: Sequence[str]) -> list[Prediction]:
        """Return the classes by their names."""
        names = (classnames[label] for label in self.labels)
        return list(map(Prediction, names, self.probabilities))


Result = list[Prediction] | ValueError | OSError


def check_probabilities(probabilities: Tensor, source: str) -> None:
    """Raise ValueError, which begins with `source`, unless probabilities on the CPU are finite.

    One NaN or infinity among the logits of an image makes all its probabilities NaN.
    """
    if not probabilities.isfinite().all():
        fix = "train again with lower learning rates, or use --precision fp32"
        raise ValueError(f"{source}: expected finite logits, got NaN or infinity: {fix}")


@torch.no_grad()
def classify_batch(model: Any, images: Tensor, top: int) -> list[Classification]:
    """Classify preprocessed images (B, 3, R, R); raises as `check_probabilities`."""
    output = model(images.to(model.clip.device), branches=False)
    values, labels = output.logits.softmax(dim=-1).topk(min(top, len(model.classnames)))
    check_probabilities(values.cpu(), model.path)
    features = F.normalize(output.image_features, dim=-1).cpu()
    return list(map(Classification, labels.tolist(), values.tolist(), features))


def classify_each(
    model: Any, images: Iterable[ImageSource], top: int, workers: int | None = None
) -> Iterator[tuple[ImageSource, Classification | ValueError | OSError]]:
    """Classify any number of images in little memory: yields each with its classification.

    model: a `PromptedCLIP`. An image that cannot be read has its error, and so have all of a batch
    if its logits are not finite. Threads (`workers` as in `map_ordered`) read ahead. Raises
    ValueError for `top` below 1.
    """
    if top < 1:  # else an error for each image
        raise ValueError(f"top: expected at least 1, got {top}")
    clip = model.clip

    def read(image: ImageSource) -> tuple[ImageSource, np.ndarray | ValueError | OSError]:
        try:
            return image, eval_pixels(model.white_level.open(image), clip.visual.resolution)
        except (ValueError, OSError) as error:
            return image, error

    with closing(map_ordered(read, images, workers, ahead=2 * PREDICT_BATCH)) as contents:
        while batch := list(islice(contents, PREDICT_BATCH)):
            pixels = [content for _, content in batch if isinstance(content, np.ndarray)]
            results = iter(())
            if pixels:
                stacked = torch.from_numpy(np.stack(pixels)).to(clip.device)  # (B, 3, R, R) bytes
                try:
                    results = iter(classify_batch(model, clip.normalize(stacked), top))
                except ValueError as error:
                    results = repeat(error)
            for image, content in batch:
                yield image, next(results) if isinstance(content, np.ndarray) else content


def predict_all(
    model: Any, images: ImageSource | Iterable[ImageSource], top: int
) -> list[list[Prediction]]:
    """Predict one or several images with a `PromptedCLIP`; raises if one cannot be read."""
    single = isinstance(images, (str, bytes, np.ndarray)) or hasattr(images, "read")
    images = list(images) if isinstance(images, Iterable) and not single else [images]
    # Pillow images may share an open file, so that only paths are read by several threads.
    paths = all(isinstance(image, (str, os.PathLike)) for image in images)
    predictions = []
    with closing(model.predict_each(images, top, None if paths else 0)) as results:
        for _, result in results:
            if isinstance(result, Exception):
                raise result
            predictions.append(result)
    return predictions


def find_clip(saved: SavedModel, clip: CLIP | None) -> CLIP:
    """Load the CLIP of a model file by its name, or check that `clip` is that CLIP.

    Raises ValueError for other weights or another image size.
    """
    name, image_size = saved.clip["name"], saved.clip.get("image_size")
    if clip is None and name not in NAMES:
        raise ValueError(f"its CLIP {short_repr(name)} is no known name: pass clip=")
    if clip is None:
        clip, _ = load(name, quick_gelu=saved.clip["quick_gelu"], image_size=image_size)
    expected, got = saved.clip["fingerprint"], clip.fingerprint()
    if got != expected:
        raise ValueError(
            f"its prompts were learned with the weights of {name[:60]} ({expected[:12]}…), got "
            f"those of {clip.name} ({got[:12]}…): pass the CLIP it was trained on"
        )
    if clip.image_size != image_size:
        fix = f"load it with image_size={image_size} (--image-size)"
        raise ValueError(f"its prompts were learned at another image size than the CLIP's: {fix}")
    return clip
