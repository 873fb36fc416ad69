"""Accuracy on a test set. What is the same for every model is computed once.

A test picture's pixels, and the frozen CLIP's feature of it, do not depend on what was learned.
Zero-shot and CoOp need only that feature; VPT, VLP and DPT need one pass with their prompts.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..clip.network import CLIP, numerics
from ..clip.white import White
from ..data.batches import Batch, deep_pictures, naming_all_broken, test_batches
from ..data.items import Item
from ..files import locked, replacing
from ..model import PromptedCLIP
from ..progress import job
from ..ranks import ALONE, Ranks

_HEADER = re.compile(  # of np.save for float32 (N, E)
    rb"\x93NUMPY\x01\x00v\x00\{'descr': '<f4', 'fortran_order': False, 'shape': "
    rb"\((\d{1,9}), (\d{1,9})\), \} *\n"
)


class FeatureCache:
    """Frozen features of test sets as files in a folder, for the next process.

    The key of a file: CLIP's weights and activation, its precision and kind of device, the size it
    takes, the level of white, and each picture's path, size and time of last change. Files take at
    most `max_bytes` (default 1 GiB; 50,000 pictures on ViT-B/32 take 0.1); the least recently used
    give way.
    """

    def __init__(self, folder: str | os.PathLike, max_bytes: int = 1024**3):
        self.folder, self.max_bytes = Path(folder), max_bytes

    def file(self, clip: CLIP, items: list[Item], white: White | None = None) -> Path:
        """Where the features of these pictures belong."""
        stats = [os.stat(item.path) for item in items]
        key = {
            "clip": [
                clip.fingerprint(),
                not clip.exact_gelu,
                numerics(clip.dtype),
                clip.device.type,
            ],
            "resolution": clip.visual.resolution,
            "white": white,
            "pictures": [
                [os.path.abspath(item.path), stat.st_size, stat.st_mtime_ns]
                for item, stat in zip(items, stats, strict=True)
            ],
        }
        return self.folder / (hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32] + ".npy")

    def read(self, file: Path) -> Tensor | None:
        """Features (N, E) that were written there; None if none were, or not all of them.

        Only what `np.save` makes of such features is taken; nothing in the file is interpreted.
        """
        try:
            content = bytearray(file.read_bytes() if file.is_file() else b"")
            os.utime(file)  # used now
        except OSError:
            return None
        header = _HEADER.fullmatch(content, 0, 128)
        shape = tuple(map(int, header.groups())) if header else (0, 0)
        if len(content) <= 128 or len(content) != 128 + 4 * math.prod(shape):
            return None
        features = torch.frombuffer(content, dtype=torch.float32, offset=128).view(shape)
        return features if features.isfinite().all() else None

    def write(self, file: Path, features: Tensor) -> None:
        """Keep features (N, E); older files make room, one that is too large is not kept."""
        size = features.numel() * features.element_size()
        if size > self.max_bytes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        others = []
        for other in self.folder.glob("*.npy"):
            with suppress(FileNotFoundError):  # another process makes room, too
                others.append((other.stat().st_mtime, other.stat().st_size, other))
        for _, own, other in sorted(others, reverse=True):  # newest first
            size += own
            if size > self.max_bytes:
                other.unlink(missing_ok=True)
        with replacing(file) as unfinished, unfinished.open("wb") as stream:
            np.save(stream, features.cpu().numpy())


class TestBatch(NamedTuple):
    """images (B, 3, R, R) preprocessed, or None if not asked for; frozen features (B, E)."""

    images: Tensor | None
    frozen: Tensor


class TestSet:
    """Test pictures for one CLIP: decoded once, their frozen features computed once.

    The pixels are kept after the first pass if they fit in `max_bytes` (default 2 GiB: 14,000
    pictures at 224 pixels); otherwise each pass decodes again. `white` is the level of pictures of
    more than 8 bits (`clip/white.py`). Raises ValueError without items.

    Several `ranks` share the pictures and, on one machine, `max_bytes`; `own` are this one's.
    """

    def __init__(
        self,
        items: list[Item],
        clip: CLIP,
        batch_size: int = 100,
        workers: int | None = None,
        max_bytes: int = 2 * 1024**3,
        cache: FeatureCache | None = None,
        white: White | None = None,
        ranks: Ranks = ALONE,
    ):
        if not items:
            raise ValueError("expected test images, got none: give every class at least two images")
        self.items, self.clip, self.cache = items, clip, cache
        self.own, self.ranks = ranks.share(items), ranks
        self.labels = torch.tensor([item.label for item in items])
        self.batch_size, self.workers = batch_size, workers
        size = len(self.own) * 3 * clip.visual.resolution**2
        self.keep = size <= max_bytes // ranks.local_size
        self.show_by(white)

    def show_by(self, white: White | None) -> None:
        """Another level of white: what is kept of the pictures by the former one goes."""
        if white != getattr(self, "white", ()):
            self.white = white
            self._kept: list[Batch] = []
            self._features: Tensor | None = None

    @functools.cached_property
    def files(self) -> list[str]:
        """The files of all its pictures, links resolved."""
        return [os.path.realpath(item.path) for item in self.items]

    @functools.cached_property
    def deep(self) -> dict[str, str]:
        """The pictures of more than 8 bits, see `deep_pictures`."""
        return deep_pictures([item.path for item in self.own], self.workers)

    def __len__(self) -> int:
        return len(self.items)

    def pixels(self, what: str = "test images") -> Iterator[Batch]:
        """Batches of uint8 images and labels; `what` is done with them, for who watches."""
        resolution, done, kept = self.clip.visual.resolution, 0, []
        batches = self._kept or test_batches(
            self.own, resolution, self.batch_size, self.workers, white=self.white
        )
        with job(what, len(self.own)) as tell:
            for batch in batches:
                self.ranks.check()
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
            if self.cache:
                file = self.cache.file(self.clip, self.own, self.white)
                file.parent.mkdir(parents=True, exist_ok=True)
                with locked(file.with_suffix(".lock")):  # of several processes one computes them
                    features = self.cache.read(file)
                    if features is None or features.shape != self._shape():
                        features = self._encoded()
                        self.cache.write(file, features)
            else:
                features = self._encoded()
            self._features = features.to(self.clip.device)
        return self._features

    def _shape(self) -> tuple[int, int]:
        return len(self.own), self.clip.visual.proj.shape[1]

    def _encoded(self) -> Tensor:
        device = self.clip.device
        with naming_all_broken([item.path for item in self.own], self.workers):
            batches = self.pixels("test images through zero-shot CLIP")
            parts = [self.clip.encode_image(self.clip.normalize(images.to(device))).float()
                     for images, _ in batches]  # fmt: skip
        features = torch.cat(parts) if parts else torch.empty(self._shape(), device=device)
        return F.normalize(features, dim=-1)

    def batches(self, images: bool) -> Iterator[TestBatch]:
        """Its `own` pictures in order, with or without `images`, on CLIP's device."""
        frozen = self.features().split(self.batch_size) if self.own else ()
        if images:
            for (pixels, _), features in zip(self.pixels(), frozen, strict=True):
                yield TestBatch(self.clip.normalize(pixels.to(features.device)), features)
        else:
            for features in frozen:
                yield TestBatch(None, features)


