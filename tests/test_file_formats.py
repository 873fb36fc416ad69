"""Files that released versions have written are read for ever: `tests/formats/VERSION`."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from helpers.format_files import RUN, SWEEP, make_clip
from helpers.run_command import ROOT, read_summary, run_command

import minidpt
from minidpt.checkpoints.prompt_file import FORMAT

VERSIONS = sorted((ROOT / "tests/formats").iterdir())
ONE_IMAGE = 12.6  # of the 8 test images, in percent: another processor may classify it otherwise


@pytest.fixture(params=VERSIONS, ids=lambda folder: folder.name)
def folder(request, tmp_path, monkeypatch) -> Path:
    """A copy of a version's files, with the CLIP that they were learned on."""
    shutil.copytree(request.param, tmp_path, dirs_exist_ok=True)
    make_clip(tmp_path / "clip.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def expected(folder: Path) -> dict:
    return json.loads((folder / "expected.json").read_text(encoding="utf-8"))


def read_accuracies(path: Path) -> dict[tuple[str, ...], tuple[float, ...]]:
    """Read a table.csv: what a row is of → its accuracies."""
    with open(path, newline="", encoding="utf-8") as file:
        return {
            (row["trained"], row["tested"], row["method"], row["shots"]): (
                float(row["zero_shot_accuracy"]), float(row["accuracy"])
            )
            for row in csv.DictReader(file)
        }  # fmt: skip


def test_each_format_of_prompt_files_is_kept():
    assert [folder.name for folder in VERSIONS] == ["1.0"]
    assert FORMAT == "minidpt 3", "keep files of the new version, too"


def test_models_predict_what_they_predicted(folder):
    clip, _ = minidpt.load(folder / "clip.pt")
    for run, images in expected(folder)["probabilities"].items():
        model = minidpt.load_model(folder / run / "model.pt", clip)
        predictions = model.predict(list(images), top=4)
        for image, each in zip(images, predictions, strict=True):
            got = {prediction.classname: prediction.probability for prediction in each}
            assert got == pytest.approx(images[image], abs=2e-5), (run, image)


def test_an_interrupted_run_is_resumed_to_its_result(folder):
    begun = (folder / "interrupted/metrics.jsonl").read_text()
    result = run_command(
        "train.py", "--resume", "interrupted", "--data", "images", "--model", "clip.pt"
    )
    assert (result.status, result.err) == (0, "") and "resumed" in result.out
    metrics = (folder / "interrupted/metrics.jsonl").read_text()
    assert begun.count("\n") == 2 and metrics.startswith(begun)
    resumed = expected(folder)["resumed"]
    losses = [json.loads(line)["loss"] for line in metrics.splitlines()]
    assert losses == pytest.approx(resumed["losses"], rel=1e-3)
    assert read_summary("interrupted")["accuracy"] == pytest.approx(
        resumed["accuracy"], abs=ONE_IMAGE
    )


def test_a_sweep_is_finished_and_tabulated(folder):
    before = read_accuracies(folder / "sweep/table.csv")
    command = ["train.py", "--data", "images", "--model", "clip.pt", *RUN, *SWEEP, "--out", "sweep"]
    result = run_command(*command)
    assert (result.status, result.err) == (0, "")
    assert "9 runs in sweep, 9 of them finished" in result.out
    after = read_accuracies(folder / "sweep/table.csv")
    assert set(after) == {*before, ("images", "images, new classes", "dpt", "3")}
    assert {row: after[row] for row in before} == before
    (folder / "sweep/table.csv").unlink()
    assert run_command("eval.py", "table", "sweep").status == 0
    assert read_accuracies(folder / "sweep/table.csv") == after


def test_a_finished_run_is_tested_again(folder):
    result = run_command("eval.py", "test", "csc", "--image-root", "images", "--model", "clip.pt")
    assert result.status == 0
    accuracy = float(re.search(r"dpt accuracy ([\d.]+) %", result.out)[1])
    assert accuracy == pytest.approx(read_summary("csc")["accuracy"], abs=ONE_IMAGE)


def test_a_report_is_made_of_a_finished_run(folder):
    options = "--model", "clip.pt", "--image-root", "images"
    result = run_command("eval.py", "report", "csc", *options)
    assert (result.status, result.out) == (0, "csc: report.html\n")


def test_settings_of_a_run_begin_another(folder):
    options = "--data", "images", "--model", "clip.pt", "--epochs", 1, "--out", "again"
    result = run_command("train.py", "--config", "csc/config.json", *options)
    assert result.status == 0
    config = json.loads((folder / "again/config.json").read_text(encoding="utf-8"))
    assert (config["csc"], config["class_token_position"], config["n_ctx"]) == (True, "middle", 2)
