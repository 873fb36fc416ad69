"""Commands that torchrun starts in several processes, against one process alone.

All of them are made once, by `distributed_commands.py`; each test looks at what one has left.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from helpers.image_folders import draw_class_folders
from helpers.run_command import ROOT, SHORT, fork_command, read_summary, run_command, save_clip

from minidpt.checkpoints.reader import read_checkpoint
from minidpt.runs import entrypoint
from minidpt.runs.devices import choose_device
from minidpt.support.distributed import SINGLE, World
from minidpt.support.progress import Progress, print_line

SWEEP = ("--method", "zeroshot", "coop", "vpt", "--seed", 1, 2, "--epochs", 3)


class Done(NamedTuple):
    """What a command has left: `alone` is what one process left of it, where that was asked for."""

    folder: Path
    statuses: list[int]
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        lines = self.err.splitlines()
        return [line for line in lines if "error: " in line]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """Three test images of the six of each class; one image of `broken` is cut short."""
    folder = tmp_path_factory.mktemp("workspace")
    draw_class_folders(folder / "pictures", {"ox": 10, "gnu": 10, "yak": 10})
    draw_class_folders(folder / "few", {"ox": 4, "gnu": 4})
    draw_class_folders(folder / "broken", {"ox": 10, "gnu": 10, "yak": 10})
    for path in (folder / "broken" / "yak").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    save_clip(folder / "little.pt")
    return folder


def command(workspace: Path, data: str, *options: object) -> list[str]:
    arguments = ("--data", workspace / data, "--model", workspace / "little.pt", *SHORT, *options)
    return list(map(str, ("train.py", *arguments)))


@pytest.fixture(scope="module")
def done(workspace, tmp_path_factory) -> dict[str, Done]:
    folder = tmp_path_factory.mktemp("processes")
    dpt = command(workspace, "pictures", "--out", "run")
    sweep = command(workspace, "pictures", *SWEEP, "--out", "all")
    resumed = ["train.py", "--resume", "run"]
    jobs = {
        "two": {"processes": 2, "arguments": dpt},
        "three": {"processes": 3, "arguments": command(workspace, "few", "--out", "run")},
        "sweep": {"processes": 2, "arguments": sweep},
        "killed": {"processes": 2, "arguments": dpt, "kill": 1, "when": "run/state.pt"},
        "resumed": {"processes": 2, "arguments": resumed},
        "two stopped": {"processes": 2, "arguments": dpt, "stop": 3},
        "two, then three": {"processes": 3, "arguments": resumed, "copy": "two stopped"},
        "one stopped": {"processes": 1, "arguments": dpt, "stop": 3},
        "one, then two": {"processes": 2, "arguments": resumed, "copy": "one stopped"},
        "sweep stopped": {"processes": 1, "arguments": sweep, "stop": 2},
        "sweep, then two": {"processes": 2, "arguments": sweep, "copy": "sweep stopped"},
        "shared sweep stopped": {"processes": 2, "arguments": sweep, "stop": 2},
        "broken": {"processes": 2, "arguments": command(workspace, "broken", "--out", "run")},
        "no data": {"processes": 2, "arguments": command(workspace, "none", "--out", "run")},
        "no option": {"processes": 2, "arguments": ["train.py", "--shot"]},
        "eval": {"processes": 2, "arguments": ["eval.py", "test", "run", "--per-class"]},
    }
    at = {"resumed": "killed", "eval": "two"}
    for name, job in jobs.items():
        job["folder"] = str(folder / at.get(name, name))
        if "copy" in job:
            job["copy"] = str(folder / job["copy"])
        else:
            Path(job["folder"]).mkdir(exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(list(jobs.values())))
    script = fork_command(ROOT / "tests/helpers/distributed_commands.py", folder / "jobs.json")
    ended = subprocess.run(script, stdout=subprocess.PIPE, timeout=200)
    assert ended.returncode == 0
    return {
        name: Done(Path(job["folder"]), **result)
        for (name, job), result in zip(jobs.items(), json.loads(ended.stdout), strict=True)
    }


@pytest.fixture(scope="module")
def uninterrupted(workspace, tmp_path_factory) -> Path:
    """The run that one process makes, uninterrupted."""
    return alone(tmp_path_factory.mktemp("whole"), command(workspace, "pictures", "--out", "run"))


def alone(tmp_path: Path, arguments: list[str]) -> Path:
    """What one process makes of a command."""
    arguments = [*arguments[:-1], str(tmp_path / arguments[-1])]
    assert run_command(*arguments).status == 0
    return Path(arguments[-1])


def learned(run: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(run / "model.pt")["learned"]


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def assert_equal_runs(actual: Path, expected: Path) -> None:
    assert losses(actual) == pytest.approx(losses(expected), abs=2e-5, rel=0)
    for name, value in learned(expected).items():
        assert (learned(actual)[name] - value).norm() <= 1e-4 * value.norm(), name
    tests, others = (read_summary(run)["tests"] for run in (actual, expected))
    for name in (*tests, *others):
        assert tests[name] == pytest.approx(others[name], abs=0.05)  # confidence, by the last bits
    assert (actual / "split.json").read_bytes() == (expected / "split.json").read_bytes()


@pytest.mark.parametrize("name, data", [("two", "pictures"), ("three", "few")])
def test_processes_that_share_a_run_leave_what_one_leaves(name, data, done, workspace, tmp_path):
    """Three processes: with two classes, batches of five, and fewer test images than that."""
    assert done[name].statuses == [0] * len(done[name].statuses)
    expected = alone(tmp_path, command(workspace, data, "--out", "run"))
    run = done[name].folder / "run"
    assert_equal_runs(run, expected)
    assert sorted(path.name for path in run.iterdir()) == sorted(
        path.name for path in expected.iterdir()
    )


def test_one_process_tells_of_a_shared_run(done):
    lines = done["two"].out.splitlines()
    assert (
        len(lines) == len(set(lines))
        and len([x for x in lines if x.startswith(("dpt accuracy", "zero-shot accuracy"))]) == 2
    )
    assert sum("epoch 6/6" in line for line in done["two"].err.splitlines()) == 1


def test_processes_share_the_runs_of_a_sweep_and_make_one_table(done, workspace, tmp_path):
    assert done["sweep"].statuses == [0, 0], done["sweep"].err
    expected = alone(tmp_path, command(workspace, "pictures", *SWEEP, "--out", "all"))
    folder = done["sweep"].folder / "all"
    for name in ("table.md", "table.csv"):
        assert (folder / name).read_text() == (expected / name).read_text()
    runs = sorted(path.parent.name for path in folder.glob("*/summary.json"))
    assert runs == sorted(path.parent.name for path in expected.glob("*/summary.json"))
    for run in runs:  # each is one process's, so to the bit
        for name, value in learned(expected / run).items():
            assert torch.equal(learned(folder / run)[name], value)


def test_each_process_prints_behind_run_names_and_the_longest_begin_first(done):
    lines = done["sweep"].out.splitlines()
    for number, name in ((1, "vpt-3shots-seed1"), (4, "coop-3shots-seed2"), (5, "zeroshot")):
        assert f"pictures-{name}: [{number}/5] pictures-{name}" in lines
    assert sum(line.endswith("table.md, table.csv") for line in lines) == 1


def test_a_run_whose_process_dies_resumes_to_the_same_bits(done):
    first, second = done["killed"].statuses
    assert second == -9 and first in (2, 143, -15)
    assert done["resumed"].statuses == [0, 0]
    for name, value in learned(done["two"].folder / "run").items():
        assert torch.equal(learned(done["killed"].folder / "run")[name], value)
    assert losses(done["killed"].folder / "run") == losses(done["two"].folder / "run")


def test_several_processes_that_are_stopped_end_with_one_line_to_go_on(done):
    """Behind it torchrun, which has had the signal, too, writes a traceback of its own."""
    assert done["two stopped"].statuses == [143, 143]
    (line,) = done["two stopped"].errors
    again = "torchrun --nproc_per_node=2 train.py --resume run"
    assert line == f"train.py: error: interrupted; to resume: {again}"
    assert done["two stopped"].err.splitlines()[-1] == line


@pytest.mark.parametrize("name", ["two, then three", "one, then two", "two, then one"])
def test_a_run_resumes_in_another_number_of_processes_to_the_same_numbers(
    name, done, uninterrupted, tmp_path
):
    if name == "two, then one":
        run = Path(shutil.copytree(done["two stopped"].folder / "run", tmp_path / "run"))
        result = run_command("train.py", "--resume", run)
        statuses, out = [result.status], result.out
    else:
        run, (statuses, out) = done[name].folder / "run", done[name][1:3]
    assert set(statuses) == {0} and "resuming after epoch 3 of 6" in out
    assert_equal_runs(run, uninterrupted)
    assert not (run / "state.pt").exists()


def test_a_stopped_sweep_resumes_in_more_processes_to_the_same_bits(done, workspace, tmp_path):
    alone = tmp_path / "all"
    shutil.copytree(done["shared sweep stopped"].folder / "all", alone)
    assert done["shared sweep stopped"].statuses == [143, 143]
    assert list(alone.glob("pictures-*/state.pt"))
    result = run_command("train.py", "--resume", alone)
    assert result.status == 0 and "resuming after epoch 2 of 3" in result.out
    assert done["sweep, then two"].statuses == [0, 0]
    assert "resuming after epoch 2 of 3" in done["sweep, then two"].out
    uninterrupted = done["sweep"].folder / "all"
    for folder in (alone, done["sweep, then two"].folder / "all"):
        assert (folder / "table.csv").read_text() == (uninterrupted / "table.csv").read_text()
        for run in ("pictures-coop-3shots-seed1", "pictures-vpt-3shots-seed2"):
            for name, value in learned(uninterrupted / run).items():
                assert torch.equal(learned(folder / run)[name], value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", ["broken/yak/image_"]),
        ("no data", ["none"]),
        ("no option", ["unrecognized arguments: --shot"]),
    ],
)
def test_what_is_wrong_is_told_by_one_process_in_one_line(name, words, done):
    ended_by_it = (
        "another process ended",
        "interrupted; to resume: torchrun --nproc_per_node=2",
    )
    errors = [line for line in done[name].errors if not any(end in line for end in ended_by_it)]
    assert len(errors) == 1 and all(word in errors[0] for word in words), done[name]
    assert 2 in done[name].statuses and 0 not in done[name].statuses
    assert "Traceback" not in done[name].err


def test_test_images_are_shared_out_and_each_is_counted_once(done):
    result = run_command("eval.py", "test", done["two"].folder / "run", "--per-class")
    lines = done["eval"].out.splitlines()[-len(result.out.splitlines()) :]
    assert lines == result.out.splitlines() and done["eval"].statuses == [0, 0]


@pytest.mark.parametrize(
    "task",
    [("table", "none"), ("report", "none"), ("published", "none", "--data", "none"),
     ("export", "none", "new.pt2"), ("predict", "none", "-"),
     ("predict", "none", "a.jpg", "--attention-maps", "new")],
)  # fmt: skip
def test_what_is_not_shared_the_first_process_does_alone(task, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for rank, status in (("1", 0), ("0", 2)):  # to the first one nothing is there
        for name, value in {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        result = run_command("eval.py", *task)
        assert result.status == status and result.out == "", result


def test_a_process_beside_the_first_waits_to_be_ended_before_it_prints(monkeypatch, capsys):
    """What ends it has ended the first, which has said so: torchrun sees that within 6 s."""
    slept = []
    monkeypatch.setattr(entrypoint.time, "sleep", slept.append)
    monkeypatch.setattr(entrypoint, "catch_signals", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *arguments: slept.append(arguments))

    def fail():
        raise ValueError("of this process alone")

    for rank, steps in ((0, []), (1, [(signal.SIGTERM, signal.SIG_DFL), 6])):
        monkeypatch.setattr(entrypoint, "world_from_environment", lambda: World(rank, 2))  # noqa: B023
        with pytest.raises(SystemExit) as ended:
            entrypoint.run_command(fail)
        assert (ended.value.code, slept) == (2, steps)
        assert capsys.readouterr().err.endswith(": error: of this process alone\n")


def test_lines_behind_a_name_are_written_whole(monkeypatch):
    """Several processes write to one stream, which torchrun has them do without a buffer."""
    writes = []
    stream = SimpleNamespace(write=writes.append, flush=lambda: None, isatty=lambda: True)
    for name in ("__stdout__", "__stderr__"):
        monkeypatch.setattr(sys, name, stream)
    with entrypoint.prefix_output("run", World(1, 2)):
        print_line("one", "two")
        assert not Progress("epoch", 10).is_rewritten
    assert [text for text in writes if text] == ["run: one\n", "run: two\n"]


@pytest.mark.parametrize(
    ("size", "local", "words"),
    [
        (1, 1, ["python"]),
        (4, 4, ["torchrun", "--nproc_per_node=4"]),
        (8, 4, ["torchrun", "--nnodes=2", "--nproc_per_node=4"]),
    ],
)
def test_the_command_to_go_on_starts_as_many_processes(size, local, words, monkeypatch):
    world = World(0, size, 0, local)
    monkeypatch.setattr(sys, "argv", ["there/eval.py"])
    command = entrypoint.format_command("train", world=world)
    assert command.split() == [*words, "there/train.py"]
    monkeypatch.setattr(sys, "argv", ["bin/minidpt-train"])
    installed = [*words[: 0 if size == 1 else None], *["--no-python"] * (size > 1)]
    command = entrypoint.format_command("eval", world=world)
    assert command.split() == [*installed, "minidpt-eval"]


def test_each_process_has_a_device_of_its_own(monkeypatch):
    monkeypatch.setattr("minidpt.runs.devices.is_there", lambda device: True)
    second = World(rank=5, size=8, local_rank=1, local_size=4)
    for name in ("cuda", None):
        assert choose_device(name, second) == torch.device("cuda", 1)
        assert choose_device(name, SINGLE) == torch.device("cuda")
    assert choose_device("cpu", second) == torch.device("cpu")
    with pytest.raises(ValueError, match="expected one device per process .8., got cuda:0"):
        choose_device("cuda:0", second)


def test_without_a_name_the_device_is_what_is_there(monkeypatch):
    for there in ("xpu", "mps", "cpu"):
        known = {torch.device(there), torch.device("cpu")}
        monkeypatch.setattr(
            "minidpt.runs.devices.is_there", lambda device, known=known: device in known
        )
        assert choose_device(None) == torch.device(there)
