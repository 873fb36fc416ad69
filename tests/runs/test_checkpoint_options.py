"""train.py and eval.py with checkpoints of others: prompts of the published code, image sizes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from helpers.image_folders import draw_image
from helpers.run_command import SHORT, assert_one_line, read_summary, run_command
from helpers.short_runs import RunInputs

import minidpt

MODULES = ("prompt_learner", "image_encoder.transformer.ctx_learner",
           "image_encoder.transformer.extractor")  # fmt: skip


def train(inputs: RunInputs, *options: object) -> Path:
    command = (*inputs.options, *SHORT, "--out", "run")
    result = run_command("train.py", *command, *options)
    assert result.status == 0, result.err
    return Path("run")


def as_published(inputs: RunInputs, run: Path) -> Path:
    """A run's prompts as the published code would have left them."""
    model = minidpt.load_model(run / "model.pt", minidpt.load(inputs.clip)[0])
    for folder in MODULES:
        tensors = {
            name.removeprefix(f"{folder}."): value
            for name, value in model.published().items()
            if name.startswith(f"{folder}.")
        }
        if tensors:
            (Path("published") / folder).mkdir(parents=True)
            torch.save({"state_dict": tensors}, Path("published") / folder / "model.pth.tar-100")
    return Path("published")


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (("--method", "coop", "--csc"), "method coop, csc True, n_ctx 3"),
        (("--method", "vpt", "--visual-layers", 1), "method vpt, .*n_visual 2, visual_layers 1"),
        (("--method", "dpt", "--class-aware-from", 2, "--class-token-position", "front"),
         "method dpt, csc False, n_ctx 3, n_visual 2, .*class_aware_from 2"),
    ],
)  # fmt: skip
def test_prompts_of_the_published_code_are_tested_as_their_shapes_say(options, settings, inputs):
    run = train(inputs, *options)
    published = as_published(inputs, run)
    command = ("published", published, *inputs.options)
    if "dpt" in options:
        command += ("--top-k", 3, "--class-token-position", "front")
    result = run_command("eval.py", *command, "--per-class")
    assert result.status == 0, result.err
    (line,) = [line for line in result.out.splitlines() if line.startswith("published ")]
    assert re.search(settings, line), line
    method, accuracy = options[1], read_summary(run)["accuracy"]
    assert f"pictures: {method} accuracy {accuracy:.2f} %, zero-shot" in result.out
    assert "mean over classes " in result.out


def test_prompts_that_belong_to_other_classes_are_refused(inputs):
    published = as_published(inputs, train(inputs, "--method", "dpt"))
    draw_image(Path("other/ant/1.png"), (27, 23), (1, 2, 3))
    for name in ("ant", "bee", "cat"):
        for number in range(4):
            draw_image(Path(f"other/{name}/{number}.png"), (27, 23), (1, 2, number))
    command = ("published", published, "--data", "other", "--model", inputs.clip)
    assert_one_line(
        run_command("eval.py", *command), "eval.py", "belong to 4 classes", "other has 3"
    )


def test_prompts_of_maple_are_refused(inputs):
    (Path("out") / "MultiModalPromptLearner").mkdir(parents=True)
    result = run_command("eval.py", "published", "out", "--data", inputs.data)
    assert_one_line(result, "eval.py", "expected prompt_learner/, ", "model.pth.tar-N")


def test_a_run_at_another_image_size_is_tested_again_at_it(inputs):
    run = train(inputs, "--method", "vpt", "--image-size", 35)
    assert json.loads((run / "config.json").read_text())["image_size"] == 35
    result = run_command("eval.py", "test", run)
    assert result.status == 0, result.err
    assert f"vpt accuracy {read_summary(run)['accuracy']:.2f} %" in result.out
    again = run_command("eval.py", "predict", run, inputs.data / "gnu/1.png")
    assert again.status == 0, again.err
