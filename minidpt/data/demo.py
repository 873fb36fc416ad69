"""The embedded demo: pictures of everyday things, drawn by Pillow from a seed.

`draw_scene` draws one picture; what it looks like is a `Style`. The small CLIP that
`weights/pretrain_tiny.py` makes knows scenes in `BOOK_STYLE` (and real icons and clip art); the
demo's own pictures come in `STREET_STYLE`: a street at night, with dark grounds and grain, which
those scenes lack, and two or three smaller things of other classes beside the one that counts. So
the model knows the classes, but not this world: what few-shot tuning is for.
"""

from __future__ import annotations

import colorsys
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from PIL import Image, ImageChops, ImageDraw

from ..files import locked, naming

Point = tuple[float, float]
Part = tuple[int, list[Point]]  # which of the three colours, and a polygon in the unit square


def oval(
    x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360
) -> list[Point]:
    """An arc of an ellipse around (x, y), `start` to `end` degrees, clockwise from the right."""
    steps = [math.radians(start + (end - start) * i / 24) for i in range(25)]
    return [(x + rx * math.cos(t), y + ry * math.sin(t)) for t in steps]


def box(left: float, top: float, right: float, bottom: float) -> list[Point]:
    """A rectangle."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def spikes(count: int, inner: float, outer: float, x: float = 0.5, y: float = 0.5) -> list[Point]:
    """A star with `count` points, the first one up."""
    angles = [math.pi * i / count - math.pi / 2 for i in range(2 * count)]
    radii = [outer, inner] * count
    return [(x + r * math.cos(t), y + r * math.sin(t)) for r, t in zip(radii, angles, strict=True)]


def house(rng: random.Random) -> list[Part]:
    roof, door = rng.uniform(0.3, 0.5), rng.uniform(0.3, 0.6)
    return [
        (0, box(0.15, roof, 0.85, 0.95)),
        (1, [(0.05, roof), (0.5, 0.05), (0.95, roof)]),
        (2, box(door, 0.65, door + 0.17, 0.95)),
        (2, box(0.22, roof + 0.1, 0.38, roof + 0.25)),
    ]


def tree(rng: random.Random) -> list[Part]:
    trunk = (1, box(0.43, 0.6, 0.57, 0.97))
    if rng.random() < 0.5:
        return [trunk, (0, oval(0.5, 0.36, rng.uniform(0.28, 0.4), 0.33))]
    return [trunk] + [
        (0, [(0.5, y), (0.5 - w, y + 0.32), (0.5 + w, y + 0.32)])
        for y, w in ((0.42, 0.38), (0.22, 0.31), (0.03, 0.23))
    ]


def fish(rng: random.Random) -> list[Part]:
    height = rng.uniform(0.2, 0.32)
    return [
        (1, [(0.68, 0.5), (0.97, 0.5 - height), (0.97, 0.5 + height)]),
        (0, oval(0.42, 0.5, 0.38, height)),
        (1, [(0.35, 0.5 - height), (0.5, 0.42 - height), (0.58, 0.53 - height)]),
        (2, oval(0.2, 0.45, 0.04, 0.04)),
    ]


def car(rng: random.Random) -> list[Part]:
    cabin = rng.uniform(0.2, 0.32)
    return [
        (0, [(cabin, 0.5), (cabin + 0.12, 0.27), (0.68, 0.27), (0.82, 0.5)]),
        (0, box(0.03, 0.48, 0.97, 0.72)),
        (1, [(cabin + 0.1, 0.48), (cabin + 0.17, 0.33), (0.62, 0.33), (0.7, 0.48)]),
        (2, oval(0.25, 0.73, 0.12, 0.12)),
        (2, oval(0.75, 0.73, 0.12, 0.12)),
    ]


def boat(rng: random.Random) -> list[Part]:
    mast = rng.uniform(0.42, 0.56)
    return [
        (0, [(0.04, 0.68), (0.96, 0.68), (0.78, 0.92), (0.2, 0.92)]),
        (2, box(mast - 0.02, 0.06, mast + 0.02, 0.68)),
        (1, [(mast + 0.04, 0.1), (0.9, 0.62), (mast + 0.04, 0.62)]),
        (1, [(mast - 0.04, 0.2), (0.14, 0.62), (mast - 0.04, 0.62)]),
    ]


def flower(rng: random.Random) -> list[Part]:
    petals = rng.choice((5, 6, 7))
    angles = [2 * math.pi * i / petals for i in range(petals)]
    return [
        (2, box(0.47, 0.5, 0.53, 0.98)),
        (2, oval(0.63, 0.8, 0.12, 0.05)),
        *((0, oval(0.5 + 0.2 * math.cos(a), 0.32 + 0.2 * math.sin(a), 0.12, 0.12)) for a in angles),
        (1, oval(0.5, 0.32, 0.12, 0.12)),
    ]


def mushroom(rng: random.Random) -> list[Part]:
    width = rng.uniform(0.36, 0.46)
    return [
        (1, [(0.4, 0.5), (0.6, 0.5), (0.66, 0.95), (0.34, 0.95)]),
        (0, oval(0.5, 0.54, width, 0.44, 180, 360)),
        (2, oval(0.35, 0.38, 0.07, 0.06)),
        (2, oval(0.62, 0.3, 0.08, 0.07)),
        (2, oval(0.7, 0.46, 0.05, 0.04)),
    ]


def umbrella(rng: random.Random) -> list[Part]:
    height = rng.uniform(0.36, 0.46)
    return [
        (2, box(0.48, 0.45, 0.52, 0.86)),
        (2, oval(0.43, 0.86, 0.09, 0.09, 0, 180) + oval(0.43, 0.86, 0.05, 0.05, 180, 0)),
        (0, oval(0.5, 0.52, 0.45, height, 180, 360)),
        (1, oval(0.5, 0.52, 0.15, height, 180, 360)),
    ]


def cup(rng: random.Random) -> list[Part]:
    top = rng.uniform(0.22, 0.34)
    return [
        (0, oval(0.73, 0.55, 0.2, 0.18, -90, 90) + oval(0.73, 0.55, 0.12, 0.1, 90, -90)),
        (0, [(0.12, top), (0.76, top), (0.68, 0.88), (0.2, 0.88)]),
        (1, oval(0.44, top, 0.32, 0.07)),
    ]


def bell(rng: random.Random) -> list[Part]:
    flare = rng.uniform(0.34, 0.42)
    shoulder = [(0.3, 0.35), (0.7, 0.35)]
    return [
        (2, oval(0.5, 0.86, 0.09, 0.08)),
        (0, oval(0.5, 0.4, 0.22, 0.3, 180, 360)),
        (0, [*shoulder, (0.5 + flare, 0.82), (0.5 - flare, 0.82)]),
        (1, box(0.5 - flare, 0.76, 0.5 + flare, 0.84)),
    ]


def rocket(rng: random.Random) -> list[Part]:
    wing = rng.uniform(0.1, 0.18)
    return [
        (2, [(0.42, 0.78), (0.58, 0.78), (0.5, 0.99)]),
        (1, [(0.36, 0.52), (0.36 - wing, 0.82), (0.36, 0.76)]),
        (1, [(0.64, 0.52), (0.64 + wing, 0.82), (0.64, 0.76)]),
        (0, oval(0.5, 0.36, 0.16, 0.35, 180, 360) + [(0.64, 0.78), (0.36, 0.78)]),
        (2, oval(0.5, 0.38, 0.07, 0.07)),
    ]


def butterfly(rng: random.Random) -> list[Part]:
    wing = rng.uniform(0.19, 0.25)
    return [
        (0, oval(0.26, 0.34, wing, 0.24)),
        (0, oval(0.74, 0.34, wing, 0.24)),
        (1, oval(0.31, 0.7, wing - 0.05, 0.18)),
        (1, oval(0.69, 0.7, wing - 0.05, 0.18)),
        (2, oval(0.5, 0.52, 0.05, 0.36)),
    ]


def key(rng: random.Random) -> list[Part]:
    length = rng.uniform(0.88, 0.97)
    return [
        (0, oval(0.22, 0.5, 0.2, 0.2)),
        (2, oval(0.2, 0.5, 0.09, 0.09)),
        (0, box(0.38, 0.45, length, 0.55)),
        (1, box(length - 0.1, 0.55, length, 0.72)),
        (1, box(length - 0.28, 0.55, length - 0.18, 0.66)),
    ]


def heart(rng: random.Random) -> list[Part]:
    dip = rng.uniform(0.3, 0.36)
    return [
        (0, oval(0.28, dip, 0.22, 0.22)),
        (0, oval(0.72, dip, 0.22, 0.22)),
        (0, [(0.085, dip + 0.1), (0.5, dip - 0.02), (0.915, dip + 0.1), (0.5, 0.95)]),
    ]


def star(rng: random.Random) -> list[Part]:
    return [(0, spikes(5, rng.uniform(0.18, 0.25), 0.48)), (1, spikes(5, 0.08, 0.2))]


def sun(rng: random.Random) -> list[Part]:
    return [(1, spikes(rng.choice((8, 10, 12)), 0.3, 0.49)), (0, oval(0.5, 0.5, 0.27, 0.27))]


def moon(rng: random.Random) -> list[Part]:
    inner = rng.uniform(0.26, 0.34)
    outside, inside = oval(0.5, 0.5, 0.45, 0.45, 60, 300), oval(0.66, 0.5, inner, 0.38, 285, 75)
    return [(0, outside + inside)]


def apple(rng: random.Random) -> list[Part]:
    return [
        (0, oval(0.36, 0.6, 0.27, 0.32)),
        (0, oval(0.64, 0.6, 0.27, 0.32)),
        (2, box(0.48, 0.12, 0.53, 0.36)),
        (1, oval(0.66, 0.2, rng.uniform(0.1, 0.16), 0.07)),
    ]


def clock(rng: random.Random) -> list[Part]:
    angle = rng.uniform(0, 2 * math.pi)
    x, y = math.cos(angle), math.sin(angle)
    return [
        (0, oval(0.5, 0.5, 0.45, 0.45)),
        (1, oval(0.5, 0.5, 0.37, 0.37)),
        (
            2,
            [
                (0.5 - 0.03 * y, 0.5 + 0.03 * x),
                (0.5 + 0.03 * y, 0.5 - 0.03 * x),
                (0.5 + 0.32 * x, 0.5 + 0.32 * y),
            ],
        ),
        (
            2,
            [
                (0.5 - 0.04 * x, 0.5 - 0.04 * y),
                (0.5 + 0.04 * x, 0.5 + 0.04 * y),
                (0.5 - 0.22 * y, 0.5 + 0.22 * x),
            ],
        ),
    ]


def snowman(rng: random.Random) -> list[Part]:
    return [
        (0, oval(0.5, 0.75, 0.24, 0.22)),
        (0, oval(0.5, 0.43, 0.18, 0.17)),
        (0, oval(0.5, 0.22, 0.12, 0.12)),
        (1, box(0.36, 0.1, 0.64, 0.14)),
        (1, box(0.41, 0.01, 0.59, 0.12)),
        (2, [(0.5, 0.21), (rng.uniform(0.6, 0.7), 0.24), (0.5, 0.26)]),
    ]


def ladder(rng: random.Random) -> list[Part]:
    rungs = rng.choice((4, 5, 6))
    sides = [(0, box(0.24, 0.03, 0.32, 0.97)), (0, box(0.68, 0.03, 0.76, 0.97))]
    heights = [0.12 + 0.76 * i / (rungs - 1) for i in range(rungs)]
    return sides + [(1, box(0.3, y - 0.03, 0.7, y + 0.03)) for y in heights]


def kite(rng: random.Random) -> list[Part]:
    side = rng.uniform(0.3, 0.38)
    return [
        (0, [(0.5, 0.03), (0.5 + side, 0.32), (0.5, 0.7), (0.5 - side, 0.32)]),
        (1, [(0.5, 0.03), (0.5 + side, 0.32), (0.5, 0.32)]),
        (2, [(0.49, 0.7), (0.6, 0.82), (0.5, 0.97), (0.55, 0.82)]),
    ]


def book(rng: random.Random) -> list[Part]:
    fold = rng.uniform(0.28, 0.36)
    return [
        (0, [(0.03, 0.24), (0.5, fold), (0.97, 0.24), (0.97, 0.8), (0.5, 0.88), (0.03, 0.8)]),
        (1, [(0.08, 0.2), (0.49, fold), (0.49, 0.82), (0.08, 0.74)]),
        (1, [(0.92, 0.2), (0.51, fold), (0.51, 0.82), (0.92, 0.74)]),
        (2, box(0.16, 0.4, 0.4, 0.44)),
        (2, box(0.6, 0.4, 0.84, 0.44)),
    ]


def chair(rng: random.Random) -> list[Part]:
    seat = rng.uniform(0.5, 0.58)
    return [
        (0, box(0.22, 0.04, 0.32, 0.96)),
        (0, box(0.7, seat, 0.8, 0.96)),
        (1, box(0.2, seat, 0.82, seat + 0.1)),
        (2, box(0.32, 0.1, 0.4, seat)),
    ]


THINGS: dict[str, Callable[[random.Random], list[Part]]] = {
    thing.__name__: thing
    for thing in (
        house, tree, fish, car, boat, flower, mushroom, umbrella, cup, bell, rocket, butterfly,
        key, heart, star, sun, moon, apple, clock, snowman, ladder, kite, book, chair,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Style:
    """How a scene is drawn. Ranges are (low, high); shares are probabilities.

    saturation, value: of the things' colours; hues are free.
    background: (saturation, value) ranges of the background.
    outline: share of things drawn as outlines instead of filled.
    clutter: number of random strokes over the background.
    others: number of smaller things of other classes; other_size: their size by the main one's.
    size: of the main thing, by the picture's side; tilt: degrees to either side.
    noise: amplitude of grain, 0–255.
    """

    saturation: tuple[float, float]
    value: tuple[float, float]
    background: tuple[tuple[float, float], tuple[float, float]]
    outline: float
    clutter: tuple[int, int]
    others: tuple[int, int]
    other_size: tuple[float, float]
    size: tuple[float, float]
    tilt: float
    noise: float


BOOK_STYLE = Style(
    saturation=(0.4, 1.0),
    value=(0.35, 1.0),
    background=((0.0, 0.4), (0.6, 1.0)),
    outline=0.2,
    clutter=(0, 3),
    others=(0, 0),
    other_size=(0.4, 0.6),
    size=(0.5, 0.95),
    tilt=15,
    noise=0,
)

STREET_STYLE = Style(
    saturation=(0.2, 0.9),
    value=(0.6, 1.0),
    background=((0.1, 0.6), (0.05, 0.3)),
    outline=0.0,
    clutter=(0, 2),
    others=(2, 3),
    other_size=(0.3, 0.45),
    size=(0.55, 0.85),
    tilt=12,
    noise=40,
)

CLASSES = tuple(THINGS)[:12]
TRAIN_IMAGES, TEST_IMAGES = 32, 80  # of each class
SEED = 2208
VERSION = 3  # of the pictures; raise it when anything drawn changes


def draw_demo(parent: str | os.PathLike) -> Path:
    """The demo's pictures as PNG files in `parent`/demo-v3, train/ and test/ of class folders.

    Drawn in a second or two; a folder that was drawn before is used again. Returns the folder.
    """
    folder = Path(parent) / f"demo-v{VERSION}"
    if folder.is_dir():
        return folder
    Path(parent).mkdir(parents=True, exist_ok=True)
    rng, unfinished = random.Random(SEED), folder.with_name(f"{folder.name}.part")
    with locked(folder.with_name(f"{folder.name}.lock")), naming(folder):
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
    """The demo's files within its folder, part/class/file, in the order they are drawn in."""
    for part, count in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
        for name in CLASSES:
            for number in range(count):
                yield PurePath(part, name, f"{name}_{number:03}.png")


