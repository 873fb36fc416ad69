"""What goes wrong around a run: no room, a kill at any moment, two processes with one folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.image_folders import draw_class_folders
from helpers.run_command import (
    ROOT,
    SCRIPTS,
    SHORT,
    assert_one_line,
    fork_command,
    read_summary,
    run_command,
    save_clip,
)

from minidpt.demo import demo
from minidpt.runs import entrypoint
from minidpt.runs import folders as runs
from minidpt.support import files

fcntl = pytest.importorskip("fcntl", reason="locks of files are Unix's")
SCHEDULE = (*SHORT, "--method", "coop", "--epochs", 2, "--no-report")


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> tuple[object, ...]:
    folder = tmp_path_factory.mktemp("inputs")
    draw_class_folders(folder / "pictures", {"ox": 50, "gnu": 50})
    save_clip(folder / "little.pt")
    return ("--data", str(folder / "pictures"), "--model", str(folder / "little.pt"), *SCHEDULE)


@pytest.fixture(scope="module")
def trained(options, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert run_command("train.py", *options, "--out", folder).status == 0
    return folder


@contextlib.contextmanager
def room(size: int):
    """No file can grow beyond that many bytes: the error is another than a full disk's, its path
    through the program the same."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder: str | Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()
    }


# No room


@pytest.mark.parametrize("written", range(3))
def test_a_file_without_room_is_named_and_not_half_written(trained, options, written):
    names = ["config.json", "split.json", "state.pt"]  # as they are written; each is larger
    there = ["config.json", "split.json", "model.pt"]  # and is smaller than the state
    sizes = [0, *((trained / name).stat().st_size for name in there)]
    assert all(size + 50 < larger for size, larger in zip(sizes, sizes[1:]))
    with room(sizes[written] + 50):
        result = run_command("train.py", *options, "--out", "run")
    assert_one_line(result, "train.py", f"run/{names[written]}", "free space", "File too large")
    empty = {"run/metrics.jsonl"} if written == 2 else set()  # which took no room
    assert contents("run").keys() - empty == {f"run/{name}" for name in names[:written]}
    assert Path("run").exists() == bool(written)
    assert run_command("train.py", *options, "--out", "run").status == 0


def clip_of(run: Path) -> str:
    return json.loads((run / "config.json").read_text())["model"]


def test_without_room_the_result_of_other_data_leaves_the_earlier_ones(trained, options):
    shutil.copytree(trained, "run")
    draw_class_folders(Path("other"), {"ox": 4, "yak": 4})
    Path("run/transfer.json").write_text("{}\n")
    before = contents("run")
    with room(100):
        result = run_command("eval.py", "test", "run", "--data", "other")
    assert_one_line(result, "eval.py", "run/transfer.json", "free space")
    assert contents("run") == before


def test_without_room_no_demo_is_drawn(monkeypatch):
    monkeypatch.setattr(demo, "TRAIN_IMAGES", 1)
    with room(1000):
        assert_one_line(run_command("train.py"), "train.py", "runs/demo-v", "free space")
    assert contents(".") == {} and not any(Path("runs").iterdir())


def test_a_sweep_without_room_says_what_failed_and_shows_the_table(options):
    command = (*options, "--method", "zeroshot", "coop", "vpt", "--out", "sweep")
    with room(12_000):  # for all but the state of VPT
        result = run_command("train.py", *command)
    assert result.status == 2 and "| zero-shot" in result.out and "| CoOp" in result.out
    failed, last = result.err.splitlines()
    assert "vpt-3shots-seed1: sweep/" in failed and "state.pt: expected free space" in failed
    assert "1 of 3 runs failed" in last
    assert run_command("train.py", *command).status == 0

    with room(100):  # only the table is to be written, of more bytes
        result = run_command("train.py", *command)
    assert_one_line(result, "train.py", "sweep/table.md", "free space")
    assert "| CoOp" in result.out and "| VPT" in result.out
    assert not list(Path("sweep").rglob("*.part"))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
@pytest.mark.parametrize("call", ["mkdir", "touch"])  # of the run's folder; of a file in it
def test_a_folder_that_cannot_be_written_to_is_named_with_a_fix(options, monkeypatch, call, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))  # also of root, whom permissions do not stop

    monkeypatch.setattr(Path, call, refuse)
    result = run_command("train.py", *options, "--out", "run")
    path = "run: " if call == "mkdir" else "run/config.json: "
    got = f"{path}expected a folder to write to, got {os.strerror(number)}: allow it, or"
    assert_one_line(result, "train.py", got)
    assert not Path("run").exists()


