"""`train.py` and `eval.py` as a user runs them, on a small drawn data set and a tiny random CLIP.

A few runs are processes of their own; the others call the same main in this one, which is faster.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import pytest
import torch
from image_folders import draw, draw_classes
from PIL import Image
from scripts import (
    ROOT,
    SCRIPTS,
    SHORT,
    Result,
    assert_one_line,
    environment,
    inside,
    process,
    save_clip,
    summary,
)
from tiny_models import DEEP

import minidpt
from minidpt import trained as trained_models
from minidpt.clip import pictures, workers
from minidpt.data import demo, naming
from minidpt.data import lists as data
from minidpt.runs import command_line
from minidpt.runs import folders as runs
from minidpt.runs.precision import PRECISIONS

COLOURS = {  # of the pictures in a class folder
    "Owl": (50, 70, 190),
    "gnu": (70, 150, 60),
    "red_fox": (200, 60, 40),
    "sea horse": (180, 160, 60),
}
CLASSNAMES = ["Owl", "gnu", "red fox", "sea horse"]
PICTURES = 10  # of each class: 5 to train, 2 to validate, 3 to test


class Place(NamedTuple):
    """What all tests share, and only read: pictures, and a CLIP's state dict in a file."""

    data: Path
    clip: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    folder, rng = tmp_path_factory.mktemp("place"), random.Random(0)
    for name, colour in COLOURS.items():
        for number in range(PICTURES):
            shade = tuple(value + rng.randrange(-40, 41) for value in colour)
            picture = Image.new("RGB", (27, 23), shade)
            for _ in range(60):
                spot = rng.randrange(27), rng.randrange(23)
                picture.putpixel(spot, tuple(rng.randrange(256) for _ in range(3)))
            path = folder / "pictures" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    return Place(folder / "pictures", save_clip(folder / "little.pt"))


