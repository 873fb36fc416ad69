"""The folder `minidpt/` works inside another project, under another name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

SCRIPT = """
import importlib, pkgutil, sys
import prompting
for module in pkgutil.walk_packages(prompting.__path__, "prompting."):
    importlib.import_module(module.name)
assert prompting.tokenize(["a dog."]).shape == (1, 77)
clip, preprocess = prompting.load("tiny")
prompting.build_model(clip, ["cat", "dog"], "a photo of a {}.")
assert prompting.data.naming.imagenet_classnames()["n01440764"] == "tench"
assert not any(name.split(".")[0] == "minidpt" for name in sys.modules)
"""


def test_a_copy_under_another_name_needs_nothing_of_this_project(tmp_path):
    shutil.copytree(ROOT / "minidpt", tmp_path / "prompting")
    environment = {**os.environ, "MINIDPT_WEIGHTS": str(ROOT / "weights")}
    subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, check=True)
