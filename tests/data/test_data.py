"""The few-shot draw, base and new classes, split files and batches."""

import json
import os
import random
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.image_folders import draw_class_folders
from PIL import Image

from minidpt.data import batches as batching
from minidpt.data.datasets import open_dataset
from minidpt.data.folders import missing_files
from minidpt.data.samples import Dataset, Sample, few_shot, select_classes
from minidpt.data.splits import read_split, split_content, write_split
from minidpt.images import decode, transforms
from minidpt.images.decode import WhiteLevel, open_image


def files(items, root) -> list[str]:
    return [Path(item.path).relative_to(root).as_posix() for item in items]


def everything(dataset) -> list[Sample]:
    return dataset.train + dataset.val + dataset.test


# ---- few shots


def listed(counts: dict[int, int], part: str) -> list[Sample]:
    return [
        Sample(f"{part}/{label}/{number}", label, f"class{label}")
        for label, count in counts.items()
        for number in range(count)
    ]


def made_dataset(train, val, classes=3) -> Dataset:
    names = [f"class{label}" for label in range(classes)]
    test = listed({label: 2 for label in range(classes)}, "test")
    return Dataset(
        "made", Path("."), names, "{}.", listed(train, "train"), listed(val, "val"), test, "made"
    )


def test_few_shots_are_the_published_draw():
    dataset = made_dataset({2: 9, 0: 7, 1: 8}, {1: 6, 0: 5, 2: 4})
    for shots, seed in [(1, 1), (4, 0), (5, 3)]:
        # the protocol, word by word, with the global generator that the published code uses
        random.seed(seed)
        train, val = [], []
        for label in (2, 0, 1):
            train += random.sample([i for i in dataset.train if i.label == label], shots)
        for label in (1, 0, 2):
            val += random.sample([i for i in dataset.val if i.label == label], min(shots, 4))
        drawn = few_shot(dataset, shots, seed)
        assert (drawn.train, drawn.val, drawn.test) == (train, val, dataset.test)
        assert drawn.notes == ()


def test_few_shots_of_seed_1_are_these():
    # random.Random(1).sample of range(9), then range(7), then range(3) for val
    drawn = few_shot(made_dataset({1: 9, 0: 7}, {0: 3}, classes=2), 2, seed=1)
    expected = ["train/1/2", "train/1/1", "train/0/2", "train/0/0"]
    assert [item.path for item in drawn.train] == expected
    assert [item.path for item in drawn.val] == ["val/0/1", "val/0/2"]


def test_fewer_images_than_shots_are_all_used_and_said():
    drawn = few_shot(made_dataset({0: 5, 1: 3, 2: 4}, {0: 2}), 4, seed=0)
    assert [sum(i.label == label for i in drawn.train) for label in range(3)] == [4, 3, 4]
    assert drawn.notes == ("class 'class1' has 3 images, 4 shots wanted: using 3",)
    assert len(drawn.val) == 2
    with pytest.raises(ValueError, match="shots: expected at least 1, got 0"):
        few_shot(drawn, 0, seed=0)


def test_few_shots_leave_the_global_generator_alone():
    random.seed(5)
    expected = random.random()
    random.seed(5)
    few_shot(made_dataset({0: 5, 1: 3, 2: 4}, {}), 2, seed=1)
    assert random.random() == expected


# ---- base and new classes


@pytest.mark.parametrize(
    ("classes", "base", "new"),
    [(4, [0, 1], [2, 3]), (5, [0, 1, 2], [3, 4]), (7, [0, 1, 2, 3], [4, 5, 6])],
)
def test_first_half_of_the_labels_rounded_up_is_base(classes, base, new):
    dataset = made_dataset({label: 3 for label in range(classes)}, {0: 1, classes - 1: 2}, classes)
    for which, kept in [("base", base), ("new", new), ("all", base + new)]:
        selected = select_classes(dataset, which)
        assert selected.classnames == [f"class{label}" for label in kept]
        for part in ("train", "val", "test"):
            expected = [
                Sample(path, kept.index(label), name)
                for path, label, name in getattr(dataset, part)
                if label in kept
            ]
            assert getattr(selected, part) == expected
        assert selected.template == dataset.template


