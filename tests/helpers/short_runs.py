"""Train short runs on small drawn images, and read what they leave: for `tests/runs`."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import NamedTuple

import torch

from helpers.run_command import SHORT, Result, read_summary, run_command
from minidpt.data.layouts import LAYOUTS

CLASS_COLORS = {  # class folder → color of its images
    "Owl": (50, 70, 190),
    "gnu": (70, 150, 60),
    "red_fox": (200, 60, 40),
    "sea horse": (180, 160, 60),
}
CLASSNAMES = ["Owl", "gnu", "red fox", "sea horse"]
IMAGES_PER_CLASS = 10  # of each class: 5 to train, 2 to validate, 3 to test
NAMES = [layout.name for layout in LAYOUTS]
TRAINING_DATASETS, TEST_ONLY_DATASETS = NAMES[:11], NAMES[11:]


class RunInputs(NamedTuple):
    """The arguments `--data` and `--model` of a run. Tests share these files, and only read."""

    data: Path
    clip: Path

    @property
    def options(self) -> tuple[object, ...]:
        """The arguments as a command takes them."""
        return "--data", self.data, "--model", self.clip


def snapshot_folder(folder: Path) -> dict[str, int]:
    """Return all paths in a folder, itself included → time of the last change in ns."""
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def run_checked(script: str, *arguments: object) -> Result:
    """Run a command, and assert that it succeeds without a line on stderr."""
    result = run_command(script, *arguments)
    assert (result.status, result.err) == (0, "")
    return result


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file with a header."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def snapshot_files(folder: str | Path) -> dict[str, int]:
    """Return the paths of all files with a suffix → time of the last change in ns."""
    return {str(path): path.stat().st_mtime_ns for path in Path(folder).rglob("*.*")}


def train(inputs: RunInputs, out: str | Path, *options: object) -> Result:
    """Train a short run into the folder `out`, and assert that it succeeds."""
    return run_checked("train.py", *inputs.options, "--out", out, *SHORT, *options)


def read_metrics(run: str | Path) -> list[dict]:
    """Read the metrics.jsonl of a run: a dict for each epoch."""
    lines = (Path(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def read_prompts(run: str | Path) -> dict[str, torch.Tensor]:
    """Read the learned tensors of a run's model.pt."""
    return torch.load(Path(run) / "model.pt", weights_only=True)["learned"]


def assert_same_result(first: str | Path, second: str | Path) -> None:
    """Assert that two runs have equal accuracies and learned tensors, to the bit."""
    assert read_summary(first)["accuracy"] == read_summary(second)["accuracy"]
    ours, theirs = read_prompts(first), read_prompts(second)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def parse_predictions(result: Result) -> dict[str, list[tuple[str, float]]]:
    """Parse what `eval.py predict` prints: file → [(class name, probability in percent), ...]."""
    guesses = {}
    for line in result.out.splitlines():
        path, _, text = line.partition(": ")
        guesses[path] = [
            (name, float(percent)) for name, percent in re.findall(r"(\w[\w ]*?) ([\d.]+) %", text)
        ]
    return guesses