def main_things() -> dict[str, Image.Image]:
    """Where the main thing of each test picture of the demo lies: "fish/fish_000.png" → its mask.

    Masks are as large as the pictures, 255 where a pixel is the thing's, 0 where it is not, and
    between at its edge. All pictures are drawn again for them, in a second or two.
    """
    rng, masks = random.Random(SEED), {}
    for file in demo_files():
        _, mask = draw_scene_and_mask(file.parent.name, rng, STREET_STYLE)
        if file.parts[0] == "test":
            masks["/".join(file.parts[1:])] = mask
    return masks


def is_demo(folder: str | os.PathLike) -> bool:
    """Whether `draw_demo` of this or another version has made the folder, by its name."""
    return Path(folder).name.startswith("demo-v")


def draw_scene(
    thing: str, rng: random.Random, style: Style, side: int = 96, others: list[str] | None = None
) -> Image.Image:
    """A picture (side × side, RGB) of one thing, with smaller others around it as in the style."""
    return draw_scene_and_mask(thing, rng, style, side, others)[0]


def draw_scene_and_mask(
    thing: str, rng: random.Random, style: Style, side: int = 96, others: list[str] | None = None
) -> tuple[Image.Image, Image.Image]:
    """The picture of `draw_scene`, and how much of each pixel is the thing's (L, 0–255).

    What is drawn as an outline counts with all that it encloses.
    """
    scale = 2  # drawn larger and reduced: smooth edges
    image = Image.new("RGB", (side * scale, side * scale), background_colour(rng, style))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(*style.clutter)):
        ends = [(rng.random() * side * scale, rng.random() * side * scale) for _ in range(2)]
        draw.line(ends, fill=colour(rng, style), width=rng.randint(1, 3) * scale)
    size = rng.uniform(*style.size)
    if others is None:
        others = rng.sample([name for name in THINGS if name != thing], rng.randint(*style.others))
    for name in others:
        small = size * rng.uniform(*style.other_size)
        draw_thing(draw, name, rng, style, small, side * scale, at_edge=True)
    mask = Image.new("L", image.size)
    for polygon in draw_thing(draw, thing, rng, style, size, side * scale, at_edge=False):
        ImageDraw.Draw(mask).polygon(polygon, fill=255)  # the last one drawn: nothing covers it
    image, mask = (drawn.resize((side, side), Image.Resampling.BOX) for drawn in (image, mask))
    return add_grain(image, rng, style.noise) if style.noise else image, mask