def test_a_run_folder_removed_meanwhile_ends_in_a_fix(options, monkeypatch):
    def remove(*arguments):
        shutil.rmtree("run")
        return 0.1

    monkeypatch.setattr(SCRIPTS["train.py"], "learning_rate", remove)
    result = run_command("train.py", *options, "--out", "run")
    words = "run/metrics.jsonl: expected its folder", "it was removed meanwhile: run the command"
    assert_one_line(result, "train.py", *words)
    with pytest.raises(PermissionError, match="^new.csv: expected a folder to write to"):
        with files.explain_write_error("new.csv"):
            raise PermissionError(errno.EACCES, "denied")
    with pytest.raises(FileNotFoundError, match=r"^\[Errno 2\]"):  # nothing of ours was removed
        with files.explain_write_error("new.csv"):
            open("missing.csv")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_output_that_cannot_be_written_is_one_line_and_no_traceback(trained):
    command = fork_command(ROOT / "eval.py", "table", trained)
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr == b"eval.py: error: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("closed", [["stdout"], ["stdout", "stderr"]])
def test_closed_streams_are_no_error(trained, monkeypatch, closed):
    for name in closed:
        monkeypatch.setattr(sys, name, None)  # as Python has it after >&-
    monkeypatch.setattr(sys, "argv", ["eval.py", "table", str(trained)])
    with pytest.raises(SystemExit) as ended:
        entrypoint.run_command(SCRIPTS["eval.py"].main)
    assert not ended.value.code
    for name in closed:
        getattr(sys, name).close()


# Kills and rivals

FORKS = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, TESTS)
from minidpt.runs import devices
from helpers.run_command import run_command

arguments = sys.argv[1:]
clip = devices.load(arguments[3])
devices.load = lambda *_, **__: clip
run_command("train.py", *arguments, "--out", "first")  # for all that torch imports on its way

def start(*more, steps=(), kill=0):  # in a process of its own, which dies at the n-th of the steps
    pid, done = os.fork(), []
    if pid:
        return pid

    def counted(function):
        def call(*arguments, **options):
            done.append(function)
            if len(done) == kill:
                os.kill(os.getpid(), 9)
            return function(*arguments, **options)
        return call

    for holder, name in steps:
        setattr(holder, name, counted(getattr(holder, name)))
    result = run_command("train.py", *arguments, *more)
    with open("errors", "a") as file:
        file.write(result.err)
    os._exit(result.status)

