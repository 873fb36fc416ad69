"""Each option of a run is declared once, and all that is asked about it follows from that."""

from __future__ import annotations

import ast
from dataclasses import fields, replace
from pathlib import Path

import pytest

from minidpt import PromptConfig
from minidpt.runs.config import (
    OPTIONS,
    RunConfig,
    RunRecord,
    expand_grid,
    published_settings,
    training_notes,
)

ROOT = Path(__file__).resolve().parents[2]
DECLARATIONS = [ROOT / "minidpt" / "config.py", ROOT / "minidpt" / "runs" / "config.py"]
SUMMARY_KEYS = {"dataset", "classes", "method", "shots", "seed", "model", "epochs"}


def listed_options(tree: ast.AST) -> list[tuple[int, set[str]]]:
    """Return the literals that hold three or more names of options, with their lines."""
    literals = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            items = node.keys
        elif isinstance(node, ast.List | ast.Tuple | ast.Set):
            items = node.elts
        else:
            continue
        names = {item.value for item in items if isinstance(item, ast.Constant)} & OPTIONS.keys()
        if len(names - SUMMARY_KEYS) >= 3:
            literals.append((node.lineno, names))
    return literals


def test_no_module_lists_the_names_of_options_again():
    sources = [*(ROOT / "minidpt").rglob("*.py"), ROOT / "train.py", ROOT / "eval.py"]
    for path in set(sources) - set(DECLARATIONS):
        assert not listed_options(ast.parse(path.read_text(encoding="utf-8"))), path
    table = 'OF_TEXT = {"n_ctx", "csc", "text_lr"}'
    assert listed_options(ast.parse(table)) == [(1, {"n_ctx", "csc", "text_lr"})]


def test_a_config_comes_back_from_its_json_and_names_what_is_wrong():
    config = RunConfig("data", PromptConfig("vlp", n_ctx=3), shots=2, quick_gelu=False)
    assert RunConfig.from_dict(config.to_dict()) == config
    assert config.to_dict().keys() == OPTIONS.keys()
    for values, word in (
        ({"shot": 3}, "x.json: expected options of train.py, got 'shot'"),
        ({"shots": 0}, "x.json: shots: expected at least 1, got 0"),
        ({"alpha": float("nan")}, "x.json: alpha: expected at most"),
        ({"classes": "old"}, "x.json: classes 'old': expected one of all, base, new"),
        ({"csc": "yes"}, "x.json: csc: expected true or false, got 'yes'"),
    ):
        with pytest.raises(ValueError, match=word):
            RunConfig.from_dict(values, "x.json")


def test_choices_are_taken_in_any_case():
    assert PromptConfig(method="CoOp") == PromptConfig(method="coop")
    assert RunConfig(precision="FP32", classes="Base") == RunConfig(
        precision="fp32", classes="base"
    )


def test_several_values_are_a_grid():
    options = {"method": ["vpt", "coop"], "shots": 2, "seed": [0, 7], "n_ctx": 5}
    configs = [(c.prompts.method, c.shots, c.seed) for c in expand_grid(options)]
    assert configs == [("vpt", 2, 0), ("vpt", 2, 7), ("coop", 2, 0), ("coop", 2, 7)]


def test_a_grid_of_too_many_runs_is_refused_at_once():
    with pytest.raises(ValueError, match="x.json: expected at most 10,000 runs, got 90,000,000"):
        expand_grid({"seed": list(range(9000)), "shots": list(range(1, 10_001))}, "x.json")


@pytest.mark.parametrize(
    ("method", "unread"),
    [
        ("zeroshot", {"n_ctx", "n_visual", "alpha", "epochs", "shots", "seed", "batch_size"}),
        ("coop", {"n_visual", "visual_lr", "warmup_epochs", "top_k", "alpha", "guidance_epochs"}),
        ("vpt", {"n_ctx", "csc", "text_lr", "top_k", "alpha", "guidance_epochs"}),
        ("vlp", {"class_aware_from", "top_k", "alpha"}),
        ("dpt", set()),
    ],
)
def test_options_that_a_method_does_not_read_decide_nothing(method, unread):
    config = RunConfig(prompts=PromptConfig(method))
    settings = config.result_settings().keys()
    assert not unread & settings
    assert {"n_ctx", "n_visual", "alpha", "epochs", "shots"} - unread <= settings
    assert not {"data", "model", "device", "workers", "no_report", "class_chunk"} & settings
    usual = published_settings(method, 16, "ImageNet")
    assert usual.keys() <= settings and usual.get("warmup_epochs", 1) == 1


def test_what_is_usual_follows_the_data_set():
    config = RunConfig(prompts=PromptConfig("coop"), shots=1).resolve("ImageNet", "a {}.")
    assert (config.epochs, config.warmup_epochs, config.template) == (50, 1, "a {}.")
    config = replace(RunConfig(), epochs=3).resolve("pets", None)
    assert config.epochs == 3 and config.resolve("pets", None) == config


@pytest.mark.parametrize(("epochs", "dataset", "options", "expected"), [
    (100, "pets", {}, (10, 30, 1)), (50, "pets", {}, (10, 30, 1)), (49, "pets", {}, (4, 14, 1)),
    (9, "pets", {}, (1, 2, 1)), (2, "pets", {}, (1, 1, 1)), (1, "pets", {}, (0, 1, 0)),
    (60, "ImageNet", {}, (1, 30, 1)), (40, "ImageNet", {}, (1, 12, 1)),
    (1, "ImageNet", {}, (0, 1, 0)), (20, "pets", {"warmup_epochs": 10}, (10, 6, 1)),
    (20, "pets", {"guidance_epochs": 0}, (2, 0, 1)),
])  # fmt: skip
def test_short_runs_have_short_warm_up_and_guidance(epochs, dataset, options, expected):
    config = RunConfig(epochs=epochs, **options).resolve(dataset, None)
    used = config.warmup_epochs, config.guidance_epochs, config.text_warmup_epochs
    assert used == expected


@pytest.mark.parametrize(("method", "epochs", "note"), [
    ("dpt", 10, "--epochs 10 with --warmup-epochs 1 (published: 10), --guidance-epochs 3 "
     "(published: 30)"), ("vpt", 20, "--epochs 20 with --warmup-epochs 2 (published: 10)"),
    ("coop", 20, ""), ("coop", 1, "--epochs 1 with no warm-up of the text side"), ("vlp", 50, ""),
])  # fmt: skip
def test_a_note_says_how_the_schedule_of_a_short_run_is(method, epochs, note):
    config = RunConfig(prompts=PromptConfig(method), epochs=epochs).resolve("pets", None)
    assert training_notes(config, "pets", 10**6) == ([note] if note else [])


def test_a_long_run_with_the_numbers_of_a_short_one_says_so():
    config = RunConfig(epochs=60, warmup_epochs=1).resolve("pets", None)
    note = "--epochs 60 with --warmup-epochs 1 (published: 10)"
    assert training_notes(config, "pets", 10**6) == [note]


def test_a_record_comes_back_from_its_json():
    record = RunRecord("c", "d", "cpu", "bf16", True, {"integer": 4095.0})
    values = {each.name: getattr(record, each.name) for each in fields(record)}
    assert RunRecord.from_dict(values, "x.json") == record
    with pytest.raises(ValueError, match="x.json: expected one of fp32, bf16, fp16, got"):
        RunRecord.from_dict({**values, "precision": "fp7"}, "x.json")
    with pytest.raises(ValueError, match="x.json: expected .*'device'"):
        RunRecord.from_dict({**values, "device": None}, "x.json")
