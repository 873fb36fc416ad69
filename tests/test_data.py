"""What lies in a folder, the few-shot draw, split files and batches."""

import json
import os
import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from minidpt import data, transforms
from PIL import Image

from image_folders import draw, draw_classes


def files(items, root) -> list[str]:
    return [Path(item.path).relative_to(root).as_posix() for item in items]


def everything(dataset) -> list[data.Item]:
    return dataset.train + dataset.val + dataset.test


# ---- any folder


def test_class_folders_are_split_by_class(tmp_path):
    draw_classes(tmp_path, {"owl": 10, "cat": 7, "sea_horse": 20})
    dataset = data.open_dataset(tmp_path)
    assert dataset.classnames == ["cat", "owl", "sea horse"]
    assert dataset.template == "a photo of a {}." and dataset.notes == ()
    counts = {
        part: [[i.label for i in getattr(dataset, part)].count(label) for label in range(3)]
        for part in ("train", "val", "test")
    }
    # 50 and 20 % of 7: 3.5 -> 4 (the even one), 1.4 -> 1; the rest is the test
    assert counts == {"train": [4, 5, 10], "val": [1, 2, 4], "test": [2, 3, 6]}
    assert len({item.path for item in everything(dataset)}) == 37
    for item in everything(dataset):
        assert item.classname == dataset.classnames[item.label]
        assert Path(item.path).parent.name == ["cat", "owl", "sea_horse"][item.label]
    assert "3 classes" in dataset.source and "19/7/11" in dataset.source
    assert "fixed seed 1" in dataset.source


def test_drawn_split_depends_on_its_seed_alone(tmp_path):
    draw_classes(tmp_path, {"a": 30, "b": 30})
    assert data.open_dataset(tmp_path) == data.open_dataset(tmp_path)
    assert data.open_dataset(tmp_path).test != data.open_dataset(tmp_path, seed=0).test
    assert data.open_dataset(tmp_path).train != sorted(data.open_dataset(tmp_path).train)


@pytest.mark.parametrize(
    ("count", "parts"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (2, 0, 1)), (4, (2, 1, 1))]
)
def test_tiny_classes_have_a_training_and_a_test_image(tmp_path, count, parts):
    draw_classes(tmp_path, {"a": count, "b": 10})
    dataset = data.open_dataset(tmp_path)
    found = [sum(i.label == 0 for i in getattr(dataset, p)) for p in ("train", "val", "test")]
    assert tuple(found) == parts
    assert dataset.notes == (() if count > 1 else ("class 'a' has no test image",))


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("sea_horse", "sea horse"),
        ("sea-horse", "sea horse"),
        ("SeaHorse", "Sea Horse"),
        ("AnnualCrop_2", "Annual Crop 2"),
        ("BMWSeries", "BMW Series"),
        ("iPhone", "iPhone"),
        ("UFOs", "UFOs"),
        ("USA", "USA"),
        ("ÉcoleÉlémentaire", "École Élémentaire"),
        ("Cafe\u0301", "Caf\u00e9"),  # decomposed, as macOS stores it
        ("海馬", "海馬"),
        ("__a__b", "a b"),
        ("_", "_"),
        (os.fsdecode(b"caf\xe9"), "caf\ufffd"),  # Latin-1 bytes
    ],
)
def test_folder_names_become_words(folder, name):
    assert data.readable(folder) == name


