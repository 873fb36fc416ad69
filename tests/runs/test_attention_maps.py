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
from helpers.run_command import SHORT, assert_one_line, run_command, save_clip
from PIL import Image
from torch.nn import functional as F

import minidpt
from minidpt.runs import attention_pngs
from minidpt.runs.attention_pngs import WIDTH, attention_map_folder, draw_attention


class TunedRun(NamedTuple):
    data: Path
    folder: Path
    model: minidpt.PromptedCLIP


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> TunedRun:
    """A run of DPT on twelve images of three classes. Only read it."""
    folder, rng = tmp_path_factory.mktemp("run"), random.Random(0)
    colours = {"red": (200, 40, 30), "green": (30, 190, 60), "blue": (40, 60, 210)}
    for name, colour in colours.items():
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            image = Image.new("RGB", (27, 23), tuple(c + rng.randrange(-30, 31) for c in colour))
            image.putpixel((number, 5), (255, 255, 255))
            image.save(folder / "pictures" / name / f"{number}.png")
    clip, run = save_clip(folder / "clip.pt"), folder / "run"
    options = ("--data", folder / "pictures", "--model", clip, "--out", run, *SHORT, "--epochs", 1)
    trained = run_command("train.py", *options)
    assert trained.status == 0, trained
    model = minidpt.load_model(run / "model.pt", minidpt.load(str(clip))[0])
    return TunedRun(folder / "pictures", run, model)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_each_image_gets_a_png_and_those_of_equal_names_numbers(run, tmp_path):
    image = [run.data / "red" / "0.png", run.data / "blue" / "0.png", run.data / "red/1.png"]
    command = ("predict", run.folder, *image, "--attention-maps", tmp_path / "new")
    done = run_command("eval.py", *command)
    assert done.status == 0 and done.out.count("\n") == 3, done
    assert names_in(tmp_path / "new") == ["0-2.png", "0.png", "1.png"]
    for path in (tmp_path / "new").iterdir():
        with Image.open(path) as drawn:
            assert (drawn.format, drawn.mode, drawn.width) == ("PNG", "RGB", WIDTH)
            drawn.load()


def test_each_image_s_line_names_its_png_and_so_does_its_json(run, tmp_path):
    image = [run.data / "red" / "0.png", run.data / "blue" / "0.png", "gone.png"]
    options = ("predict", run.folder, *image, "--json", tmp_path / "o.jsonl")
    done = run_command("eval.py", *options, "--attention-maps", tmp_path / "new")
    pngs = [str(tmp_path / "new" / name) for name in ("0.png", "0-2.png")]
    assert [line.partition(" -> ")[2] for line in done.out.splitlines()] == pngs
    entries = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [entry.get("explained") for entry in entries] == [*pngs, None]


