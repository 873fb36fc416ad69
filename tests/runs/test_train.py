"""`train.py` as a user runs it, on a small drawn data set and a tiny random CLIP.

A run is a process of its own; the others call the same main in this one, which is faster.
"""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.run_command import (
    ROOT,
    SCRIPTS,
    SHORT,
    assert_one_line,
    fork_command,
    read_summary,
    run_command,
)
from helpers.short_runs import (
    assert_same_result,
    read_metrics,
    read_prompts,
    run_checked,
    train,
)

import minidpt
from minidpt.data.splits import read_split
from minidpt.runs.config import PRECISIONS, RunConfig, training_notes
from minidpt.runs.folders import RunFolder

TRAIN = SCRIPTS["train.py"]


def test_training_prints_what_it_does_and_both_accuracies(training):
    folder, result = training
    assert (result.status, result.err) == (0, "")
    assert len(result.progress.splitlines()) == 6  # this is no terminal: a line at each tenth
    lines = result.out.splitlines()
    assert "4 classes" in lines[0] and "20/8/12 images" in lines[0]
    assert "little.pt: no file says its activation, so the quick GELU is used" in lines.pop(1)
    assert lines.pop(1) == f"run folder {folder}"
    assert "CLIP little on " in lines[1]
    count = sum(value.numel() for value in read_prompts(folder).values())
    assert lines[2] == f"dpt trains {count:,} parameters on 12 images"
    content = read_summary(folder)
    zero_shot, accuracy = content["zero_shot_accuracy"], content["accuracy"]
    assert lines.pop(3).startswith("note: --epochs 6 with --warmup-epochs 1 (published: 10)")
    assert lines[3] == f"zero-shot accuracy {zero_shot:.2f} % on 12 test images"
    gain = f"{accuracy - zero_shot:+.2f}"
    assert f"dpt accuracy {accuracy:.2f} %, zero-shot {zero_shot:.2f} % ({gain}) in 0:" in lines[4]
    assert lines.pop(5).startswith("mean over classes ") and "top-5" not in result.out
    assert lines[5] == str(folder / "report.html") and str(folder) in lines[6]
    assert len(lines) == 7
    for words in ("training accuracy (random crops)", "lr image side 1.0e-05, text side 1.0e-05"):
        assert words in result.progress
    assert sorted(path.name for path in folder.iterdir()) == [
        *("config.json", "metrics.jsonl", "model.pt", "predictions.csv", "report.html"),
        *("split.json", "summary.json", "words.json"),
    ]
    assert accuracy >= zero_shot + 20  # the colours are easily told apart


def test_the_summary_says_what_was_run_and_what_came_out(trained, inputs):
    content = read_summary(trained)
    fixed = {"dataset": "pictures", "method": "dpt", "shots": 3, "seed": 1, "model": "little",
             "epochs": 6, "classes": 4, "train_images": 12, "test_images": 12}  # fmt: skip
    assert fixed.items() <= content.items()
    for name in ("zero_shot_accuracy", "accuracy"):
        right = content[name] * 12 / 100
        assert right == pytest.approx(round(right), abs=1e-9)
    (test,) = content["tests"].values()
    assert len(test) == 7 and test.items() <= content.items()
    assert content["largest_class_share"] == 25 and "top5_accuracy" not in content
    (note,) = content["notes"]
    assert note.startswith("--epochs 6 with --warmup-epochs 1 (published: 10)")
    assert content["seconds"] > 0
    assert content["versions"]["torch"] == torch.__version__
    assert {"python", "numpy", "pillow"} < content["versions"].keys()


def test_the_config_holds_every_setting_as_it_was_used(trained, inputs):
    content = json.loads((trained / "config.json").read_text(encoding="utf-8"))
    used = {"data": str(inputs.data), "model": str(inputs.clip), "method": "dpt", "shots": 3,
            "seed": 1, "epochs": 6, "batch_size": 5, "template": "a photo of a {}.",
            "warmup_epochs": 1, "guidance_epochs": 2, "visual_lr": 0.01,
            "text_lr": 0.002}  # fmt: skip
    assert used.items() <= content.items()
    record = content["record"]
    assert record["device"] in ("cpu", "cuda") and record["precision"] in PRECISIONS
    expected = minidpt.PromptConfig(method="dpt", n_ctx=3, n_visual=2, top_k=3)
    assert vars(expected).items() <= content.items()


