"""The images that train.py and eval.py are given: which they take, refuse and tell of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.run_command import SHORT, assert_one_line, read_summary, run_command
from helpers.short_runs import RunInputs, run_checked, snapshot_folder
from PIL import Image

import minidpt
from minidpt.demo import demo


def test_a_data_set_is_named_with_the_folder_that_it_lies_in(trained, inputs):
    for options in (["--dataset", "EuroSAT"], ["--data", ""], ["--data", "", "--out", "run"]):
        result = run_command("train.py", "--model", inputs.clip, *SHORT, *options)
        assert_one_line(result, "train.py", options[0], "--data")
    assert not any(Path().iterdir())  # no demo was drawn, either
    assert_one_line(run_command("eval.py", "test", trained, "--data", ""), "eval.py", "--data")


def test_without_data_the_demo_is_drawn_beside_the_run_and_used_again(inputs, monkeypatch):
    monkeypatch.setattr(demo, "TRAIN_IMAGES", 2)
    monkeypatch.setattr(demo, "TEST_IMAGES", 3)
    arguments = ("--model", inputs.clip, "--shots", 2, "--method", "zeroshot")
    run_checked("train.py", *arguments)
    drawn = snapshot_folder(Path("runs/demo-v3"))
    assert run_command("train.py", *arguments).status == 0
    assert snapshot_folder(Path("runs/demo-v3")) == drawn
    names = {path.name for path in Path("runs").iterdir()}
    assert names == {"demo-v3", "demo-v3-zeroshot", "demo-v3-zeroshot-2"}
    content = read_summary("runs/demo-v3-zeroshot-2")
    assert (content["classes"], content["train_images"], content["test_images"]) == (12, 0, 36)


def test_broken_training_and_test_images_are_named_all_at_once(trained, tmp_path, inputs):
    folder = shutil.copytree(inputs.data, tmp_path / "data")
    split = json.loads((trained / "split.json").read_text(encoding="utf-8"))
    broken = folder / split["train"][0][0]
    broken.write_bytes(broken.read_bytes()[:100])
    command = ("train.py", *RunInputs(folder, inputs.clip).options, "--out=run", *SHORT)
    result = run_command(*command)
    assert_one_line(result, "train.py", str(broken), "expected a readable image", "remove")
    assert "more" not in result.err
    others = [folder / row[0] for row in (*split["train"][1:3], split["test"][0])]
    for other in others:
        other.write_text("no picture")
    assert_one_line(run_command(*command), "train.py", str(broken), "3 more", str(others[0]))


@pytest.fixture(scope="module")
def images_of_12_bits(inputs, tmp_path_factory) -> Path:
    """The images in 12 bits of grey."""
    folder = tmp_path_factory.mktemp("deep") / "pictures"
    for path in inputs.data.rglob("*.png"):
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey).save(folder / path.parent.name / path.name)
    return folder


def test_one_white_is_found_said_kept_and_used_again(images_of_12_bits, inputs, tmp_path):
    options = ["--data", images_of_12_bits, "--model", inputs.clip, "--method", "coop", *SHORT]
    result = run_command("train.py", *options, "--out", "run")
    note = "note: in images of more than 8 bits, white is 4095 (integer)\n"
    assert result.status == 0 and note in result.out
    record = json.loads(Path("run/config.json").read_text())["record"]
    assert record["white_level"] == {"integer": 4095}
    model = minidpt.load_model("run/model.pt", minidpt.load(inputs.clip)[0])
    assert model.white_level == {"integer": 4095}
    tested = run_command("eval.py", "test", "run")
    assert note in tested.out
    accuracy = f"coop accuracy {read_summary('run')['accuracy']:.2f} %"
    assert (
        accuracy in tested.out
        and accuracy in run_command("eval.py", "test", "run", "--data", images_of_12_bits).out
    )

    # and it is the accuracy of the same images in 8 bits
    for path in images_of_12_bits.rglob("*.png"):
        values = np.asarray(Image.open(path)) * (255 / 4095)
        copy = tmp_path / "pictures" / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.round().astype(np.uint8)).save(copy)
    options[1] = tmp_path / "pictures"
    result = run_command("train.py", *options, "--out", "eight")
    assert result.status == 0 and "more than 8 bits" not in result.out
    assert read_summary("eight")["accuracy"] == read_summary("run")["accuracy"]
    assert json.loads(Path("eight/config.json").read_text())["record"]["white_level"] == {}


def test_copies_and_images_that_are_not_read_are_said(trained, inputs, tmp_path):
    folder = shutil.copytree(inputs.data, tmp_path / "data")
    (folder / "gnu" / "x.heics").write_bytes(b"")
    split = json.loads((trained / "split.json").read_text(encoding="utf-8"))
    for other in (split["test"][0], split["train"][-1]):  # the last: of another class
        shutil.copy(folder / split["train"][0][0], folder / other[0])
    options = ["--data", folder, "--model", inputs.clip, *SHORT, "--epochs", 0, "--out", "run"]
    copy = folder / split["test"][0][0]
    note = f"copies of training images among the test images: 1, such as {copy}\n"
    unread = "not read: 1 .heics (convert or rename images)\n"
    result = run_command("train.py", *options)
    assert result.status == 0
    assert [result.out.count(f"note: {each}") for each in (note, unread)] == [1, 1]
    assert "note: copies of a training image in two classes: 1, such as " in result.out
    assert f"note: {note}" in run_command("eval.py", "test", "run").out
    result = run_command("eval.py", "predict", "run", folder / "gnu")
    assert f"note: {folder / 'gnu'}: {unread}" in result.out


def test_a_run_keeps_that_folders_are_classes(inputs, tmp_path):
    for variant in ("color", "grayscale"):
        shutil.copytree(inputs.data, tmp_path / "data" / variant)
    options = ["--data", tmp_path / "data", "--model", inputs.clip, "--method", "zeroshot"]
    result = run_command("train.py", *options, "--out", "run")
    assert_one_line(result, "train.py", "color/, grayscale/, which share", "--folders-are-classes")
    assert run_command("train.py", *options, "--folders-are-classes", "--out", "run").status == 0
    assert read_summary("run")["classes"] == 2
    assert run_command("train.py", "--config", "run/config.json", "--out", "again").status == 0
    assert read_summary("again")["accuracy"] == read_summary("run")["accuracy"]
    other = ["eval.py", "test", "run", "--data", tmp_path / "data"]
    assert_one_line(run_command(*other), "eval.py", "color/, grayscale/, which share")
    assert run_command(*other, "--folders-are-classes").status == 0


def test_images_of_more_than_max_pixels_are_refused(trained, inputs):
    options = [*inputs.options, "--out", "run", *SHORT]
    result = run_command("train.py", *options, "--max-pixels", 620)
    expected = "expected fewer pixels, got: Image size (621 pixels) exceeds limit of 620 pixels: "
    assert_one_line(result, "train.py", expected, "--max-pixels", ".png")
    image = inputs.data / "gnu" / "0.png"
    result = run_command("eval.py", "predict", trained, image, "--max-pixels", 620)
    assert_one_line(result, "eval.py", expected, str(image))
    result = run_command("eval.py", "predict", trained, image, "--max-pixels", 621)
    assert result.status == 0
