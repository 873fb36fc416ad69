"""Going on with what was interrupted, and beginning again from the settings of an earlier run."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from helpers.image_folders import draw_class_folders
from helpers.run_command import (
    ROOT,
    SCRIPTS,
    SHORT,
    Result,
    assert_one_line,
    fork_command,
    read_summary,
    run_command,
    save_clip,
)
from helpers.short_runs import RunInputs
from helpers.tiny_models import WIDE, shared_clip

from minidpt import build_model, parameter_groups
from minidpt.checkpoints.prompt_file import write_checkpoint
from minidpt.checkpoints.reader import read_checkpoint
from minidpt.runs.folders import RunFolder, TrainingState, lock_output_folder
from minidpt.runs.sweep import is_finished
from minidpt.support.files import file_lock

TRAIN = SCRIPTS["train.py"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> RunInputs:
    folder = tmp_path_factory.mktemp("inputs")
    draw_class_folders(folder / "pictures", {"ox": 12, "gnu": 12, "yak": 12})
    return RunInputs(folder / "pictures", save_clip(folder / "little.pt"))


@pytest.fixture(scope="module")
def command(inputs) -> tuple[object, ...]:
    return ("train.py", *inputs.options, *SHORT)


@pytest.fixture(scope="module")
def full_run(command, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run_command(*command, "--out", folder).status == 0
    return folder


def outcome(run: str | Path) -> tuple:
    """Weights to the bit, the metrics without times, the accuracies."""
    learned = read_checkpoint(Path(run) / "model.pt")["learned"]
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    metrics = [{k: json.loads(line)[k] for k in ("epoch", "loss", "lr")} for line in lines]
    tensors = {name: value.numpy().tobytes() for name, value in learned.items()}
    return tensors, metrics, read_summary(run)["tests"]


def interrupt(monkeypatch, command, after: int = 3, number: int = signal.SIGTERM):
    """The command, with a signal in the first step after that many epochs."""
    train_one_epoch, epochs = TRAIN.train_one_epoch, itertools.count()

    def signalled(*arguments, **options):
        if next(epochs) == after:
            os.kill(os.getpid(), number)
        return train_one_epoch(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(TRAIN, "train_one_epoch", signalled)
        return run_command(*command)


@pytest.fixture(scope="module")
def stopped(command, tmp_path_factory) -> Path:
    """A run that was interrupted after three of its six epochs."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        assert interrupt(patch, (*command, "--out", folder)).status == 143
    return folder


# --resume


def test_runs_that_are_killed_at_random_moments_come_to_the_same_bits():
    """A few of what the benchmark does by hundreds; it fails at the first difference."""
    script = ROOT / "tests/benchmarks/kills.py"
    seed = str(random.randrange(10**6))
    command = fork_command(script, "--kills", 5, "--seed", seed)
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, f"--seed {seed}: {done.stderr}"
    assert "| kills | 5 |" in done.stdout


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_an_interrupted_run_resumes_to_the_bit_as_it_says(
    command, full_run, monkeypatch, number, status
):
    result = interrupt(monkeypatch, (*command, "--out", "my run"), number=number)
    assert result.status == status
    assert result.err == (
        "train.py: error: interrupted; to resume: python train.py --resume 'my run'\n"
    )
    assert read_checkpoint("my run/state.pt")["epoch"] == 3
    result = run_command("train.py", "--resume", "my run")
    assert result.status == 0 and "resuming after epoch 3 of 6" in result.out
    assert "in fp32 (the run's)" in result.out
    assert outcome("my run") == outcome(full_run)
    assert sorted(os.listdir("my run")) == sorted(os.listdir(full_run))


def test_the_command_that_resumes_a_run_repeats_no_report(command, monkeypatch):
    result = interrupt(monkeypatch, (*command, "--out", "run", "--no-report"))
    assert result.err.endswith(" python train.py --resume run --no-report\n")


def test_an_interrupted_sweep_goes_on_by_its_folder_or_the_same_command(
    command, full_run, monkeypatch
):
    sweep = (*command, "--method", "zeroshot", "dpt", "--out", "sweep")
    result = interrupt(monkeypatch, sweep)
    assert result.status == 143 and "; to resume: python train.py --data " in result.err
    run = Path("sweep/pictures-dpt-3shots-seed1")
    assert (run / "state.pt").is_file()
    shutil.copytree("sweep", "copy")
    for resume in (sweep, ("train.py", "--resume", "copy")):
        result = run_command(*resume)
        assert result.status == 0 and "resuming after epoch 3 of 6" in result.out
    for folder in ("sweep", "copy"):
        assert outcome(folder / Path(run.name)) == outcome(full_run)
        assert Path(folder, "table.md").is_file()