def test_base_classes_have_the_pictures_of_the_draw_from_all_classes():
    dataset = made_dataset({3: 9, 0: 9, 1: 9, 2: 9}, {}, classes=4)
    drawn = few_shot(dataset, 2, seed=1)
    new = select_classes(drawn, "new")
    assert [item.path for item in new.train] == [i.path for i in drawn.train if i.label in (2, 3)]
    assert "new: 2 classes, 4/0/4 images" in new.source


def test_too_few_classes_and_unknown_words_are_refused():
    dataset = made_dataset({0: 1, 1: 1, 2: 1}, {})
    with pytest.raises(ValueError, match="at least 2 new classes, got 1 of 3: use a data set of"):
        select_classes(dataset, "new")
    with pytest.raises(ValueError, match="expected one of all, base, new, got 'old'"):
        select_classes(dataset, "old")


# ---- split files


def test_split_file_brings_back_the_same_data_set(tmp_path):
    draw_class_folders(tmp_path / "data", {"a_b": 6, "ünï": 6, os.fsdecode(b"caf\xe9"): 6})
    drawn = few_shot(open_dataset(tmp_path / "data"), 2, seed=1)
    write_split(drawn, tmp_path / "split.json")
    again = read_split(tmp_path / "split.json")
    for name in ("name", "classnames", "template", "train", "val", "test"):
        assert getattr(again, name) == getattr(drawn, name), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "split.json"]

    content = json.loads((tmp_path / "split.json").read_text())  # and it is the published format
    assert content["train"][0] == [files(drawn.train, tmp_path / "data")[0], 0, "a b"]
    assert {"train", "val", "test"} <= set(content)


def test_split_file_works_for_a_data_folder_that_moved(tmp_path):
    draw_class_folders(tmp_path / "data", {"a": 3, "b": 3})
    write_split(open_dataset(tmp_path / "data"), tmp_path / "split.json")
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="expected its image folder, got .*data, not there"):
        read_split(tmp_path / "split.json")
    moved = read_split(tmp_path / "split.json", tmp_path / "moved")
    assert all(os.path.exists(item.path) for item in everything(moved))
    Path(moved.test[0].path).unlink()
    with pytest.raises(FileNotFoundError, match="got 1 missing, the first .*png"):
        read_split(tmp_path / "split.json", tmp_path / "moved")


def test_missing_files_are_found_among_few_and_among_many(tmp_path):
    draw_class_folders(tmp_path, {"a": 25})
    there = sorted(map(str, (tmp_path / "a").iterdir()))
    gone = [str(tmp_path / "a" / "none.png"), str(tmp_path / "b" / "none.png")]
    assert missing_files(there + gone) == gone == missing_files(gone)
    assert missing_files(there) == []


