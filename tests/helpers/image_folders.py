"""Draw small folders of plain images."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minidpt.data.datasets import open_dataset
from minidpt.data.samples import Dataset, Sample


def draw_image(path: Path, size: tuple[int, int] = (7, 5), color=(200, 30, 40)) -> Path:
    """Write an image of one color; the folders above it are made. Returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def draw_class_folders(root: Path, counts: dict[str, int]) -> Path:
    """Write `counts` different images of each class: root/CLASS/image_0001.png, ..."""
    for label, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True)
        for number in range(1, count + 1):
            draw_image(root / folder / f"image_{number:04d}.png", color=(number % 256, label, 0))
    return root


def relative_paths(samples: list[Sample], root: Path) -> list[str]:
    """Return the paths of samples below a folder, with slashes."""
    return [Path(sample.path).relative_to(root).as_posix() for sample in samples]


def all_samples(dataset: Dataset) -> list[Sample]:
    """Return the samples of all three splits."""
    return dataset.train + dataset.val + dataset.test


def open_error(path: Path, *args: Any, **options: Any) -> str:
    """Return why `open_dataset` refuses a path: a line with its folder and what is expected."""
    with pytest.raises((ValueError, OSError)) as error:
        open_dataset(path, *args, **options)
    message, folder = str(error.value), path if path.is_dir() else path.parent
    assert str(folder) in message and "\n" not in message and ": expected " in message
    return message


SPLIT_TABLE = """path,label,split
pictures/a.png,sea_horse,train
pictures/b.png,owl,train
pictures/c.png,owl,val
pictures/d.png,sea_horse,test
pictures/e.png,owl,test
"""


def write_image_table(folder: Path, text: str | bytes, name: str = "birds.csv") -> Path:
    """Write a CSV file beside a folder of images, pictures/a.png to f.png; returns its path."""
    for letter in "abcdef":
        draw_image(folder / "pictures" / f"{letter}.png")
    text = text.encode() if isinstance(text, str) else text
    (folder / name).write_bytes(text)
    return folder / name
