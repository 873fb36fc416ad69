"""The folder `minidpt/` works inside another project, under another name, also in a zip file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import minidpt
from minidpt import __main__ as commands

ROOT = Path(__file__).resolve().parent.parent

EVERYTHING = """
import importlib, pkgutil, sys
import prompting
for module in pkgutil.walk_packages(prompting.__path__, "prompting."):
    importlib.import_module(module.name)
assert len(prompting.data.naming.imagenet_classnames()) == 1000
assert prompting.data.naming.imagenet_classnames()["n01440764"] == "tench"
assert ":root {" in prompting.runs.page.page("a title", [])
"""
METHOD = """
import sys
import torch
from PIL import Image
import prompting
assert prompting.tokenize(["a dog."]).shape == (1, 77)
clip, preprocess = prompting.load("tiny")
config = prompting.PromptConfig(n_ctx=2, n_visual=2, top_k=1)
model = prompting.build_model(clip, ["cat", "dog"], "a photo of a {}.", config)
pictures = [Image.new("RGB", (50, 40), colour) for colour in ("red", "blue")]
images, labels = torch.stack([preprocess(picture) for picture in pictures]), torch.tensor([0, 1])
rate = prompting.learning_rate(1, 0.01, 9, 1)
groups, losses = prompting.parameter_groups(model), []
for _ in range(3):
    losses.append(model.loss(model(images), labels, guidance=True))
    model.zero_grad()
    losses[-1].backward()
    with torch.no_grad():  # as torch.optim.SGD does, which takes a second to import
        for value in (value for group in groups for value in group["params"]):
            value -= rate * value.grad
assert losses[-1] < losses[0]
model.eval().save("pets.pt")
again = prompting.load_model("pets.pt")
from_pictures, from_tensors = again.predict(pictures), model.predict(images)
assert from_pictures == from_tensors and len(from_tensors[0]) == 2
assert not any(name.split(".")[0] == "minidpt" for name in sys.modules)
"""


@pytest.mark.parametrize(
    ("script", "without", "zipped"),
    [(EVERYTHING + METHOD, [], True), (METHOD, ["data", "demo", "runs"], False)],
    ids=["whole, in a zip file", "the method alone"],
)
def test_a_copy_under_another_name_needs_nothing_of_this_project(tmp_path, script, without, zipped):
    """Nor takes anything of a `minidpt` that is installed beside it, which cannot be imported."""
    shutil.copytree(
        ROOT / "minidpt", tmp_path / "prompting", ignore=shutil.ignore_patterns("__pycache__")
    )
    for room in without:
        shutil.rmtree(tmp_path / "prompting" / room)
    (tmp_path / "minidpt").mkdir()
    (tmp_path / "minidpt" / "__init__.py").write_text("raise ImportError('of another version')")
    path = tmp_path
    if zipped:
        path = shutil.make_archive(str(tmp_path / "copy"), "zip", tmp_path, "prompting")
        shutil.rmtree(tmp_path / "prompting")
    environment = {**os.environ, "MINIDPT_WEIGHTS": str(ROOT / "weights"), "PYTHONPATH": str(path)}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)


def test_importing_prints_nothing_and_leaves_what_only_texts_need_for_later():
    """regex and ftfy take twice as long to import as all of the package, the vocabulary longer."""
    script = (
        "import sys, torch, minidpt; print({'regex', 'ftfy'} & {*sys.modules});"
        "import minidpt.clip.tokenizer as t; print(t._vocabulary.cache_info().currsize)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("set()\n0\n", "")


def test_the_package_run_by_python_says_what_is_here(monkeypatch, tmp_path, capsys):
    (tmp_path / "ViT-B-16.pt").touch()
    monkeypatch.setenv("MINIDPT_WEIGHTS", str(tmp_path))
    commands.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"minidpt {minidpt.__version__} in {ROOT / 'minidpt'}"
    assert lines[1].startswith(f"torch {torch.__version__}, Python 3.")
    assert "cpu threads: 1" in lines
    assert f"CLIP tiny: {ROOT / 'weights' / 'tiny.pt'}" in lines
    assert f"CLIP ViT-B/16: {tmp_path / 'ViT-B-16.pt'}" in lines
    monkeypatch.setenv("MINIDPT_WEIGHTS", str(tmp_path / "none"))
    with pytest.raises(SystemExit, match="^minidpt: error: MINIDPT_WEIGHTS is .*existing folder$"):
        commands.main()


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_a_command_runs_the_checkouts_script_under_its_own_name(monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, "__main__", None)
    monkeypatch.setattr(sys, "argv", ["bin/minidpt-it", "--help"])
    with pytest.raises(SystemExit) as ended:
        getattr(commands, name)()
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: minidpt-it ") and ("--shots" in out) == (name == "train")
