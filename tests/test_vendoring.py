"""The folder `minidpt/` works inside another project, under another name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

EVERYTHING = """
import importlib, pkgutil, sys
import prompting
for module in pkgutil.walk_packages(prompting.__path__, "prompting."):
    importlib.import_module(module.name)
assert prompting.data.naming.imagenet_classnames()["n01440764"] == "tench"
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
optimizer = torch.optim.SGD(prompting.parameter_groups(model), lr=rate)
losses = []
for _ in range(3):
    losses.append(model.loss(model(images), labels, guidance=True))
    optimizer.zero_grad()
    losses[-1].backward()
    optimizer.step()
assert losses[-1] < losses[0]
model.eval().save("pets.pt")
again = prompting.load_model("pets.pt")
from_pictures, from_tensors = again.predict(pictures), model.predict(images)
assert from_pictures == from_tensors and len(from_tensors[0]) == 2
assert not any(name.split(".")[0] == "minidpt" for name in sys.modules)
"""


@pytest.mark.parametrize(
    ("script", "without"),
    [(EVERYTHING, []), (METHOD, ["data", "runs"])],
    ids=["whole", "the method alone"],
)
def test_a_copy_under_another_name_needs_nothing_of_this_project(tmp_path, script, without):
    shutil.copytree(ROOT / "minidpt", tmp_path / "prompting")
    for room in without:
        shutil.rmtree(tmp_path / "prompting" / room)
    environment = {**os.environ, "MINIDPT_WEIGHTS": str(ROOT / "weights")}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