def test_fingerprint_is_that_of_the_lists_wherever_they_lie(tmp_path):
    draw_class_folders(tmp_path / "data", {"a": 4, "b": 4, os.fsdecode(b"caf\xe9"): 4})
    dataset = open_dataset(tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    assert open_dataset(tmp_path / "copy").fingerprint() == dataset.fingerprint()
    same = replace(dataset, name="other", template="my {}.", notes=("a note",), source="other")
    assert same.fingerprint() == dataset.fingerprint()
    first = dataset.test[0]
    others = [
        replace(dataset, classnames=["a", "b", "tea"]),
        replace(dataset, test=dataset.test[1:]),
        replace(dataset, test=dataset.test[1:], val=[first, *dataset.val]),
        replace(dataset, test=[first._replace(label=2), *dataset.test[1:]]),
        replace(dataset, test=[first._replace(path=first.path + "x"), *dataset.test[1:]]),
        replace(dataset, test=dataset.test[::-1]),  # the few-shot draw depends on the order
    ]
    assert len({other.fingerprint() for other in [dataset, *others]}) == 7


def test_folders_are_those_of_pictures_and_around_class_folders(tmp_path, monkeypatch):
    def listed(*files: str) -> list[Sample]:
        return [Sample(os.path.join(tmp_path, file), 0, "ox") for file in files]

    def folders(dataset: Dataset) -> list[str]:
        return [folder.relative_to(tmp_path).as_posix() for folder in dataset.folders()]

    empty = Dataset("made", tmp_path / "lists", ["ox", "gnu"], "{}.", [], [], [], "made")
    made = replace(empty, train=listed("p/ox/1", "p/ox/2", "p/gnu/1"), test=listed("q/r/1", "s/1"))
    assert folders(made) == ["lists", "p", "s", "p/gnu", "p/ox", "q/r"]
    monkeypatch.setenv("HOME", str(tmp_path / "p"))  # not this one, but those below it
    assert folders(made) == ["lists", "s", "p/gnu", "p/ox", "q/r"]

    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "p")
    named = replace(empty, root=Path("link"), train=[Sample("link/ox/1", 0, "ox")])
    monkeypatch.delenv("HOME")
    assert folders(named) == ["p", "p/ox"]


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[]",
        "{}",
        '{"train": [["a.png", 0]]}',
        '{"train": [["a.png", "x", "a"]]}',
        '{"train": [["a.png", 0, "a"], ["b.png", 2, "b"]]}',
        '{"train": [["a.png", 2, "a"]], "classnames": ["a", "b"]}',
        '{"train": [["a.png", Infinity, "a"]]}',
        '{"train": [["a.png", 1e999, "a"]]}',
        '{"train": [["a.png", true, "a"]]}',
        '{"train": [["a.png", -1, "a"]]}',
        '{"train": [["a.png", 0.0, "a"]]}',
        '{"train": [["a.png", [0], "a"]]}',
        '{"train": [[5, 0, "a"]]}',
        '{"train": [["a.png", 0, 5]]}',
        '{"train": [["a.png", 0, "a"], ["b.png", 0, "b"]]}',  # one label, two names
        '{"train": [["a.png", 0, "a"]], "classnames": ["b"]}',
        '{"train": [["a.png", 0, "a"]], "classnames": "a"}',
        '{"train": [["a.png", 0, "a"]], "root": 5}',
        '{"train": [["a.png", 0, "a"]], "template": ["a {}"]}',
        '{"train": [["a.png", 0, "a"]], "train": []}',
        '{"train": [["a.png", 0, "\\u001b"]]}',
        '{"train": [["a.png", 0, "\\udce9"]]}',
        '{"train": [["a.png", 0, " "]]}',
        "[" * 100_000,
        "9" * 100_000,
        '{"train": [["a.png", 1' + "0" * 30 + ', "a"]]}',
        '{"train": "' + "x" * 100_000 + '"}',
    ],
)
def test_broken_split_files_get_one_line(tmp_path, content):
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(ValueError, match=r"s.json.*: expected ") as raised:
        read_split(tmp_path / "s.json", tmp_path)
    assert str(raised.value).isprintable() and len(str(raised.value)) <= 500
    with pytest.raises(FileNotFoundError, match="none.json"):
        read_split(tmp_path / "none.json", tmp_path)