def test_a_sweep_is_resumed_with_its_clip_and_precision(command, monkeypatch):
    sweep = (*command, "--method", "zeroshot", "coop", "--epochs", 1, "--out", "sweep")
    assert run_command(*sweep).status == 0
    options = json.loads(Path("sweep/sweep.json").read_text())
    assert options["precision"] == "fp32" and options["model"].endswith("little.pt")
    result = run_command("train.py", "--resume", "sweep", "--seed", 1)  # the default: no other run
    assert result.status == 0 and "2 of them finished" in result.out
    result = run_command("train.py", "--resume", "sweep", "--seed", 2)
    assert_one_line(result, "train.py", "--seed: expected the run's with --resume: ")


def test_a_stopped_zero_shot_run_is_resumed(command):
    assert run_command(*command, "--method", "zeroshot", "--out", "run").status == 0
    Path("run/summary.json").unlink()
    assert run_command("train.py", "--resume", "run").status == 0
    assert Path("run/summary.json").is_file()


def test_what_has_moved_may_be_named_and_the_run_notes_it(inputs, full_run, stopped):
    shutil.copytree(stopped, "run")
    shutil.copytree(inputs.data, "elsewhere")
    result = run_command("train.py", "--resume", "run", "--data", "elsewhere", "--workers", 1)
    assert result.status == 0 and outcome("run")[:2] == outcome(full_run)[:2]
    config = json.loads(Path("run/config.json").read_text())
    assert config["data"] == str(Path("elsewhere").resolve()) and config["workers"] == 1
    assert run_command("eval.py", "test", "run").status == 0


def test_other_images_or_another_clip_are_refused_by_name(stopped):
    shutil.copytree(stopped, "run")
    before = Path("run/state.pt").read_bytes()
    draw_class_folders(Path("others"), {"ox": 12, "gnu": 12, "yak": 11})
    result = run_command("train.py", "--resume", "run", "--data", "others")
    assert_one_line(result, "train.py", "the run's data (fingerprint", "other data (")
    assert "start anew" in result.err and "another --out" not in result.err
    result = run_command(
        "train.py", "--resume", "run", "--model", save_clip(Path("other.pt"), seed=1)
    )
    assert_one_line(result, "train.py", "the run's CLIP (fingerprint", "other CLIP (")
    assert Path("run/state.pt").read_bytes() == before


def test_an_image_that_is_gone_is_named(command, inputs, monkeypatch):
    shutil.copytree(inputs.data, "own")
    begun = (*command, "--data", "own", "--out", "run")
    assert interrupt(monkeypatch, begun, after=0).status == 143
    path, *_ = json.loads(Path("run/split.json").read_text())["train"][0]
    Path("own", path).unlink()
    result = run_command("train.py", "--resume", "run")
    gone = str(Path("own", path).resolve())
    assert_one_line(result, "train.py", f"1 missing, the first {gone}: put them back", "--config")
    assert "another --out" not in result.err
    assert_one_line(run_command(*begun), "train.py", gone, "put them back", "another --out")


def test_a_run_that_another_process_writes_to_is_waited_for(stopped):
    shutil.copytree(stopped, "run")
    with lock_output_folder(Path("run"), [], "config.json"):
        result = run_command("train.py", "--resume", "run")
    assert_one_line(result, "train.py", "another process writes to it: wait for its end\n")


def test_options_that_would_make_another_run_are_refused_by_name(stopped):
    shutil.copytree(stopped, "run")
    others = ("--epochs", 9, "--csc", "--batch-size", 5)  # the last is the run's own
    result = run_command("train.py", "--resume", "run", *others)
    assert_one_line(result, "train.py", "--csc, --epochs: expected the run's with --")
    for option in ("--out", "--config"):
        result = run_command("train.py", "--resume", "run", option, "other")
        assert_one_line(result, "train.py", f"{option}: expected", "without --resume")


