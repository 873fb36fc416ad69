"""Draws small folders of pictures for the tests of data sets."""

from pathlib import Path

from PIL import Image


def draw(path: Path, size: tuple[int, int] = (7, 5), color=(200, 30, 40)) -> Path:
    """One plain picture at `path`; its folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def draw_classes(root: Path, counts: dict[str, int]) -> Path:
    """`counts` different pictures in a folder for each class: root/CLASS/image_0001.png, ..."""
    for label, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True)
        for number in range(1, count + 1):
            draw(root / folder / f"image_{number:04d}.png", color=(number % 256, label, 0))
    return root
