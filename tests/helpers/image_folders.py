"""Draw small folders of plain images."""

from pathlib import Path

from PIL import Image


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