def test_only_visible_pictures_are_found_and_sub_folders_searched(tmp_path):
    draw_classes(tmp_path, {"a": 2, "b": 2})
    draw(tmp_path / "a" / "deep" / "er" / "UPPER.JPG")
    draw(tmp_path / "a" / "x.WebP")
    draw(tmp_path / "a" / ".hidden.png")
    draw(tmp_path / "a" / ".thumbnails" / "x.png")
    draw(tmp_path / ".git" / "x.png")
    draw(tmp_path / "__MACOSX" / "x.png")
    draw(tmp_path / "loose.png")
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    dataset = data.open_dataset(tmp_path)
    assert dataset.classnames == ["a", "b"]
    assert sorted(f for f in files(everything(dataset), tmp_path) if f.startswith("a/")) == [
        "a/deep/er/UPPER.JPG",
        "a/image_0001.png",
        "a/image_0002.png",
        "a/x.WebP",
    ]


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = tmp_path / "root"
    draw_classes(root, {"a": 2, "b": 2})
    draw_classes(tmp_path / "elsewhere", {"c": 3, "d": 4})
    (root / "c").symlink_to(tmp_path / "elsewhere" / "c")  # a class that lies elsewhere
    (root / "a" / "more").symlink_to(tmp_path / "elsewhere" / "d")
    (root / "a" / "twice").symlink_to(tmp_path / "elsewhere" / "d")
    (root / "a" / "self").symlink_to(root / "a")
    (root / "b" / "up").symlink_to(root)
    dataset = data.open_dataset(root)
    counts = [sum(item.label == label for item in everything(dataset)) for label in range(3)]
    assert dataset.classnames == ["a", "b", "c"] and counts == [2 + 4, 2, 3]


# ---- train, val, test


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_train_val_test_folders_are_kept(tmp_path, val):
    draw_classes(tmp_path / "train", {"dog": 3, "cat": 2})
    draw_classes(tmp_path / val, {"dog": 1})
    draw_classes(tmp_path / "test", {"dog": 2, "cat": 4})
    dataset = data.open_dataset(tmp_path)
    assert dataset.classnames == ["cat", "dog"]
    assert files(dataset.train, tmp_path)[0] == "train/cat/image_0001.png"
    assert [item.label for item in dataset.train] == [0, 0, 1, 1, 1]
    assert files(dataset.val, tmp_path) == [f"{val}/dog/image_0001.png"]
    assert dataset.val[0].label == 1  # counted by the classes of train, not of val
    assert [item.label for item in dataset.test] == [0, 0, 0, 0, 1, 1]


def test_without_a_test_folder_val_is_the_test_and_said_so(tmp_path):
    draw_classes(tmp_path / "train", {"dog": 3, "cat": 2})
    draw_classes(tmp_path / "val", {"dog": 1, "cat": 2})
    dataset = data.open_dataset(tmp_path)
    assert len(dataset.test) == 3 and dataset.val == []
    assert "no test/, so val/ is the test set" in dataset.source


def test_class_that_only_the_test_has_is_named(tmp_path):
    draw_classes(tmp_path / "train", {"dog": 1, "cat": 1})
    draw_classes(tmp_path / "test", {"dog": 1, "owl": 1})
    with pytest.raises(ValueError, match="only classes that .*train has, got 'owl'"):
        data.open_dataset(tmp_path)


# ---- Caltech101

CALTECH = {"BACKGROUND_Google": 4, "Faces": 4, "Faces_easy": 4, "airplanes": 4, "crocodile_head": 4}


@pytest.mark.parametrize("above", ["", "caltech-101", "caltech101", "data/caltech101"])
def test_caltech101_is_found_at_each_level_and_renamed(tmp_path, above):
    draw_classes(tmp_path / above / "101_ObjectCategories", CALTECH)
    start = tmp_path / "data" if above.startswith("data") else tmp_path
    for path in (start, tmp_path / above, tmp_path / above / "101_ObjectCategories"):
        dataset = data.open_dataset(path)
        assert dataset.name == "Caltech101"
        assert dataset.classnames == ["face", "airplane", "crocodile head"]  # by folder
        assert {item.classname for item in dataset.test} == set(dataset.classnames)


def test_other_classes_in_the_layout_of_caltech101(tmp_path):
    draw_classes(tmp_path / "101_ObjectCategories", {"road_sign": 4, "bird": 4})
    dataset = data.open_dataset(tmp_path)
    assert dataset.classnames == ["bird", "road sign"] and dataset.name == tmp_path.name


