"""Batches of images: decoded ahead by threads, kept in memory within bounds.

train_batches, eval_batches -> Batch; ImageCache: decoded images of a training set
"""

import random
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ..images.decode import WhiteLevel, open_image
from ..images.threads import map_ordered
from ..images.transforms import eval_pixels, to_uint8, train_transform
from ..support.distributed import NO_LABEL, SINGLE, World
from ..support.files import to_single_line
from ..support.progress import track
from .samples import Sample

IMAGE_MEMORY = 2 * 1024**3  # bytes of decoded images that are kept, unless told otherwise


class Batch(NamedTuple):
    """`images` (B, 3, R, R) uint8 for `transforms.normalize`, `labels` (B,) int64."""

    images: torch.Tensor
    labels: torch.Tensor


class ImageCache:
    """Keep decoded images in memory, at most `max_bytes` of them (default 2 GiB).

    What comes first stays, as epochs go round: the oldest is needed next. Only what the last
    `fill` did not ask for makes room; its images set `white_level`. Safe to share by threads.
    """

    def __init__(self, max_bytes: int = IMAGE_MEMORY):
        self.max_bytes = max_bytes
        self.bytes = 0
        self.white_level = WhiteLevel()
        self._images: dict[str, Image.Image] = {}
        self._wanted: set[str] = set()
        self._lock = threading.Lock()

    def get(self, path: str) -> Image.Image:
        """Return the image in a file. Callers must not change it. Raises as `open_image`."""
        image = self._images.get(path)
        if image is None:
            image = self.white_level.open(path)
            size = _size(image)
            with self._lock:
                if self._wanted and self.bytes + size > self.max_bytes:
                    for other in self._images.keys() - self._wanted:
                        self.bytes -= _size(self._images.pop(other))
                if path not in self._images and self.bytes + size <= self.max_bytes:
                    self._images[path] = image
                    self.bytes += size
        return image

    def fill(
        self,
        paths: list[str],
        workers: int | None = None,
        others: Iterable[str] = (),
        world: World = SINGLE,
    ) -> None:
        """Decode images ahead, so that broken ones are found before any work is done.

        They set the white level, the same on all ranks of `world`. Raises ValueError or
        FileNotFoundError that names all broken images, also those among `others`.
        """
        if self.white_level.max_values:  # some are shown by it, or by their own
            self._images, self.bytes = {}, 0
        self.white_level, self._wanted = WhiteLevel(), set(paths)
        with name_all_broken([*paths, *others], workers):
            with closing(map_ordered(self.get, paths, workers)) as images:
                for _ in track(images, "training images read", len(paths)):
                    pass
        if self.white_level.settle(world):
            self._images, self.bytes = {}, 0


def _size(image: Image.Image) -> int:
    return 4 * image.width * image.height  # Pillow stores RGB in 4 bytes a pixel


@contextmanager
def name_all_broken(paths: list[str], workers: int | None = None) -> Iterator[None]:
    """If the block fails at an image, try all, and name the others that fail in the error."""

    def failure(path: str) -> tuple[str, Exception] | None:
        try:
            open_image(path)
        except (ValueError, FileNotFoundError) as error:
            return path, error

    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        broken = list(filter(None, map_ordered(failure, paths, workers)))
        if len(broken) < 2:
            raise
        (_, first), *others = broken
        named = textwrap.shorten(", ".join(path for path, _ in others), 240, placeholder=" …")
        message = f"{first}; the same for {len(others)} more: {named}"
        raise type(first)(to_single_line(message)) from error


def train_batches(
    samples: list[Sample],
    resolution: int,
    batch_size: int,
    seed: int,
    epoch: int,
    read: Callable[[str], Image.Image] = open_image,
    workers: int | None = None,
    pin_memory: bool = False,
    world: World = SINGLE,
) -> Iterator[Batch]:
    """Yield one epoch in random order, each image randomly cropped and mirrored.

    Order and crops depend on `seed`, `epoch` and the place in the epoch alone, not on `workers`.
    After a full batch, a smaller last one is dropped. `read`: of an `ImageCache`.

    Of several ranks each gets its share of every batch: images that lie beside each other in
    `samples`, for the most part those in its cache. Where it has none it gets a black one, whose
    label is `NO_LABEL`. Raises ValueError for a broken image.
    """
    order = list(range(len(samples)))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    if len(order) >= batch_size:
        del order[len(order) // batch_size * batch_size :]

    def pixels(slot: int) -> np.ndarray:
        generator = random.Random(f"{seed}/{epoch}/{slot}")
        return to_uint8(train_transform(read(samples[order[slot]].path), resolution, generator))

    def shard(slots: Sequence[int]) -> Sequence[int]:
        return world.shard(sorted(slots, key=order.__getitem__) if world.size > 1 else slots)

    labels = [samples[number].label for number in order]
    return _batches(pixels, labels, resolution, batch_size, workers, shard, pin_memory)


def eval_batches(
    samples: list[Sample],
    resolution: int,
    batch_size: int,
    workers: int | None = None,
    read: Callable[[str], Image.Image] = open_image,
) -> Iterator[Batch]:
    """Yield all images in order, the central square of each; the last batch may be small."""

    def pixels(slot: int) -> np.ndarray:
        return eval_pixels(read(samples[slot].path), resolution)

    return _batches(pixels, [sample.label for sample in samples], resolution, batch_size, workers)


def _batches(
    pixels: Callable[[int], np.ndarray],
    labels: list[int],
    resolution: int,
    batch_size: int,
    workers: int | None,
    shard: Callable[[Sequence[int]], Sequence[int]] = lambda slots: slots,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Batch pixels(slot), (3, R, R) uint8, and labels of a rank's slots, two batches ahead."""
    slots = range(len(labels))
    groups = [shard(slots[start : start + batch_size]) for start in slots[::batch_size]]
    ahead = 2 * max(map(len, groups), default=0)
    # `closing`: a traceback may keep this frame alive, but the threads must end at once.
    with closing(map_ordered(pixels, chain.from_iterable(groups), workers, ahead)) as views:
        for group in groups:
            shape = max(len(group), 1), 3, resolution, resolution  # a black image instead of none
            images = torch.zeros(shape, dtype=torch.uint8, pin_memory=pin_memory)
            for image in images.numpy()[: len(group)]:
                image[:] = next(views)
            numbers = [labels[slot] for slot in group] or [NO_LABEL]
            yield Batch(images, torch.tensor(numbers, pin_memory=pin_memory))
