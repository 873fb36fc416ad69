"""The 24 everyday things of the demo, as polygons: what `demo.py` draws.

A thing is drawn anew each time: a few of its lengths come from the generator that is passed.
"""

import math
import random
from collections.abc import Callable, Iterator

Point = tuple[float, float]
Part = tuple[int, list[Point]]  # which of the three colours, and a polygon in the unit square


def oval(
    x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360
) -> list[Point]:
    """Return an arc of an ellipse around (x, y), clockwise from the right; angles in degrees."""
    steps = [math.radians(start + (end - start) * i / 24) for i in range(25)]
    return [(x + rx * math.cos(t), y + ry * math.sin(t)) for t in steps]


def box(left: float, top: float, right: float, bottom: float) -> list[Point]:
    """Return a rectangle."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def spikes(count: int, inner: float, outer: float) -> list[Point]:
    """Return a star in the middle with `count` points, the first one up."""
    angles = [math.pi * i / count - math.pi / 2 for i in range(2 * count)]
    rays = zip([outer, inner] * count, angles, strict=True)
    return [(0.5 + r * math.cos(t), 0.5 + r * math.sin(t)) for r, t in rays]


def house(rng: random.Random) -> Iterator[Part]:
    roof, door = rng.uniform(0.3, 0.5), rng.uniform(0.3, 0.6)
    yield 0, box(0.15, roof, 0.85, 0.95)
    yield 1, [(0.05, roof), (0.5, 0.05), (0.95, roof)]
    yield 2, box(door, 0.65, door + 0.17, 0.95)
    yield 2, box(0.22, roof + 0.1, 0.38, roof + 0.25)


def tree(rng: random.Random) -> Iterator[Part]:
    yield 1, box(0.43, 0.6, 0.57, 0.97)
    if rng.random() < 0.5:
        yield 0, oval(0.5, 0.36, rng.uniform(0.28, 0.4), 0.33)
    else:
        for y, w in ((0.42, 0.38), (0.22, 0.31), (0.03, 0.23)):
            yield 0, [(0.5, y), (0.5 - w, y + 0.32), (0.5 + w, y + 0.32)]


def fish(rng: random.Random) -> Iterator[Part]:
    height = rng.uniform(0.2, 0.32)
    yield 1, [(0.68, 0.5), (0.97, 0.5 - height), (0.97, 0.5 + height)]
    yield 0, oval(0.42, 0.5, 0.38, height)
    yield 1, [(0.35, 0.5 - height), (0.5, 0.42 - height), (0.58, 0.53 - height)]
    yield 2, oval(0.2, 0.45, 0.04, 0.04)


def car(rng: random.Random) -> Iterator[Part]:
    cabin = rng.uniform(0.2, 0.32)
    yield 0, [(cabin, 0.5), (cabin + 0.12, 0.27), (0.68, 0.27), (0.82, 0.5)]
    yield 0, box(0.03, 0.48, 0.97, 0.72)
    yield 1, [(cabin + 0.1, 0.48), (cabin + 0.17, 0.33), (0.62, 0.33), (0.7, 0.48)]
    yield 2, oval(0.25, 0.73, 0.12, 0.12)
    yield 2, oval(0.75, 0.73, 0.12, 0.12)


def boat(rng: random.Random) -> Iterator[Part]:
    mast = rng.uniform(0.42, 0.56)
    yield 0, [(0.04, 0.68), (0.96, 0.68), (0.78, 0.92), (0.2, 0.92)]
    yield 2, box(mast - 0.02, 0.06, mast + 0.02, 0.68)
    yield 1, [(mast + 0.04, 0.1), (0.9, 0.62), (mast + 0.04, 0.62)]
    yield 1, [(mast - 0.04, 0.2), (0.14, 0.62), (mast - 0.04, 0.62)]


def flower(rng: random.Random) -> Iterator[Part]:
    petals = rng.choice((5, 6, 7))
    yield 2, box(0.47, 0.5, 0.53, 0.98)
    yield 2, oval(0.63, 0.8, 0.12, 0.05)
    for number in range(petals):
        angle = 2 * math.pi * number / petals
        yield 0, oval(0.5 + 0.2 * math.cos(angle), 0.32 + 0.2 * math.sin(angle), 0.12, 0.12)
    yield 1, oval(0.5, 0.32, 0.12, 0.12)


def mushroom(rng: random.Random) -> Iterator[Part]:
    width = rng.uniform(0.36, 0.46)
    yield 1, [(0.4, 0.5), (0.6, 0.5), (0.66, 0.95), (0.34, 0.95)]
    yield 0, oval(0.5, 0.54, width, 0.44, 180, 360)
    yield 2, oval(0.35, 0.38, 0.07, 0.06)
    yield 2, oval(0.62, 0.3, 0.08, 0.07)
    yield 2, oval(0.7, 0.46, 0.05, 0.04)


def umbrella(rng: random.Random) -> Iterator[Part]:
    height = rng.uniform(0.36, 0.46)
    yield 2, box(0.48, 0.45, 0.52, 0.86)
    yield 2, oval(0.43, 0.86, 0.09, 0.09, 0, 180) + oval(0.43, 0.86, 0.05, 0.05, 180, 0)
    yield 0, oval(0.5, 0.52, 0.45, height, 180, 360)
    yield 1, oval(0.5, 0.52, 0.15, height, 180, 360)


def cup(rng: random.Random) -> Iterator[Part]:
    top = rng.uniform(0.22, 0.34)
    yield 0, oval(0.73, 0.55, 0.2, 0.18, -90, 90) + oval(0.73, 0.55, 0.12, 0.1, 90, -90)
    yield 0, [(0.12, top), (0.76, top), (0.68, 0.88), (0.2, 0.88)]
    yield 1, oval(0.44, top, 0.32, 0.07)


def bell(rng: random.Random) -> Iterator[Part]:
    flare = rng.uniform(0.34, 0.42)
    yield 2, oval(0.5, 0.86, 0.09, 0.08)
    yield 0, oval(0.5, 0.4, 0.22, 0.3, 180, 360)
    yield 0, [(0.3, 0.35), (0.7, 0.35), (0.5 + flare, 0.82), (0.5 - flare, 0.82)]
    yield 1, box(0.5 - flare, 0.76, 0.5 + flare, 0.84)


def rocket(rng: random.Random) -> Iterator[Part]:
    wing = rng.uniform(0.1, 0.18)
    yield 2, [(0.42, 0.78), (0.58, 0.78), (0.5, 0.99)]
    yield 1, [(0.36, 0.52), (0.36 - wing, 0.82), (0.36, 0.76)]
    yield 1, [(0.64, 0.52), (0.64 + wing, 0.82), (0.64, 0.76)]
    yield 0, oval(0.5, 0.36, 0.16, 0.35, 180, 360) + [(0.64, 0.78), (0.36, 0.78)]
    yield 2, oval(0.5, 0.38, 0.07, 0.07)


def butterfly(rng: random.Random) -> Iterator[Part]:
    wing = rng.uniform(0.19, 0.25)
    yield 0, oval(0.26, 0.34, wing, 0.24)
    yield 0, oval(0.74, 0.34, wing, 0.24)
    yield 1, oval(0.31, 0.7, wing - 0.05, 0.18)
    yield 1, oval(0.69, 0.7, wing - 0.05, 0.18)
    yield 2, oval(0.5, 0.52, 0.05, 0.36)


def key(rng: random.Random) -> Iterator[Part]:
    length = rng.uniform(0.88, 0.97)
    yield 0, oval(0.22, 0.5, 0.2, 0.2)
    yield 2, oval(0.2, 0.5, 0.09, 0.09)
    yield 0, box(0.38, 0.45, length, 0.55)
    yield 1, box(length - 0.1, 0.55, length, 0.72)
    yield 1, box(length - 0.28, 0.55, length - 0.18, 0.66)


def heart(rng: random.Random) -> Iterator[Part]:
    dip = rng.uniform(0.3, 0.36)
    yield 0, oval(0.28, dip, 0.22, 0.22)
    yield 0, oval(0.72, dip, 0.22, 0.22)
    yield 0, [(0.085, dip + 0.1), (0.5, dip - 0.02), (0.915, dip + 0.1), (0.5, 0.95)]


def star(rng: random.Random) -> Iterator[Part]:
    yield 0, spikes(5, rng.uniform(0.18, 0.25), 0.48)
    yield 1, spikes(5, 0.08, 0.2)


def sun(rng: random.Random) -> Iterator[Part]:
    yield 1, spikes(rng.choice((8, 10, 12)), 0.3, 0.49)
    yield 0, oval(0.5, 0.5, 0.27, 0.27)


def moon(rng: random.Random) -> Iterator[Part]:
    inner = rng.uniform(0.26, 0.34)
    yield 0, oval(0.5, 0.5, 0.45, 0.45, 60, 300) + oval(0.66, 0.5, inner, 0.38, 285, 75)


def apple(rng: random.Random) -> Iterator[Part]:
    yield 0, oval(0.36, 0.6, 0.27, 0.32)
    yield 0, oval(0.64, 0.6, 0.27, 0.32)
    yield 2, box(0.48, 0.12, 0.53, 0.36)
    yield 1, oval(0.66, 0.2, rng.uniform(0.1, 0.16), 0.07)


def clock(rng: random.Random) -> Iterator[Part]:
    angle = rng.uniform(0, 2 * math.pi)
    x, y = math.cos(angle), math.sin(angle)

    def hand(x: float, y: float, half: float, length: float) -> list[Point]:
        base = [(0.5 - half * y, 0.5 + half * x), (0.5 + half * y, 0.5 - half * x)]
        return [*base, (0.5 + length * x, 0.5 + length * y)]

    yield 0, oval(0.5, 0.5, 0.45, 0.45)
    yield 1, oval(0.5, 0.5, 0.37, 0.37)
    yield 2, hand(x, y, 0.03, 0.32)
    yield 2, hand(-y, x, 0.04, 0.22)


def snowman(rng: random.Random) -> Iterator[Part]:
    yield 0, oval(0.5, 0.75, 0.24, 0.22)
    yield 0, oval(0.5, 0.43, 0.18, 0.17)
    yield 0, oval(0.5, 0.22, 0.12, 0.12)
    yield 1, box(0.36, 0.1, 0.64, 0.14)
    yield 1, box(0.41, 0.01, 0.59, 0.12)
    yield 2, [(0.5, 0.21), (rng.uniform(0.6, 0.7), 0.24), (0.5, 0.26)]


def ladder(rng: random.Random) -> Iterator[Part]:
    rungs = rng.choice((4, 5, 6))
    yield 0, box(0.24, 0.03, 0.32, 0.97)
    yield 0, box(0.68, 0.03, 0.76, 0.97)
    for number in range(rungs):
        y = 0.12 + 0.76 * number / (rungs - 1)
        yield 1, box(0.3, y - 0.03, 0.7, y + 0.03)


def kite(rng: random.Random) -> Iterator[Part]:
    side = rng.uniform(0.3, 0.38)
    yield 0, [(0.5, 0.03), (0.5 + side, 0.32), (0.5, 0.7), (0.5 - side, 0.32)]
    yield 1, [(0.5, 0.03), (0.5 + side, 0.32), (0.5, 0.32)]
    yield 2, [(0.49, 0.7), (0.6, 0.82), (0.5, 0.97), (0.55, 0.82)]


def book(rng: random.Random) -> Iterator[Part]:
    fold = rng.uniform(0.28, 0.36)
    yield 0, [(0.03, 0.24), (0.5, fold), (0.97, 0.24), (0.97, 0.8), (0.5, 0.88), (0.03, 0.8)]
    yield 1, [(0.08, 0.2), (0.49, fold), (0.49, 0.82), (0.08, 0.74)]
    yield 1, [(0.92, 0.2), (0.51, fold), (0.51, 0.82), (0.92, 0.74)]
    yield 2, box(0.16, 0.4, 0.4, 0.44)
    yield 2, box(0.6, 0.4, 0.84, 0.44)


def chair(rng: random.Random) -> Iterator[Part]:
    seat = rng.uniform(0.5, 0.58)
    yield 0, box(0.22, 0.04, 0.32, 0.96)
    yield 0, box(0.7, seat, 0.8, 0.96)
    yield 1, box(0.2, seat, 0.82, seat + 0.1)
    yield 2, box(0.32, 0.1, 0.4, seat)


THINGS: dict[str, Callable[[random.Random], Iterator[Part]]] = {
    thing.__name__: thing
    for thing in (
        house, tree, fish, car, boat, flower, mushroom, umbrella, cup, bell, rocket, butterfly,
        key, heart, star, sun, moon, apple, clock, snowman, ladder, kite, book, chair,
    )
}  # fmt: skip