def published_caltech101(root: Path) -> Path:
    """Two classes with a split file as CoOp's; its order is not that of the folders."""
    draw_classes(root / "101_ObjectCategories", {"Faces": 3, "crocodile_head": 3})
    rows = [
        [f"{folder}/image_{number:04d}.png", label, name]
        for number in (3, 1, 2)
        for folder, label, name in [("crocodile_head", 1, "crocodile_head"), ("Faces", 0, "face")]
    ]
    split = {"train": rows[:2], "val": rows[2:4], "test": rows[4:]}
    (root / "split_zhou_Caltech101.json").write_text(json.dumps(split))
    return root


def test_caltech101_with_its_split_file_keeps_names_and_order(tmp_path):
    published_caltech101(tmp_path / "caltech-101")
    (tmp_path / "link").symlink_to(tmp_path / "caltech-101" / "101_ObjectCategories")
    for path in ("", "caltech-101", "caltech-101/101_ObjectCategories", "link"):
        dataset = data.open_dataset(tmp_path / path)
        assert dataset.classnames == ["face", "crocodile_head"] and dataset.name == "Caltech101"
        assert files(dataset.train, dataset.root) == [
            "crocodile_head/image_0003.png",
            "Faces/image_0003.png",
        ]
        assert [item.label for item in dataset.train] == [1, 0]
        assert dataset.source == (
            "Caltech101: 2 classes, split_zhou_Caltech101.json, 2/2/2 images (train/val/test)"
        )


# ---- mistakes


def no_folder(root):
    pass


def a_file(root):
    root.write_text("x")


def empty(root):
    root.mkdir()


def one_class(root):
    draw_classes(root, {"owl": 3})


def class_without_image(root):
    draw_classes(root, {"owl": 3, "cat": 2, "dog": 0})


def same_name_twice(root):
    draw_classes(root, {"sea_horse": 3, "SeaHorse": 2})


def one_class_in_parts(root):
    draw_classes(root / "train", {"owl": 3})
    draw_classes(root / "test", {"owl": 3})


def empty_test(root):
    draw_classes(root / "train", {"owl": 3, "cat": 3})
    draw_classes(root / "test", {"owl": 0})


def train_class_without_image(root):
    draw_classes(root / "train", {"owl": 3, "cat": 0})
    draw_classes(root / "test", {"owl": 3, "cat": 3})


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (no_folder, FileNotFoundError, "expected a folder, got nothing there"),
        (a_file, ValueError, "expected a folder, got a file"),
        (empty, ValueError, "expected a folder for each class .*, got no folder in it"),
        (one_class, ValueError, "at least 2 class folders, got only 'owl'"),
        (class_without_image, ValueError, "of every class, got none for 'dog'"),
        (same_name_twice, ValueError, "got 'SeaHorse' and 'sea_horse': rename or merge"),
        (one_class_in_parts, ValueError, "train: expected at least 2 class folders"),
        (empty_test, ValueError, "test: expected pictures in class folders"),
        (train_class_without_image, ValueError, "got none for 'cat'"),
    ],
)
def test_mistakes_get_one_line_that_names_the_folder(tmp_path, made, error, message):
    made(tmp_path / "root")
    with pytest.raises(error, match=message) as raised:
        data.open_dataset(tmp_path / "root")
    assert str(tmp_path / "root") in str(raised.value) and "\n" not in str(raised.value)


# ---- few shots


def listed(counts: dict[int, int], part: str) -> list[data.Item]:
    return [
        data.Item(f"{part}/{label}/{number}", label, f"class{label}")
        for label, count in counts.items()
        for number in range(count)
    ]


