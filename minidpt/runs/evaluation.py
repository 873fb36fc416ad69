"""Accuracy on a test set. What is the same for every model is computed once.

A test picture's pixels, and the frozen CLIP's feature of it, do not depend on what was learned.
Zero-shot and CoOp need only that feature; VPT, VLP and DPT need one pass with their prompts.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..clip.network import CLIP
from ..data.batches import Batch, ImageCache, eval_batches, name_all_broken
from ..data.copies import copies_note
from ..data.samples import Sample
from ..images.decode import WhiteLevel
from ..model import PromptedCLIP
from ..support.distributed import SINGLE, World
from ..support.progress import print_line, print_notes, task_progress


class EvalBatch(NamedTuple):
    """images (B, 3, R, R) preprocessed, or None if not asked for; frozen features (B, E)."""

    images: Tensor | None
    frozen: Tensor


class EvalSet:
    """Test pictures for one CLIP: decoded once, their frozen features computed once.

    The pixels are kept after the first pass if they fit in `max_bytes` (default 2 GiB: 14,000
    pictures at 224 pixels); otherwise each pass decodes again. Raises ValueError without items.

    Several ranks share the pictures and, on one machine, `max_bytes`; `own` are this one's.
    """

    def __init__(
        self,
        items: list[Sample],
        clip: CLIP,
        batch_size: int = 100,
        workers: int | None = None,
        max_bytes: int = 2 * 1024**3,
        world: World = SINGLE,
    ):
        if not items:
            raise ValueError("expected test images, got none: give every class at least two images")
        self.items, self.clip = items, clip
        self.own, self.world = world.shard(items), world
        self.labels = torch.tensor([item.label for item in items])
        self.batch_size, self.workers = batch_size, workers
        size = len(self.own) * 3 * clip.visual.resolution**2
        self.keep = size <= max_bytes // world.local_size
        self.white_level = WhiteLevel()
        self._clear()

    def _clear(self) -> None:
        self._kept: list[Batch] = []
        self._features: Tensor | None = None

    def set_white_level(self, white_level: WhiteLevel) -> None:
        """Take a run's level of white, to which `features` adds what it lacks."""
        if white_level != self.white_level:
            self._clear()
        self.white_level = white_level

    @functools.cached_property
    def files(self) -> list[str]:
        """The files of all its pictures, links resolved."""
        return [os.path.realpath(item.path) for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def pixels(self, what: str = "test images") -> Iterator[Batch]:
        """Batches of uint8 images and labels; `what` is done with them, for who watches."""
        resolution, done, kept = self.clip.visual.resolution, 0, []
        batches = self._kept or eval_batches(
            self.own, resolution, self.batch_size, self.workers, self.white_level
        )
        with task_progress(what, len(self.own)) as tell:
            for batch in batches:
                self.world.check()
                if self.keep:
                    kept.append(batch)
                yield batch
                done += len(batch.labels)
                tell(done)
        self._kept = kept

    @torch.no_grad()
    def features(self) -> Tensor:
        """The frozen CLIP's normalised features (N, E) of its `own` images, on its device.

        Raises ValueError or FileNotFoundError that names all pictures that cannot be read.
        """
        if self._features is None:
            device = self.clip.device
            parts = [torch.empty(0, self.clip.visual.proj.shape[1], device=device)]
            with name_all_broken([item.path for item in self.own], self.workers):
                for images, _ in self.pixels("test images through zero-shot CLIP"):
                    images = self.clip.normalize(images.to(device))
                    parts.append(self.clip.encode_image(images).float())
            if self.white_level.settle(self.world):
                self._clear()
                return self.features()
            self._features = F.normalize(torch.cat(parts), dim=-1)
        return self._features

    def batches(self, images: bool) -> Iterator[EvalBatch]:
        """Its `own` pictures in order, with or without `images`, on CLIP's device."""
        frozen = self.features().split(self.batch_size) if self.own else ()
        if images:
            for (pixels, _), features in zip(self.pixels(), frozen, strict=True):
                yield EvalBatch(self.clip.normalize(pixels.to(features.device)), features)
        else:
            for features in frozen:
                yield EvalBatch(None, features)


def read_images(
    model: PromptedCLIP,
    train_set: list[Sample],
    eval_sets: Iterable[EvalSet],
    images: ImageCache,
    workers: int | None,
) -> None:
    """Read all images of a run, so that a broken one is an error before anything is written.

    They share one white level, which the model keeps and which is printed, as are copies of
    training images among the test images.
    """
    world, eval_sets = model.world, list(eval_sets)
    paths = [sample.path for sample in train_set]
    test_paths = [sample.path for eval_set in eval_sets for sample in eval_set.items]
    if world.is_main and (note := copies_note(paths, test_paths)):
        print_line(f"note: {note}")
    images.fill(world.shard(paths), workers, world.shard(test_paths), world)
    model.white_level = images.white_level
    for eval_set in eval_sets:
        eval_set.set_white_level(model.white_level)
        eval_set.features()
    print_notes(model.white_level.notes())
    world.barrier()  # also the slowest has read its images


class EvalPredictions(NamedTuple):
    """Of each test picture the likeliest class (N,) and its probability (N,), on the CPU."""

    labels: Tensor
    probabilities: Tensor


@torch.no_grad()
def predict_eval_set(model: PromptedCLIP, test: EvalSet) -> EvalPredictions:
    """What a model takes the test pictures for."""
    if not test.own:
        model.prompt_features()  # for which the other ranks need this one, too
    batches = test.batches(images=model.config.learns_image)
    logits = (model(images, frozen, branches=False).logits for images, frozen in batches)
    return _likeliest(test, logits)


@torch.no_grad()
def zero_shot(model: PromptedCLIP, test: EvalSet) -> EvalPredictions:
    """What the frozen CLIP with the model's template takes them for."""
    batches = test.batches(images=False)
    features = model.template_features
    logits = (model.scaled_cosines(frozen, features) for _, frozen in batches)
    return _likeliest(test, logits)


def _likeliest(test: EvalSet, logits: Iterable[Tensor]) -> EvalPredictions:
    """Of all pictures, from the logits (B, C) of this rank's own."""
    best = [(own.argmax(dim=-1), own.softmax(dim=-1).amax(dim=-1)) for own in logits]
    labels, probabilities = map(torch.cat, zip(*best, strict=True)) if best else torch.empty(2, 0)
    labels, probabilities = labels.cpu(), probabilities.cpu()
    if test.world.size > 1:
        told = test.world.all_gather_object([labels.tolist(), probabilities.tolist()])
        labels, probabilities = (
            torch.tensor(list(chain.from_iterable(part))) for part in zip(*told, strict=True)
        )
    return EvalPredictions(labels, probabilities)


def top1_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy of predicted labels (N,), in percent."""
    return 100 * int((predicted == labels).sum()) / len(labels)


def zero_shot_accuracy(model: PromptedCLIP, test: EvalSet) -> float:
    """Top-1 accuracy of the frozen CLIP with the model's template, in percent."""
    return top1_accuracy(zero_shot(model, test).labels, test.labels)