def test_a_finished_run_says_so(full_run):
    shutil.copytree(full_run, "run")
    result = run_command("train.py", "--resume", "run")
    assert result.status == 0
    assert result.out == "run run is finished; test it: python eval.py test run\n"
    Path("run").rename("-run")
    result = run_command("train.py", "--resume=-run")
    assert result.out == "run -run is finished; test it: python eval.py test ./-run\n"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_the_main_process_asks_whether_a_finished_run_is_locked(full_run, rank, monkeypatch):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, rank)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    shutil.copytree(full_run, "run")
    Path("run/.minidpt.lock").touch()
    with file_lock(Path("run/.minidpt.lock")):  # as another rank that looks at it
        if rank == "1":
            assert is_finished("run")
        else:
            with pytest.raises(ValueError, match="another process writes to it"):
                is_finished("run")


def test_what_a_kill_after_the_result_leaves_is_removed(full_run):
    shutil.copytree(full_run, "run")
    for name in ("state.pt", ".minidpt.lock"):
        Path("run", name).touch()
    assert run_command("train.py", "--resume", "run").status == 0
    assert sorted(os.listdir("run")) == sorted(os.listdir(full_run))


@pytest.mark.parametrize("content", ["", "{"])
def test_a_damaged_result_does_not_cost_the_state(stopped, content):
    shutil.copytree(stopped, "run")
    Path("run/summary.json").write_text(content)
    result = run_command("train.py", "--resume", "run")
    fix = ": remove it, and resume the run\n"
    assert_one_line(result, "train.py", "run/summary.json: expected JSON", fix)
    assert Path("run/state.pt").is_file()


def test_the_home_of_nobody_is_one_line(inputs):
    result = run_command("train.py", "--resume", "~nobody-of-this-name/run")
    assert_one_line(result, "train.py", "~nobody-of-this-name/run")
    result = run_command("train.py", "--data", inputs.data, "--model", "~nobody-of-this-name/a.pt")
    assert_one_line(result, "train.py", "home directory")


def test_a_run_without_a_state_cannot_be_gone_on_with(full_run):
    shutil.copytree(full_run, "run")
    Path("run/summary.json").unlink()
    result = run_command("train.py", "--resume", "run")
    assert_one_line(result, "train.py", "expected state.pt in it, got none: start anew")


@pytest.mark.parametrize("name", ["nothing", "images"])
def test_a_folder_without_a_run_is_refused(inputs, name):
    folder = inputs.data if name == "images" else name
    assert_one_line(
        run_command("train.py", "--resume", folder), "train.py", "config.json", str(folder)
    )


def resumed_with(stopped: Path, change) -> Result:
    """What --resume says of the stopped run with another state, which it leaves as it is."""
    shutil.copytree(stopped, "run")
    content = read_checkpoint("run/state.pt")
    change(content)
    torch.save(content, "other.pt")  # not into the file that is mapped
    os.replace("other.pt", "run/state.pt")
    before = Path("run/state.pt").read_bytes()
    result = run_command("train.py", "--resume", "run")
    assert result.status == 0 or Path("run/state.pt").read_bytes() == before
    return result


@pytest.mark.parametrize(
    "damage, word",
    [
        (lambda content: content.update(format="minidpt state 1"), "got 'minidpt state 1'"),
        (lambda content: content["learned"].popitem(), "learned prompts: missing"),
        (lambda content: content["momentum"].update(other=torch.ones(1)), "unknown other"),
        (lambda content: content["momentum"].popitem(), "momentum: missing"),
        (lambda content: content["momentum"].clear(), "momentum: missing"),
        (lambda content: content["generators"].update(cpu=torch.ones(3)), "ByteTensor"),
        (lambda content: content["generators"].update(cpu="x"), "'cpu'"),
        (lambda content: content.update(epoch=None), "'epoch'"),
        (lambda content: content.update(epoch=-1), "from 0 to 6, got -1"),
        (lambda content: content.update(epoch=7), "from 0 to 6, got 7"),
        (lambda content: content.update(epoch=0), "momentum: unknown"),
        (lambda content: content.update(settings="x"), "'settings'"),
        (lambda content: content["settings"].update(seed=torch.ones(2)), "state of this run"),
        (lambda content: content["settings"].update(seed=2), "seed 1, got one with seed 2"),
    ],
)
def test_a_damaged_state_is_refused_in_one_line(stopped, damage, word):
    result = resumed_with(stopped, damage)
    assert_one_line(result, "train.py", "run/state.pt: not the state", word, ": start anew")


