"""The READMEs' links lead somewhere, their commands and examples run, and the demo is as shown."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import tiny_models
from helpers.run_command import SCRIPTS, run_command
from PIL import Image
from torch.distributed import run as torchrun

from minidpt.runs import command_line

sys.path.append(str(Path(__file__).parent / "benchmarks"))

import figures  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PATHS = [ROOT / "README.md", *sorted(ROOT.glob("minidpt/*/README.md"))]
PATHS.append(ROOT / "tests" / "benchmarks" / "README.md")
TEXTS = {path: path.read_text(encoding="utf-8") for path in PATHS}
README = TEXTS[PATHS[0]]
COMMANDS = [
    line.partition("  #")[0].strip()
    for text in TEXTS.values()
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


def test_the_readme_is_short_enough_to_be_read():
    assert len(README.splitlines()) <= 260


def anchors(path: Path) -> set[str]:
    """The anchors of a Markdown file's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path):
    links = re.findall(r"\]\(([^)\s]+)\)", TEXTS[path])
    for link in links:
        file, _, anchor = link.partition("#")
        if not file.startswith("https://"):
            target = path.parent / file if file else path
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link
    assert links or path.parent.name == "data"


def test_figures_are_those_that_were_measured():
    measured = json.loads((ROOT / "tests/benchmarks/figures.json").read_text(encoding="utf-8"))
    shown = {}
    for path, text in TEXTS.items():
        assert figures.fill(text, measured) == text, path
        readme = str(path.relative_to(ROOT))
        shown |= {match[2]: readme for match in figures.MARKERS.finditer(text)}
    assert shown == {name: figure.readme for name, figure in figures.FIGURES.items()}
    assert shown.keys() == measured.keys()


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
    examples = re.findall(r"```python\n(.*?)```", "".join(TEXTS.values()), re.DOTALL)
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


def without_figures(text: str) -> list[str]:
    """Lines without what may differ between machines: times, and accuracies a little."""
    return [re.sub(r"[+-]?\d+\.\d+|\d+:\d+", "#", line) for line in text.splitlines()]


def accuracies(text: str) -> tuple[float, float]:
    learned, zero_shot = re.findall(r"dpt accuracy ([\d.]+) %, zero-shot ([\d.]+) %", text)[0]
    return float(learned), float(zero_shot)


def test_the_demo_prints_what_the_readme_shows_and_gains_ten_points(demo):
    _, out = demo
    (shown,) = re.findall(r"```\n(demo-v.*?)```", README, re.DOTALL)
    assert without_figures(out) == without_figures(shown)
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


def test_commands_that_need_no_download_run(demo, monkeypatch):
    """Those of a service and of published data are only parsed, see above."""
    monkeypatch.chdir(demo[0])
    photos = Path("my_pictures")
    for name in ("cup", "fish", "house"):
        shutil.copytree(next(Path().glob(f"runs/demo-v*/train/{name}")), photos / name)
    Path("folder").mkdir()
    for name in ("a.jpg", "b.jpg", "folder/c.png"):
        shutil.copy(next(photos.rglob("*.png")), name)
    run, shorter = "small", ["--epochs", "1"]
    small = ["train.py", "--data", photos, "--shots", "2", "--model", "tiny", *shorter]
    commands = [[*small, "--out", run]]
    for command in COMMANDS:
        program, script, *words = shlex.split(command.partition("&& ")[2] or command)
        offline = {"tiny", "--resume", "--config"} if script == "train.py" else {script}
        absent = {"./data", "DATA", "PROMPTS", "-"} & {*words}
        if script in SCRIPTS and program == "python" and offline & {script, *words} and not absent:
            values = {"RUN": run, "RUN/config.json": f"{run}/config.json"}
            values |= {"DIR": photos if "--data" in words else run}
            values |= {"FILE.pt2": f"{len(commands)}.pt2"}
            words += shorter if script == "train.py" and "--resume" not in words else []
            commands.append([script, *(values.get(word, word) for word in words)])
    assert len(commands) > 10
    for command in commands:
        result = run_command(*command)
        assert result.status == 0, (command, result.err)
