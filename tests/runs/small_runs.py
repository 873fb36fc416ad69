"""Short runs on small drawn pictures, and what they leave: for the tests in this folder."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import NamedTuple

import torch
from scripts import SHORT, Result, inside, summary

from minidpt.data.layouts import LAYOUTS

COLOURS = {  # of the pictures in a class folder
    "Owl": (50, 70, 190),
    "gnu": (70, 150, 60),
    "red_fox": (200, 60, 40),
    "sea horse": (180, 160, 60),
}
CLASSNAMES = ["Owl", "gnu", "red fox", "sea horse"]
PICTURES = 10  # of each class: 5 to train, 2 to validate, 3 to test
NAMES = [layout.name for layout in LAYOUTS]
TRAINED, TEST_ONLY = NAMES[:11], NAMES[11:]


class Place(NamedTuple):
    """What all tests share, and only read: pictures, and a CLIP's state dict in a file."""

    data: Path
    clip: Path


def listing(folder: Path) -> dict[str, int]:
    """Everything in a folder with the time of its last change."""
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def succeed(script: str, *arguments: object) -> Result:
    """Run a command that must succeed."""
    result = inside(script, *arguments)
    assert (result.status, result.err) == (0, "")
    return result


def read_csv(path: str | Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files(folder: str | Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path(folder).rglob("*.*")}


def train(place: Place, out: str | Path, *options: object) -> Result:
    """A short run that must succeed."""
    arguments = ("--data", place.data, "--model", place.clip, "--out", out)
    return succeed("train.py", *arguments, *SHORT, *options)


def metrics(run: str | Path) -> list[dict]:
    lines = (Path(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def learned(run: str | Path) -> dict[str, torch.Tensor]:
    return torch.load(Path(run) / "model.pt", weights_only=True)["learned"]


def assert_same_result(first: str | Path, second: str | Path) -> None:
    assert summary(first)["accuracy"] == summary(second)["accuracy"]
    ours, theirs = learned(first), learned(second)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def printed(result: Result) -> dict[str, list[tuple[str, float]]]:
    """File → [(class name, probability in percent), ...] of what eval.py --image printed."""
    guesses = {}
    for line in result.out.splitlines():
        path, _, text = line.partition(": ")
        guesses[path] = [
            (name, float(percent)) for name, percent in re.findall(r"(\w[\w ]*?) ([\d.]+) %", text)
        ]
    return guesses