def made_dataset(train, val, classes=3) -> data.Dataset:
    names = [f"class{label}" for label in range(classes)]
    test = listed({label: 2 for label in range(classes)}, "test")
    return data.Dataset(
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
        drawn = data.few_shot(dataset, shots, seed)
        assert (drawn.train, drawn.val, drawn.test) == (train, val, dataset.test)
        assert drawn.notes == ()


def test_few_shots_of_seed_1_are_these():
    # random.Random(1).sample of range(9), then range(7), then range(3) for val
    drawn = data.few_shot(made_dataset({1: 9, 0: 7}, {0: 3}, classes=2), 2, seed=1)
    expected = ["train/1/2", "train/1/1", "train/0/2", "train/0/0"]
    assert [item.path for item in drawn.train] == expected
    assert [item.path for item in drawn.val] == ["val/0/1", "val/0/2"]


def test_fewer_images_than_shots_are_all_used_and_said():
    drawn = data.few_shot(made_dataset({0: 5, 1: 3, 2: 4}, {0: 2}), 4, seed=0)
    assert [sum(i.label == label for i in drawn.train) for label in range(3)] == [4, 3, 4]
    assert drawn.notes == ("class 'class1' has 3 images, 4 shots wanted: using 3",)
    assert len(drawn.val) == 2
    with pytest.raises(ValueError, match="shots: expected at least 1, got 0"):
        data.few_shot(drawn, 0, seed=0)


def test_few_shots_leave_the_global_generator_alone():
    random.seed(5)
    expected = random.random()
    random.seed(5)
    data.few_shot(made_dataset({0: 5, 1: 3, 2: 4}, {}), 2, seed=1)
    assert random.random() == expected


# ---- split files


def test_split_file_brings_back_the_same_data_set(tmp_path):
    draw_classes(tmp_path / "data", {"a_b": 6, "ünï": 6, os.fsdecode(b"caf\xe9"): 6})
    drawn = data.few_shot(data.open_dataset(tmp_path / "data"), 2, seed=1)
    data.write_split(drawn, tmp_path / "split.json")
    again = data.read_split(tmp_path / "split.json")
    for name in ("name", "classnames", "template", "train", "val", "test"):
        assert getattr(again, name) == getattr(drawn, name), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "split.json"]

    content = json.loads((tmp_path / "split.json").read_text())  # and it is the published format
    assert content["train"][0] == [files(drawn.train, tmp_path / "data")[0], 0, "a b"]
    assert {"train", "val", "test"} <= set(content)


def test_split_file_works_for_a_data_folder_that_moved(tmp_path):
    draw_classes(tmp_path / "data", {"a": 3, "b": 3})
    data.write_split(data.open_dataset(tmp_path / "data"), tmp_path / "split.json")
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="expected its image folder, got .*data"):
        data.read_split(tmp_path / "split.json")
    moved = data.read_split(tmp_path / "split.json", tmp_path / "moved")
    assert all(os.path.exists(item.path) for item in everything(moved))
    Path(moved.test[0].path).unlink()
    with pytest.raises(FileNotFoundError, match="got 1 missing, the first .*png"):
        data.read_split(tmp_path / "split.json", tmp_path / "moved")


def test_nothing_is_written_into_the_data_folder(tmp_path):
    draw_classes(tmp_path / "data", {"a": 3, "b": 3})
    dataset = data.open_dataset(tmp_path / "data")
    with pytest.raises(ValueError, match="outside the data folder"):
        data.write_split(dataset, tmp_path / "data" / "a" / "split.json")
    assert len(list((tmp_path / "data").rglob("*"))) == 8


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
    ],
)
def test_broken_split_files_get_one_line(tmp_path, content):
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(ValueError, match=r"s.json: expected lists train, val, test") as raised:
        data.read_split(tmp_path / "s.json", tmp_path)
    assert "\n" not in str(raised.value)
    with pytest.raises(FileNotFoundError, match="none.json"):
        data.read_split(tmp_path / "none.json", tmp_path)


