"""Training and test batches, the image cache, and the white level that it finds."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minidpt.data import batches as batching
from minidpt.data.samples import Sample
from minidpt.images import decode, transforms
from minidpt.images.decode import WhiteLevel, open_image

# ---- batches


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[Sample]:
    """Eleven noisy images of different sizes, two classes."""
    folder, numbers = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    items = []
    for number in range(11):
        noise = numbers.integers(0, 256, (17 + number, 31 - number, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number:02d}.png")
        items.append(Sample(str(folder / f"{number:02d}.png"), number % 2, "ab"[number % 2]))
    return items


def epoch(items, seed=1, epoch=0, store=None, workers=0, batch_size=4):
    read = store.get if store else open_image
    return list(batching.train_batches(items, 7, batch_size, seed, epoch, read, workers))


def same(some, others) -> bool:
    assert len(some) == len(others)
    return all(torch.equal(a.images, b.images) for a, b in zip(some, others, strict=True))


def test_test_batches_keep_order_and_the_last_smaller_batch(samples):
    batches = list(batching.eval_batches(samples, 7, 4, workers=2))
    shapes = [tuple(batch.images.shape) for batch in batches]
    assert shapes == [(4, 3, 7, 7), (4, 3, 7, 7), (3, 3, 7, 7)]
    assert batches[0].images.dtype == torch.uint8 and batches[0].labels.dtype == torch.int64
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 1] * 5 + [0]
    preprocess = transforms.Preprocess(7)
    expected = [preprocess(Image.open(item.path)) for item in samples]
    actual = transforms.normalize(torch.cat([images for images, _ in batches]))
    assert torch.equal(actual, torch.stack(expected))


def test_training_views_do_not_depend_on_workers_or_store(samples):
    expected = epoch(samples)
    for workers in (1, 3):
        for store in (None, batching.ImageCache(), batching.ImageCache(max_bytes=5000)):
            assert same(expected, epoch(samples, store=store, workers=workers))
            assert same(expected, epoch(samples, store=store, workers=workers))  # from the store


def test_each_epoch_and_seed_has_its_own_order_and_crops(samples):
    first = epoch(samples)
    assert same(first, epoch(samples))
    for other in (epoch(samples, epoch=1), epoch(samples, seed=0)):
        assert not same(first, other)
    copies = samples[:1] * 8  # order plays no part: the crops of one image must differ
    images = torch.cat([batch.images for batch in epoch(copies)])
    assert len({image.numpy().tobytes() for image in images}) == 8
    for other in (epoch(copies, epoch=1), epoch(copies, seed=0)):
        assert not same(epoch(copies), other)


def test_an_epoch_shows_each_image_once(samples):
    plain = [Image.new("RGB", (9, 9), (number, 0, 0)) for number in range(11)]
    store = batching.ImageCache()
    store._images = {item.path: image for item, image in zip(samples, plain, strict=True)}
    batches = epoch(samples, store=store, batch_size=20)
    shown = batches[0].images[:, 0, 0, 0].tolist()
    assert sorted(shown) == list(range(11)) and shown != sorted(shown)
    assert batches[0].labels.tolist() == [number % 2 for number in shown]
    orders = {tuple(shown)}  # crops play no part: each image is of one colour
    for seed, number in ((1, 1), (0, 0), (11, 0), (1, 10)):
        (batch,) = epoch(samples, seed, number, store=store, batch_size=20)
        orders.add(tuple(batch.images[:, 0, 0, 0].tolist()))
    assert len(orders) == 5


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4, 4]), (11, [11]), (12, [11])])
def test_last_incomplete_batch_is_dropped_only_after_a_full_one(samples, batch_size, sizes):
    batches = epoch(samples, batch_size=batch_size)
    assert [len(batch.labels) for batch in batches] == sizes


def test_store_decodes_each_image_once_within_its_bytes(samples, monkeypatch):
    opened = []

    def counting(path, white_level):
        opened.append(path)
        return open_image(path, white_level)

    monkeypatch.setattr(decode, "open_image", counting)
    store = batching.ImageCache()
    for number in range(3):
        epoch(samples, epoch=number, store=store, workers=2, batch_size=11)
    assert sorted(opened) == sorted(item.path for item in samples) and len(store._images) == 11
    assert store.bytes == sum(4 * (17 + n) * (31 - n) for n in range(11))

    opened.clear()
    small = batching.ImageCache(max_bytes=5000)  # two images of about 2200 bytes
    for number in range(3):
        epoch(samples, epoch=number, store=small, batch_size=11)
    assert len(small._images) == 2 and small.bytes <= 5000 and len(opened) == 2 + 3 * 9


def test_only_images_of_an_earlier_run_make_room_in_a_full_store(samples):
    first, second = ([item.path for item in half] for half in (samples[:4], samples[4:]))
    store = batching.ImageCache(max_bytes=5000)
    store.fill(first)
    assert len(store._images) == 2
    store.fill(second[:2])
    stored = [store.get(path) for path in second[:2]]
    assert len(store._images) == 2 and store.bytes == sum(4 * i.width * i.height for i in stored)
    assert all(store.get(path) is image for path, image in zip(second[:2], stored, strict=True))
    store.fill(second)  # none of those that are wanted gives way to another
    assert all(store.get(path) is image for path, image in zip(second[:2], stored, strict=True))


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("minidpt-images")]


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_image_surfaces_in_the_consumer_and_threads_end(samples, tmp_path, workers):
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(samples[0].path).read_bytes()[:99])
    items = samples[:6] + [Sample(str(broken), 0, "a")]
    for batches in (
        batching.train_batches(items, 7, 7, seed=1, epoch=0, workers=workers),
        batching.eval_batches(items, 7, 4, workers=workers),
    ):
        with pytest.raises(ValueError, match="broken.png"):
            list(batches)
        assert threads() == []


def test_threads_end_when_the_consumer_stops_early(samples, monkeypatch):
    for _ in batching.eval_batches(samples * 9, 7, 2, workers=3):
        assert threads()
        break
    assert threads() == []
    with pytest.raises(KeyboardInterrupt) as raised:  # its traceback keeps the frames alive
        for _ in batching.train_batches(samples * 9, 7, 2, 1, 0, workers=3):
            raise KeyboardInterrupt
    assert threads() == [] and raised

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "tensor", interrupted)  # while a batch is made
    with pytest.raises(KeyboardInterrupt) as raised:
        next(batching.eval_batches(samples * 9, 7, 2, workers=3))
    assert threads() == [] and raised


def test_work_ahead_is_bounded(samples):
    opened = []
    read = lambda path: opened.append(path) or open_image(path)  # noqa: E731
    batches = batching.eval_batches(samples * 9, 7, 2, workers=2, read=read)
    assert opened == []  # nothing starts before it is asked for
    next(batches)
    time.sleep(0.2)
    assert len(opened) <= 2 + 2 * 2  # this batch and two more
    batches.close()
    assert list(batching.eval_batches([], 7, 4)) == []


# ---- images of more than 8 bits


@pytest.fixture
def high_bit_depth(tmp_path) -> list[Sample]:
    """Three of integers, the brightest with 900; two of floats; one of 8 bits; one broken."""
    values = {"a": 800, "b": 900, "c": 30, "d": 0.5, "e": 200.0, "f": 7}
    kinds = {"a": np.uint16, "b": np.uint16, "c": np.uint16, "d": np.float32, "e": np.float32}
    items = []
    for name, value in values.items():
        pixels = np.full((9, 9), value, kinds.get(name, np.uint8))
        Image.fromarray(pixels).save(tmp_path / f"{name}.tiff")
        items.append(Sample(str(tmp_path / f"{name}.tiff"), 0, "grey"))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return [*items, Sample(str(tmp_path / "broken.png"), 0, "grey")]


def test_all_images_that_are_read_set_one_white_level(high_bit_depth):
    items = high_bit_depth[:6]
    cache = batching.ImageCache()
    cache.fill([item.path for item in items])
    assert cache.white_level == {"integer": 1023, "float": 255}
    shown = [round(255 * value / 1023) for value in (800, 900, 30)]
    shown += [round(0.5), 200, 7]
    for batches in (
        batching.eval_batches(items, 5, 6, read=cache.white_level.open),
        batching.train_batches(items, 5, 6, 1, 0, cache.get),
    ):
        (batch,) = batches
        assert sorted(batch.images[:, 0, 2, 2].tolist()) == sorted(shown)
    cache.fill([items[2].path])  # another run's: 30 of 255
    assert cache.white_level == {"integer": 255}
    assert np.asarray(cache.get(items[2].path))[0, 0, 0] == 30
    assert len(cache._images) == 1
    cache.fill([items[5].path])
    assert cache.white_level == {}
    with pytest.raises(ValueError, match="broken.png"):  # what was read before it is read again
        cache.fill([item.path for item in high_bit_depth], workers=0)
    cache.fill([item.path for item in items])
    assert cache.white_level == {"integer": 1023, "float": 255}
    assert np.asarray(cache.get(items[0].path))[0, 0, 0] == shown[0]


def test_ranks_share_one_white_level(high_bit_depth, monkeypatch):
    """Each reads some of the images; the brightest of all decides."""

    class Others(batching.World):
        def all_gather_object(self, content):
            return [content, {"integer": 5000.0, "float": 0.1}]

    cache = batching.ImageCache()
    cache.fill([high_bit_depth[0].path], world=Others())
    assert cache.white_level == {"integer": 65535, "float": 1}
    assert WhiteLevel(integer=4095).settle(Others()) is True  # floats, which only the other has


def test_broken_images_that_are_read_next_are_named_with_the_first(high_bit_depth, tmp_path):
    other = tmp_path / "other.png"
    other.write_text("no picture")
    with pytest.raises(ValueError, match="broken.png.*1 more: .*other.png"):
        batching.ImageCache().fill([item.path for item in high_bit_depth], others=[str(other)])