def test_metrics_and_summary_have_times_in_seconds(inputs, monkeypatch):
    ticks, options = itertools.count(100, 2.25), []

    class Waiting(TRAIN.TimedIterator):
        waited = property(lambda self: 0.5, lambda self, value: None)

    class Recorded(torch.optim.SGD):
        def __init__(self, groups, **others):
            options.append(others)
            super().__init__(groups, **others)

    monkeypatch.setattr(TRAIN, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    monkeypatch.setattr(TRAIN, "TimedIterator", Waiting)
    monkeypatch.setattr(TRAIN, "keep_freed_memory", lambda: options.append("memory"))
    monkeypatch.setattr(torch.optim, "SGD", Recorded)
    result = train(inputs, "run", "--epochs", 2)
    for record in read_metrics("run"):  # 10 of 12 images, in batches of 5
        assert record["images_per_second"] == pytest.approx(10 / 2.25)
        assert record["waited_for_images"] == pytest.approx(0.5 / 2.25)
    assert "1.0e-05, text side 1.0e-05 · 4 images/s, 22 % of time waiting" in result.progress
    assert read_summary("run")["seconds"] == 11.2
    assert options == ["memory", {"momentum": 0.9, "weight_decay": 5e-4, "fused": False}]


def test_the_same_seed_gives_the_same_bits_with_any_workers(trained, inputs):
    for number in (0, 3):
        train(inputs, f"workers-{number}", "--workers", number)
        assert_same_result(f"workers-{number}", trained)
        ours, theirs = read_metrics(f"workers-{number}"), read_metrics(trained)
        assert [record["loss"] for record in ours] == [record["loss"] for record in theirs]


def test_another_seed_draws_other_images_and_prompts(trained, inputs):
    for seed in (0, 1):  # without training: the images decide nothing of the prompts
        train(inputs, f"seed{seed}", "--seed", seed, "--epochs", 0)
    prompts = read_prompts("seed1")
    for name, value in read_prompts("seed0").items():
        assert torch.equal(value, prompts[name]) == (".ln_" in name), name  # which begin as 1 and 0
    ours, theirs = (read_split(Path(run) / "split.json") for run in ("seed0", trained))
    assert ours.train != theirs.train
    assert ours.test == theirs.test  # one test set for all seeds


@pytest.mark.parametrize("method", ["zeroshot", "coop", "vpt", "vlp"])
def test_every_method_runs_and_says_what_it_learned(inputs, method):
    result = train(inputs, "run", "--method", method, "--epochs", 2)
    content, names = read_summary("run"), set(read_prompts("run"))
    assert content["method"] == method
    assert f"{method} accuracy {content['accuracy']:.2f} %" in result.out
    assert ("text_prompts.ctx" in names) == (method in ("coop", "vlp"))
    assert ("visual_prompts.prompts" in names) == (method in ("vpt", "vlp"))
    epochs = 0 if method == "zeroshot" else 2
    assert content["epochs"] == epochs
    assert (len(read_metrics("run")) if Path("run/metrics.jsonl").exists() else 0) == epochs
    assert ("note: training steps after warm-up: 2;" in result.out) == (method != "zeroshot")
    if method == "zeroshot":
        assert content["accuracy"] == content["zero_shot_accuracy"]
        assert content["shots"] == content["seed"] == 0
    evaluated = run_checked("eval.py", "test", "run")
    assert f"{method} accuracy {content['accuracy']:.2f} %" in evaluated.out


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_lower_precision_run_has_fp32_prompts_and_is_tested_in_it(inputs, precision, monkeypatch):
    options = ("--epochs", 3, "--visual-lr", 0.05, "--text-lr", 0.02, "--warmup-epochs", 0)
    updates, update = [], torch.amp.GradScaler.update
    noting = lambda scaler: updates.append(scaler.is_enabled()) or update(scaler)  # noqa: E731
    monkeypatch.setattr(torch.amp.GradScaler, "update", noting)
    train(inputs, "exact", *options)
    result = train(inputs, "run", *options, "--precision", precision)
    losses = [[record["loss"] for record in read_metrics(run)] for run in ("run", "exact")]
    assert updates == [False] * 6 + [precision == "fp16"] * 6
    assert losses[0] == pytest.approx(losses[1], rel=0.05) and losses[1][2] < 0.7 * losses[1][0]
    assert f"in {precision} (as set)" in result.out
    assert json.loads(Path("run/config.json").read_text())["record"]["precision"] == precision
    assert all(value.dtype == torch.float32 for value in read_prompts("run").values())
    assert all(torch.isfinite(value).all() for value in read_prompts("run").values())
    assert all(0 < record["loss"] < 20 for record in read_metrics("run"))
    cast_to = []
    monkeypatch.setattr(minidpt.CLIP, "cast", spy(minidpt.CLIP.cast, cast_to))
    evaluated = run_command("eval.py", "test", "run")
    assert cast_to == [PRECISIONS[precision]]
    assert f"dpt accuracy {read_summary('run')['accuracy']:.2f} %" in evaluated.out
    assert evaluated.status == 0


def spy(method: Callable, arguments: list) -> Callable:
    """The same method, which also notes its argument."""

    def noting(self, argument):
        arguments.append(argument)
        return method(self, argument)

    return noting


def test_the_options_of_prompts_reach_the_model(inputs):
    Path("texts").write_text("my {}.\n\n a {} \n")
    train(inputs, "run", "--epochs", 0, "--ctx-init", "a photo of", "--csc", "--top-k", 1,
          "--class-token-position", "front", "--n-visual", 3, "--class-aware-from", 2,
          "--alpha", 0.5, "--template", "{} texture.", "texts")  # fmt: skip
    model = minidpt.load_model("run/model.pt", minidpt.load(inputs.clip)[0])
    assert model.template == ("{} texture.", "my {}.", "a {}")
    config, _ = RunFolder("run").read_config()
    assert config.template == config.result_settings()["template"] == model.template
    assert model.config == minidpt.PromptConfig(
        n_ctx=3, ctx_init="a photo of", csc=True, class_token_position="front", n_visual=3,
        class_aware_from=2, alpha=0.5, top_k=1,
    )  # fmt: skip
    shapes = {name: tuple(value.shape) for name, value in read_prompts("run").items()}
    assert shapes["text_prompts.ctx"] == (4, 3, 64)
    assert shapes["visual_prompts.prompts"] == (1, 3, 128)
    assert {name.split(".")[1] for name in shapes if name.startswith("class_aware")} == {"0", "1"}


def test_options_of_the_model_reach_it_and_its_test(inputs, monkeypatch):
    chunks, fit = [], TRAIN.fit
    noting = lambda model, *others: chunks.append(model.class_chunk) or fit(model, *others)  # noqa: E731
    monkeypatch.setattr(TRAIN, "fit", noting)
    options = ("--no-quick-gelu", "--class-chunk", 1, "--visual-layers", 1, "--method", "vlp")
    train(inputs, "run", *options)
    saved = torch.load("run/model.pt", weights_only=True)
    assert saved["clip"]["quick_gelu"] is False
    assert read_prompts("run")["visual_prompts.prompts"].shape[0] == 1
    result = run_command("eval.py", "test", "run")
    assert f"vlp accuracy {read_summary('run')['accuracy']:.2f} %" in result.out
    train(inputs, "all-at-once", *options, "--class-chunk", 0)
    for name, value in read_prompts("all-at-once").items():
        torch.testing.assert_close(read_prompts("run")[name], value, rtol=1e-4, atol=1e-6)
    train(inputs, "quick", *options[1:])
    assert chunks == [1, None, 1]
    assert read_summary("quick")["versions"]["minidpt"] == minidpt.__version__
    ours, theirs = read_prompts("run"), read_prompts("quick")
    assert not torch.equal(ours["text_prompts.ctx"], theirs["text_prompts.ctx"])


def test_prompts_that_the_last_step_has_made_nan_are_no_result(inputs, monkeypatch):
    steps, step = [], torch.optim.SGD.step

    def diverging(self, *arguments):
        step(self, *arguments)
        steps.append(self)
        if len(steps) == 6 * 2:  # the last: epochs of two batches
            with torch.no_grad():
                self.param_groups[0]["params"][0][..., 0] = float("nan")

    monkeypatch.setattr(torch.optim.SGD, "step", diverging)
    result = run_command("train.py", *inputs.options, "--out", "run", *SHORT)
    assert_one_line(result, "train.py", "epoch 6", "not finite", "try lower learning rates")
    assert len(steps) == 12 and not Path("run/summary.json").exists()
    assert all(
        value.isfinite().all() for value in read_prompts("run").values()
    )  # of the epoch before


def test_finite_prompts_whose_logits_are_not_are_no_result(inputs):
    command = ("--data", inputs.data, "--model", inputs.clip, "--out", "run", *SHORT)
    last_step = ("--epochs", 2, "--batch-size", 12, "--visual-lr", 1e20, "--text-lr", 1e20)
    for options in ((*command, *last_step), ("--resume", "run")):
        result = run_command("train.py", *options)
        assert_one_line(result, "train.py", "run/model.pt", "finite logits", "lower learning rates")
        assert not Path("run/summary.json").exists()
    result = run_command("eval.py", "test", "run")
    assert_one_line(result, "eval.py", "run/model.pt: expected finite logits")
    result = run_command("eval.py", "export", "run", "a.pt2")
    assert_one_line(result, "eval.py", "run/model.pt: expected finite logits")
    assert not Path("a.pt2").exists()


def test_ctrl_c_leaves_a_model_that_can_be_used(tmp_path, inputs):
    where = (*inputs.options, "--out", "run")
    command = fork_command(ROOT / "train.py", *where, *SHORT, "--epochs", 100_000)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    running = subprocess.Popen(command, cwd=tmp_path, encoding="utf-8", **pipes)
    written = tmp_path / "run" / "metrics.jsonl"
    while not written.exists() or written.read_text(encoding="utf-8").count("\n") < 3:
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate()
    assert running.returncode == 130, err
    assert "Traceback" not in err and len(err.splitlines()) <= 1
    assert not (tmp_path / "run" / "summary.json").exists()  # there is no result
    epochs = [record["epoch"] for record in read_metrics("run")]
    assert epochs == list(range(1, len(epochs) + 1))
    result = run_checked("eval.py", "test", "run")
    assert "run was stopped before its end" in result.out and "dpt accuracy" in result.out


@pytest.mark.parametrize(
    ("method", "epochs", "warmup", "steps"),
    [  # 12 images in batches of 5: two steps an epoch
        ("dpt", 2, 2, 0),
        ("coop", 2, 2, 2),
        ("coop", 1, 1, 2),
        ("vpt", 2, 1, 2),
        ("dpt", 5, 1, 8),
        ("dpt", 6, 1, None),
        ("dpt", 3, 0, 6),
        ("dpt", 0, 1, None),
    ],
)
def test_few_steps_after_warm_up_are_said(method, epochs, warmup, steps):
    options = dict(epochs=epochs, warmup_epochs=warmup, guidance_epochs=1, batch_size=5)
    config = RunConfig(prompts=minidpt.PromptConfig(method), **options)
    notes = "; ".join(training_notes(config, "pets", train_images=12))
    assert (f"training steps after warm-up: {steps};" in notes) == (steps is not None)
    of_one = training_notes(replace(config, batch_size=50), "pets", train_images=12)
    if epochs > warmup and method == "dpt":
        assert f"training steps after warm-up: {epochs - warmup};" in "; ".join(of_one)
    can_lower = steps is not None and method != "coop" and warmup > 0
    assert ("or lower --warmup-epochs" in notes) == can_lower