def end(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def killed(name, command, steps, every):
    found, number, status = [], 1, -9
    while status == -9:
        os.mkdir(f"{name}-{number}")
        os.chdir(f"{name}-{number}")
        status = end(start(*command, steps=steps, kill=number))
        left = sorted(str(path) for path in Path("out").rglob("*"))
        if status == -9:
            again = end(start(*command))
            found.append([left, again, sorted(str(path) for path in Path("out").rglob("*.*"))])
        os.chdir("..")
        number += every
    return found

writes = [(os, "replace")]
steps = [*writes, (Path, "unlink"), (Path, "mkdir"), (Path, "open")]
sweep = ["--method", "zeroshot", "coop", "--out", "out"]
print(json.dumps({
    "run": killed("run", ["--out", "out"], writes, 1),
    "sweep": killed("sweep", sweep, steps, 7),
    "one folder": sorted(map(end, [start("--out", "out"), start("--out", "out")])),
    "no folder": sorted(map(end, [start(), start(), start()])),
}))
"""
RUN = ["config.json", "metrics.jsonl", "model.pt", "predictions.csv", "split.json", "summary.json",
       "words.json"]  # fmt: skip


@pytest.fixture(scope="module")
def forks(options, tmp_path_factory) -> tuple[Path, dict]:
    """What came of runs that were killed or had a rival; one process imports once, then forks."""
    folder = tmp_path_factory.mktemp("forks")
    few = draw_class_folders(
        folder / "pictures", {"ox": 6, "gnu": 6}
    )  # some sixty runs decode them
    script = folder / "forks.py"
    script.write_text(FORKS.replace("TESTS", repr(str(ROOT / "tests"))))
    command = fork_command(script, *options, "--data", few, "--epochs", 1)
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_after_a_kill_before_any_file_is_whole_the_same_command_finishes(forks):
    _, outcomes = forks
    parts = [name for left, _, _ in outcomes["run"] for name in left if name.endswith(".part")]
    epoch = ["metrics.jsonl", "state.pt", "model.pt"]  # before the first one, and after it
    with_features = "model.pt"  # once training has ended
    begun = ["config.json", "split.json", *epoch, *epoch, with_features]
    begun += ["predictions.csv", "words.json", "summary.json"]
    begun = [f"out/{name}.part" for name in begun]
    assert parts == begun
    for _, again, there in outcomes["run"]:
        assert (again, there) == (0, [f"out/{name}" for name in RUN])


def test_after_a_kill_at_any_moment_the_same_sweep_finishes(forks):
    _, outcomes = forks
    runs_of = {"pictures-coop-3shots-seed1": RUN, "pictures-zeroshot": [RUN[0], *RUN[2:-1]]}
    finished = {f"out/{run}/{name}" for run, names in runs_of.items() for name in names}
    finished |= {"out/sweep.json", "out/table.csv", "out/table.md"}
    assert len(outcomes["sweep"]) > 5
    for left, again, there in outcomes["sweep"]:
        assert (again, set(there)) == (0, finished), left


def test_of_two_processes_with_one_folder_the_first_has_it(forks):
    folder, outcomes = forks
    assert outcomes["one folder"] == [0, 2]
    (error,) = (folder / "errors").read_text().splitlines()
    assert error.startswith("train.py: error: output folder out: ")  # in use, or used already
    assert sorted(path.name for path in (folder / "out").iterdir()) == RUN
    assert len((folder / "out" / "metrics.jsonl").read_text().splitlines()) == 1


def test_processes_without_a_folder_take_numbers_of_their_own(forks):
    folder, outcomes = forks
    assert outcomes["no folder"] == [0, 0, 0]
    names = sorted(path.name for path in (folder / "runs").iterdir())
    assert names == [f"pictures-coop-3shots-seed1{more}" for more in ("", "-2", "-3")]


def test_a_folder_that_another_process_writes_to_is_refused_unchanged(trained, options):
    command = ("train.py", *options)
    with runs.lock_output_folder(Path("sweep"), []):
        for out in ("sweep", "sweep/run"):  # a sweep's lock covers its runs
            assert_one_line(
                run_command(*command, "--out", out), "train.py", "another process", "sweep"
            )
        result = run_command(*command, "--method", "zeroshot", "coop", "--out", "sweep")
        assert_one_line(result, "train.py", "another process", "sweep")
        assert os.listdir("sweep") == [runs.LOCK]
    assert not Path("sweep").exists()
    with runs.lock_output_folder(Path("sweep/pictures-zeroshot"), []):
        result = run_command(*command, "--method", "zeroshot", "coop", "--out", "sweep")
    assert_one_line(result, "train.py", "sweep")


def test_a_lock_that_a_killed_process_has_left_stops_nobody(options):
    Path("run").mkdir()
    Path("run", runs.LOCK).touch()
    assert run_command("train.py", *options, "--epochs", 0, "--out", "run").status == 0
    assert runs.LOCK not in os.listdir("run")


def test_who_waits_for_a_lock_does_not_take_one_that_was_removed(monkeypatch):
    """Between opening the file and locking it, its owner removes it and another makes its own."""
    flock, owner = fcntl.flock, []

    def slow(file, flags):
        if not owner:
            owner.append(True)
            Path("lock").unlink()
            owner.append(open("lock", "w"))
            flock(owner[1], fcntl.LOCK_EX)
        flock(file, flags)

    monkeypatch.setattr(files.fcntl, "flock", slow)
    with pytest.raises(BlockingIOError, match="busy"), files.file_lock(Path("lock"), "busy"):
        pass
    owner[1].close()


def test_without_locks_a_run_is_made_all_the_same(options, monkeypatch):
    def refused(*_):
        raise OSError(95, "Operation not supported")  # some network file systems

    command = ("train.py", *options, "--epochs", 0)
    monkeypatch.setattr(files.fcntl, "flock", refused)
    result = run_command(*command, "--out", "run")
    assert result.status == 0 and Path("run/summary.json").is_file()
    assert runs.LOCK not in os.listdir("run")
    monkeypatch.setattr(files, "fcntl", None)  # Windows
    result = run_command(*command, "--out", "other")
    assert result.status == 0 and Path("other/summary.json").is_file()


def test_a_repeated_test_needs_no_lock_and_takes_one_left_behind(trained, options, monkeypatch):
    shutil.copytree(trained, "run")

    def refused(*_):
        raise PermissionError("a folder that is only read")

    with monkeypatch.context() as patch:
        patch.setattr(files, "file_lock", refused)
        assert run_command("eval.py", "test", "run", "--data", options[1]).status == 0
    Path("left").mkdir()
    Path("left/transfer.json.lock").write_bytes(b"")  # by eval.py, killed
    result = run_command("train.py", *options, "--epochs", 0, "--out", "left")
    assert result.status == 0 and "transfer.json.lock" not in os.listdir("left")


def test_a_stopped_run_without_a_state_restarts_with_the_same_settings_only(options):
    command = ("train.py", *options, "--out", "run")
    assert run_command(*command).status == 0
    Path("run/summary.json").unlink()
    before = contents("run")
    result = run_command(*command, "--epochs", 1)
    assert_one_line(result, "train.py", "epochs 1", "one with epochs 2", "pass --epochs 2")
    assert contents("run") == before
    result = run_command(*command)
    assert result.status == 0 and "run folder run, begun anew" in result.out
    assert read_summary("run")["epochs"] == 2


@pytest.mark.parametrize("name", ["notes.txt", "model.pt", "split.json", "data.json.part"])
def test_files_that_are_not_what_a_kill_leaves_are_refused(options, name):
    Path("run").mkdir()
    Path("run", name).write_text("mine")
    Path("run/config.json.part").write_text("{")
    result = run_command("train.py", *options, "--out", "run")
    assert_one_line(result, "train.py", "run", "other files", "another --out")
    assert sorted(os.listdir("run")) == sorted([name, "config.json.part"])


@pytest.mark.parametrize(
    ("script", "fix"), [("train.py", "--batch-size"), ("eval.py", "or --device cpu")]
)
def test_too_little_memory_is_answered_with_options_of_the_script(script, fix, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script])
    entrypoint.print_error(MemoryError())
    err = capsys.readouterr().err
    assert err.startswith(f"{script}: error: out of memory: pass --precision bf16") and fix in err
    assert ("--batch-size" in err) == (script == "train.py")
