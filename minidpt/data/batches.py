"""Pictures to batches: decoded ahead by threads, kept in memory within bounds.

train_batches, test_batches -> Batch; ImageStore: decoded pictures of a training set
"""

import functools
import random
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ..clip.pictures import StoredPicture, brightest, kind_of, open_image
from ..clip.transforms import central_view, to_uint8
from ..clip.white import White, white_level
from ..clip.workers import in_order
from ..files import one_line, one_line_errors
from ..progress import counted
from ..ranks import ALONE, NO_LABEL, Ranks
from .crops import random_view
from .samples import Sample

IMAGE_MEMORY = 2 * 1024**3  # bytes of decoded pictures that are kept, unless told otherwise


class Batch(NamedTuple):
    """`images` (B, 3, R, R) uint8 for `transforms.normalize`, `labels` (B,) int64."""

    images: torch.Tensor
    labels: torch.Tensor


class ImageStore:
    """Keeps decoded pictures in memory, at most `max_bytes` of them (default 2 GiB).

    What comes first stays and the rest is decoded again each time: epochs go round and round, so
    throwing out the oldest would throw out just what is needed next. Only what the last `fill` did
    not ask for, an earlier run's pictures, makes room. Safe to share by threads.

    white: the level of pictures of more than 8 bits (`clip/white.py`), as `fill` was told.
    """

    def __init__(self, max_bytes: int = IMAGE_MEMORY):
        self.max_bytes = max_bytes
        self.bytes = 0
        self.white: White | None = None
        self._images: dict[str, Image.Image | StoredPicture] = {}
        self._wanted: set[str] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._images)

    def get(self, path: str) -> Image.Image | StoredPicture:
        """The picture in a file. Callers must not change it. Raises as `open_image`."""
        image = self._images.get(path)
        if image is None:
            image = _reader(self.white)(path)
            with self._lock:
                if path not in self._images:
                    self._keep(path, image)
        return image

    def _keep(self, path: str, image: Image.Image | StoredPicture) -> None:
        if self._wanted and self.bytes + _size(image) > self.max_bytes:
            for other in self._images.keys() - self._wanted:
                self.bytes -= _size(self._images.pop(other))
        if self.bytes + _size(image) <= self.max_bytes:
            self._images[path] = image
            self.bytes += _size(image)

    def fill(
        self,
        paths: list[str],
        workers: int | None = None,
        white: White | None = None,
        others: Iterable[str] = (),
    ) -> None:
        """Decodes pictures ahead, so that broken ones are found before any work is done.

        Raises ValueError or FileNotFoundError that names all of them; once there is one, also the
        broken ones among `others`, which are to be read next.
        """
        if white != self.white:
            self.white, self.bytes, self._images = white, 0, {}
        self._wanted = set(paths)
        with naming_all_broken([*paths, *others], workers):
            with closing(in_order(self.get, paths, workers)) as images:
                for _ in counted(images, "training images read", len(paths)):
                    pass


