"""Sweeps: several methods, numbers of shots, seeds and data sets in one folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from helpers.run_command import (
    SHORT,
    assert_one_line,
    read_summary,
    run_command,
)
from helpers.short_runs import (
    RunInputs,
    assert_same_result,
    read_csv,
    run_checked,
    snapshot_files,
    train,
)

import minidpt
from minidpt.data.samples import Dataset
from minidpt.images import decode
from minidpt.runs import folders as runs
from minidpt.runs import sweep as sweeps
from minidpt.runs.command_line import TrainCommand
from minidpt.runs.config import RunConfig, RunRecord
from minidpt.runs.folders import RunFolder
from minidpt.support.distributed import World


def test_a_sweep_has_a_run_for_each_method_shots_and_seed(sweep):
    folder, _, result = sweep
    names = {f"pictures0-{method}-{shots}shots-seed{seed}"
             for method in ("coop", "dpt") for shots in (1, 3) for seed in (0, 2)}  # fmt: skip
    folders = {path.parent.name.replace(path.parent.name.split("-")[0], "pictures0", 1)
             for path in folder.glob("*/summary.json")}  # fmt: skip
    assert folders == names | {"pictures0-zeroshot"}
    assert not list(folder.glob("*/report.html"))  # it has one of all
    assert "9 runs in" in result.out and "0 of them finished" in result.out
    assert (folder / "table.md").read_text(encoding="utf-8") in result.out


def test_a_sweep_says_a_note_once_and_compares_zero_shot_with_nothing(sweep):
    lines = sweep[2].out.splitlines()
    notes = [line for line in lines if line.startswith("note: ")]
    assert len(notes) == len(set(notes)) and any("training steps" in note for note in notes)
    results = [line for line in lines if " accuracy " in line and " in 0:" in line]
    assert len(results) == 9
    assert [line.split()[0] for line in results if " % (" not in line] == ["zeroshot"]


def test_a_run_of_a_sweep_equals_the_run_made_alone(sweep, images, clip):
    (run,) = sweep[0].glob("*-dpt-3shots-seed2")
    train(RunInputs(images, clip), "alone", "--epochs", 2, "--seed", 2)
    for name in ("zero_shot_accuracy", "train_images", "tests"):
        assert read_summary("alone")[name] == read_summary(run)[name]
    assert_same_result("alone", run)


def test_a_stopped_sweep_goes_on_where_it_was_and_repeats_nothing(sweep, images):
    folder, command, _ = sweep
    shutil.copytree(folder, "again")
    finished = sorted(path.parent for path in Path("again").glob("*/summary.json"))
    stopped, never_begun = finished[2], finished[5]
    (stopped / "summary.json").unlink()
    shutil.rmtree(never_begun)
    unchanged = [path for path in finished if path not in (stopped, never_begun)]
    before = {path: snapshot_files(path) for path in unchanged}
    (stopped / "metrics.jsonl").write_text("of the stopped run")
    result = run_checked("train.py", *command, "--out", "again")
    assert "9 runs in again, 7 of them finished" in result.out
    assert {path: snapshot_files(path) for path in unchanged} == before
    for path in (stopped, never_begun):
        assert read_summary(path)["accuracy"] == read_summary(folder / path.name)["accuracy"]
    assert (stopped / "metrics.jsonl").read_text(encoding="utf-8").count("\n") == 2
    assert Path("again/table.csv").read_text() == (folder / "table.csv").read_text()

    before = snapshot_files("again")
    result = run_checked("train.py", *command, "--out", "again")
    assert "9 of them finished" in result.out and "CLIP" not in result.out.split("finished")[0]
    changed = {path for path, time in snapshot_files("again").items() if before.get(path) != time}
    assert changed == {"again/table.md", "again/table.csv", "again/report.html"}


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--epochs 3", ["epochs 3", "with epochs 2: pass"]),
        ("--precision bf16", ["precision bf16", "pass --precision fp32, or pass another"]),
        ("--no-quick-gelu", ["the run's CLIP (fingerprint", "pass another"]),
        ("--out mine", ["mine"]),
    ],
)
def test_a_sweep_with_other_settings_does_not_mix_with_what_is_there(sweep, option, words):
    shutil.copytree(sweep[0], "again")
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    before = snapshot_files(".")
    result = run_command("train.py", *sweep[1], "--out", "again", *option.split())
    assert_one_line(result, "train.py", *words, "--out")
    assert snapshot_files(".") == before


def test_a_sweep_does_not_go_on_with_other_images_or_classes(images, clip):
    data, names = shutil.copytree(images, Path("own")), Path("names.txt")
    names.write_text("ox cow\n")
    command = ("--data", data, "--model", clip, *SHORT, "--epochs", 1, "--method", "coop",
               "zeroshot", "--classnames", names, "--out", "sweep")  # fmt: skip
    run_checked("train.py", *command)
    config = json.loads(next(Path("sweep").glob("*-coop-*/config.json")).read_text())
    assert config["record"]["clip_fingerprint"] == minidpt.load(clip)[0].fingerprint()
    before = snapshot_files("sweep")
    Path("others.txt").write_text("ox cow\n")
    result = run_command("train.py", *command, "--classnames", "others.txt")
    assert_one_line(result, "train.py", "classnames")
    more = shutil.copy(data / "ox" / "image_0001.png", data / "ox" / "more.png")
    words = ("the run's data", "other data", "fingerprint", "--out")
    assert_one_line(run_command("train.py", *command), "train.py", *words)
    more.unlink()
    names.write_text("ox bull\n")  # the same file, other names
    assert_one_line(run_command("train.py", *command), "train.py", *words)
    assert snapshot_files("sweep") == before


def test_a_run_that_fails_is_named_and_the_sweep_continues(images, clip):
    command = ("--data", images, "--model", clip, *SHORT, "--epochs", 3, "--warmup-epochs", 0,
               "--visual-lr", "1e38", "--method", "vpt", "coop", "--out", "sweep")  # fmt: skip
    result = run_command("train.py", *command)
    first, last = result.err.splitlines()
    assert result.status == 2
    failed = f"{images.name}-vpt-3shots-seed1"
    assert first.startswith(f"train.py: error: {failed}: epoch ") and "the loss is" in first
    assert last == f"train.py: error: 1 of 2 runs failed: {failed}"
    assert [row["method"] for row in read_csv("sweep/table.csv")] == ["coop"]
    assert "[2/2]" in result.out and "| CoOp " in result.out
    again = run_command("train.py", *command)
    assert "2 runs in sweep, 1 of them finished" in again.out and again.status == 2

    none = (*command[:-3], "--seed", 3, 4, "--out", "none")  # vpt alone
    result = run_command("train.py", *none)
    assert result.err.splitlines()[-1].startswith("train.py: error: 2 of 2 runs failed: ")
    assert not Path("none/table.md").exists()  # there is no result


def test_a_run_stopped_at_any_moment_of_its_beginning_can_restart(monkeypatch):
    run, unlink = RunFolder("run"), Path.unlink
    settings = RunConfig("d", model="m", epochs=3), RunRecord("c", "d", "cpu", "fp32", True)

    def stop(*_, **__):
        raise KeyboardInterrupt

    for moment in range(6):  # files to be removed
        run.create(*settings)
        for name in ("metrics.jsonl", "split.json", "model.pt", "transfer.json"):
            run.path(name).touch()
        run.write_json("summary.json", {"tests": {}})
        assert run.is_finished(*settings, "")
        steps = iter([unlink] * moment + [stop])
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Path, "unlink", lambda *args, **kw: next(steps)(*args, **kw))  # noqa: B023
            run.create(*settings)
        assert run.is_finished(*settings, "") == (moment == 0)  # and it is no error

    run.create(*settings)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs.os, "replace", stop)
        run.create(*settings)
    assert not run.is_finished(*settings, "")


def test_a_damaged_result_stops_a_sweep_before_its_first_run(sweep):
    folder, command, _ = sweep
    shutil.copytree(folder, "again")
    broken, lost = sorted(Path("again").glob("*/summary.json"))[-2:]
    lost.unlink()
    broken.write_text("{}")
    result = run_command("train.py", *command, "--out", "again")
    assert_one_line(result, "train.py", str(broken), "tests", "make the run again")
    broken.unlink()
    os.mkfifo(broken)
    result = run_command("train.py", *command, "--out", "again")
    assert_one_line(result, "train.py", str(broken), "got a pipe")
    assert not lost.exists()


@pytest.mark.parametrize("where", ["write_tables", "write_report", "print_output_folder"])
def test_a_sweep_stopped_outside_its_runs_says_how_to_resume(sweep, monkeypatch, where):
    def stop(*_):
        os.kill(os.getpid(), signal.SIGINT)

    folder, command, _ = sweep
    shutil.copytree(folder, "again")
    monkeypatch.setattr(sweeps, where, stop)
    result = run_command("train.py", *command, "--out", "again")
    assert result.status == 130
    assert "interrupted; to resume: python train.py --data " in result.err
    assert result.err.endswith(" --out again\n")


def test_a_sweep_decodes_test_images_once_and_runs_clip_on_them_once(images, clip, monkeypatch):
    decoded, open_image = [], decode.open_image
    counting = lambda path, level: decoded.append(path) or open_image(path, level)  # noqa: E731
    monkeypatch.setattr(decode, "open_image", counting)
    train(RunInputs(images, clip), "sweep", "--epochs", 1, "--method", "vpt", "coop")
    assert len(decoded) == len(set(decoded))


def test_runs_are_dealt_out_by_classes_then_data_set_then_length():
    def planned(name: str, classes: int, method: str, shots: int, epochs: int = 2):
        config = RunConfig("d", epochs=epochs, shots=shots, prompts=minidpt.PromptConfig(method))
        names = [f"ox {number}" for number in range(classes)]
        data_set = Dataset(name, Path("d"), names, "{}.", [], [], [], "made")
        return sweeps.PlannedRun(config, data_set, {})

    order = [
        planned("many", 9, "coop", 1),
        planned("more", 7, "dpt", 2), planned("more", 7, "dpt", 1),
        planned("other", 7, "dpt", 8), planned("other", 7, "vpt", 3, epochs=4),
        planned("other", 7, "vpt", 3), planned("other", 7, "coop", 3),
        planned("a few", 2, "dpt", 16, epochs=99),
    ]  # fmt: skip
    assert sorted(order[::-1], key=sweeps.dealing_order) == order


def test_no_process_writes_before_all_have_seen_what_is_there(images, clip, monkeypatch):
    steps, shared, prepare = [], [], sweeps.prepare

    class Recorded(World):
        def barrier(self):
            steps.append("barrier")

    def run_once(run, resources):
        steps.append("run")
        shared.append(resources)

    monkeypatch.setattr(sweeps, "prepare", lambda *a: steps.append("prepare") or prepare(*a))
    monkeypatch.setattr(sweeps, "join_world", lambda device: Recorded(local_size=2))
    monkeypatch.setattr(sweeps, "finish_sweep", lambda *_: 0)
    options = {"data": str(images), "model": str(clip), "method": ["coop"], "epochs": 0}
    for out, seeds in (("run", 1), ("sweep", [1, 2])):
        command = TrainCommand({**options, "seed": seeds}, out, None)
        sweeps.make_runs(command, run_once)
    assert steps == ["prepare", "barrier", "run", "prepare", "barrier", "run", "run"]
    for resources in shared:  # two processes on one machine share its memory
        assert resources.images.max_bytes == 2**30 and resources.world.local_size == 2


def test_seeds_in_another_order_and_one_run_more_are_the_same_sweep(sweep):
    folder, command, _ = sweep
    shutil.copytree(folder, "again")
    turned = [*command[: command.index("--seed")], "--seed", 2, 0]
    result = run_checked("train.py", *turned, "--epochs", 2, "--out", "again")
    assert "9 runs in again, 9 of them finished" in result.out
    single_run = [*command[: command.index("--method")], "--method", "vpt", "--shots", 1]
    result = run_checked("train.py", *single_run, "--out", "again")
    assert "1 run in again, 0 of them finished" in result.out
    methods = {row["method"] for row in read_csv("again/table.csv")}
    assert methods == {"zeroshot", "coop", "dpt", "vpt"}
    # zero-shot CLIP does not depend on how long others learn
    plain = [*command[: command.index("--method")], "--method", "zeroshot", "--epochs", 7]
    assert "1 of them finished" in run_checked("train.py", *plain, "--out", "again").out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dataset", "EuroSAT", "ImageNetV2"], ["ImageNetV2", "only a test set"]),
        (["--dataset", "EuroSAT", "eurosat", "Food102"], ["Food102"]),
        (["--dataset", "EuroSAT", "--template", "no class"], ["no class"]),
    ],
)
def test_a_sweep_that_cannot_end_does_not_begin(guide, options, words):
    result = run_command(
        "train.py", "--data", guide, *options, "--model", "none.pt", "--out", "sweep"
    )
    assert_one_line(result, "train.py", *words)  # before CLIP was looked for
    assert not Path("sweep").exists()


def test_data_sets_of_one_name_are_told_apart_by_their_folders(images, clip):
    """Also where files and classes have the same names, as those of a copy that was edited."""
    for parent in ("left", "right"):
        shutil.copytree(images, Path(parent, "photos"))
    command = ["--data", "left/photos", "right/photos", "./left/photos", "--model", clip, *SHORT]
    options = ["--epochs", 1, "--method", "coop", "--seed", 1, 2]
    result = run_checked("train.py", *command, *options)
    assert "4 runs in runs/photos-photos-sweep, 0 of them finished" in result.out
    assert "Mean of 2 data sets" in result.out
    runs = sorted(path.parent for path in Path("runs/photos-photos-sweep").glob("*/summary.json"))
    names = ["photos-left"] * 2 + ["photos-right"] * 2
    assert [read_summary(run)["dataset"] for run in runs] == names
    expected = [f"{name}-coop-3shots-seed{1 + n % 2}" for n, name in enumerate(names)]
    assert [run.name for run in runs] == expected
    folders = [Path(RunFolder(run).read_config()[0].data).parent.name for run in runs]
    assert folders == ["left", "left", "right", "right"]

    shutil.rmtree(runs[3])
    for side in ("left", "right"):
        shutil.move(side, f"moved/{side}")
    moved = ["moved/left/photos", "moved/right/photos"]
    result = run_checked("train.py", "--resume", runs[3].parent, "--data", *moved)
    assert "4 runs in runs/photos-photos-sweep, 3 of them finished" in result.out
    assert read_summary(runs[3])["dataset"] == "photos-right"
    content = json.loads(Path(runs[3].parent, "sweep.json").read_text())
    assert content["data"] == [str(Path(path).resolve()) for path in moved]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["/x/a", "/x/b"], ["d-a", "d-b"]),
        (["/x/a/d", "/x/b/d", "/x/b/e"], ["d-a-d", "d-b-d", "d-b-e"]),
        (["/x", "/x/x"], ["d-x", "d-x-x"]),
        (["/x/d"], ["d"]),
    ],
)
def test_names_that_are_alike_get_the_folders_that_differ(paths, expected):
    named = [*(("d", path) for path in paths), ("DTD", "/x/other")]
    assert sweeps.distinct_names(named) == [*expected, "DTD"]
    with pytest.raises(ValueError, match="--data: expected data sets of different names"):
        sweeps.distinct_names([("d", "/x/d"), ("d", "/y/d"), ("D-x", "/z/D-x")])


def test_a_data_set_that_is_named_twice_is_trained_on_once(guide, clip):
    command = ("--data", guide, "--dataset", "EuroSAT", "eurosat", "--model", clip)
    result = run_checked("train.py", *command, "--method", "zeroshot", "--out", "run")
    assert read_summary("run")["dataset"] == "EuroSAT" and "runs in" not in result.out
