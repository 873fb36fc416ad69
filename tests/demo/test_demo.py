"""The demo's images: drawn from a seed, once, in folders that a data set is read from."""

from __future__ import annotations

import hashlib
import itertools
import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import minidpt
from minidpt.checkpoints.reader import read_state_dict
from minidpt.data import datasets
from minidpt.demo import demo
from minidpt.demo.demo import CLASSES, STREET_STYLE, draw_scene
from minidpt.demo.things import THINGS

sys.path.append(str(Path(__file__).parents[2] / "weights"))
from pretrain_tiny import BOOK_STYLE  # noqa: E402

both_styles = pytest.mark.parametrize("style", [BOOK_STYLE, STREET_STYLE], ids=["book", "night"])


def scene(thing: str, seed: int, style=STREET_STYLE, **options) -> bytes:
    return draw_scene(thing, random.Random(seed), style, **options).tobytes()


def test_what_this_version_of_the_demo_draws_is_pinned():
    """Another drawing is another data set: `demo.VERSION` must change with it."""
    digest = hashlib.sha256()
    for name, seed in itertools.product(THINGS, range(5)):
        for which, polygon in THINGS[name](random.Random(seed)):
            points = [(round(x, 6), round(y, 6)) for x, y in polygon]
            digest.update(f"{name} {which} {points}".encode())
    pinned = "66c7fbc26ac6d7151282d9b64eb38e51e200b34d7b96f8322a8db1488ff408ee"
    assert (demo.VERSION, digest.hexdigest()) == (3, pinned)
    image = draw_scene("fish", random.Random(3), STREET_STYLE)
    means = np.asarray(image, np.float64).reshape(3, 32, 3, 32, 3).mean((1, 3))
    pinned = [
        [[31.4, 36.4, 23.4], [35.1, 37.2, 23.0], [31.8, 36.8, 24.1]],
        [[36.4, 37.8, 23.2], [93.7, 88.0, 125.0], [92.1, 82.2, 135.6]],
        [[30.5, 35.5, 22.5], [50.5, 60.1, 44.5], [40.4, 71.3, 55.8]],
    ]
    np.testing.assert_allclose(means, pinned, atol=1)  # another Pillow draws other edges


@pytest.mark.parametrize("name", THINGS)
def test_things_lie_in_their_square_and_use_three_colours(name):
    for seed in range(20):
        for which, polygon in THINGS[name](random.Random(seed)):
            assert which in (0, 1, 2) and len(polygon) >= 3
            assert all(-0.01 <= c <= 1.01 for point in polygon for c in point)


def test_the_names_are_unique_words_and_the_demo_has_twelve_of_them():
    assert len(CLASSES) == 12 and set(CLASSES) < set(THINGS)
    assert all(name.isalpha() and name.islower() for name in THINGS)


def test_smaller_things_of_other_classes_stand_beside_the_one_that_counts(monkeypatch):
    drawn = []

    def record(image, name, rng, style, size, at_edge):
        drawn.append((name, size))
        return []

    monkeypatch.setattr(demo, "draw_thing", record)
    counts = Counter()
    for seed in range(50):
        drawn.clear()
        draw_scene("fish", random.Random(seed), STREET_STYLE)
        *others, (name, size) = drawn  # the last one is in front
        assert name == "fish" and STREET_STYLE.size[0] <= size <= STREET_STYLE.size[1]
        assert "fish" not in [other for other, _ in others]
        least, most = STREET_STYLE.other_size
        assert all(least * size <= small <= most * size for _, small in others)
        counts[len(others)] += 1
    assert counts.keys() == {2, 3}


@pytest.fixture
def few_images(monkeypatch):
    """2 training and 3 test images of each class instead of over a hundred."""
    monkeypatch.setattr(demo, "TRAIN_IMAGES", 2)
    monkeypatch.setattr(demo, "TEST_IMAGES", 3)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): (f.stat().st_mtime_ns, f.read_bytes()) for f in files}