def test_an_image_that_has_changed_since_is_named(command, full_run, monkeypatch, tmp_path):
    data = shutil.copytree(command[command.index("--data") + 1], tmp_path / "data")
    moved = (*command, "--data", data)
    assert interrupt(monkeypatch, (*moved, "--out", "run")).status == 143
    image, *_ = json.loads(Path("run/split.json").read_text())["train"][1]
    before = (data / image).read_bytes()
    other = next(path for path in data.glob("*/*") if path.read_bytes() != before)
    shutil.copy(other, data / image)
    result = run_command("train.py", "--resume", "run")
    assert_one_line(result, "train.py", "run/state.pt", f"another {data / image} (put the")
    (data / image).write_bytes(before)
    assert run_command("train.py", "--resume", "run").status == 0
    assert outcome("run")[0] == outcome(full_run)[0]


@pytest.mark.parametrize("share", [0.3, 0.7])
@pytest.mark.parametrize("is_cut", [False, True])
def test_a_state_cut_short_or_with_a_flipped_bit_is_damaged(stopped, share, is_cut):
    shutil.copytree(stopped, "run")
    content = bytearray(Path("run/state.pt").read_bytes())
    position = int(share * len(content))  # among the numbers of prompts and momentum
    content[position] ^= 1
    Path("run/state.pt").write_bytes(content[: position if is_cut else None])
    result = run_command("train.py", "--resume", "run")
    assert_one_line(result, "train.py", "run/state.pt: expected a whole file", ": start anew")
    assert "download" not in result.err


def test_lines_of_metrics_are_those_of_finished_epochs(stopped, full_run):
    shutil.copytree(stopped, "run")
    metrics = Path("run/metrics.jsonl")
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([*lines, '{"epoch": 4}\n']))  # killed before state.pt was written
    assert run_command("train.py", "--resume", "run").status == 0
    assert outcome("run") == outcome(full_run)
    shutil.copytree(stopped, "short")
    Path("short/metrics.jsonl").write_text(lines[0])
    result = run_command("train.py", "--resume", "short")
    assert_one_line(result, "train.py", "expected 3 lines of metrics.jsonl, got 1: start anew")


def new_state(run: Path, images: dict[str, bytes]) -> TrainingState:
    """The state of a run before its training, with the scaler that fp16 has."""
    config, record = RunFolder(run).read_config()
    names = ["gnu", "ox", "yak"]
    model = build_model(shared_clip(WIDE), names, config.template, config.prompts)
    optimizer = torch.optim.SGD(parameter_groups(model), momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    settings = config.result_settings() | record.result_settings()
    return TrainingState(model, optimizer, scaler, settings, images)


def test_momentum_may_be_missing_where_fp16_has_left_out_all_steps(stopped):
    shutil.copytree(stopped, "run")
    images = {f"{number}.png": bytes(40) for number in range(30_000)}  # as of ImageNet
    state = new_state(stopped, images)
    content = read_checkpoint("run/state.pt")
    content |= {"images": torch.zeros(40 * 30_000, dtype=torch.uint8), "momentum": {}}
    write_checkpoint("run/state.pt", {**content, "scaler": state.scaler.state_dict()})
    state.load(RunFolder("run"))
    assert state.epoch == 3 and not state.optimizer.state


def test_a_state_comes_back_with_momentum_scaler_and_random_numbers(full_run):
    saved, resumed = (new_state(full_run, {"a.png": bytes(40)}) for _ in range(2))
    Path("run").mkdir()
    saved.scaler.load_state_dict(saved.scaler.state_dict() | {"scale": 96.0, "_growth_tracker": 7})
    learned = saved.model.prompt_state_dict()
    for number, value in enumerate(learned.values()):
        saved.optimizer.state[value]["momentum_buffer"] = torch.full_like(value, number)
    saved.epoch, saved.metrics = 2, "{}\n{}\n"
    generator = torch.random.get_rng_state()
    expected = torch.rand(3)
    torch.random.set_rng_state(generator)
    saved.save(RunFolder("run"))
    torch.rand(5)
    resumed.load(RunFolder("run"))
    assert torch.equal(torch.rand(3), expected)
    assert (resumed.epoch, resumed.metrics) == (2, "{}\n{}\n")
    assert resumed.scaler.state_dict() == saved.scaler.state_dict()
    assert resumed.scaler.get_scale() == 96
    for number, (name, value) in enumerate(resumed.model.prompt_state_dict().items()):
        assert torch.equal(value, learned[name])
        assert resumed.optimizer.state[value]["momentum_buffer"].eq(number).all()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_after_ctrl_c_is_not_interrupted(command, monkeypatch, number):
    """Neither by torchrun's SIGTERM nor by Ctrl-C again."""
    ended = []

    def twice(*_, **__):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            os.kill(os.getpid(), number)
            ended.append(True)

    monkeypatch.setattr(TRAIN, "train_one_epoch", twice)
    assert run_command(*command, "--out", "run").status == 130 and ended


def test_while_the_report_is_drawn_there_is_nothing_to_go_on_with(command, monkeypatch):
    def interrupted(*_):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TRAIN, "write_report", interrupted)
    result = run_command(*command, "--out", "run")
    assert (result.status, result.err) == (130, "train.py: error: interrupted\n")
    assert Path("run/summary.json").is_file()


