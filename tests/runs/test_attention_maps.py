"""`eval.py predict --attention-maps`: a PNG of attention for each image."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import SHORT, assert_one_line, inside, save_clip
from torch.nn import functional as F

import minidpt
from minidpt.runs import attention_pngs
from minidpt.runs.attention_pngs import WIDTH, attention_map_folder, draw_attention


class Place(NamedTuple):
    data: Path
    run: Path
    model: minidpt.PromptedCLIP


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    """A run of DPT on twelve pictures of three classes. Only read it."""
    folder, rng = tmp_path_factory.mktemp("place"), random.Random(0)
    colours = {"red": (200, 40, 30), "green": (30, 190, 60), "blue": (40, 60, 210)}
    for name, colour in colours.items():
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            picture = Image.new("RGB", (27, 23), tuple(c + rng.randrange(-30, 31) for c in colour))
            picture.putpixel((number, 5), (255, 255, 255))
            picture.save(folder / "pictures" / name / f"{number}.png")
    clip, run = save_clip(folder / "clip.pt"), folder / "run"
    options = ("--data", folder / "pictures", "--model", clip, "--out", run, *SHORT, "--epochs", 1)
    trained = inside("train.py", *options)
    assert trained.status == 0, trained
    model = minidpt.load_model(run / "model.pt", minidpt.load(str(clip))[0])
    return Place(folder / "pictures", run, model)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_each_picture_gets_a_png_and_those_of_equal_names_numbers(place, tmp_path):
    image = [place.data / "red" / "0.png", place.data / "blue" / "0.png", place.data / "red/1.png"]
    done = inside("eval.py", "predict", place.run, *image, "--attention-maps", tmp_path / "new")
    assert done.status == 0 and done.out.count("\n") == 3, done
    assert names_in(tmp_path / "new") == ["0-2.png", "0.png", "1.png"]
    for path in (tmp_path / "new").iterdir():
        with Image.open(path) as drawn:
            assert (drawn.format, drawn.mode, drawn.width) == ("PNG", "RGB", WIDTH)
            drawn.load()


def test_each_picture_s_line_names_its_png_and_so_does_its_json(place, tmp_path):
    image = [place.data / "red" / "0.png", place.data / "blue" / "0.png", "gone.png"]
    options = ("predict", place.run, *image, "--json", tmp_path / "o.jsonl")
    done = inside("eval.py", *options, "--attention-maps", tmp_path / "new")
    pngs = [str(tmp_path / "new" / name) for name in ("0.png", "0-2.png")]
    assert [line.partition(" -> ")[2] for line in done.out.splitlines()] == pngs
    entries = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [entry.get("explained") for entry in entries] == [*pngs, None]


def test_a_number_does_not_take_the_name_of_a_later_picture(place, tmp_path):
    files = [tmp_path / name for name in ("a/x.png", "b/X.png", "b/x-2.png", f"b/{'é' * 125}.png")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        shutil.copy(place.data / "red" / "0.png", file)
    (tmp_path / "empty").mkdir()
    with attention_map_folder(tmp_path / "empty", [], place.model) as draw_maps:
        written = [draw_maps(file).name for file in files]
    assert written[:3] == ["x.png", "X-2.png", "x-2-2.png"]  # one file where case does not count
    assert names_in(tmp_path / "empty") == sorted(written)


@pytest.mark.parametrize("where", ["filled", "pictures/new", "unreadable"])
def test_a_folder_with_files_or_within_the_data_is_refused_before_anything(place, tmp_path, where):
    folder, image = tmp_path / where, place.data / "red" / "0.png"
    words = ["--attention-maps"]
    if where == "filled":
        folder.mkdir()
        (folder / "mine.txt").write_text("kept")
        words += ["new or empty", "other files"]
    elif where == "pictures/new":
        folder = place.data / "new"
        words += ["outside the data folder"]
    else:
        folder.write_text("a file")
    before = names_in(place.data)
    done = inside("eval.py", "predict", place.run, image, "--attention-maps", folder)
    assert_one_line(done, "eval.py", *words)
    assert done.out == "" and names_in(place.data) == before
    assert where != "filled" or names_in(folder) == ["mine.txt"]


def test_a_picture_that_cannot_be_read_has_no_png_and_the_others_have(place, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    image = [tmp_path / "broken.png", place.data / "red" / "0.png"]
    done = inside("eval.py", "predict", place.run, *image, "--attention-maps", tmp_path / "new")
    assert_one_line(done, "eval.py", "broken.png")
    assert names_in(tmp_path / "new") == ["0.png"]


def parts_of(monkeypatch, model, picture, **options):
    """What `draw_attention` composes: rows of panels, names, bars."""
    monkeypatch.setattr(attention_pngs, "compose", lambda *parts: parts)
    return draw_attention(model, picture, **options)


def test_bars_are_the_probabilities_with_and_without_what_was_learned(place, monkeypatch):
    picture = place.data / "green" / "2.png"
    title, _, names, bars = parts_of(monkeypatch, place.model, picture, top=2)
    ((best, second),) = place.model.predict(picture, top=2)
    assert title == "2.png" and names[:2] == [best.classname, second.classname]
    (learned, _, shares), (frozen, _, before) = bars
    assert (learned, frozen) == ("dpt", "zero-shot")
    assert shares[:2] == pytest.approx([best.probability, second.probability], abs=1e-5)

    clip = place.model.clip
    resolution = clip.visual.resolution
    image = place.model.white_level.open(picture)
    pixels = minidpt.images.transforms.eval_pixels(image, resolution)
    images = minidpt.images.transforms.normalize(torch.from_numpy(pixels)[None])
    texts = [place.model.template.format(name) for name in names]
    with torch.no_grad():
        features = F.normalize(clip.encode_text(minidpt.tokenize(texts)), dim=-1)
        image = F.normalize(clip.encode_image(images), dim=-1)
        logits = clip.logit_scale.exp() * image @ features.t()
    ratios = (logits - logits[:, :1]).exp()[0]  # without the classes that have no bar
    np.testing.assert_allclose(np.array(before) / before[0], ratios, rtol=1e-3)


def test_the_likeliest_of_zero_shot_clip_has_a_bar_though_it_is_not_among_the_first(
    place, monkeypatch
):
    with monkeypatch.context() as patch:
        worst = place.model.predict(place.data / "red" / "0.png", top=3)[0][-1].classname
        share = torch.tensor([float(name == worst) for name in place.model.classnames])
        patch.setattr(attention_pngs, "zero_shot_probabilities", lambda model, images: share)
        _, _, names, bars = parts_of(patch, place.model, place.data / "red" / "0.png", top=1)
    assert names[1:] == [worst] and bars[1][2] == [0, 1]


def test_panels_are_the_picture_before_and_after_and_the_three_likeliest_classes(
    place, monkeypatch
):
    picture = place.data / "blue" / "1.png"
    _, rows, names, _ = parts_of(monkeypatch, place.model, picture)
    (_, views), (head, classes) = rows.items()
    assert [caption for caption, _ in views] == [
        "What the model sees", "Attention before tuning", "Attention after tuning",
    ]  # fmt: skip
    assert "class-aware" in head and [caption for caption, _ in classes] == names
    assert {panel.size for _, panel in views + classes} == {(224, 224)}
    seen = np.asarray(views[0][1].resize((3, 3), Image.Resampling.BOX), float)
    with Image.open(picture) as original:
        assert abs(seen[1, 1] - np.array(original.getpixel((13, 11)))).max() < 3


@pytest.mark.parametrize("method", ["zeroshot", "coop", "vpt"])
def test_other_methods_have_what_they_learned(place, monkeypatch, method):
    config = minidpt.PromptConfig(method=method, n_ctx=2, n_visual=2)
    model = minidpt.build_model(place.model.clip, ["red", "blue"], "a {}.", config)
    _, rows, _, bars = parts_of(monkeypatch, model, place.data / "red" / "0.png")
    captions = [caption for caption, _ in rows[""]]
    assert len(rows) == 1 and ("Attention after tuning" in captions) == (method == "vpt")
    assert [label for label, _, _ in bars] == [method, "zero-shot"][method == "zeroshot" :]