@pytest.mark.parametrize("row", ["[],", '["a",0,"b"],'])
def test_a_split_file_may_list_two_million_pictures_and_no_more(tmp_path, row):
    separators = row.count(",") + row.count("[")
    path, rows = tmp_path / "s.json", row * (10_000_000 // separators + 1)
    path.write_text('{"train": [' + rows[:-1] + "]}")
    with pytest.raises(ValueError, match="s.json: expected at most 10,000,000 entries, got 10,"):
        read_split(path)
    separators = "," * 5 * 1_300_000  # as many as a row and a line for each of ImageNet's have
    path.write_text(json.dumps({"train": [["a", 0, "b"]], "template": separators}))
    assert split_content(path)["train"] == [["a", 0, "b"]]


def split_of(folder: Path, **changes) -> Path:
    """A split file of three drawn classes, with other entries."""
    draw_class_folders(folder, {"a": 1, "b": 1, "c": 1})
    rows = [[f"{name}/image_0001.png", label, name] for label, name in enumerate("abc")]
    (folder / "s.json").write_text(json.dumps({"root": str(folder), "test": rows} | changes))
    return folder / "s.json"


@pytest.mark.parametrize(
    "name",
    ["../X", "/tmp/X", "a/b", "a\\b", ".", "..", " ", "x\0", "x\n", "\x1b[31m", "x" * 181, 5],
)
def test_a_name_that_would_lead_a_run_out_of_its_folder_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="name") as raised:
        read_split(split_of(tmp_path, name=name))
    assert str(raised.value).isprintable() and len(str(raised.value)) <= 500


def test_pictures_of_a_split_file_may_lie_anywhere_but_are_regular_files(tmp_path):
    draw_class_folders(tmp_path / "far", {"x": 1})
    paths = [str(tmp_path / "far/x/image_0001.png"), "../far/x/image_0001.png", "a/image_0001.png"]
    rows = [[path, label, name] for label, (path, name) in enumerate(zip(paths, "abc"))]
    split = read_split(split_of(tmp_path / "near", test=rows))
    assert all(os.path.samefile(i.path, paths[0]) for i in split.test[:2])
    os.mkfifo(tmp_path / "near" / "pipe")
    for odd in ("pipe", "a", "/dev/null", "a\0"):
        path = tmp_path / "near" / "s.json"
        path.write_text(json.dumps({"root": str(path.parent), "test": [[odd, 0, "a"]]}))
        with pytest.raises(FileNotFoundError, match="1 missing, the first"):
            read_split(path)


def test_a_fifo_is_no_file_among_many_either_and_costs_no_question_to_the_system(
    tmp_path, monkeypatch
):
    draw_class_folders(tmp_path, {"a": 25})
    there = sorted(map(str, (tmp_path / "a").iterdir()))
    os.mkfifo(tmp_path / "a" / "pipe")
    asked, isfile = [], os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda path: asked.append(path) or isfile(path))
    pipe = str(tmp_path / "a" / "pipe")
    assert missing_files([*there, pipe]) == [pipe] == asked


def test_two_classes_of_one_name_in_a_split_file_are_said(tmp_path):
    rows = [[f"{file}/image_0001.png", n, name] for n, (file, name) in enumerate(zip("abc", "xxy"))]
    notes = read_split(split_of(tmp_path, test=rows)).notes
    assert notes == ("2 classes are called 'x'",)
    rows = [[f"{file}/image_0001.png", n, "x"] for n, file in enumerate("abc")]
    (tmp_path / "s.json").write_text(json.dumps({"test": rows}))
    with pytest.raises(ValueError, match=r"several names, got \['x', 'x', 'x'\]"):
        read_split(tmp_path / "s.json", tmp_path)


def test_missing_files_beyond_a_thousand_are_not_counted(tmp_path):
    rows = [[f"{number}.png", 0, "a"] for number in range(1500)]
    with pytest.raises(FileNotFoundError, match="got 1000 or more missing, the first .*/0.png"):
        read_split(split_of(tmp_path, test=rows))


# ---- batches


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Sample]:
    """Eleven noisy pictures of different sizes, two classes."""
    folder, numbers = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    items = []
    for number in range(11):
        noise = numbers.integers(0, 256, (17 + number, 31 - number, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number:02d}.png")
        items.append(Sample(str(folder / f"{number:02d}.png"), number % 2, "ab"[number % 2]))
    return items


def epoch(items, seed=1, epoch=0, store=None, workers=0, batch_size=4):
    return list(batching.train_batches(items, 7, batch_size, seed, epoch, store, workers))


def same(some, others) -> bool:
    assert len(some) == len(others)
    return all(torch.equal(a.images, b.images) for a, b in zip(some, others, strict=True))


def test_test_batches_keep_order_and_the_last_smaller_batch(pictures):
    batches = list(batching.eval_batches(pictures, 7, 4, workers=2))
    shapes = [tuple(batch.images.shape) for batch in batches]
    assert shapes == [(4, 3, 7, 7), (4, 3, 7, 7), (3, 3, 7, 7)]
    assert batches[0].images.dtype == torch.uint8 and batches[0].labels.dtype == torch.int64
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 1] * 5 + [0]
    preprocess = transforms.Preprocess(7)
    expected = [preprocess(Image.open(item.path)) for item in pictures]
    found = transforms.normalize(torch.cat([images for images, _ in batches]))
    assert torch.equal(found, torch.stack(expected))


