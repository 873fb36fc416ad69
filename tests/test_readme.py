"""The README's options exist, its examples run, and its demo is as shown."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
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


def test_the_python_examples_run(monkeypatch, tmp_path, capsys):
    """With a tiny random CLIP in place of ViT-B/32."""
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) == 2
    for name in ("a.jpg", "b.jpg", "CLIP.png"):
        Image.new("RGB", (31, 29), "red").save(tmp_path / name)
    torch.save(tiny_models.clip_state(tiny_models.WIDE), tmp_path / "ViT-B-32.pt")
    monkeypatch.setenv("MINIDPT_WEIGHTS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for example in examples:
        exec(example, {})
    assert (tmp_path / "pets.pt").is_file()
    assert re.fullmatch(r"(cat|dog) 0\.\d+\ntensor\(\[\[.*\]\]\)\n", capsys.readouterr().out)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    """The first command, after its installation: a folder that it ran in, and what it printed."""
    install, _, command = COMMANDS[0].partition(" && ")
    assert install == "pip install -e ." and command == "python train.py"
    folder = tmp_path_factory.mktemp("demo")
    for script in ("train.py", "eval.py"):
        shutil.copy(ROOT / script, folder)
    return folder, run(folder, command)


def run(folder: Path, command: str) -> str:
    program, *arguments = shlex.split(command)
    assert program == "python"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, text=True, check=True,
        stdout=subprocess.PIPE, timeout=280,
    )  # fmt: skip
    return done.stdout


def figures(text: str) -> list[str]:
    """Lines without what may differ between machines: times, and accuracies a little."""
    return [re.sub(r"[+-]?\d+\.\d+|\d+:\d+", "#", line) for line in text.splitlines()]


def accuracies(text: str) -> tuple[float, float]:
    learned, zero_shot = re.findall(r"dpt accuracy ([\d.]+) %, zero-shot ([\d.]+) %", text)[0]
    return float(learned), float(zero_shot)


def test_the_demo_prints_what_the_readme_shows_and_gains_ten_points(demo):
    _, out = demo
    (shown,) = re.findall(r"```\n(demo-v.*?)```", README, re.DOTALL)
    assert figures(out) == figures(shown)
    (ours, zero_shot), theirs = accuracies(out), accuracies(shown)
    assert ours >= zero_shot + 10
    # Another processor adds up in another order, and the training carries it on.
    assert abs(zero_shot - theirs[1]) <= 0.5 and abs(ours - theirs[0]) <= 3


def test_the_command_that_the_demo_prints_repeats_its_accuracy(demo):
    folder, out = demo
    command = out.splitlines()[-1].partition(": ")[2]
    again = run(folder, command)
    assert accuracies(again) == accuracies(out)
    picture = next(folder.glob("runs/demo-v*/test/fish/*.png"))
    guesses = run(folder, f"{command} --image {picture}")
    assert re.fullmatch(rf"{re.escape(str(picture))}: (\w+ [\d.]+ %(, )?){{5}}\n", guesses)
