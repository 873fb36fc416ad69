"""The folder of a run: outside the data, nobody else's, its files whole."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.run_command import SHORT, assert_one_line, run_command
from helpers.short_runs import snapshot_folder, train

from minidpt.checkpoints.prompt_file import write_checkpoint
from minidpt.runs import folders as runs
from minidpt.runs.config import RunConfig, RunRecord
from minidpt.support import files

SETTINGS = RunConfig("d", model="m"), RunRecord("c", "d", "cpu", "fp32", True)


def test_the_data_folder_is_only_read(trained, inputs):
    before = snapshot_folder(inputs.data)
    train(inputs, "run", "--epochs", 1)
    run_command("eval.py", "test", "run")
    run_command("eval.py", "predict", "run", inputs.data)
    assert snapshot_folder(inputs.data) == before


def test_settings_that_differ_are_named_in_one_line():
    run = runs.RunFolder("run")
    run.create(replace(SETTINGS[0], classnames="a\nb\x1b"), SETTINGS[1])
    with pytest.raises(ValueError, match="expected a run with classnames None, got one") as error:
        run.is_finished(*SETTINGS, "remove it")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("out", ["run", "Owl/run", None])
def test_a_run_folder_within_the_data_is_refused_and_nothing_is_written(
    tmp_path, inputs, monkeypatch, out
):
    folder = shutil.copytree(inputs.data, tmp_path / "data")
    before = snapshot_folder(folder)
    monkeypatch.chdir(folder)
    where = ["--out", folder / out] if out else []  # without --out: runs/ in this folder
    result = run_command("train.py", "--data", ".", "--model", inputs.clip, *SHORT, *where)
    assert_one_line(result, "train.py", "data folder")
    assert snapshot_folder(folder) == before


def test_a_run_is_not_written_among_images_that_a_csv_lists(inputs, monkeypatch):
    images = shutil.copytree(inputs.data, Path("home/far/pictures"))
    Path("home/lists").mkdir()
    lines = [f"{path.resolve()},{path.parent.name}" for path in sorted(images.glob("*/*.png"))]
    Path("home/lists/labels.csv").write_text("\n".join(["path,label", *lines]))
    command = ("--data", "home/lists/labels.csv", "--model", inputs.clip, *SHORT, "--epochs", 0)
    for out in ("home/far/pictures/Owl/run", "home/far/pictures/run"):
        result = run_command("train.py", *command, "--out", out)
        assert_one_line(result, "train.py", "outside the data folder")
        assert not Path(out).exists()
    for out in ("home/far/run", "home/lists/run"):
        assert run_command("train.py", *command, "--out", out).status == 0

    # class folders and their list in the home folder: results lie below it, too
    monkeypatch.setenv("HOME", str(Path("home/far/pictures").resolve()))
    shutil.move("home/lists/labels.csv", "home/far/pictures/labels.csv")
    command = ("--data", "home/far/pictures/labels.csv", *command[2:])
    result = run_command("train.py", *command, "--out", "home/far/pictures/Owl/run")
    assert_one_line(result, "train.py", "outside the data folder")
    assert run_command("train.py", *command, "--out", "home/far/pictures/runs/one").status == 0


def test_an_output_folder_with_other_contents_is_refused_unchanged(trained, inputs):
    shutil.copytree(trained, "run")
    Path("files").mkdir()
    Path("files", "notes.txt").write_text("mine")
    for folder, contents in {"run": "a finished run", "files": "other files"}.items():
        before = snapshot_folder(Path(folder))
        result = run_command("train.py", *inputs.options, "--out", folder)
        assert_one_line(result, "train.py", folder, contents, "another --out")
        assert snapshot_folder(Path(folder)) == before
    result = run_command("train.py", *inputs.options, "--out", "files/notes.txt")
    assert_one_line(result, "train.py", "notes.txt")
    Path("empty").mkdir()
    train(inputs, "empty", "--epochs", 0)


def test_writing_touches_nothing_of_the_name_of_its_unfinished_file(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "a.part").symlink_to(tmp_path / "precious")
    os.link(tmp_path / "precious", tmp_path / "a-2.part")
    os.mkfifo(tmp_path / "a-3.part")
    with files.atomic_write(tmp_path / "a") as unfinished:
        assert unfinished.name == "a-4.part"
        unfinished.write_text("new")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "a").read_text() == "new" and not (tmp_path / "a").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["a", "a-2.part", "a-3.part", "a.part", "precious"]


def test_what_a_killed_process_left_unfinished_is_removed_from_a_run(tmp_path):
    run = runs.RunFolder(tmp_path / "run")
    run.create(*SETTINGS)
    for name in ("model.pt.part", "config.json.part"):
        run.path(name).write_bytes(b"half")
    run.path("notes.part").write_bytes(b"mine")
    run.create(*SETTINGS)
    assert sorted(os.listdir(run.folder)) == ["config.json", "notes.part"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_is_neither_replaced_nor_waited_for(make, tmp_path):
    make(tmp_path / "a")
    with pytest.raises(FileExistsError, match="a: expected a file to replace, got a folder, "):
        write_checkpoint(tmp_path / "a", {})
    with pytest.raises(FileExistsError, match="a: expected a file, got a folder or pipe"):
        with files.file_lock(tmp_path / "a"):
            pass
    assert os.listdir(tmp_path) == ["a"] and not (tmp_path / "a").is_file()


def test_a_json_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    run, steps = runs.RunFolder(tmp_path / "deep" / "run"), []
    run.create(*SETTINGS)
    with monkeypatch.context() as patch:
        for name in ("fsync", "replace"):  # on the disk first, so that a power cut leaves one whole
            step = getattr(os, name)
            patch.setattr(os, name, lambda *a, f=step: steps.append(f.__name__) or f(*a))
        run.write_json("summary.json", {"accuracy": 1.5, "name": "é"})
    assert steps == ["fsync", "replace"]
    assert run.read_json("summary.json") == {"accuracy": 1.5, "name": "é"}
    with pytest.raises(TypeError):
        run.write_json("summary.json", {"accuracy": object()})
    assert run.read_json("summary.json") == {"accuracy": 1.5, "name": "é"}


def test_runs_of_one_name_are_numbered(tmp_path):
    names = []
    for _ in range(3):
        with runs.lock_numbered_folder(tmp_path / "runs" / "a", [tmp_path / "data"]) as folder:
            runs.RunFolder(folder).create(*SETTINGS)
            names.append(folder.name)
    assert names == ["a", "a-2", "a-3"]


def test_no_number_helps_where_no_folder_can_be_made(tmp_path):
    (tmp_path / "runs").symlink_to("gone")
    with pytest.raises(FileExistsError, match="runs"):
        with runs.lock_numbered_folder(tmp_path / "runs" / "a", []):
            pass


def test_no_file_of_json_holds_what_is_no_number(tmp_path):
    run = runs.RunFolder(tmp_path)
    for value in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            run.write_json("a.json", {"words": [["ox", value]]})
    assert not list(tmp_path.iterdir())