@contextmanager
def naming_all_broken(paths: list[str], workers: int | None = None) -> Iterator[None]:
    """If the block fails at a picture, all are tried, and the error names the others that fail."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:

        def failure(path: str) -> tuple[str, Exception] | None:
            try:
                open_image(path)
            except (ValueError, FileNotFoundError) as error:
                return path, error

        broken = list(filter(None, in_order(failure, paths, workers)))
        if len(broken) < 2:
            raise
        (_, first), *others = broken
        named = textwrap.shorten(", ".join(path for path, _ in others), 240, placeholder=" …")
        raise type(first)(one_line(f"{first}; the same for {len(others)} more: {named}")) from error


def _size(image: Image.Image | StoredPicture) -> int:
    return 4 * image.width * image.height  # Pillow stores RGB in 4 bytes a pixel


def _reader(white: White | None) -> Callable[[str], Image.Image | StoredPicture]:
    return functools.partial(open_image, white=white) if white else open_image


@one_line_errors  # what a view of the picture may lack is memory
def _seen(path: str, read: Callable, view: Callable, *arguments: object) -> np.ndarray:
    return to_uint8(view(read(path), *arguments))


def deep_pictures(paths: list[str], workers: int | None = None) -> dict[str, str]:
    """Path -> `kind_of` the pictures of more than 8 bits, found by their headers."""
    kinds = in_order(_or_none(kind_of), paths, workers)
    with closing(kinds):
        pairs = counted(zip(paths, kinds, strict=True), "images looked at", len(paths))
        return {path: kind for path, kind in pairs if kind}


def white_of(
    deep: Mapping[str, str],
    white: White | None = None,
    workers: int | None = None,
    ranks: Ranks = ALONE,
) -> White:
    """One white level for all of `deep_pictures`: `white`, and by their values what it lacks.

    Several `ranks` have their own pictures, and one level for those of all.
    """
    white = white or {}
    wanted = [path for path, kind in deep.items() if kind not in (*white, "colour")]
    largest: dict[str, float] = {}
    with closing(in_order(_or_none(brightest), wanted, workers)) as values:
        pairs = zip(wanted, values, strict=True)
        for path, value in counted(pairs, "images of more than 8 bits read", len(wanted)):
            if value is not None:
                largest[deep[path]] = max(value, largest.get(deep[path], value))
    for told in ranks.tell(largest):
        for kind, value in told.items():
            largest[kind] = max(value, largest.get(kind, value))
    return {**white_level(largest), **white}


def _or_none(function: Callable) -> Callable:
    """None for what cannot be read: whoever reads it to show it names it."""

    def called(path: str) -> object:
        try:
            return function(path)
        except (ValueError, OSError):
            return None

    return called


def train_batches(
    items: list[Sample],
    resolution: int,
    batch_size: int,
    seed: int,
    epoch: int,
    store: ImageStore | None = None,
    workers: int | None = None,
    pin_memory: bool = False,
    ranks: Ranks = ALONE,
) -> Iterator[Batch]:
    """One epoch in random order, each picture randomly cropped and mirrored.

    Order and crops depend on `seed`, `epoch` and the place in the epoch alone, so they are the same
    for any number of `workers`, which are those of `in_order`. The last, smaller batch is dropped
    if there is at least one full one. `pin_memory` for CUDA. A `store` knows what is white.

    Of several `ranks` each gets its share of every batch: pictures that lie beside each other in
    `items`, which for the most part are the same in each epoch, and in its store. Where it has none
    it gets a black one, whose label is `NO_LABEL`.

    A broken picture raises its ValueError here, in the consumer. When the consumer stops early,
    by `break` or by an exception, the threads end.
    """
    _check_batches(batch_size, workers)
    order = list(range(len(items)))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    if len(items) >= batch_size:
        del order[len(items) - len(items) % batch_size :]
    ordered = [items[number] for number in order]
    groups = _groups(len(order), batch_size)
    if ranks.size > 1:
        groups = [ranks.share(sorted(group, key=order.__getitem__)) for group in groups]
    read = store.get if store is not None else open_image

    def view(place: int) -> np.ndarray:
        generator = random.Random(f"{seed}/{epoch}/{place}")
        return _seen(ordered[place].path, read, random_view, resolution, generator)

    return _batches(ordered, groups, view, resolution, workers, pin_memory)


def test_batches(
    items: list[Sample],
    resolution: int,
    batch_size: int,
    workers: int | None = None,
    white: White | None = None,
) -> Iterator[Batch]:
    """All pictures in the given order, the central square of each; the last batch may be small."""
    _check_batches(batch_size, workers)

    def view(place: int) -> np.ndarray:
        return _seen(items[place].path, _reader(white), central_view, resolution)

    groups = _groups(len(items), batch_size)
    return _batches(items, groups, view, resolution, workers)


def _check_batches(batch_size: int, workers: int | None) -> None:
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")


def _groups(count: int, batch_size: int) -> list[Sequence[int]]:
    """The places of each batch."""
    starts = range(0, count, batch_size)
    return [range(start, min(start + batch_size, count)) for start in starts]


def _batches(
    items: list[Sample],
    groups: list[Sequence[int]],
    view: Callable[[int], np.ndarray],
    resolution: int,
    workers: int | None,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """A batch of each group of places: of view(place), (3, R, R) uint8, two batches ahead."""
    places, ahead = chain.from_iterable(groups), 2 * max(map(len, groups), default=0)
    # `closing`: a traceback may keep this frame alive, but the threads must end at once.
    with closing(in_order(view, places, workers, ahead)) as views:
        for group in groups:
            arrays = [next(views) for _ in group]
            arrays = arrays or [np.zeros((3, resolution, resolution), np.uint8)]
            shape = (len(arrays), *arrays[0].shape)
            images = torch.empty(shape, dtype=torch.uint8, pin_memory=pin_memory)
            np.stack(arrays, out=images.numpy())  # (B, 3, R, R)
            labels = [items[place].label for place in group] or [NO_LABEL]
            yield Batch(images, torch.tensor(labels, pin_memory=pin_memory))
