"""The README's commands and figures are true."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import tiny_models
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


def test_every_option_in_the_readme_exists(monkeypatch):
    """The commands need data or weights that are not here: they are read by their own parser."""
    monkeypatch.syspath_prepend(str(ROOT))
    import eval as eval_script
    import train

    parsers = {"train.py": train.parse_arguments, "eval.py": eval_script.parse_arguments}
    commands = [shlex.split(command.partition("&& ")[2] or command) for command in COMMANDS]
    scripts = [words[1:] for words in commands if words[0] == "python" and words[1] in parsers]
    assert len(scripts) >= 5
    for words in scripts:
        monkeypatch.setattr(sys, "argv", words)
        parsers[words[0]]()


def test_the_python_example_runs(monkeypatch, tmp_path):
    """With a tiny random CLIP in place of ViT-B/32."""
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    example = re.sub(r"model\.load_published.*\n", "", example)  # needs a run of the other code
    example = example.replace("...\n", "loss.backward(); optimizer.step()\n")
    side = tiny_models.WIDE.patch * tiny_models.WIDE.grid
    Image.new("RGB", (31, 29), "red").save(tmp_path / "a.jpg")
    torch.save(tiny_models.clip_state(tiny_models.WIDE), tmp_path / "ViT-B-32.pt")
    monkeypatch.setenv("MINIDPT_WEIGHTS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names = {
        "torch": torch,
        "images": torch.zeros(2, 3, side, side),
        "labels": torch.tensor([0, 1]),
    }
    exec(example, names)
    assert (tmp_path / "pets.pt").is_file()
