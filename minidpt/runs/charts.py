"""Charts as inline SVG, coloured by the page's style: lines over numbers or categories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from .page import Markup, joined, tag

WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 18, 36  # margins
MOST_POINTS = 400  # of a line: more are not to be seen
SHAPES = ("M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0", "M-3.5,-3.5h7v7h-7z", "M0,-4.6L4.6,3.6H-4.6z",
          "M0,-5L5,0L0,5L-5,0z", "M0,4.6L4.6,-3.6H-4.6z")  # fmt: skip


class Series(NamedTuple):
    """A line: points (x, y), perhaps with the deviation of each y; `style` is a class of the page.

    level: one y, for all x.
    """

    name: str
    style: str
    points: Sequence[tuple[float, float]] = ()
    deviations: Sequence[float] = ()
    shape: int | None = None
    level: float | None = None


class Scale(NamedTuple):
    """From a value to its place."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1)
        return round(self.start + share * (self.stop - self.start), 1)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers, some `count` of them, the first at or below `low`, the last at or above."""
    rough = max(high - low, 1e-9) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * n, 12) for n in range(first, max(last, first + 1) + 1)]


def line_chart(
    y_title: str,
    x_title: str,
    series: Sequence[Series],
    categories: Sequence[str] = (),
    bounds: tuple[float, float] | None = None,
    shaded: float | None = None,
) -> Markup:
    """Lines over numbers, from the least x; or over `categories`, whose numbers are the xs.

    bounds: those that the y axis does not go beyond, as 0 and 100 for percent. shaded: up to which
    x the background is another.
    """
    xs = [x for one in series for x, _ in one.points] or [0.0]
    ys = [y for one in series for y in _extent(one)] or [0.0]
    steps = ticks(min(ys), max(ys))
    if bounds:
        steps = [step for step in steps if bounds[0] <= step <= bounds[1]] or list(bounds)
    left, right = (-0.5, len(categories) - 0.5) if categories else (min(xs), max(xs))
    x_of = Scale(left, right, LEFT, WIDTH - RIGHT)
    y_of = Scale(steps[0], steps[-1], HEIGHT - BOTTOM, TOP)
    parts = [tag("title", f"{y_title} by {x_title}: {', '.join(one.name for one in series)}")]
    if shaded is not None and shaded > left:
        width = x_of(min(shaded, right)) - LEFT
        height = HEIGHT - TOP - BOTTOM
        parts.append(tag("rect", x=LEFT, y=TOP, width=width, height=height, class_="shade"))
    parts += _axes(y_title, x_title, steps, y_of)
    shown = dict(enumerate(categories)) if categories else {
        x: f"{x:g}" for x in ticks(left, right, 4) if left <= x <= right and x == int(x)
    } | {left: f"{left:g}"}  # fmt: skip
    parts += [
        tag("text", label, x=x_of(x), y=HEIGHT - BOTTOM + 15, text_anchor="middle")
        for x, label in shown.items()
    ]
    parts += [_drawn(one, x_of, y_of) for one in series]
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")


def _extent(series: Series) -> list[float]:
    """The least and greatest y that are drawn of it."""
    spread = series.deviations or [0.0] * len(series.points)
    ends = [y + s * d for (_, y), d in zip(series.points, spread, strict=True) for s in (-1, 1)]
    return ends if series.level is None else [*ends, series.level]


def _axes(y_title: str, x_title: str, steps: Sequence[float], y_of: Scale) -> list[Markup]:
    parts = []
    for step in steps:
        y = y_of(step)
        parts.append(tag("path", d=f"M{LEFT},{y}H{WIDTH - RIGHT}", class_="axis"))
        parts.append(tag("text", f"{step:g}", x=LEFT - 6, y=y + 4, text_anchor="end"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(tag("text", y_title, x=0, y=TOP - 8))
    parts.append(tag("text", x_title, x=middle, y=HEIGHT - 4, text_anchor="middle"))
    return parts


def _drawn(series: Series, x_of: Scale, y_of: Scale) -> Markup:
    parts = []
    if series.level is not None:
        y = y_of(series.level)
        parts.append(tag("path", d=f"M{LEFT},{y}H{WIDTH - RIGHT}", class_="line dashed"))
    stride = math.ceil(len(series.points) / MOST_POINTS) or 1
    kept = [*series.points[:-1:stride], *series.points[-1:]]
    places = [f"{x_of(x)},{y_of(y)}" for x, y in kept]
    if len(places) > 1:
        parts.append(tag("path", d="M" + "L".join(places), class_="line"))
    for (x, y), deviation in zip(series.points, series.deviations):
        top, bottom = y_of(y + deviation), y_of(y - deviation)
        bar = f"M{x_of(x) - 5},{top}h10m-5,0V{bottom}m-5,0h10"
        parts += [tag("path", d=bar, class_="line")] if deviation else []
    if series.shape is not None or len(places) == 1:
        mark, shape = "mark full", SHAPES[(series.shape or 0) % len(SHAPES)]
        parts += [
            tag("path", d=shape, transform=f"translate({place}) scale(.8)", class_=mark)
            for place in places
        ]
    return tag("g", *parts, class_=series.style)


def legend(series: Sequence[Series]) -> Markup:
    """What the lines of a chart are."""
    entries = []
    for one in series:
        level = " dashed" if one.level is not None else ""
        parts = [tag("path", d="M0,6H26", class_=f"line{level}")]
        if one.shape is not None:
            shape = SHAPES[one.shape % len(SHAPES)]
            parts.append(tag("path", d=shape, transform="translate(13,6)", class_="mark full"))
        key = tag("svg", *parts, viewBox="0 0 26 12", aria_hidden="true")
        entries.append(tag("span", key, tag("em", one.name), class_=one.style))
    return tag("div", joined(entries), class_="legend")
