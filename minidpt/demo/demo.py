"""The embedded demo: images of everyday things, drawn from a seed.

The small CLIP that `weights/pretrain_tiny.py` makes knows scenes in its BOOK_STYLE (and real icons
and clip art); the demo's own images come in `STREET_STYLE`: a street at night, with dark grounds
and grain, which those scenes lack, and two or three smaller things of other classes beside the one
that counts. So the model knows the classes, but not this world: what few-shot tuning is for.
"""

import colorsys
import math
import os
import random
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path, PurePath

from PIL import Image, ImageChops, ImageDraw

from ..support.files import explain_write_error, file_lock
from .things import THINGS, Point

CLASSES = tuple(THINGS)[:12]
TRAIN_IMAGES, TEST_IMAGES = 32, 80  # of each class
SEED = 2208
VERSION = 3  # of the images; raise it when anything drawn changes
Range = tuple[float, float]  # low, high


@dataclass(frozen=True)
class Style:
    """How a scene is drawn, by default a street at night."""

    saturation: Range = (0.2, 0.9)  # of the things' colours; hues are free
    value: Range = (0.6, 1.0)
    background: tuple[Range, Range] = ((0.1, 0.6), (0.05, 0.3))  # its saturation and value
    outline: float = 0.0  # share of things drawn as outlines instead of filled
    clutter: tuple[int, int] = (0, 2)  # number of random strokes over the background
    others: tuple[int, int] = (2, 3)  # number of smaller things of other classes
    other_size: Range = (0.3, 0.45)  # of these, by the main one's
    size: Range = (0.55, 0.85)  # of the main thing, by the image's side
    tilt: float = 12  # degrees to either side
    noise: float = 40  # amplitude of grain, 0–255, the same in the three channels


STREET_STYLE = Style()


def draw_demo(parent: str | os.PathLike) -> Path:
    """Draw the demo's images as PNG files in `parent`/demo-v3, train/ and test/ of class folders.

    Returns the folder. It takes a second or two; a folder that was drawn before is used again.
    """
    folder = Path(parent) / f"demo-v{VERSION}"
    if folder.is_dir():
        return folder
    rng, unfinished = random.Random(SEED), folder.with_name(f"{folder.name}.part")
    with file_lock(folder.with_name(f"{folder.name}.lock")), explain_write_error(folder):
        if folder.is_dir():  # drawn by another process meanwhile
            return folder
        try:
            for file in demo_files():
                scene = draw_scene(file.parent.name, rng, STREET_STYLE)
                (unfinished / file.parent).mkdir(parents=True, exist_ok=True)
                scene.save(unfinished / file, compress_level=1)
            os.replace(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def demo_files(classes: Iterable[str] = CLASSES) -> Iterator[PurePath]:
    """Yield the demo's files within its folder, split/class/file, in the order they are drawn."""
    for split, count in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
        for name in classes:
            for number in range(count):
                yield PurePath(split, name, f"{name}_{number:03}.png")


def draw_scene(
    thing: str,
    rng: random.Random,
    style: Style,
    side: int = 96,
    others: list[str] | None = None,
    outlines: list[list[Point]] | None = None,
    alone: bool = False,
) -> Image.Image:
    """Draw an image (side × side, RGB) of one thing, with smaller others around it as in the style.

    outlines: takes the polygons of the thing, as they lie in an image of twice the side.
    alone: leave the others out; all else is the same to the pixel.
    """
    scale = 2  # drawn larger and reduced: smooth edges
    ground = random_colour(rng, *style.background)
    image = Image.new("RGB", (side * scale, side * scale), ground)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(*style.clutter)):
        ends = [(rng.random() * side * scale, rng.random() * side * scale) for _ in range(2)]
        fill = random_colour(rng, style.saturation, style.value)
        draw.line(ends, fill=fill, width=rng.randint(1, 3) * scale)
    size = rng.uniform(*style.size)
    if others is None:
        others = rng.sample([name for name in THINGS if name != thing], rng.randint(*style.others))
    around = image.copy() if alone else image  # a copy is drawn on too: the same random numbers
    for name in others:
        small = size * rng.uniform(*style.other_size)
        draw_thing(around, name, rng, style, small, at_edge=True)
    polygons = draw_thing(image, thing, rng, style, size, at_edge=False)
    if outlines is not None:
        outlines += polygons  # the last one drawn: nothing covers it
    image = image.resize((side, side), Image.Resampling.BOX)
    if not style.noise:
        return image
    grain = Image.frombytes("L", image.size, rng.randbytes(image.width * image.height))
    grain = grain.point(lambda v: round(v * style.noise / 255)).convert("RGB")
    return ImageChops.add(image, grain, offset=-round(style.noise / 2))


def draw_thing(
    image: Image.Image, name: str, rng: random.Random, style: Style, size: float, at_edge: bool
) -> list[list[Point]]:
    """Draw a thing, `size` by the image's side, where it fits or about an edge; its polygons."""
    draw, pixels, room = ImageDraw.Draw(image), image.width, 1 - size
    x, y = rng.random() * room, rng.random() * room
    if at_edge:
        along, across = rng.random() * room, rng.choice((-0.2 * size, 1 - 0.8 * size))
        x, y = rng.choice(((along, across), (across, along)))
    angle = math.radians(rng.uniform(-style.tilt, style.tilt))
    mirror = rng.choice((-1, 1))
    stretch = rng.uniform(0.85, 1.0)
    colours = [random_colour(rng, style.saturation, style.value) for _ in range(3)]
    outline = rng.random() < style.outline

    def to_pixels(px: float, py: float) -> Point:
        u, v = (px - 0.5) * mirror * stretch, py - 0.5
        right = u * math.cos(angle) - v * math.sin(angle)
        down = u * math.sin(angle) + v * math.cos(angle)
        return (x + (right + 0.5) * size) * pixels, (y + (down + 0.5) * size) * pixels

    polygons = []
    for which, polygon in THINGS[name](rng):
        polygon = list(starmap(to_pixels, polygon))
        if outline:
            width = max(2, round(pixels * 0.018))
            draw.line([*polygon, polygon[0]], fill=colours[which], width=width)
        else:
            draw.polygon(polygon, fill=colours[which])
        polygons.append(polygon)
    return polygons


def random_colour(rng: random.Random, saturation: Range, value: Range) -> tuple[int, int, int]:
    """Draw a colour of any hue, of saturation and value in these ranges; RGB in 0–255."""
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    return tuple(round(255 * channel) for channel in rgb)
