"""Base-to-new, and tests on other data: the protocols of few-shot research."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from statistics import harmonic_mean

import pytest
import torch
from helpers.image_folders import draw_class_folders
from helpers.run_command import SHORT, assert_one_line, read_summary, run_command, save_clip
from helpers.short_runs import (
    TEST_ONLY_DATASETS,
    TRAINING_DATASETS,
    RunInputs,
    read_csv,
    run_checked,
    snapshot_files,
    train,
)

import minidpt
from minidpt.data import datasets
from minidpt.data import samples as data
from minidpt.runs import evaluation


def test_every_data_set_is_trained_on_and_imagenets_relatives_are_tested_on(guide, clip):
    before = snapshot_files(guide)
    command = ("--data", guide, "--dataset", *TRAINING_DATASETS, "--model", clip, "--out", "sweep")
    result = run_checked("train.py", *command, *SHORT, "--shots", 2, "--epochs", 1)
    for name in TRAINING_DATASETS:
        dataset = datasets.open_dataset(guide, name)
        content = read_summary(f"sweep/{name}-dpt-2shots-seed1")
        assert content["dataset"] == name and content["classes"] == len(dataset.classnames)
        assert content["train_images"] == 2 * content["classes"]
        assert content["test_images"] == len(dataset.test)
        config = json.loads(Path(f"sweep/{name}-dpt-2shots-seed1/config.json").read_text())
        assert config["template"] == dataset.template
    assert "Mean of 11 data sets" in result.out and "Published means" not in result.out
    assert Path("sweep/table.md").read_text(encoding="utf-8") in result.out

    run = "sweep/ImageNet-dpt-2shots-seed1"
    result = run_checked(
        "eval.py", "test", run, "--data", guide, "--dataset", *TEST_ONLY_DATASETS, "EuroSAT"
    )
    for name in (*TEST_ONLY_DATASETS, "EuroSAT"):
        assert f"{run} on {name}: dpt accuracy" in result.out
    table = run_checked("eval.py", "table", "sweep").out
    assert "Trained on one, tested on another" in table
    tested = [row["tested"] for row in read_csv("sweep/table.csv") if row["dataset"] == "ImageNet"]
    assert sorted(tested) == sorted(["ImageNet", *TEST_ONLY_DATASETS, "EuroSAT"])
    assert snapshot_files(guide) == before


def test_the_folder_around_a_folder_of_images_is_known_by_the_layout(tmp_path):
    def around(name: str, root: str) -> list[str]:
        path = tmp_path / root
        dataset = data.Dataset(name, path, ["a", "b"], "{}", [], [], [], "")
        return [str(folder.relative_to(tmp_path)) for folder in datasets.folders_of(dataset)[1:]]

    assert around("DescribableTextures", "data/dtd/dtd/images") == ["data/dtd"]  # torchvision's
    assert around("DescribableTextures", "data/dtd/images") == ["data/dtd"]
    assert around("DescribableTextures", "dtd/images") == ["dtd"]
    assert around("EuroSAT", "eurosat/2750") == ["eurosat"]
    assert around("EuroSAT", "eurosat") == []
    assert around("mine", "project/images") == []


def test_base_to_new_tests_both_halves_and_their_harmonic_mean(images, clip):
    result = run_checked(
        "train.py", "--data", images, "--model", clip, *SHORT, "--classes", "base",
        "--method", "zeroshot", "dpt", "--seed", 1, 2, "--out", "sweep",
    )  # fmt: skip
    (run,) = Path("sweep").glob("*-dpt-3shots-seed1-base")
    content = read_summary(run)
    assert content["classes"] == 3 and content["train_images"] == 9
    base, new = content["tests"].values()
    assert (base["test_images"], new["test_images"]) == (9, 6)
    assert [name.split(", ")[1] for name in content["tests"]] == ["base classes", "new classes"]
    mean = 2 * base["accuracy"] * new["accuracy"] / ((base["accuracy"] + new["accuracy"]) or 1)
    assert f"harmonic mean with base {mean:.2f} %" in result.out
    assert "Base to new" in (Path("sweep") / "table.md").read_text(encoding="utf-8")
    rows = read_csv("sweep/table.csv")
    both = [row for row in rows if "harmonic mean" in row["tested"] and row["method"] == "dpt"]
    parts = [row for row in rows if row["method"] == "dpt" and row not in both]
    first, second = (float(row["accuracy"]) for row in parts)
    assert float(both[0]["accuracy"]) == pytest.approx(harmonic_mean([first, second]))

    again = run_checked("eval.py", "test", run, "--classes", "new").out  # the same once more
    zero_shot = new["zero_shot_accuracy"]
    assert f"dpt accuracy {new['accuracy']:.2f} %, zero-shot {zero_shot:.2f} %" in again
    again = run_checked("eval.py", "test", run).out
    assert f"dpt accuracy {base['accuracy']:.2f} %" in again


@pytest.mark.parametrize("method", ["coop", "vpt", "vlp", "dpt"])
def test_learned_prompts_serve_other_classes(clip, method):
    loaded, _ = minidpt.load(clip)
    torch.manual_seed(0)
    config = minidpt.PromptConfig(method=method, n_ctx=3, n_visual=2, top_k=4)
    model = minidpt.build_model(loaded, ["ox", "owl", "gnu"], "a {}.", config)
    other = model.for_classes(["red fox", "yak", "cat", "ant"], "{} texture.")
    assert (other.classnames[1], other.template, other.clip) == ("yak", "{} texture.", loaded)
    assert model.classnames == ["ox", "owl", "gnu"] and not other.training
    images = torch.randn(2, 3, loaded.visual.resolution, loaded.visual.resolution)
    assert other(images).logits.shape == (2, 4)
    ours, theirs = other.prompt_state_dict(), model.prompt_state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if not name.endswith("classifier.weight"):
            assert torch.equal(value, theirs[name]) and value is not theirs[name]
    # the classifier is not used: other numbers in it change nothing
    before = other(images).logits
    with torch.no_grad():
        for layer in other.class_aware:
            layer.classifier.weight.fill_(7)
    assert torch.equal(other(images).logits, before)
    # the same classes in another order: the same logits in that order
    config = minidpt.PromptConfig(method=method, n_ctx=3, n_visual=2, top_k=2)
    model = minidpt.build_model(loaded, ["ox", "owl", "gnu"], "a {}.", config).eval()
    turned = model.for_classes(["gnu", "ox", "owl"])
    torch.testing.assert_close(turned(images).logits, model(images).logits[:, [2, 0, 1]])


def test_only_runs_on_base_classes_are_base_to_new(images, clip):
    command = ("--data", images, "--model", clip, *SHORT, "--epochs", 1)
    run_checked("train.py", *command, "--out", "runs/all")
    run_checked("train.py", *command, "--classes", "base", "--out", "runs/base")
    tested = read_summary("runs/base")["tests"]
    for classes in ("base", "new"):
        run_checked("eval.py", "test", "runs/all", "runs/base", "--classes", classes)
    assert not Path("runs/base/transfer.json").exists()  # train.py has tested that already
    assert set(json.loads(Path("runs/all/transfer.json").read_text())) == set(tested)
    run_checked("eval.py", "test", "runs/base", "--data", images)
    table = run_checked("eval.py", "table", "runs").out
    (heading,) = (line for line in table.splitlines() if line.startswith("**Base to new"))
    block = table.split(heading)[1].split("\n\n")[1]
    base, new = (test["accuracy"] for test in tested.values())
    (line,) = (line for line in block.splitlines() if " DPT " in line)
    assert f"{base:.1f}" in line and f"{new:.1f}" in line
    crossed = table.split("Trained on one, tested on another")[1]
    assert crossed.count("\n| pictures") == 3  # all on base, all on new, base on all


def test_data_sets_of_one_name_are_kept_apart(images, clip):
    other = draw_class_folders(Path("other") / images.name, {"ant": 4, "bee": 4})
    train(RunInputs(images, clip), "run", "--epochs", 1)
    assert read_summary("run")["tests"].keys() == {images.name}
    run_checked("eval.py", "test", "run", "--data", other)
    run_checked("eval.py", "test", "run", "--data", images)  # its own test: not noted
    noted = json.loads(Path("run/transfer.json").read_text())
    assert list(noted) == [f"{images.name}, tested in {other.resolve()}"]
    (test,) = noted.values()
    assert (test["tested"], test["test_images"]) == (images.name, 8)
    noted[images.name] = {"accuracy": 1, "zero_shot_accuracy": 2}  # not what train.py has tested
    Path("run/transfer.json").write_text(json.dumps(noted))
    table = run_checked("eval.py", "table", "run").out
    rows = {row["variant"]: row for row in read_csv("run/table.csv")}
    assert set(rows) == {"", f"tested in {other.resolve()}"}
    assert float(rows[""]["accuracy"]) == read_summary("run")["accuracy"]
    (number,) = re.findall(rf"^(\d)\. tested in {re.escape(str(other.resolve()))}$", table, re.M)
    assert re.search(rf"\| {images.name} +\| {images.name} +\| DPT \[{number}\] ", table)


def test_several_runs_are_tested_on_the_classes_of_their_own_data(images, clip, monkeypatch):
    other = draw_class_folders(Path("four"), {"ant": 4, "bee": 4, "cat": 4, "dog": 4})
    command = ("--model", clip, *SHORT, "--epochs", 1)
    run_checked("train.py", "--data", images, *command, "--template", "my {}.", "--out", "a")
    run_checked("train.py", "--data", other, *command, "--out", "b")
    opened = []
    monkeypatch.setattr(
        evaluation.EvalSet, "__init__",
        lambda self, items, *args, init=evaluation.EvalSet.__init__, **kwargs:
            opened.append(len(items)) or init(self, items, *args, **kwargs),
    )  # fmt: skip
    out = run_checked("eval.py", "test", "a", "b", "a", "--classes", "new").out
    assert opened == [6, 2]  # images of each data set are decoded once
    assert len(re.findall(r"a on pictures\d+, new classes: dpt", out)) == 2
    assert out.count("b on four, new classes: dpt") == 1
    notes = [json.loads(Path(run, "transfer.json").read_text()) for run in "ab"]
    (first,), (second,) = (note.values() for note in notes)
    assert (first["template"], second["template"]) == ("my {}.", "a photo of a {}.")
    out = run_checked("eval.py", "test", "a", "b").out
    assert f"a: dpt accuracy {read_summary('a')['accuracy']:.2f} %" in out
    assert f"b: dpt accuracy {read_summary('b')['accuracy']:.2f} %" in out


def test_runs_of_several_clips_are_refused_but_copies_of_one_are_not(images, clip):
    copy, other = shutil.copy(clip, "same.pt"), save_clip(Path("other.pt"), seed=1)
    command = ("train.py", "--data", images, *SHORT, "--epochs", 1)
    for run, model in (("a", clip), ("b", copy), ("c", other)):
        run_checked(*command, "--model", model, "--out", run)
    assert "b: dpt accuracy" in run_checked("eval.py", "test", "a", "b").out
    assert_one_line(run_command("eval.py", "test", "a", "c"), "eval.py", "one CLIP", "one by one")
    content = Path("b/config.json").read_text().replace("fp32", "bf16")
    Path("b/config.json").write_text(content)
    words = ("runs with one precision, got fp32 and bf16", "or pass --precision")
    assert_one_line(run_command("eval.py", "test", "a", "b"), "eval.py", *words)


def test_seeds_are_pooled_and_tests_on_other_images_are_not(images, clip):
    others = [draw_class_folders(Path(name) / "pets", {"ant": 4, "bee": 4}) for name in "xy"]
    for seed in (1, 2):
        train(RunInputs(images, clip), f"runs/{seed}", "--epochs", 1, "--seed", seed)
    run_checked("eval.py", "test", "runs/1", "runs/2", "--data", others[0])
    rows = read_csv(run_checked("eval.py", "table", "runs").out and "runs/table.csv")
    assert [row["seeds"] for row in rows if row["tested"] == "pets"] == ["2"]
    Path("runs/1/transfer.json").unlink()
    run_checked("eval.py", "test", "runs/1", "--data", others[1])
    rows = read_csv(run_checked("eval.py", "table", "runs").out and "runs/table.csv")
    variants = [row["variant"] for row in rows if row["tested"] == "pets"]
    assert sorted(variants) == [f"tested in {other.resolve()}" for other in others]


def test_a_test_by_other_settings_does_not_replace_an_earlier_one(images, clip):
    other = draw_class_folders(Path("x") / "pets", {"ant": 4, "bee": 4})
    train(RunInputs(images, clip), "run", "--epochs", 1)
    by = [[], ["--template", "my {}."], ["--precision", "bf16"]]
    for data_folder in (other, images):
        for options in (*by, by[1]):  # the second once more: it is the same test
            run_checked("eval.py", "test", "run", "--data", data_folder, *options)
    noted = json.loads(Path("run/transfer.json").read_text())
    assert [entry["tested"] for entry in noted.values()] == ["pets"] * 3 + [images.name] * 2
    rows = read_csv(run_checked("eval.py", "table", ".").out and "table.csv")
    for tested in ("pets", images.name):
        variants = [row["variant"] for row in rows if row["tested"] == tested]
        assert sorted(variants) == ["", "tested by my {}.", "tested in precision bf16"]
    (usual,) = (row for row in rows if (row["tested"], row["variant"]) == (images.name, ""))
    assert float(usual["accuracy"]) == read_summary("run")["accuracy"]


def test_test_images_that_were_trained_on_are_counted(images, clip):
    run_checked("train.py", "--data", images, "--model", clip, *SHORT, "--epochs", 1, "--out", "a")
    assert "training images" not in run_checked("eval.py", "test", "a").out
    split = json.loads(Path("a/split.json").read_text())
    Path("linked").symlink_to(images)
    lines = ["path,label,split"]  # test on what was trained on, but for the first two classes
    for file, label, name in split["train"]:
        lines.append(f"linked/{file},{name},{'train' if label < 2 else 'test'}")
    lines += [f"linked/{file},{name},train" for file, _, name in split["test"]]
    Path("labels.csv").write_text("\n".join(lines))
    note = "copies of training images among the test images: 9, such as "
    out = run_checked("eval.py", "test", "a", "--data", "labels.csv").out
    assert f"note: {note}" in out  # 3 shots of 3 classes
    shutil.copytree("a", "b")
    out = run_checked("eval.py", "test", "a", "b", "--data", "labels.csv").out
    assert f"note: b: {note}" in out