# ---- batches


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[data.Item]:
    """Eleven noisy pictures of different sizes, two classes."""
    folder, numbers = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    items = []
    for number in range(11):
        noise = numbers.integers(0, 256, (17 + number, 31 - number, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number:02d}.png")
        items.append(data.Item(str(folder / f"{number:02d}.png"), number % 2, "ab"[number % 2]))
    return items


def epoch(items, seed=1, epoch=0, store=None, workers=0, batch_size=4):
    return list(data.train_batches(items, 7, batch_size, seed, epoch, store, workers))


def same(some, others) -> bool:
    assert len(some) == len(others)
    return all(torch.equal(a.images, b.images) for a, b in zip(some, others))


def test_test_batches_keep_order_and_the_last_smaller_batch(pictures):
    batches = list(data.test_batches(pictures, 7, 4, workers=2))
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
        for store in (None, data.ImageStore(), data.ImageStore(max_bytes=5000)):
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
    store = data.ImageStore()
    store._images = {item.path: image for item, image in zip(pictures, plain)}
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

    def counting(path):
        opened.append(path)
        return transforms.open_image(path)

    monkeypatch.setattr(data, "open_image", counting)
    store = data.ImageStore()
    for number in range(3):
        epoch(pictures, epoch=number, store=store, workers=2, batch_size=11)
    assert sorted(opened) == sorted(item.path for item in pictures) and len(store) == 11
    assert store.bytes == sum(4 * (17 + n) * (31 - n) for n in range(11))

    opened.clear()
    small = data.ImageStore(max_bytes=5000)  # two pictures of about 2200 bytes
    for number in range(3):
        epoch(pictures, epoch=number, store=small, batch_size=11)
    assert len(small) == 2 and small.bytes <= 5000 and len(opened) == 2 + 3 * 9


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("minidpt-images")]


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_picture_surfaces_in_the_consumer_and_threads_end(pictures, tmp_path, workers):
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(pictures[0].path).read_bytes()[:99])
    items = pictures[:6] + [data.Item(str(broken), 0, "a")]
    for batches in (
        data.train_batches(items, 7, 7, seed=1, epoch=0, workers=workers),
        data.test_batches(items, 7, 4, workers=workers),
    ):
        with pytest.raises(ValueError, match="broken.png"):
            list(batches)
        assert threads() == []


def test_threads_end_when_the_consumer_stops_early(pictures):
    for _ in data.test_batches(pictures * 9, 7, 2, workers=3):
        assert threads()
        break
    assert threads() == []
    with pytest.raises(KeyboardInterrupt) as kept:  # its traceback keeps the frames alive
        for _ in data.train_batches(pictures * 9, 7, 2, 1, 0, workers=3):
            raise KeyboardInterrupt
    assert threads() == [] and kept


def test_threads_end_when_interrupted_while_a_batch_is_made(pictures, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "stack", interrupted)
    with pytest.raises(KeyboardInterrupt) as kept:
        next(data.test_batches(pictures * 9, 7, 2, workers=3))
    assert threads() == [] and kept


def test_work_ahead_is_bounded(pictures, monkeypatch):
    opened = []
    monkeypatch.setattr(data, "open_image", lambda p: opened.append(p) or transforms.open_image(p))
    batches = data.test_batches(pictures * 9, 7, 2, workers=2)
    assert opened == []  # nothing starts before it is asked for
    next(batches)
    time.sleep(0.2)
    assert len(opened) <= 2 + 2 * 2  # this batch and two more
    batches.close()


def test_senseless_sizes_are_refused_at_once(pictures):
    with pytest.raises(ValueError, match="expected batch_size >= 1 and workers >= 0, got 0 and 2"):
        data.test_batches(pictures, 7, 0)
    with pytest.raises(ValueError, match="got 4 and -1"):
        data.train_batches(pictures, 7, 4, 1, 0, workers=-1)
    assert list(data.test_batches([], 7, 4)) == []