def test_training_views_do_not_depend_on_workers_or_store(pictures):
    expected = epoch(pictures)
    for workers in (1, 3):
        for store in (None, batching.ImageCache(), batching.ImageCache(max_bytes=5000)):
            assert same(expected, epoch(pictures, store=store, workers=workers))
            assert same(expected, epoch(pictures, store=store, workers=workers))  # from the store


def test_each_epoch_and_seed_has_its_own_order_and_crops(pictures):
    first = epoch(pictures)
    assert same(first, epoch(pictures))
    for other in (epoch(pictures, epoch=1), epoch(pictures, seed=0)):
        assert not same(first, other)
    one = pictures[:1] * 8  # order plays no part: the crops of one picture must differ
    images = torch.cat([batch.images for batch in epoch(one)])
    assert len({image.numpy().tobytes() for image in images}) == 8
    assert not same(epoch(one), epoch(one, epoch=1))


def test_an_epoch_shows_each_picture_once(pictures):
    plain = [Image.new("RGB", (9, 9), (number, 0, 0)) for number in range(11)]
    store = batching.ImageCache()
    store._images = {item.path: image for item, image in zip(pictures, plain, strict=True)}
    batches = epoch(pictures, store=store, batch_size=20)
    shown = batches[0].images[:, 0, 0, 0].tolist()
    assert sorted(shown) == list(range(11)) and shown != sorted(shown)
    assert batches[0].labels.tolist() == [number % 2 for number in shown]


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4, 4]), (11, [11]), (12, [11])])
def test_last_incomplete_batch_is_dropped_only_after_a_full_one(pictures, batch_size, sizes):
    batches = epoch(pictures, batch_size=batch_size)
    assert [len(batch.labels) for batch in batches] == sizes


def test_store_decodes_each_picture_once_within_its_bytes(pictures, monkeypatch):
    opened = []

    def counting(path, white_level):
        opened.append(path)
        return open_image(path, white_level)

    monkeypatch.setattr(decode, "open_image", counting)
    store = batching.ImageCache()
    for number in range(3):
        epoch(pictures, epoch=number, store=store, workers=2, batch_size=11)
    assert sorted(opened) == sorted(item.path for item in pictures) and len(store) == 11
    assert store.bytes == sum(4 * (17 + n) * (31 - n) for n in range(11))

    opened.clear()
    small = batching.ImageCache(max_bytes=5000)  # two pictures of about 2200 bytes
    for number in range(3):
        epoch(pictures, epoch=number, store=small, batch_size=11)
    assert len(small) == 2 and small.bytes <= 5000 and len(opened) == 2 + 3 * 9


def test_only_pictures_of_an_earlier_run_make_room_in_a_full_store(pictures):
    first, second = ([item.path for item in part] for part in (pictures[:4], pictures[4:]))
    store = batching.ImageCache(max_bytes=5000)
    store.fill(first)
    assert len(store) == 2
    store.fill(second[:2])
    kept = [store.get(path) for path in second[:2]]
    assert len(store) == 2 and store.bytes == sum(4 * image.width * image.height for image in kept)
    assert all(store.get(path) is image for path, image in zip(second[:2], kept, strict=True))
    store.fill(second)  # none of those that are wanted gives way to another
    assert all(store.get(path) is image for path, image in zip(second[:2], kept, strict=True))


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("minidpt-images")]


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_picture_surfaces_in_the_consumer_and_threads_end(pictures, tmp_path, workers):
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(pictures[0].path).read_bytes()[:99])
    items = pictures[:6] + [Sample(str(broken), 0, "a")]
    for batches in (
        batching.train_batches(items, 7, 7, seed=1, epoch=0, workers=workers),
        batching.eval_batches(items, 7, 4, workers=workers),
    ):
        with pytest.raises(ValueError, match="broken.png"):
            list(batches)
        assert threads() == []


