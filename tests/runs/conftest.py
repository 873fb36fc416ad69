"""Fixtures that the tests of runs share, and only read: images, a CLIP, runs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.dataset_miniatures import draw_miniature
from helpers.image_folders import draw_class_folders
from helpers.run_command import SHORT, Result, run_process, save_clip
from helpers.short_runs import (
    CLASS_COLORS,
    IMAGES_PER_CLASS,
    TEST_ONLY_DATASETS,
    TRAINING_DATASETS,
    RunInputs,
    run_checked,
    snapshot_folder,
)
from PIL import Image


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> RunInputs:
    folder, rng = tmp_path_factory.mktemp("inputs"), random.Random(0)
    for name, colour in CLASS_COLORS.items():
        for number in range(IMAGES_PER_CLASS):
            shade = tuple(value + rng.randrange(-40, 41) for value in colour)
            image = Image.new("RGB", (27, 23), shade)
            for _ in range(60):
                spot = rng.randrange(27), rng.randrange(23)
                image.putpixel(spot, tuple(rng.randrange(256) for _ in range(3)))
            path = folder / "pictures" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return RunInputs(folder / "pictures", save_clip(folder / "little.pt"))


@pytest.fixture(scope="session")
def training(inputs: RunInputs, tmp_path_factory) -> tuple[Path, Result]:
    """A run of DPT, made in a process of its own, and what was printed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    arguments = (*inputs.options, "--out", folder, *SHORT)
    return folder, run_process(folder.parent, "train.py", *arguments)


@pytest.fixture(scope="session")
def trained(training: tuple[Path, Result]) -> Iterator[Path]:
    """The folder of this run. Only read it."""
    before = snapshot_folder(training[0])
    yield training[0]
    assert snapshot_folder(training[0]) == before


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "little.pt")


@pytest.fixture(scope="session")
def guide(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("guide")
    for name in (*TRAINING_DATASETS, *TEST_ONLY_DATASETS):
        draw_miniature(root, name)
    return root


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    return draw_class_folders(folder, {"ox": 10, "gnu": 10, "owl": 10, "red fox": 10, "yak": 10})


@pytest.fixture(scope="session")
def sweep(images, clip, tmp_path_factory) -> tuple[Path, list, Result]:
    """Seven runs and their command. Only read them."""
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    command = ["--data", images, "--model", clip, *SHORT, "--epochs", 2,
               "--method", "zeroshot", "coop", "dpt", "--shots", 1, 3, "--seed", 0, 2]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        return folder, command, run_checked("train.py", *command, "--out", folder)