def listing(folder: Path) -> dict[str, int]:
    """Everything in a folder with the time of its last change."""
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(place: Place, tmp_path_factory) -> tuple[Path, Result]:
    """A run of DPT in a process of its own. Only read it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    arguments = ("--data", place.data, "--model", place.clip, "--out", folder, *SHORT)
    return folder, process(folder.parent, "train.py", *arguments)


def train(place: Place, out: str | Path, *options: object) -> Result:
    """A short run that must succeed."""
    result = inside(
        "train.py", "--data", place.data, "--model", place.clip, "--out", out, *SHORT, *options
    )
    assert (result.status, result.err) == (0, "")
    return result


def metrics(run: str | Path) -> list[dict]:
    lines = (Path(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def learned(run: str | Path) -> dict[str, torch.Tensor]:
    return torch.load(Path(run) / "model.pt", weights_only=True)["learned"]


def assert_same_result(first: str | Path, second: str | Path) -> None:
    assert summary(first)["accuracy"] == summary(second)["accuracy"]
    ours, theirs = learned(first), learned(second)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


# Training


def test_training_prints_what_it_does_and_both_accuracies(trained):
    folder, result = trained
    assert (result.status, result.err) == (0, "")
    assert len(result.progress.splitlines()) == 6  # this is no terminal: a line at each tenth
    lines = result.out.splitlines()
    assert "4 classes" in lines[0] and "20/8/12 images" in lines[0]
    assert lines.pop(1) == f"run folder {folder}"
    assert "CLIP little on " in lines[1]
    assert lines.pop(2).startswith("note: the quick GELU was taken")
    count = sum(value.numel() for value in learned(folder).values())
    assert lines[2] == f"dpt learns {count:,} numbers from 12 images"
    content = summary(folder)
    zero_shot, accuracy = content["zero_shot_accuracy"], content["accuracy"]
    assert lines[3] == f"zero-shot accuracy {zero_shot:.2f} % on 12 test images"
    assert f"dpt accuracy {accuracy:.2f} %, zero-shot {zero_shot:.2f} %" in lines[4]
    assert lines[5] == str(folder / "report.html") and str(folder) in lines[6]
    assert len(lines) == 7
    assert accuracy >= zero_shot + 20  # the colours are easily told apart


def test_a_run_folder_holds_its_files_and_nothing_else(trained):
    assert sorted(path.name for path in trained[0].iterdir()) == [
        *("config.json", "metrics.jsonl", "model.pt", "predictions.csv", "report.html"),
        *("split.json", "summary.json", "words.json"),
    ]


def test_the_summary_says_what_was_run_and_what_came_out(trained, place):
    content = summary(trained[0])
    fixed = {"dataset": "pictures", "method": "dpt", "shots": 3, "seed": 1, "model": "little",
             "epochs": 6, "classes": 4, "train_images": 12, "test_images": 12}  # fmt: skip
    assert fixed.items() <= content.items()
    for name in ("zero_shot_accuracy", "accuracy"):
        right = content[name] * 12 / 100
        assert right == pytest.approx(round(right), abs=1e-9)
    assert content["seconds"] > 0
    assert content["versions"]["torch"] == torch.__version__
    assert {"python", "numpy", "pillow"} < content["versions"].keys()


def test_the_config_holds_every_setting_as_it_was_used(trained, place):
    content = json.loads((trained[0] / "config.json").read_text(encoding="utf-8"))
    used = {"data": str(place.data), "model": str(place.clip), "method": "dpt", "shots": 3,
            "seed": 1, "epochs": 6, "batch_size": 5, "template": "a photo of a {}.",
            "warmup_epochs": 1, "guidance_epochs": 2, "visual_lr": 0.01, "text_lr": 0.002,
            "workers": workers.default_workers()}  # fmt: skip
    assert used.items() <= content.items()
    assert content["device"] in ("cpu", "cuda") and content["precision"] in PRECISIONS
    expected = minidpt.PromptConfig(method="dpt", n_ctx=3, n_visual=2, top_k=3)
    assert vars(expected).items() <= content.items()


def test_metrics_have_a_line_for_each_epoch(trained):
    records = metrics(trained[0])
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5, 6]
    for epoch, record in enumerate(records):
        rates = {"visual": minidpt.learning_rate(epoch, 0.01, 6, 1),
                 "text": minidpt.learning_rate(epoch, 0.002, 6, 1)}  # fmt: skip
        assert record["lr"] == pytest.approx(rates)
        assert record["loss"] > 0 and record["images_per_second"] > 0
        assert 0 < record["waited_for_images"] < 1
        right = record["train_accuracy"] * 10 / 100  # 12 pictures, two batches of 5
        assert right == pytest.approx(round(right), abs=1e-6)
    # epochs 3 to 6: without the guidance stage, whose loss is another
    assert records[5]["loss"] < records[2]["loss"]


def test_the_split_lists_the_pictures_that_were_used(trained, place):
    content = json.loads((trained[0] / "split.json").read_text(encoding="utf-8"))
    assert content["classnames"] == CLASSNAMES
    for part, each in {"train": 3, "val": 2, "test": 3}.items():
        labels = [label for _, label, _ in content[part]]
        assert sorted(labels) == sorted(list(range(4)) * each)
        for path, label, name in content[part]:
            assert (place.data / path).is_file()
            assert name == CLASSNAMES[label]
            assert naming.readable(path.split("/")[0]) == name
    used = [path for part in ("train", "val", "test") for path, _, _ in content[part]]
    assert len(set(used)) == len(used)
    assert data.read_split(trained[0] / "split.json").classnames == CLASSNAMES


def test_the_model_file_is_small_and_predicts(trained, place):
    file = trained[0] / "model.pt"
    assert file.stat().st_size < 200_000  # 32,000 learned numbers; this CLIP has 3.9 million
    assert torch.load(file, weights_only=True)["text_features"]["learned"].shape == (4, 37)
    clip, _ = minidpt.load(place.clip)
    model = minidpt.load_model(file, clip)
    assert (model.classnames, model.template) == (CLASSNAMES, "a photo of a {}.")
    dataset = data.read_split(trained[0] / "split.json")
    predictions = model.predict([item.path for item in dataset.test], top=1)
    right = [p.classname == item.classname for (p,), item in zip(predictions, dataset.test)]
    assert summary(trained[0])["accuracy"] == pytest.approx(100 * sum(right) / 12)


def test_the_same_seed_gives_the_same_run_to_the_bit_with_any_number_of_workers(trained, place):
    for number in (0, 3):
        train(place, f"workers-{number}", "--workers", number)
        assert_same_result(f"workers-{number}", trained[0])
        ours, theirs = metrics(f"workers-{number}"), metrics(trained[0])
        assert [record["loss"] for record in ours] == [record["loss"] for record in theirs]


def test_another_seed_draws_other_pictures_and_prompts(trained, place):
    train(place, "other", "--seed", 0)
    assert not torch.equal(learned("other")["text_prompts.ctx"],
                           learned(trained[0])["text_prompts.ctx"])  # fmt: skip
    ours, theirs = (data.read_split(Path(run) / "split.json") for run in ("other", trained[0]))
    assert ours.train != theirs.train
    assert ours.test == theirs.test  # one test set for all seeds


@pytest.mark.parametrize("method", ["zeroshot", "coop", "vpt", "vlp"])
def test_every_method_runs_and_says_what_it_learned(place, method):
    result = train(place, "run", "--method", method, "--epochs", 2)
    content, names = summary("run"), set(learned("run"))
    assert content["method"] == method
    assert f"{method} accuracy {content['accuracy']:.2f} %" in result.out
    assert ("text_prompts.ctx" in names) == (method in ("coop", "vlp"))
    assert ("visual_prompts.prompts" in names) == (method in ("vpt", "vlp"))
    epochs = 0 if method == "zeroshot" else 2
    assert content["epochs"] == epochs
    assert (len(metrics("run")) if Path("run/metrics.jsonl").exists() else 0) == epochs
    if method == "zeroshot":
        assert content["accuracy"] == content["zero_shot_accuracy"]
    evaluated = inside("eval.py", "--run", "run")
    assert (evaluated.status, evaluated.err) == (0, "")
    assert f"{method} accuracy {content['accuracy']:.2f} %" in evaluated.out


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_in_lower_precision_learns_in_fp32_and_is_tested_as_it_was_trained(
    place, precision, monkeypatch
):
    result = train(place, "run", "--precision", precision, "--epochs", 3)
    assert f"in {precision} (as asked)" in result.out
    assert json.loads(Path("run/config.json").read_text())["precision"] == precision
    assert all(value.dtype == torch.float32 for value in learned("run").values())
    assert all(torch.isfinite(value).all() for value in learned("run").values())
    assert all(0 < record["loss"] < 20 for record in metrics("run"))
    cast_to = []
    monkeypatch.setattr(minidpt.CLIP, "cast", spy(minidpt.CLIP.cast, cast_to))
    evaluated = inside("eval.py", "--run", "run")
    assert cast_to == [PRECISIONS[precision]]
    assert f"dpt accuracy {summary('run')['accuracy']:.2f} %" in evaluated.out
    assert evaluated.status == 0


def spy(method: Callable, arguments: list) -> Callable:
    """The same method, which also notes its argument."""

    def noting(self, argument):
        arguments.append(argument)
        return method(self, argument)

    return noting


def test_the_options_of_prompts_reach_the_model(place):
    train(place, "run", "--epochs", 0, "--ctx-init", "a photo of", "--csc", "--top-k", 1,
          "--class-token-position", "front", "--n-visual", 3, "--class-aware-from", 2,
          "--alpha", 0.5, "--template", "{} texture.")  # fmt: skip
    model = minidpt.load_model("run/model.pt", minidpt.load(place.clip)[0])
    assert model.template == "{} texture."
    assert model.config == minidpt.PromptConfig(
        n_ctx=3, ctx_init="a photo of", csc=True, class_token_position="front", n_visual=3,
        class_aware_from=2, alpha=0.5, top_k=1,
    )  # fmt: skip
    shapes = {name: tuple(value.shape) for name, value in learned("run").items()}
    assert shapes["text_prompts.ctx"] == (4, 3, 64)
    assert shapes["visual_prompts.prompts"] == (1, 3, 128)
    assert {name.split(".")[1] for name in shapes if name.startswith("class_aware")} == {"0", "1"}


def test_fewer_images_than_shots_are_a_note_and_all_used(tmp_path, place):
    folder = draw_classes(tmp_path / "few", {"ox": 4, "gnu": 12})  # 2 and 6 to train
    result = train(Place(folder, place.clip), "run", "--shots", 5, "--batch-size", 2)
    _gelu, *notes = (line for line in result.out.splitlines() if line.startswith("note: "))
    assert notes == ["note: class 'ox' has 2 images, 5 shots wanted: using 2"]
    assert summary("run")["train_images"] == 7


def test_train_and_test_folders_are_taken_as_they_are(tmp_path, place):
    root = tmp_path / "parts"
    draw_classes(root / "train", {"ox": 3, "gnu": 3})
    draw_classes(root / "test", {"ox": 2, "gnu": 1})
    train(Place(root, place.clip), "run", "--epochs", 1)
    content = summary("run")
    assert (content["train_images"], content["test_images"]) == (6, 3)


def test_the_data_folder_is_only_read(trained, place):
    before = listing(place.data)
    train(place, "run", "--epochs", 1)
    inside("eval.py", "--run", "run")
    inside("eval.py", "--run", "run", "--image", place.data)
    assert listing(place.data) == before


@pytest.mark.parametrize("out", ["run", "Owl/run", None])
def test_a_run_folder_within_the_data_is_refused_and_nothing_is_written(
    tmp_path, place, monkeypatch, out
):
    folder = shutil.copytree(place.data, tmp_path / "data")
    before = listing(folder)
    monkeypatch.chdir(folder)
    where = ["--out", folder / out] if out else []  # without --out: runs/ in this folder
    result = inside("train.py", "--data", ".", "--model", place.clip, *SHORT, *where)
    assert_one_line(result, "train.py", "data folder")
    assert listing(folder) == before


def test_results_may_lie_beside_a_csv_that_lists_pictures_from_elsewhere(place):
    lines = [f"{path},{path.parent.name}" for path in sorted(place.data.rglob("*.png"))]
    Path("mine.csv").write_text("\n".join(lines))
    command = ("--data", "mine.csv", "--model", place.clip, *SHORT, "--method", "zeroshot")
    result = inside("train.py", *command)
    assert result.status == 0, result.err
    assert summary("runs/mine-zeroshot")["test_images"] == 12


def test_a_reader_that_has_had_enough_is_no_error(trained):
    folder, _ = trained
    command = [sys.executable, str(ROOT / "eval.py"), "--table", str(folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_run_is_not_written_among_pictures_that_a_csv_lists_from_elsewhere(place, monkeypatch):
    pictures = shutil.copytree(place.data, Path("home/far/pictures"))
    Path("home/lists").mkdir()
    lines = [f"{path.resolve()},{path.parent.name}" for path in sorted(pictures.glob("*/*.png"))]
    Path("home/lists/labels.csv").write_text("\n".join(["path,label", *lines]))
    command = ("--data", "home/lists/labels.csv", "--model", place.clip, *SHORT, "--epochs", 0)
    for out in ("home/far/pictures/Owl/run", "home/far/pictures/run"):
        result = inside("train.py", *command, "--out", out)
        assert_one_line(result, "train.py", "outside the data folder")
        assert not Path(out).exists()
    for out in ("home/far/run", "home/lists/run"):
        assert inside("train.py", *command, "--out", out).status == 0

    # class folders and their list in the home folder: results lie below it, too
    monkeypatch.setenv("HOME", str(Path("home/far/pictures").resolve()))
    shutil.move("home/lists/labels.csv", "home/far/pictures/labels.csv")
    command = ("--data", "home/far/pictures/labels.csv", *command[2:])
    result = inside("train.py", *command, "--out", "home/far/pictures/Owl/run")
    assert_one_line(result, "train.py", "outside the data folder")
    assert inside("train.py", *command, "--out", "home/far/pictures/runs/one").status == 0


def test_a_data_set_is_named_with_the_folder_that_it_lies_in(trained, place):
    for options in (["--dataset", "EuroSAT"], ["--data", ""], ["--data", "", "--out", "run"]):
        result = inside("train.py", "--model", place.clip, *SHORT, *options)
        assert_one_line(result, "train.py", options[0], "--data")
    assert not any(Path().iterdir())  # no demo was drawn, either
    assert_one_line(inside("eval.py", "--run", trained[0], "--data", ""), "eval.py", "--data")

    drawings = Path("demo-v3").resolve()  # class folders, which --dataset could name
    for part in ("train", "test"):
        draw_classes(drawings / part, {"AnnualCrop": 2, "Forest": 2})
    shutil.copytree(trained[0], "run")
    config = json.loads(Path("run/config.json").read_text())
    Path("run/config.json").write_text(json.dumps({**config, "data": str(drawings)}))
    result = inside("eval.py", "--run", "run", "--dataset", "EuroSAT")
    assert_one_line(result, "eval.py", "--dataset", "--data", "demo")
    named = inside("eval.py", "--run", "run", "--data", drawings, "--dataset", "EuroSAT")
    assert named.status == 0


def test_prompts_that_the_last_step_has_made_nan_are_no_result(place, monkeypatch):
    steps, step = [], torch.optim.SGD.step

    def diverging(self, *arguments):
        step(self, *arguments)
        steps.append(self)
        if len(steps) == 6 * 2:  # the last: epochs of two batches
            with torch.no_grad():
                self.param_groups[0]["params"][0][..., 0] = float("nan")

    monkeypatch.setattr(torch.optim.SGD, "step", diverging)
    result = inside("train.py", "--data", place.data, "--model", place.clip, "--out", "run", *SHORT)
    assert_one_line(result, "train.py", "epoch 6", "not finite", "try lower learning rates")
    assert len(steps) == 12 and not Path("run/summary.json").exists()
    assert all(value.isfinite().all() for value in learned("run").values())  # of the epoch before


def test_without_data_the_demo_is_drawn_beside_the_run_and_used_again(place, monkeypatch):
    monkeypatch.setattr(demo, "TRAIN_IMAGES", 2)
    monkeypatch.setattr(demo, "TEST_IMAGES", 3)
    arguments = ("--model", place.clip, "--shots", 2, "--method", "zeroshot")
    first = inside("train.py", *arguments)
    assert (first.status, first.err) == (0, "")
    drawn = listing(Path("runs/demo-v3"))
    assert inside("train.py", *arguments).status == 0
    assert listing(Path("runs/demo-v3")) == drawn
    names = {path.name for path in Path("runs").iterdir()}
    assert names == {"demo-v3", "demo-v3-zeroshot", "demo-v3-zeroshot-2"}
    content = summary("runs/demo-v3-zeroshot-2")
    assert (content["classes"], content["train_images"], content["test_images"]) == (12, 0, 36)


def test_ctrl_c_leaves_a_model_that_can_be_used(tmp_path, place):
    command = [sys.executable, str(ROOT / "train.py"), "--data", str(place.data), "--model",
               str(place.clip), "--out", "run", *SHORT, "--epochs", "100000"]  # fmt: skip
    # A shell may have started the tests with Ctrl-C ignored, which processes inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        running = subprocess.Popen(
            command, cwd=tmp_path, env=environment(), encoding="utf-8",
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    written = tmp_path / "run" / "metrics.jsonl"
    while not written.exists() or written.read_text(encoding="utf-8").count("\n") < 3:
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate()
    assert running.returncode == 130, err
    assert "Traceback" not in err and len(err.splitlines()) <= 1
    assert not (tmp_path / "run" / "summary.json").exists()  # there is no result
    epochs = [record["epoch"] for record in metrics("run")]
    assert epochs == list(range(1, len(epochs) + 1))
    assert len(torch.load("run/model.pt", weights_only=True)["text_features"]) == 1  # none yet
    result = inside("eval.py", "--run", "run")
    assert (result.status, result.err) == (0, "")
    assert "run was stopped before its end" in result.out and "dpt accuracy" in result.out


# Testing and classifying


def test_eval_gives_the_accuracy_of_the_training_to_the_last_digit(trained, tmp_path):
    folder, _ = trained
    content = summary(folder)
    result = inside("eval.py", "--run", folder)
    assert (result.status, result.err) == (0, "")
    assert result.out == (
        f"dpt accuracy {content['accuracy']:.2f} %, "
        f"zero-shot {content['zero_shot_accuracy']:.2f} % on 12 test images "
        f"({content['model']} on cpu in fp32)\n"
    )
    assert "." in f"{content['accuracy']}" and content["accuracy"] != content["zero_shot_accuracy"]


def test_eval_tells_how_each_class_fares(trained):
    folder, _ = trained
    result = inside("eval.py", "--run", folder, "--per-class")
    assert (result.status, result.err) == (0, "")
    total, *lines, mean = result.out.splitlines()
    found = [re.fullmatch(r"  (\w.*?) +([\d.]+) %  (\d+) of (\d+)(.*)", line) for line in lines]
    assert [match[1] for match in found] == CLASSNAMES
    assert sum(int(match[4]) for match in found) == 12
    right = sum(int(match[3]) for match in found)
    assert f"accuracy {100 * right / 12:.2f} %" in total
    for match in found:
        right, count = int(match[3]), int(match[4])
        assert match[2] == f"{100 * right / count:.2f}"
        mistakes = [int(number) for number in re.findall(r" (\d+)(?:,|$)", match[5])]
        assert (match[5] != "") == (right < count) and sum(mistakes) <= count - right
    shares = [float(match[2]) for match in found]
    assert mean == f"mean of 4 classes {fmean(shares):.2f} %"

    assert inside("eval.py", "--run", folder, "--per-class", "--csv", "classes.csv").status == 0
    head, *rows = csv.reader(Path("classes.csv").read_text(encoding="utf-8").splitlines())
    assert head == ["class", "accuracy", "right", "total", "taken for"]
    assert [row[0] for row in rows] == CLASSNAMES
    assert [f"{float(row[1]):.2f}" for row in rows] == [match[2] for match in found]
    assert [row[2:4] for row in rows] == [[match[3], match[4]] for match in found]
    for two in (["--run", folder, folder], ["--run", folder, "--dataset", "EuroSAT", "Food101"]):
        result = inside("eval.py", *two, "--per-class", "--csv", "two.csv")
        assert_one_line(result, "eval.py", "--csv", "one --run and one --dataset")


def test_mistakes_of_a_class_are_listed_by_their_number(capsys):
    labels, predicted = torch.tensor([0] * 7 + [2]), torch.tensor([0, 1, 2, 2, 3, 4, 4, 2])
    SCRIPTS["eval.py"].say_classes(["ant", "bee", "crane fly", "dog", "eel"], labels, predicted)
    assert capsys.readouterr().out.splitlines() == [
        "  ant        14.29 %  1 of 7, taken for crane fly 2, eel 2, bee 1",
        "  bee            -    0 of 0",
        "  crane fly 100.00 %  1 of 1",
        "  dog            -    0 of 0",
        "  eel            -    0 of 0",
        "mean of 2 classes 57.14 %",
    ]


def test_eval_from_another_folder_finds_a_model_that_was_given_by_a_relative_path(
    tmp_path, place, monkeypatch
):
    monkeypatch.chdir(place.clip.parent)
    relative = Place(place.data.relative_to(place.clip.parent), Path(place.clip.name))
    train(relative, tmp_path / "run", "--epochs", 1)
    monkeypatch.chdir(tmp_path)
    result = inside("eval.py", "--run", "run")
    assert (result.status, result.err) == (0, "")


def test_eval_finds_pictures_and_model_that_have_moved_where_it_is_told(trained, tmp_path, place):
    moved = shutil.copytree(place.data, tmp_path / "moved")
    shutil.copytree(trained[0], tmp_path / "run")
    split = json.loads(Path("run/split.json").read_text(encoding="utf-8"))
    Path("run/split.json").write_text(json.dumps({**split, "root": str(tmp_path / "gone")}))
    assert_one_line(inside("eval.py", "--run", "run"), "eval.py", str(tmp_path / "gone"), "--root")
    clip = shutil.copy(place.clip, tmp_path / "elsewhere.pt")
    result = inside("eval.py", "--run", "run", "--root", moved, "--classes", "new")
    assert_one_line(result, "eval.py", "--root", "--data")
    result = inside("eval.py", "--run", "run", "--root", moved, "--model", clip)
    assert f"dpt accuracy {summary('run')['accuracy']:.2f} %" in result.out


def printed(result: Result) -> dict[str, list[tuple[str, float]]]:
    """File → [(class name, probability in percent), ...] of what eval.py --image printed."""
    guesses = {}
    for line in result.out.splitlines():
        path, _, text = line.partition(": ")
        guesses[path] = [
            (name, float(percent)) for name, percent in re.findall(r"(\w[\w ]*?) ([\d.]+) %", text)
        ]
    return guesses


def test_images_are_classified_with_names_and_probabilities(trained, place):
    images = [place.data / "Owl" / "0.png", place.data / "gnu" / "3.png"]
    result = inside("eval.py", "--run", trained[0], "--image", *images)
    assert (result.status, result.err) == (0, "")
    guesses = printed(result)
    assert list(guesses) == [str(path) for path in images]
    model = minidpt.load_model(trained[0] / "model.pt", minidpt.load(place.clip)[0])
    for path, predictions in zip(images, model.predict(images), strict=True):
        names, percents = zip(*guesses[str(path)], strict=True)
        assert sorted(names) == CLASSNAMES  # 4 classes, of which up to 5 are printed
        assert list(names) == [p.classname for p in predictions]
        assert percents == pytest.approx([100 * p.probability for p in predictions], abs=0.051)
        assert sum(percents) == pytest.approx(100, abs=0.3)
        assert list(percents) == sorted(percents, reverse=True)


def test_a_folder_of_images_is_classified_whole_and_top_limits_the_names(trained, tmp_path, place):
    draw(tmp_path / "mixed" / "b.PNG")
    draw(tmp_path / "mixed" / "below" / "a.jpg")
    (tmp_path / "mixed" / "notes.txt").write_text("no picture")
    single = place.data / "gnu" / "0.png"
    result = inside("eval.py", "--run", trained[0], "--top", 2, "--image", "mixed", single)
    guesses = printed(result)
    assert set(guesses) == {"mixed/below/a.jpg", "mixed/b.PNG", str(single)}
    assert all(len(names) == 2 for names in guesses.values())


def test_classes_of_images_are_written_to_a_new_csv(trained, tmp_path, place):
    images = [place.data / "Owl" / "0.png", place.data / "gnu" / "3.png"]
    command = ("eval.py", "--run", trained[0], "--top", 2, "--csv", "out.csv", "--image", *images)
    result = inside(*command)
    head, *rows = csv.reader(Path("out.csv").read_text(encoding="utf-8").splitlines())
    assert head == ["image", "class", "probability"]
    shown = [
        (path, name, percent) for path, all in printed(result).items() for name, percent in all
    ]
    assert [(path, name, round(100 * float(share), 1)) for path, name, share in rows] == shown
    assert_one_line(inside(*command), "eval.py", "--csv", "new file", "out.csv")


def test_a_csv_of_classes_is_written_whole_though_nobody_reads_the_output(trained, tmp_path):
    for number in range(40):
        draw(tmp_path / "many" / f"{number:02d}{'x' * 200}.png")
    command = [sys.executable, str(ROOT / "eval.py"), "--run", str(trained[0]), "--image", "many",
               "--csv", "out.csv"]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), cwd=tmp_path
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
    with open("out.csv", newline="", encoding="utf-8") as file:
        assert len({row["image"] for row in csv.DictReader(file)}) == 40
    assert sorted(os.listdir(tmp_path)) == ["many", "out.csv"]


def test_a_csv_of_classes_is_not_left_half_written(trained, tmp_path, monkeypatch):
    for name in "ab":
        draw(tmp_path / f"{name}.png")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(minidpt.PromptedCLIP, "predict", interrupted)
    result = inside("eval.py", "--run", trained[0], "--image", "a.png", "b.png", "--csv", "o.csv")
    assert result.status == 130 and sorted(os.listdir(tmp_path)) == ["a.png", "b.png"]


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (MemoryError, 2)])
def test_what_was_classified_before_a_stop_is_in_the_csv_and_said(
    trained, tmp_path, monkeypatch, error, status
):
    predict, batches = minidpt.PromptedCLIP.predict, []

    def stopped(model, images, *options):
        batches.append(images)
        if len(batches) == 3:
            raise error
        return predict(model, images, *options)

    monkeypatch.setattr(trained_models, "PREDICT_BATCH", 1)
    monkeypatch.setattr(minidpt.PromptedCLIP, "predict", stopped)
    images = [draw(tmp_path / f"{name}.png").name for name in "abc"]
    options = ["--image", *images, "--csv", "out.csv", "--top", 1]
    result = inside("eval.py", "--run", trained[0], *options)
    assert result.status == status and "stopped early, it has 2 of 3 images\n" in result.err
    with open("out.csv", newline="", encoding="utf-8") as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["a.png", "b.png"]


def test_cells_of_the_csv_are_no_formulas(trained, tmp_path):
    draw(tmp_path / "=1+1.png")
    inside("eval.py", "--run", trained[0], "--image", "=1+1.png", "--csv", "out.csv")
    assert Path("out.csv").read_text(encoding="utf-8").splitlines()[1].startswith("'=1+1.png,")


def test_eval_exports_the_model_of_a_run_into_a_new_file_and_says_what_it_computes(
    trained, monkeypatch
):
    def export(model, path):  # what it writes: `test_exporting`
        assert torch.equal(model.text_prompts.ctx, learned(trained[0])["text_prompts.ctx"])
        Path(path).write_bytes(bytes(1_500_000))

    monkeypatch.setattr(SCRIPTS["eval.py"], "export", export)
    result = inside("eval.py", "--run", trained[0], "--export", "run.pt2")
    assert (result.status, result.err) == (0, "")
    assert result.out == (
        "run.pt2: images (B, 3, 21, 21) to probabilities of 4 classes, 1.5 MB "
        "(little on cpu in fp32)\n"
    )
    again = inside("eval.py", "--run", trained[0], "--export", "run.pt2")
    assert_one_line(again, "eval.py", "run.pt2", "new file")


def test_an_image_folder_is_read_as_class_folders_are(trained, place):
    draw(Path("mixed/a.jpg"))
    draw(Path("mixed/.hidden.jpg"))
    draw(Path("mixed/.thumbnails/a.jpg"))
    draw(Path("mixed/folder.jpg/b.png"))
    draw(Path("elsewhere/c.png"))
    Path("mixed/link").symlink_to(Path("elsewhere").resolve())
    result = inside("eval.py", "--run", trained[0], "--image", "mixed")
    assert (result.status, result.err) == (0, "")
    assert list(printed(result)) == ["mixed/a.jpg", "mixed/folder.jpg/b.png", "mixed/link/c.png"]


def test_broken_images_are_named_and_the_others_still_classified(trained, tmp_path, place):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    good = place.data / "gnu" / "0.png"
    result = inside("eval.py", "--run", trained[0], "--image", "broken.jpg", good, "missing.png")
    assert result.status == 2
    assert list(printed(result)) == [str(good)]
    errors = result.err.splitlines()
    assert len(errors) == 2 and "Traceback" not in result.err
    assert "broken.jpg" in errors[0] and "missing.png" in errors[1]
    assert all(line.startswith("eval.py: error: ") for line in errors)


def test_an_image_is_classified_without_the_data_that_were_trained_on(trained, tmp_path, place):
    shutil.copytree(trained[0], tmp_path / "run")
    split = json.loads(Path("run/split.json").read_text(encoding="utf-8"))
    Path("run/split.json").write_text(json.dumps({**split, "root": "/gone"}))
    result = inside("eval.py", "--run", "run", "--image", place.data / "gnu" / "0.png")
    assert (result.status, len(printed(result))) == (0, 1)


# Bad input


def test_a_mistake_is_one_line_and_status_2_without_a_traceback(tmp_path):
    for script, result in {
        "train.py": process(tmp_path, "train.py", "--data", "nowhere"),
        "eval.py": inside("eval.py", "--run", "nowhere"),
    }.items():
        assert_one_line(result, script, "nowhere", "expected")
        assert result.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (None, ["nowhere", "expected a folder"]),
        ({}, ["expected a folder for each class", "got no folder"]),
        ({"ox": 3}, ["expected at least 2 class", "'ox'"]),
        ({"ox": 3, "gnu": 3, "owl": 0}, ["none for 'owl'", "remove"]),
        ({"ox": 1, "gnu": 1}, ["test"]),  # one picture each: none is left for the test
    ],
)
def test_a_folder_that_is_no_data_set_is_refused(tmp_path, place, classes, words):
    folder = tmp_path / "nowhere"
    if classes is not None:
        folder.mkdir()
        draw_classes(folder, classes)
        for name, count in classes.items():
            if not count:
                (folder / name / "notes.txt").write_text("no picture")
    result = inside("train.py", "--data", folder, "--model", place.clip, "--out", "run", *SHORT)
    assert_one_line(result, "train.py", str(folder), *words)
    assert not Path("run").exists()


@pytest.mark.parametrize("which", ["train", "test"])
def test_broken_images_are_named_all_at_once(trained, tmp_path, place, which):
    folder = shutil.copytree(place.data, tmp_path / "data")
    split = json.loads((trained[0] / "split.json").read_text(encoding="utf-8"))
    broken = folder / split[which][0][0]
    broken.write_bytes(broken.read_bytes()[:100])
    result = inside("train.py", "--data", folder, "--model", place.clip, "--out", "run", *SHORT)
    assert_one_line(result, "train.py", str(broken), "expected a readable picture", "remove")
    assert "more" not in result.err
    others = [folder / row[0] for row in split[which][1:3]]
    for other in others:
        other.write_text("no picture")
    result = inside("train.py", "--data", folder, "--model", place.clip, "--out", "run", *SHORT)
    assert_one_line(result, "train.py", str(broken), "2 more", *map(str, others))


def test_broken_training_and_test_images_are_named_in_one_round(trained, tmp_path, place):
    folder = shutil.copytree(place.data, tmp_path / "data")
    split = json.loads((trained[0] / "split.json").read_text(encoding="utf-8"))
    broken = [folder / split[which][0][0] for which in ("train", "test")]
    for path in broken:
        path.write_text("no picture")
    result = inside("train.py", "--data", folder, "--model", place.clip, "--out", "run", *SHORT)
    assert_one_line(result, "train.py", "1 more", *map(str, broken))


# What is said of pictures


@pytest.fixture(scope="module")
def deep(place, tmp_path_factory) -> Path:
    """The pictures in 12 bits of grey."""
    folder = tmp_path_factory.mktemp("deep") / "pictures"
    for path in place.data.rglob("*.png"):
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey).save(folder / path.parent.name / path.name)
    return folder


@pytest.mark.parametrize("method", ["zeroshot", "coop"])
def test_one_white_is_found_said_kept_and_used_again(deep, place, tmp_path, method):
    options = ["--data", deep, "--model", place.clip, "--method", method, *SHORT]
    result = inside("train.py", *options, "--out", "run")
    note = "note: in pictures of more than 8 bits, white is 4095 (integer)\n"
    assert result.status == 0 and note in result.out
    assert json.loads(Path("run/config.json").read_text())["white"] == {"integer": 4095}
    assert minidpt.load_model("run/model.pt", minidpt.load(place.clip)[0]).white["integer"] == 4095
    tested = inside("eval.py", "--run", "run")
    assert note in tested.out
    accuracy = f"{method} accuracy {summary('run')['accuracy']:.2f} %"
    assert (
        accuracy in tested.out and accuracy in inside("eval.py", "--run", "run", "--data", deep).out
    )

    # and it is the accuracy of the same pictures in 8 bits
    for path in deep.rglob("*.png"):
        values = np.asarray(Image.open(path)) * (255 / 4095)
        copy = tmp_path / "pictures" / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.round().astype(np.uint8)).save(copy)
    options[1] = tmp_path / "pictures"
    result = inside("train.py", *options, "--out", "eight")
    assert result.status == 0 and "more than 8 bits" not in result.out
    assert summary("eight")["accuracy"] == summary("run")["accuracy"]
    assert json.loads(Path("eight/config.json").read_text())["white"] == {}


def test_copies_and_pictures_that_are_not_read_are_said(trained, place, tmp_path):
    folder = shutil.copytree(place.data, tmp_path / "data")
    (folder / "gnu" / "x.heics").write_bytes(b"")
    split = json.loads((trained[0] / "split.json").read_text(encoding="utf-8"))
    shutil.copy(folder / split["train"][0][0], folder / split["test"][0][0])
    options = ["--data", folder, "--model", place.clip, *SHORT, "--epochs", 0, "--out", "run"]
    copy = folder / split["test"][0][0]
    note = f"test images that are also training images, byte for byte: 1, as {copy}\n"
    unread = "not read: 1 .heics (convert or rename pictures)\n"
    result = inside("train.py", *options)
    assert result.status == 0 and f"note: {note}" in result.out and f"note: {unread}" in result.out
    assert f"note: {note}" in inside("eval.py", "--run", "run").out
    result = inside("eval.py", "--run", "run", "--image", folder / "gnu")
    assert f"note: {folder / 'gnu'}: {unread}" in result.out


def test_images_of_more_than_max_pixels_are_refused(trained, place, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", pictures.MAX_PIXELS)  # put back at the end
    options = ["--data", place.data, "--model", place.clip, "--out", "run", *SHORT]
    result = inside("train.py", *options, "--max-pixels", 620)
    expected = "expected at most 620 pixels, got 621 (27 x 23)"
    assert_one_line(result, "train.py", expected, "--max-pixels", ".png")
    picture = place.data / "gnu" / "0.png"
    result = inside("eval.py", "--run", trained[0], "--image", picture, "--max-pixels", 620)
    assert_one_line(result, "eval.py", expected, str(picture))
    result = inside("eval.py", "--run", trained[0], "--image", picture, "--max-pixels", 621)
    assert result.status == 0
    for script, *needed in [("train.py",), ("eval.py", "--run", trained[0])]:
        result = inside(script, *needed, "--max-pixels", 0)
        assert_one_line(result, script, "--max-pixels: expected at least 1")


NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "cocoop"], ["cocoop", *minidpt.METHODS]),
        (["--model", "ViT-B/64"], ["ViT-B/64", "ViT-B/32", "ViT-L/14@336px", "tiny"]),
        (["--model", "missing.pt"], ["missing.pt", "expected a CLIP checkpoint"]),
        (["--model", "empty.pt"], ["empty.pt", "expected a checkpoint"]),
        (["--shots", "0"], ["--shots", "at least 1"]),
        (["--shots", "-3"], ["--shots", "at least 1"]),
        (["--shots", "many"], ["--shots", "many"]),
        (["--batch-size", "0"], ["--batch-size", "at least 1"]),
        (["--epochs", "-1"], ["--epochs", "at least 0"]),
        (["--workers", "-1"], ["--workers", "at least 0"]),
        (["--precision", "fp64"], ["fp64", "fp32", "bf16", "fp16"]),
        (["--device", "tpu"], ["--device tpu", "cpu, cuda or cuda:N"]),
        pytest.param(["--device", "cuda"], ["--device cuda", "--device cpu"], marks=NO_CUDA),
        (["--device", "cuda:99"], ["--device cuda:99", "--device cpu"]),
        (["--template", "a photo"], ["a photo", "{}"]),
        (["--template", "a {} of {}"], ["a {} of {}", "{}"]),
        (["--template", "a {} of {name}"], ["a {} of {name}", "{}"]),
        (["--template", "a {} {"], ["a {} {", "{}"]),
        (["--n-ctx", "0"], ["--n-ctx", "at least 1"]),
        (["--n-ctx", "77"], ["77 context vectors", "the context or template"]),
        (["--ctx-init", ""], ["ctx_init"]),
        (["--class-token-position", "start"], ["start", "end", "middle", "front"]),
        (["--class-aware-from", "4"], ["class_aware_from", "1 to 3", "4"]),
        (["--top-k", "0"], ["--top-k", "at least 1"]),
        (["--alpha", "-1"], ["alpha", "at least 0"]),
        (["--visual-lr", "-1"], ["-1"]),
        (["--visual-lr", "inf"], ["--visual-lr", "finite", "inf"]),
        (["--text-lr", "nan"], ["--text-lr", "finite", "nan"]),
        (["--alpha", "nan"], ["--alpha", "finite", "nan"]),
        (["--alpha", "1e300"], ["--alpha", "finite", "1e300"]),
        (["--alpha", "much"], ["--alpha", "number", "much"]),
        (["--classnames", ""], ["--classnames", "expected a path"]),
        (["--model", ""], ["--model", "expected a path"]),
        (["--out", ""], ["--out", "expected a path"]),
        (["--shotz", "3"], ["--shotz"]),
        (["--shots", "10" * 9], ["--shots", "at most 1,000,000"]),
        (["--seed", str(2**63)], ["--seed", "at most 9,223,372,036,854,775,807"]),
        (["--epochs", str(10**30)], ["--epochs", "at most"]),
        (["--batch-size", str(10**12)], ["--batch-size", "at most"]),
        (["--workers", str(10**9)], ["--workers", "at most"]),
        (["--class-chunk", "-1"], ["--class-chunk", "at least 0"]),
        (["--n-visual", "100000000000"], ["--n-visual", "at most"]),
        (["--n-visual", "9" * 5000], ["--n-visual", "invalid int"]),
        (["--visual-layers", "5"], ["visual_layers", "1 to"]),
        (["--alpha", "1e39"], ["--alpha", "finite"]),
        (["--ctx-init", "word " * 200], ["200 context vectors", "77"]),
        (["--ctx-init", "word " * 200, "--seed", "1", "2"], ["200 context vectors", "77"]),
        (["--class-aware-from", "4", "--seed", "1", "2"], ["class_aware_from", "1 to 3"]),
        (["--classnames", "fifo"], ["fifo", "expected a file"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_an_option_that_makes_no_sense_is_refused_before_anything_is_written(place, options, words):
    Path("empty.pt").touch()
    os.mkfifo("fifo")
    result = inside(
        "train.py", "--data", place.data, "--model", place.clip, "--out", "run", *SHORT, *options
    )
    assert_one_line(result, "train.py", *words)
    assert len(result.err) < 600
    assert not Path("run").exists()


def test_few_epochs_that_leave_nothing_but_warm_up_or_guidance_are_said(place):
    command = ("--data", place.data, "--model", place.clip, *SHORT, "--epochs", 2)
    few, none = (
        ("--warmup-epochs", 2, "--guidance-epochs", 2),
        "note: training steps after warm-up: 0;",
    )
    out = inside("train.py", *command, *few).out
    assert none in out and "note: all 2 epochs are guidance" in out
    out = inside("train.py", *command, *few, "--method", "vpt").out
    assert none in out and "are guidance" not in out
    out = inside("train.py", *command, *few, "--method", "coop").out
    assert "note: training steps after warm-up: 2;" in out and "note: all" not in out
    assert "note: all" not in inside("train.py", *command, "--guidance-epochs", 1).out


def test_fewer_than_ten_steps_after_warm_up_are_said(place):
    command = ("--data", place.data, "--model", place.clip, *SHORT)  # 2 steps an epoch
    assert (
        "note: training steps after warm-up: 8;" in inside("train.py", *command, "--epochs", 5).out
    )
    assert "training steps" not in inside("train.py", *command, "--epochs", 6).out
    assert "training steps" not in inside("train.py", *command, "--epochs", 0).out


def test_compiling_without_a_compiler_is_refused_before_anything_is_written(place, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    command = ("--data", place.data, "--model", place.clip, "--out", "run", *SHORT, "--compile")
    result = inside("train.py", *command, "--device", "cpu")
    assert_one_line(result, "train.py", "--compile", "no-such-compiler", "CXX")
    assert not Path("run").exists()


def test_options_of_the_model_reach_it_and_its_test(place):
    options = ("--exact-gelu", "--class-chunk", 1, "--visual-layers", 1, "--method", "vlp")
    said = train(place, "run", *options).out
    assert "note: the exact GELU was taken" in said and "leave out --exact-gelu" in said
    assert learned("run")["visual_prompts.prompts"].shape[0] == 1
    result = inside("eval.py", "--run", "run")
    assert f"vlp accuracy {summary('run')['accuracy']:.2f} %" in result.out
    train(place, "all-at-once", *options, "--class-chunk", 0)
    for name, value in learned("all-at-once").items():
        torch.testing.assert_close(learned("run")[name], value, rtol=1e-4, atol=1e-6)
    train(place, "quick", *options[1:])
    assert summary("quick")["versions"]["minidpt"] == minidpt.__version__
    ours, theirs = learned("run"), learned("quick")
    assert not torch.equal(ours["text_prompts.ctx"], theirs["text_prompts.ctx"])


def test_an_output_folder_with_another_run_or_files_is_refused_and_left_as_it_is(trained, place):
    shutil.copytree(trained[0], "run")
    Path("files").mkdir()
    Path("files", "notes.txt").write_text("mine")
    for folder, held in {"run": "a finished run", "files": "other files"}.items():
        before = listing(Path(folder))
        result = inside("train.py", "--data", place.data, "--model", place.clip, "--out", folder)
        assert_one_line(result, "train.py", folder, held, "another --out")
        assert listing(Path(folder)) == before
    result = inside(
        "train.py", "--data", place.data, "--model", place.clip, "--out", "files/notes.txt"
    )
    assert_one_line(result, "train.py", "notes.txt")
    Path("empty").mkdir()
    train(place, "empty", "--epochs", 0)


def test_a_run_is_refused_with_another_clip(trained, tmp_path):
    same_sizes = save_clip(tmp_path / "same_sizes.pt", seed=1)
    other_sizes = save_clip(tmp_path / "other_sizes.pt", DEEP)
    for other in (same_sizes, other_sizes):
        result = inside("eval.py", "--run", trained[0], "--model", other)
        assert_one_line(result, "eval.py", "model.pt", "little", other.stem)
        assert result.out == ""


@pytest.mark.parametrize("missing", ["config.json", "split.json", "model.pt"])
def test_a_folder_without_a_run_is_refused_with_the_file_that_lacks(trained, tmp_path, missing):
    shutil.copytree(trained[0], tmp_path / "run")
    (tmp_path / "run" / missing).unlink()
    assert_one_line(inside("eval.py", "--run", "run"), "eval.py", "run", f"expected {missing}")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.pt", b""),
        ("model.pt", b"PK\x03\x04 damaged"),
        ("config.json", b"{"),
        ("config.json", b"{}"),
        ("split.json", b"[]"),
    ],
)
def test_a_damaged_run_is_refused_with_the_file_that_is_damaged(trained, tmp_path, file, content):
    shutil.copytree(trained[0], tmp_path / "run")
    (tmp_path / "run" / file).write_bytes(content)
    assert_one_line(inside("eval.py", "--run", "run"), "eval.py", file)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "[1]"),
        ("config.json", '{"data": 5}'),
        ("config.json", "[" * 100_000),
        ("split.json", '{"root": "/", "train": [["a.png", NaN, "a"]]}'),
        ("split.json", "[1]"),
        ("split.json", '{"root": "/", "train": 5}'),
        ("split.json", '{"root": "/", "train": [5]}'),
        ("split.json", '{"root": "/", "train": [[1, 2, 3]]}'),
        ("summary.json", "{}"),
        ("summary.json", '{"tests": 5}'),
        ("transfer.json", "5"),
    ],
)
def test_a_damaged_file_of_a_run_is_named_before_a_test_on_other_data(
    trained, place, file, content
):
    shutil.copytree(trained[0], "run")
    Path("run", file).write_text(content)
    result = inside("eval.py", "--run", "run", "--data", place.data)
    assert_one_line(result, "eval.py", f"run/{file}", "expected")
    assert result.out == ""


def test_a_precision_that_a_run_cannot_have_is_refused(trained):
    shutil.copytree(trained[0], "run")
    config = json.loads(Path("run/config.json").read_text())
    Path("run/config.json").write_text(json.dumps({**config, "precision": "fp7"}))
    assert_one_line(inside("eval.py", "--run", "run"), "eval.py", "config.json", "fp32", "fp7")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["--run"]),
        (["--image", "empty"], ["empty", "expected images"]),
        (["--image", "picture.png", "--top", "0"], ["--top", "at least 1"]),
        (["--image", "picture.png", "--top", "-1"], ["--top", "at least 1"]),
        (["--image", "picture.png", "--top", str(10**12)], ["--top", "at most"]),
        (["--workers", str(10**9)], ["--workers", "at most"]),
        (["--workers", "-1"], ["workers"]),
        (["--model", "ViT-B/64"], ["ViT-B/64", "ViT-B/32"]),
        (["--device", "cuda:99"], ["cuda:99"]),
        (["--template", "a {}."], ["--template", "--data"]),
        (["--classnames", "names.txt"], ["--classnames", "--data"]),
        (["--image", "picture.png", "--data", "."], ["--data", "--image"]),
        (["--image", "picture.png", "--classes", "new"], ["--classes", "--image"]),
        (["--image", "picture.png", "--root", "."], ["--root", "--image"]),
        (["--image", ""], ["--image", "expected a path"]),
        (["--root", ""], ["--root", "expected a path"]),
        (["--csv", "out.csv"], ["--csv", "--image"]),
        (["--image", "picture.png", "--csv", "nodir/o.csv"], ["--csv", "folder that exists"]),
        (["--per-class", "--image", "picture.png"], ["--per-class", "--image"]),
        (["--export", "a.pt2", "--image", "picture.png"], ["--export", "--image"]),
        (["--export", "a.pt2", "--csv", "a.csv"], ["--csv", "--image"]),
        (["--export", "a.pt2", "--data", "."], ["--data", "--export"]),
        (["--export", "a.pt2", "--per-class"], ["--per-class", "--export"]),
        (["--export", "nodir/a.pt2"], ["nodir/a.pt2", "folder that exists"]),
        (["--export", "a.pth"], ["a.pth", ".pt2 or .onnx"]),
    ],
    ids=lambda value: " ".join(value) if not value or value[0].startswith("--") else "",
)
def test_an_option_of_eval_that_makes_no_sense_is_refused(trained, tmp_path, options, words):
    (tmp_path / "empty").mkdir()
    draw(tmp_path / "picture.png")
    run = ["--run", trained[0]] if options else []
    assert_one_line(inside("eval.py", *run, *options), "eval.py", *words)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_option(script):
    result = inside(script, "--help")
    assert (result.status, result.err) == (0, "")
    options = re.findall(r"^  (--[\w-]+).*(?:\n {10,}.*)*", result.out, re.MULTILINE)
    explained = re.findall(r"^  (--[\w-]+)[^\n]*(?:  +|\n {10,})\w", result.out, re.MULTILINE)
    assert options and options == explained
    assert "default: None" not in result.out


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_fits_two_screens_and_begins_with_what_most_people_need(script, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = inside(script, "--help").out.splitlines()
    assert len(lines) <= 100 and max(map(len, lines)) <= 80
    assert sum(line.strip().startswith(f"python {script} ") for line in lines) >= 3
    assert sum(line.strip().startswith("torchrun --nproc_per_node=") for line in lines) == 1
    groups = [line for line in lines if re.fullmatch(r"\w.*:", line) and "usage" not in line]
    assert groups[0].startswith("what most people need")
    known = ("data:", "method:", "optimisation:", "output:")
    assert groups[1:] == [group for group in known if group in groups]


# What the scripts are made of


def test_names_that_are_no_text_are_printed_and_written_escaped(place, monkeypatch):
    folder = shutil.copytree(place.data, Path(os.fsdecode(b"caf\xe9")))
    train(Place(folder, place.clip), "runs/one", "--epochs", 0)
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    monkeypatch.setattr(sys, "stdout", printed)
    monkeypatch.setattr(sys, "argv", ["eval.py", "--table", "runs"])
    with pytest.raises(SystemExit) as ended:
        command_line.run_command(SCRIPTS["eval.py"].main)
    printed.flush()
    assert not ended.value.code
    assert "**caf\\udce9, CLIP little**" in printed.buffer.getvalue().decode()
    for table in ("table.md", "table.csv"):
        assert "caf\\udce9" in Path("runs", table).read_text(encoding="utf-8")


def test_names_cannot_command_the_terminal_or_begin_a_line(trained, place):
    shutil.copy(place.data / "gnu" / "0.png", "a\x1b[31m\nb: cat 99 %.png")
    result = inside("eval.py", "--run", trained[0], "--image", "a\x1b[31m\nb: cat 99 %.png")
    assert result.out.startswith(r"a\x1b[31m\nb: cat 99 %.png: ") and result.out.count("\n") == 1
    result = inside("eval.py", "--run", trained[0], "--image", "gone\x1b[2J\n.png")
    assert_one_line(result, "eval.py", "gone")
    assert "\x1b" not in result.err
    result = inside("eval.py", "--runs\x1b[2J", "x")
    assert_one_line(result, "eval.py")
    assert "\x1b" not in result.err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_progress_is_one_line_on_a_terminal_and_a_line_each_tenth_elsewhere(monkeypatch):
    now = iter([100.0, 130.0, 160.0])
    monkeypatch.setattr(command_line.time, "monotonic", lambda: next(now))
    with command_line.Progress("epoch", 8, after=0, stream=(terminal := Terminal())) as tell:
        tell(1, "loss 2.5")
        tell(4)
    shown = [line.rstrip() for line in terminal.getvalue().split("\r")]
    assert shown == ["", "epoch 1/8 · 3:30 left · loss 2.5", "epoch 4/8 · 1:00 left"]

    monkeypatch.setattr(command_line.time, "monotonic", lambda: 0.0)
    with command_line.Progress("epoch", 30, after=0, stream=(stream := io.StringIO())) as tell:
        for epoch in range(1, 31):  # as a log file
            tell(epoch)
    shown = stream.getvalue().splitlines()
    assert shown == [f"epoch {epoch}/30 · 0:00 left" for epoch in range(3, 31, 3)]


@pytest.mark.parametrize("width", [1, 20, 40])
def test_the_progress_never_wraps_and_has_no_escape_sequence(monkeypatch, width):
    monkeypatch.setattr(command_line, "columns", lambda stream: width)
    with command_line.Progress("epoch", 9, after=0, stream=(terminal := Terminal())) as tell:
        for epoch in range(1, 10):
            tell(epoch, "loss 1.234 · a\x1b[31m b\nc")
    lines = terminal.getvalue().removesuffix("\n").split("\r")
    assert len(lines) == 10 and max(map(len, lines)) == min(width - 1, 39)
    assert terminal.getvalue().count("\n") == 1 and "\x1b" not in terminal.getvalue()


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()], ids=["terminal", "log file"])
def test_a_job_of_less_than_two_seconds_shows_nothing(monkeypatch, stream):
    monkeypatch.setattr(command_line.time, "monotonic", lambda: 1.9 * len(passed))
    passed: list[int] = []
    with command_line.Progress("images", 10, stream=stream) as tell:
        passed.append(1)
        tell(9)
        assert stream.getvalue() == ""
        passed.append(2)
        tell(10)
    assert stream.getvalue().startswith(("\rimages 10/10 · 0:00 left", "images 10/10"))


def test_what_is_said_beside_the_progress_has_a_line_of_its_own():
    with command_line.Progress("images", 4, after=0, stream=(terminal := Terminal())) as tell:
        tell(1, "slow")
        command_line.say("note: so", stream=terminal)
        tell(2, "slow")
    assert re.fullmatch(
        r"\rimages 1/4 .*slow\nnote: so\n\rimages 2/4 .*slow\n", terminal.getvalue()
    )


def test_times_are_written_as_on_a_clock():
    assert [command_line.clock(s) for s in (0, 7.4, 59.6, 61, 3600, 7325)] == [
        *("0:00", "0:07", "1:00", "1:01", "1:00:00", "2:02:05")
    ]


def test_a_json_file_is_replaced_whole_or_not_at_all(tmp_path):
    run = runs.Run(tmp_path / "deep" / "run")
    run.create()
    run.write_json("summary.json", {"accuracy": 1.5, "name": "é"})
    assert run.read_json("summary.json") == {"accuracy": 1.5, "name": "é"}
    with pytest.raises(TypeError):
        run.write_json("summary.json", {"accuracy": object()})
    assert run.read_json("summary.json") == {"accuracy": 1.5, "name": "é"}


def test_runs_of_one_name_are_numbered(tmp_path):
    names = []
    for _ in range(3):
        with runs.Run.new_numbered(tmp_path / "runs" / "a", [tmp_path / "data"]) as run:
            run.create()
            run.write_json("config.json", {})
            names.append(run.folder.name)
    assert names == ["a", "a-2", "a-3"]


def test_no_number_helps_where_no_folder_can_be_made(tmp_path):
    (tmp_path / "runs").symlink_to("gone")
    with pytest.raises(FileExistsError, match="runs"):
        with runs.Run.new_numbered(tmp_path / "runs" / "a", []):
            pass


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_freed_memory_is_kept_and_not_cleared_by_the_system_again(tmp_path):
    code = """if True:
        import resource, torch
        from minidpt.runs.command_line import keep_freed_memory

        def pages_of_ten_tensors():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(10):
                torch.ones(10_000_000)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        usual = pages_of_ten_tensors()
        keep_freed_memory()
        torch.ones(10_000_000)
        print(usual, pages_of_ten_tensors())
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    usual, kept = map(int, done.stdout.split())
    if usual < 1000:
        pytest.skip("this C library, or huge pages, cost few page faults anyway")
    assert kept < usual / 2  # a few tensors may find their place taken by something small
