"""The README's options exist, its examples run, and its demo is as shown."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import tiny_models
from helpers.run_command import run_command
from PIL import Image
from torch.distributed import run as torchrun

from minidpt.runs import command_line

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


def test_every_option_in_the_readme_exists(monkeypatch, tmp_path):
    """The commands need data or weights that are not here: they are read by their own parser."""
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "config.json").write_text('{"n_ctx": 16, "record": {}}')
    monkeypatch.chdir(tmp_path)
    parsers = {
        "train.py": command_line.parse_train_command,
        "eval.py": command_line.parse_eval_command,
    }
    commands = [shlex.split(command.partition("&& ")[2] or command) for command in COMMANDS]
    scripts = [words[1:] for words in commands if words[0] == "python" and words[1] in parsers]
    assert len(scripts) >= 5
    shared = [words[1:] for words in commands if words[0] == "torchrun"]
    for words in shared:  # torchrun must not take an option of ours for its own
        parsed = torchrun.get_args_parser().parse_args(words)
        scripts.append([parsed.training_script, *parsed.training_script_args])
    assert len(shared) >= 2
    for words in scripts:
        monkeypatch.setattr(sys, "argv", words)
        parsers[words[0]](words[0])


@pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning")  # torch 2.4's own
def test_the_python_examples_run(monkeypatch, tmp_path, capsys):
    """With a tiny random CLIP in place of ViT-B/32."""
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) == 3
    for name in ("a.jpg", "b.jpg", "CLIP.png"):
        Image.new("RGB", (31, 29), "red").save(tmp_path / name)
    torch.save(tiny_models.clip_state(tiny_models.WIDE), tmp_path / "ViT-B-32.pt")
    monkeypatch.setenv("MINIDPT_WEIGHTS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for example in examples:
        exec(example, {})
    assert (tmp_path / "pets.pt").is_file()
    output = capsys.readouterr().out
    match = re.fullmatch(r"(cat|dog) 0\.\d+\n(cat|dog)\ntensor\(\[\[.*\]\]\)\n", output)
    assert match and match[1] == match[2]  # what was exported says the same


@pytest.fixture(scope="module")
def demo(begun_demo) -> tuple[Path, str]:
    """The first command, after its installation: the folder it ran in, and what it printed."""
    assert COMMANDS[0] == "pip install -e . && python train.py"
    folder, process = begun_demo
    out, _ = process.communicate()
    assert process.returncode == 0
    return folder, out


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


def test_the_command_that_the_demo_prints_repeats_its_accuracy(demo, monkeypatch):
    folder, out = demo
    command = out.splitlines()[-1].partition(": ")[2]
    program, script, *options = shlex.split(command)
    assert (program, script) == ("python", "eval.py")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    again = subprocess.run(
        [sys.executable, script, *options], cwd=folder, text=True, check=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert accuracies(again.stdout) == accuracies(out)

    monkeypatch.chdir(folder)
    image = next(Path().glob("runs/demo-v*/test/fish/*.png"))
    guesses = run_command(script, "predict", options[1], image)
    assert re.fullmatch(rf"{re.escape(str(image))}: (\w+ [\d.]+ %(, )?){{5}}\n", guesses.out)