class Predicted(NamedTuple):
    """Of each test picture the likeliest class (N,) and its probability (N,), on the CPU."""

    labels: Tensor
    probabilities: Tensor


@torch.no_grad()
def predicted(model: PromptedCLIP, test: TestSet) -> Predicted:
    """What a model takes the test pictures for."""
    if not test.own:
        model.prompt_features()  # for which the other ranks need this one, too
    batches = test.batches(images=model.config.learns_image)
    logits = (model(images, frozen, branches=False).logits for images, frozen in batches)
    return _likeliest(test, logits)


@torch.no_grad()
def zero_shot(model: PromptedCLIP, test: TestSet) -> Predicted:
    """What the frozen CLIP with the model's template takes them for."""
    batches = test.batches(images=False)
    features = model.template_features
    logits = (model.scaled_cosines(frozen, features) for _, frozen in batches)
    return _likeliest(test, logits)


def _likeliest(test: TestSet, logits: Iterable[Tensor]) -> Predicted:
    """Of all pictures, from the logits (B, C) of this rank's own."""
    best = [(own.argmax(dim=-1), own.softmax(dim=-1).amax(dim=-1)) for own in logits]
    labels, probabilities = map(torch.cat, zip(*best, strict=True)) if best else torch.empty(2, 0)
    labels, probabilities = labels.cpu(), probabilities.cpu()
    if test.ranks.size > 1:
        told = test.ranks.tell([labels.tolist(), probabilities.tolist()])
        labels, probabilities = (
            torch.tensor(list(chain.from_iterable(part))) for part in zip(*told, strict=True)
        )
    return Predicted(labels, probabilities)


def percent_correct(predicted: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy of predicted labels (N,), in percent."""
    return 100 * int((predicted == labels).sum()) / len(labels)


def zero_shot_accuracy(model: PromptedCLIP, test: TestSet) -> float:
    """Top-1 accuracy of the frozen CLIP with the model's template, in percent."""
    return percent_correct(zero_shot(model, test).labels, test.labels)