def test_the_demo_is_train_and_test_folders_of_classes(few_images, tmp_path):
    folder = demo.draw_demo(tmp_path / "not yet" / "there")
    assert folder == tmp_path / "not yet" / "there" / "demo-v3"
    assert [path.name for path in folder.parent.iterdir()] == ["demo-v3"]  # nothing left beside it
    files = contents(folder)
    assert len({pixels for _, pixels in files.values()}) == len(files) == 60  # no two are the same
    listed = Counter(tuple(Path(name).parts[:2]) for name in files)
    expected = {("train", name): 2 for name in CLASSES} | {("test", name): 3 for name in CLASSES}
    assert listed == expected

    dataset = datasets.open_dataset(folder)
    assert dataset.classnames == sorted(CLASSES)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (24, 0, 36)
    with Image.open(dataset.test[0].path) as image:
        assert (image.mode, image.size) == ("RGB", (96, 96))


def test_the_demo_is_drawn_once_and_the_same_everywhere(few_images, tmp_path):
    folder = demo.draw_demo(tmp_path / "a")
    before = contents(folder)
    random.seed(5)
    assert demo.draw_demo(tmp_path / "a") == folder
    assert contents(folder) == before
    other = contents(demo.draw_demo(tmp_path / "b"))
    assert {name: pixels for name, (_, pixels) in other.items()} == {
        name: pixels for name, (_, pixels) in before.items()
    }


def alone(style):
    """Nothing but a thing before a ground of one colour."""
    return replace(style, noise=0, clutter=(0, 0), others=(0, 0), outline=0)


def drawn_in(image: Image.Image) -> np.ndarray:
    """Where an image differs from its ground, its commonest colour."""
    ground = max(image.getcolors(96 * 96))[1]
    return np.any(np.asarray(image) != np.array(ground), axis=-1)


@both_styles
@pytest.mark.parametrize("name", THINGS)
def test_everything_is_drawn_and_where_its_outlines_are(name, style):
    outlines, mask = [], Image.new("L", (192, 192))
    image = draw_scene(name, random.Random(5), alone(style), outlines=outlines)
    for polygon in outlines:
        ImageDraw.Draw(mask).polygon(polygon, fill=255)
    assert image.tobytes() == scene(name, 5, alone(style))
    assert np.array_equal(drawn_in(image), np.asarray(mask.resize((96, 96), Image.BOX)) > 0)
    filled = drawn_in(image)
    lines = drawn_in(draw_scene(name, random.Random(5), replace(alone(style), outline=1)))
    assert filled.mean() > 0.02 and lines.mean() > 0.01 and (lines != filled).any()


def test_an_interrupted_demo_leaves_nothing_and_is_drawn_anew(few_images, tmp_path, monkeypatch):
    real, calls = demo.draw_scene, iter(range(7))

    def interrupted(*args):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(demo, "draw_scene", interrupted)
        with pytest.raises(KeyboardInterrupt):
            demo.draw_demo(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(contents(demo.draw_demo(tmp_path))) == 60


def test_the_tiny_clip_is_an_openai_archive_and_knows_plain_scenes():
    file = Path(__file__).parents[2] / "weights" / "tiny.pt"
    assert file.stat().st_size <= 20_000_000
    state = read_state_dict(file)
    assert {value.dtype for value in state.values() if value.ndim == 2} == {torch.float16}

    clip, preprocess = minidpt.load("tiny")
    assert clip.name == "tiny" and len(clip.visual.transformer.resblocks) >= 4
    rng, texts = random.Random(0), [f"a photo of a {name}." for name in CLASSES]
    images = [preprocess(draw_scene(name, rng, BOOK_STYLE)) for name in CLASSES for _ in range(10)]
    with torch.no_grad():
        logits, _ = clip(torch.stack(images), minidpt.tokenize(texts))
    labels = torch.arange(len(CLASSES)).repeat_interleave(10)
    assert (logits.argmax(dim=-1) == labels).float().mean() >= 0.7