def test_threads_end_when_the_consumer_stops_early(pictures):
    for _ in batching.eval_batches(pictures * 9, 7, 2, workers=3):
        assert threads()
        break
    assert threads() == []
    with pytest.raises(KeyboardInterrupt) as kept:  # its traceback keeps the frames alive
        for _ in batching.train_batches(pictures * 9, 7, 2, 1, 0, workers=3):
            raise KeyboardInterrupt
    assert threads() == [] and kept


def test_threads_end_when_interrupted_while_a_batch_is_made(pictures, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "stack", interrupted)
    with pytest.raises(KeyboardInterrupt) as kept:
        next(batching.eval_batches(pictures * 9, 7, 2, workers=3))
    assert threads() == [] and kept


def test_work_ahead_is_bounded(pictures):
    opened = []
    read = lambda path: opened.append(path) or open_image(path)  # noqa: E731
    batches = batching.eval_batches(pictures * 9, 7, 2, workers=2, read=read)
    assert opened == []  # nothing starts before it is asked for
    next(batches)
    time.sleep(0.2)
    assert len(opened) <= 2 + 2 * 2  # this batch and two more
    batches.close()


def test_no_images_make_no_batch():
    assert list(batching.eval_batches([], 7, 4)) == []


# ---- pictures of more than 8 bits


@pytest.fixture
def deep(tmp_path) -> list[Sample]:
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


def test_one_white_level_is_set_by_all_images_that_are_read_and_shows_them(deep):
    items = deep[:6]
    cache = batching.ImageCache()
    cache.fill([item.path for item in items])
    assert cache.white_level == {"integer": 1023, "float": 255}
    shown = [round(255 * value / 1023) for value in (800, 900, 30)]
    shown += [round(0.5), 200, 7]
    for batches in (
        batching.eval_batches(items, 5, 6, read=cache.white_level.open),
        batching.train_batches(items, 5, 6, 1, 0, cache),
    ):
        (batch,) = batches
        assert sorted(batch.images[:, 0, 2, 2].tolist()) == sorted(shown)
    cache.fill([items[2].path])  # another run's: 30 of 255
    assert cache.white_level == {"integer": 255}
    assert np.asarray(cache.get(items[2].path))[0, 0, 0] == 30
    assert len(cache) == 1
    cache.fill([items[5].path])
    assert cache.white_level == {}
    with pytest.raises(ValueError, match="broken.png"):  # what was read before it is read again
        cache.fill([item.path for item in deep], workers=0)
    cache.fill([item.path for item in items])
    assert cache.white_level == {"integer": 1023, "float": 255}
    assert np.asarray(cache.get(items[0].path))[0, 0, 0] == shown[0]


def test_ranks_share_one_white_level(deep, monkeypatch):
    """Each reads some of the images; the brightest of all decides."""

    class Others(batching.World):
        def all_gather_object(self, content):
            return [content, {"integer": 5000.0, "float": 0.1}]

    cache = batching.ImageCache()
    cache.fill([deep[0].path], world=Others())
    assert cache.white_level == {"integer": 65535, "float": 1}
    assert WhiteLevel(integer=4095).settle(Others()) is True  # floats, which only the other has


def test_broken_pictures_that_are_read_next_are_named_with_the_first(deep, tmp_path):
    other = tmp_path / "other.png"
    other.write_text("no picture")
    with pytest.raises(ValueError, match="broken.png.*1 more: .*other.png"):
        batching.ImageCache().fill([item.path for item in deep], others=[str(other)])