def test_a_number_does_not_take_the_name_of_a_later_image(run, tmp_path):
    files = [tmp_path / name for name in ("a/x.png", "b/X.png", "b/x-2.png", f"b/{'é' * 125}.png")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        shutil.copy(run.data / "red" / "0.png", file)
    (tmp_path / "empty").mkdir()
    with attention_map_folder(tmp_path / "empty", [], run.model) as draw_maps:
        written = [draw_maps(file).name for file in files]
    assert written[:3] == ["x.png", "X-2.png", "x-2-2.png"]  # one file where case does not count
    assert names_in(tmp_path / "empty") == sorted(written)


@pytest.mark.parametrize("where", ["filled", "pictures/new", "unreadable"])
def test_a_folder_with_files_or_within_the_data_is_refused_before_anything(run, tmp_path, where):
    folder, image = tmp_path / where, run.data / "red" / "0.png"
    words = ["--attention-maps"]
    if where == "filled":
        folder.mkdir()
        (folder / "mine.txt").write_text("kept")
        words += ["new or empty", "other files"]
    elif where == "pictures/new":
        folder = run.data / "new"
        words += ["outside the data folder"]
    else:
        folder.write_text("a file")
    before = names_in(run.data)
    done = run_command("eval.py", "predict", run.folder, image, "--attention-maps", folder)
    assert_one_line(done, "eval.py", *words)
    assert done.out == "" and names_in(run.data) == before
    assert where != "filled" or names_in(folder) == ["mine.txt"]


def test_a_table_within_the_folder_of_maps_is_refused(run, tmp_path):
    folder, image = tmp_path / "maps", run.data / "red" / "0.png"
    folder.mkdir()
    options = (run.folder, image, "--attention-maps", folder)
    done = run_command("eval.py", "predict", *options, "--json", folder / "a.json")
    assert_one_line(done, "eval.py", "--json", "outside --attention-maps", "a.json")
    assert not names_in(folder)


def test_an_unreadable_image_has_no_png_and_the_others_have(run, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    image = [tmp_path / "broken.png", run.data / "red" / "0.png"]
    command = ("predict", run.folder, *image, "--attention-maps", tmp_path / "new")
    done = run_command("eval.py", *command)
    assert_one_line(done, "eval.py", "broken.png")
    assert names_in(tmp_path / "new") == ["0.png"]


def parts_of(monkeypatch, model, path, **options):
    """What `draw_attention` composes: rows of panels, names, bars."""
    monkeypatch.setattr(attention_pngs, "compose", lambda *parts: parts)
    return draw_attention(model, path, **options)


def test_bars_are_the_probabilities_with_and_without_what_was_learned(run, monkeypatch):
    path = run.data / "green" / "2.png"
    title, _, names, bars = parts_of(monkeypatch, run.model, path, top=2)
    ((best, second),) = run.model.predict(path, top=2)
    assert title == "2.png" and names[:2] == [best.classname, second.classname]
    (learned, _, shares), (frozen, _, before) = bars
    assert (learned, frozen) == ("dpt", "zero-shot")
    assert shares[:2] == pytest.approx([best.probability, second.probability], abs=1e-5)

    clip = run.model.clip
    resolution = clip.visual.resolution
    image = run.model.white_level.open(path)
    pixels = minidpt.images.transforms.eval_pixels(image, resolution)
    images = minidpt.images.transforms.normalize(torch.from_numpy(pixels)[None])
    texts = [run.model.template.format(name) for name in names]
    with torch.no_grad():
        features = F.normalize(clip.encode_text(minidpt.tokenize(texts)), dim=-1)
        image = F.normalize(clip.encode_image(images), dim=-1)
        logits = clip.logit_scale.exp() * image @ features.t()
    ratios = (logits - logits[:, :1]).exp()[0]  # without the classes that have no bar
    np.testing.assert_allclose(np.array(before) / before[0], ratios, rtol=1e-3)


def test_the_likeliest_class_of_zero_shot_clip_always_has_a_bar(run, monkeypatch):
    with monkeypatch.context() as patch:
        worst = run.model.predict(run.data / "red" / "0.png", top=3)[0][-1].classname
        share = torch.tensor([float(name == worst) for name in run.model.classnames])
        patch.setattr(attention_pngs, "zero_shot_probabilities", lambda model, images: share)
        _, _, names, bars = parts_of(patch, run.model, run.data / "red" / "0.png", top=1)
    assert names[1:] == [worst] and bars[1][2] == [0, 1]


def test_panels_are_the_image_before_and_after_and_the_three_likeliest_classes(run, monkeypatch):
    path = run.data / "blue" / "1.png"
    _, rows, names, _ = parts_of(monkeypatch, run.model, path)
    (_, views), (head, classes) = rows.items()
    assert [caption for caption, _ in views] == [
        "What the model sees", "Attention before tuning", "Attention after tuning",
    ]  # fmt: skip
    assert "class-aware" in head and [caption for caption, _ in classes] == names
    assert {panel.size for _, panel in views + classes} == {(224, 224)}
    seen = np.asarray(views[0][1].resize((3, 3), Image.Resampling.BOX), float)
    with Image.open(path) as original:
        assert abs(seen[1, 1] - np.array(original.getpixel((13, 11)))).max() < 3


@pytest.mark.parametrize("method", ["zeroshot", "coop", "vpt"])
def test_other_methods_have_what_they_learned(run, monkeypatch, method):
    config = minidpt.PromptConfig(method=method, n_ctx=2, n_visual=2)
    model = minidpt.build_model(run.model.clip, ["red", "blue"], "a {}.", config)
    _, rows, _, bars = parts_of(monkeypatch, model, run.data / "red" / "0.png")
    captions = [caption for caption, _ in rows[""]]
    assert len(rows) == 1 and ("Attention after tuning" in captions) == (method == "vpt")
    assert [label for label, _, _ in bars] == [method, "zero-shot"][method == "zeroshot" :]