def draw_thing(
    draw: ImageDraw.ImageDraw,
    name: str,
    rng: random.Random,
    style: Style,
    size: float,
    pixels: int,
    at_edge: bool,
) -> list[list[Point]]:
    """One thing: `size` by the picture's side, anywhere where it fits, or about an edge.

    Returns its polygons as they lie in the picture.
    """
    room = 1 - size
    x, y = rng.random() * room, rng.random() * room
    if at_edge:
        along, across = rng.random() * room, rng.choice((-0.2 * size, 1 - 0.8 * size))
        x, y = rng.choice(((along, across), (across, along)))
    angle = math.radians(rng.uniform(-style.tilt, style.tilt))
    mirror = rng.choice((-1, 1))
    stretch = rng.uniform(0.85, 1.0)
    colours = [colour(rng, style) for _ in range(3)]
    outline = rng.random() < style.outline

    def place(px: float, py: float) -> Point:
        u, v = (px - 0.5) * mirror * stretch, py - 0.5
        right = u * math.cos(angle) - v * math.sin(angle)
        down = u * math.sin(angle) + v * math.cos(angle)
        return (x + (right + 0.5) * size) * pixels, (y + (down + 0.5) * size) * pixels

    parts = [(which, [place(*point) for point in part]) for which, part in THINGS[name](rng)]
    for which, placed in parts:
        if outline:
            width = max(2, round(pixels * 0.018))
            draw.line([*placed, placed[0]], fill=colours[which], width=width)
        else:
            draw.polygon(placed, fill=colours[which])
    return [placed for _, placed in parts]


def colour(rng: random.Random, style: Style) -> tuple[int, int, int]:
    """A random colour of the style's things."""
    return hsv(rng.random(), rng.uniform(*style.saturation), rng.uniform(*style.value))


def background_colour(rng: random.Random, style: Style) -> tuple[int, int, int]:
    """A random colour of the style's backgrounds."""
    saturation, value = style.background
    return hsv(rng.random(), rng.uniform(*saturation), rng.uniform(*value))


def hsv(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    """Hue, saturation and value in 0–1 as an RGB triple in 0–255."""
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))


def add_grain(image: Image.Image, rng: random.Random, amplitude: float) -> Image.Image:
    """The picture plus uniform noise of ± amplitude/2, the same in the three channels."""
    grain = Image.frombytes("L", image.size, rng.randbytes(image.width * image.height))
    grain = grain.point(lambda v: round(v * amplitude / 255)).convert("RGB")
    return ImageChops.add(image, grain, offset=-round(amplitude / 2))
