"""`eval.py predict --attention-maps`: a PNG of attention for each image."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers.run_command import assert_one_line, run_command
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
def run(trained, inputs) -> TunedRun:
    """A run of DPT on images of four classes. Only read it."""
    model = minidpt.load_model(trained / "model.pt", minidpt.load(inputs.clip)[0])
    return TunedRun(inputs.data, trained, model)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_each_image_gets_a_png_that_its_line_and_its_json_name(run, tmp_path):
    images = [run.data / "Owl" / "0.png", run.data / "red_fox" / "0.png", "gone.png"]
    options = ("predict", run.folder, *images, "--json", tmp_path / "o.jsonl")
    done = run_command("eval.py", *options, "--attention-maps", tmp_path / "new")
    pngs = [str(tmp_path / "new" / name) for name in ("0.png", "0-2.png")]
    assert [line.partition(" -> ")[2] for line in done.out.splitlines()] == pngs
    entries = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [entry.get("explained") for entry in entries] == [*pngs, None]
    assert names_in(tmp_path / "new") == ["0-2.png", "0.png"]
    for path in pngs:
        with Image.open(path) as drawn:
            assert (drawn.format, drawn.mode, drawn.width) == ("PNG", "RGB", WIDTH)
            drawn.load()


def test_a_number_does_not_take_the_name_of_a_later_image(run, tmp_path):
    files = [tmp_path / name for name in ("a/x.png", "b/X.png", "b/x-2.png", f"b/{'é' * 125}.png")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        shutil.copy(run.data / "Owl" / "0.png", file)
    (tmp_path / "empty").mkdir()
    with attention_map_folder(tmp_path / "empty", [], run.model) as draw_maps:
        written = [draw_maps(file).name for file in files]
    assert written[:3] == ["x.png", "X-2.png", "x-2-2.png"]  # one file where case does not count
    assert names_in(tmp_path / "empty") == sorted(written)


@pytest.mark.parametrize("where", ["filled", "pictures/new", "unreadable"])
def test_a_folder_with_files_or_within_the_data_is_refused_before_anything(run, tmp_path, where):
    folder, image = tmp_path / where, run.data / "Owl" / "0.png"
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


def parts_of(monkeypatch, model, path, **options):
    """What `draw_attention` composes: rows of panels, names, bars."""
    monkeypatch.setattr(attention_pngs, "compose", lambda *parts: parts)
    return draw_attention(model, path, **options)


def test_bars_are_the_probabilities_with_and_without_what_was_learned(run, monkeypatch):
    path = run.data / "gnu" / "2.png"
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
        worst = run.model.predict(run.data / "Owl" / "0.png", top=3)[0][-1].classname
        _, images, _ = attention_pngs.attention_panels(run.model, run.data / "Owl" / "0.png", 9)
        frozen = F.normalize(run.model.clip.encode_image(images), dim=-1)
        signs = torch.tensor([[1.0 if name == worst else -1.0] for name in run.model.classnames])
        patch.setitem(run.model._buffers, "template_features", signs * frozen)
        _, _, names, bars = parts_of(patch, run.model, run.data / "Owl" / "0.png", top=1)
    assert names[1:] == [worst] and bars[1][2] == pytest.approx([0, 1])


def test_panels_are_the_image_before_and_after_and_the_three_likeliest_classes(run, monkeypatch):
    path = run.data / "red_fox" / "1.png"
    _, rows, names, _ = parts_of(monkeypatch, run.model, path)
    (_, views), (head, classes) = rows.items()
    assert [caption for caption, _ in views] == [
        "What the model sees", "Attention before tuning", "Attention after tuning",
    ]  # fmt: skip
    selected = [caption for caption, _ in classes]  # three of the four classes
    assert "class-aware" in head and len(selected) == 3
    assert selected == [name for name in names if name in selected]
    assert {panel.size for _, panel in views + classes} == {(224, 224)}
    seen = np.asarray(views[0][1].resize((3, 3), Image.Resampling.BOX), float)
    with Image.open(path) as original:
        middle = np.asarray(original, float)[8:15, 10:17].mean(axis=(0, 1))
    assert abs(seen[1, 1] - middle).max() < 12  # spots at the border count otherwise


@pytest.mark.parametrize("method", ["zeroshot", "coop", "vpt"])
def test_other_methods_have_what_they_learned(run, monkeypatch, method):
    config = minidpt.PromptConfig(method=method, n_ctx=2, n_visual=2)
    model = minidpt.build_model(run.model.clip, ["red", "blue"], "a {}.", config)
    _, rows, _, bars = parts_of(monkeypatch, model, run.data / "Owl" / "0.png")
    captions = [caption for caption, _ in rows[""]]
    assert len(rows) == 1 and ("Attention after tuning" in captions) == (method == "vpt")
    assert [label for label, _, _ in bars] == [method, "zero-shot"][method == "zeroshot" :]