def test_a_tilde_that_no_shell_has_spelt_out_is_the_same_run(stopped, monkeypatch):
    monkeypatch.setenv("HOME", str(Path.cwd()))
    shutil.copytree(stopped, "run")
    result = run_command("train.py", "--resume=~/run")
    assert result.status == 0 and Path("run/summary.json").is_file() and not Path("~").exists()


# --config


def test_a_split_of_some_classes_is_not_divided_again(command):
    draw_class_folders(Path("four"), {"ox": 6, "gnu": 6, "yak": 6, "zebu": 6})
    base = ("--classes", "base", "--epochs", 1, "--method", "vpt")
    assert run_command(*command, *base, "--data", "four", "--out", "run").status == 0
    again = ("train.py", "--config", "run/config.json", "--data", "run/split.json")
    result = run_command(*again, "--out", "other")
    assert_one_line(result, "train.py", "the base ones: pass --classes all")
    assert run_command(*again, "--classes", "all", "--out", "other").status == 0
    assert outcome("other")[:2] == outcome("run")[:2]


def test_the_images_of_an_earlier_split_file_are_taken_unchanged(full_run):
    again = ("train.py", "--config", full_run / "config.json", "--data", full_run / "split.json")
    assert run_command(*again, "--out", "run").status == 0
    assert outcome("run") == outcome(full_run)
    assert Path("run/split.json").read_text() == (full_run / "split.json").read_text()
    assert run_command(*again, "--seed", 2, "--out", "other").status == 0  # drawn anew, by seed 2
    assert Path("other/split.json").read_text() != (full_run / "split.json").read_text()


def test_options_beside_a_config_go_before_it(full_run):
    command = ("train.py", "--config", full_run / "config.json", "--seed", 2, "--out", "run")
    result = run_command(*command)
    assert result.status == 0
    runs = (full_run, Path("run"))
    before, after = (json.loads((run / "config.json").read_text()) for run in runs)
    different = {name for name in before if before[name] != after[name]}
    assert different == {"seed"} and after["seed"] == 2


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", ["expected JSON"]),
        ("{}", ["expected the settings of a run, got none"]),
        ('{"versions": {}}', ["got 'versions': pass a run's config.json"]),
        ('{"epochs": 3.0}', ["epochs: expected a whole number, got 3.0"]),
        ('{"epochs": [3]}', ["epochs: expected a whole number, got a list"]),
        ('{"visual_lr": "5"}', ["visual_lr: expected a number, got '5'"]),
        ('{"visul_lr": 5}', ["expected options of train.py, got 'visul_lr'"]),
        ('{"csc": 1}', ["csc: expected true or false, got 1"]),
        ('{"csc": null}', ["csc: expected true or false, got None"]),
        ('{"seed": ["1", "--csc"]}', ["seed: expected a whole number, got '1'"]),
        ('{"method": null}', ["method: expected a text, got None"]),
        ('{"method": "--csc"}', ["method '--csc': expected one of zeroshot, coop"]),
        ('{"seed": []}', ["seed: expected at least one value, got none"]),
    ],
)
def test_a_config_that_cannot_be_is_refused(content, words):
    Path("config.json").write_text(content)
    assert_one_line(run_command("train.py", "--config", "config.json"), "train.py", *words)
