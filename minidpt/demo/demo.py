"""The embedded demo: images of everyday things, drawn from a seed (`scenes.py`).

The small CLIP that `weights/pretrain_tiny.py` makes knows scenes in its BOOK_STYLE (and real icons
and clip art); the demo's own images come in `STREET_STYLE`: a street at night, with dark grounds
and grain, which those scenes lack, and two or three smaller things of other classes beside the one
that counts. So the model knows the classes, but not this world: what few-shot tuning is for.
"""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePath

from ..support.files import explain_full_disk, file_lock
from .scenes import STREET_STYLE, draw_scene
from .things import THINGS

CLASSES = tuple(THINGS)[:12]
TRAIN_IMAGES, TEST_IMAGES = 32, 80  # of each class
SEED = 2208
VERSION = 3  # of the images; raise it when anything drawn changes


def draw_demo(parent: str | os.PathLike) -> Path:
    """Draw the demo's images as PNG files in `parent`/demo-v3, train/ and test/ of class folders.

    Returns the folder. It takes a second or two; a folder that was drawn before is used again.
    """
    folder = Path(parent) / f"demo-v{VERSION}"
    if folder.is_dir():
        return folder
    Path(parent).mkdir(parents=True, exist_ok=True)
    rng, unfinished = random.Random(SEED), folder.with_name(f"{folder.name}.part")
    with file_lock(folder.with_name(f"{folder.name}.lock")), explain_full_disk(folder):
        if folder.is_dir():  # drawn by another process meanwhile
            return folder
        shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
        try:
            for file in demo_files():
                scene = draw_scene(file.parent.name, rng, STREET_STYLE)
                (unfinished / file.parent).mkdir(parents=True, exist_ok=True)
                scene.save(unfinished / file, compress_level=1)
            os.replace(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def demo_files() -> Iterator[PurePath]:
    """Yield the demo's files within its folder, part/class/file, in the order they are drawn."""
    for part, count in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
        for name in CLASSES:
            for number in range(count):
                yield PurePath(part, name, f"{name}_{number:03}.png")
