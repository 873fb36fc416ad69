"""A page of HTML in one file that needs nothing else: no script, no font, no address.

tag, table, image, section, line_chart -> Markup; page -> the text of the file
"""

import base64
import html
import io
import math
import pkgutil
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from PIL import Image

from ..support.files import printable, to_single_line

WIDTH, HEIGHT = 340, 216  # of a chart
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 24, 36  # margins
NUMBER = re.compile(r"(<[^>]*>)?([+−-]?\d|–|$)")  # how a cell begins that stands right


class Markup(str):
    """Text that is HTML already."""


def tag(name: str, /, *content: object, **attributes: object) -> Markup:
    """Return an element. Content that is no Markup, and every attribute, is escaped.

    `class_` stands for class, `stroke_width` for stroke-width.
    """
    inside = "".join(each if isinstance(each, Markup) else text(each) for each in content)
    opening = " ".join([name, *(
        f'{key.rstrip("_").replace("_", "-")}="{text(value)}"' for key, value in attributes.items()
    )])  # fmt: skip
    return Markup(f"<{opening}>{inside}</{name}>")


def text(value: object) -> Markup:
    """Return a value as text; control characters and what is no text of UTF-8 are spelt out."""
    return Markup(html.escape(printable(str(value))))


def name(value: object, limit: int = 80) -> Markup:
    """Return a name from the data, cut in its middle, of whatever direction of writing."""
    return tag("bdi", to_single_line(value, limit))


def bullets(items: Iterable[object], kind: str = "ul") -> Markup:
    """Return a list of items, numbered with `kind` "ol"."""
    return tag(kind, *(tag("li", each) for each in items))


def table(heads: Sequence[object], lines: Iterable[Sequence[object]], style: str = "") -> Markup:
    """Return a table; each line's first cell is its head, columns of numbers stand right."""
    rows = [[cell if isinstance(cell, Markup) else text(cell) for cell in line] for line in lines]
    numeric = [all(map(NUMBER.match, column)) for column in zip(*rows)] or [False] * len(heads)
    styles = [{}, *({"class_": "number"} if right else {} for right in numeric[1:])]
    head = (tag("th", cell, scope="col", **style) for cell, style in zip(heads, styles))
    body = []
    for first, *others in rows:
        cells = (tag("td", cell, **style) for cell, style in zip(others, styles[1:]))
        body.append(tag("tr", tag("th", first, scope="row"), *cells))
    content = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body), class_=style)
    return tag("div", content, class_="scroll")


def image(view: Image.Image, about: str) -> Markup:
    """Return an image within the page, as JPEG."""
    stream = io.BytesIO()
    view.save(stream, "JPEG", quality=82)
    source = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return Markup(f'<img src="{source}" alt="{text(about)}">')


def section(title: str, about: str, *content: Markup) -> Markup:
    """Return a heading, what is to be seen below it, and that."""
    return tag("section", tag("h2", title), tag("p", about, class_="soft"), *content)


def page(title: str, content: Iterable[Markup]) -> str:
    """Return the file's text. Its policy forbids the browser to fetch or to run anything."""
    style = pkgutil.get_data(__package__, "page.css").decode()
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title><style>
{style}</style></head>
<body>{"".join(content)}</body></html>
"""


class Series(NamedTuple):
    """A line of a chart: points (x, y), perhaps with the deviation of each y."""

    name: str
    style: str  # a class of the page
    points: Sequence[tuple[float, float]]
    deviations: Sequence[float] = ()


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return some `count` round numbers, the first at or below `low`, the last at or above."""
    span = high - low if high > low else abs(high)
    rough = max(span, abs(high) / 1000, 1e-9) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * n, 12) for n in range(first, max(last, first + 1) + 1)]


def line_chart(
    y_title: str,
    x_title: str,
    series: Sequence[Series],
    categories: Sequence[str] = (),
    shaded: float | None = None,
) -> Markup:
    """Draw lines over numbers, from the least x; or over `categories`, whose numbers are the xs.

    shaded: up to which x the background is another.
    """
    xs = [x for each in series for x, _ in each.points]
    left, right = (-0.5, len(categories) - 0.5) if categories else (min(xs), max(xs))
    ys = [y + sign * deviation for each in series for sign in (-1, 1) for (_, y), deviation
          in zip(each.points, each.deviations or [0] * len(each.points), strict=True)]  # fmt: skip
    y_ticks = ticks(min(ys), max(ys))

    def x_of(x: float) -> float:
        return round(LEFT + (x - left) / ((right - left) or 1) * (WIDTH - RIGHT - LEFT), 1)

    def y_of(y: float) -> float:
        share = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP), 1)

    labels = dict(enumerate(categories)) or {
        x: f"{x:g}" for x in [left, *ticks(left, right, 4)] if left <= x <= right and x == int(x)
    }
    parts = [tag("title", f"{y_title} by {x_title}")]
    if shaded is not None and shaded > left:
        width = x_of(min(shaded, right)) - LEFT
        parts.append(tag("rect", x=LEFT, y=TOP, width=width, height=HEIGHT - TOP - BOTTOM,
                         class_="shade"))  # fmt: skip
    for y in y_ticks:
        parts.append(tag("path", d=f"M{LEFT},{y_of(y)}H{WIDTH - RIGHT}", class_="axis"))
        parts.append(tag("text", f"{y:g}", x=LEFT - 6, y=y_of(y) + 4, text_anchor="end"))
    for x, label in labels.items():
        parts.append(tag("text", label, x=x_of(x), y=HEIGHT - 21, text_anchor="middle"))
    parts.append(tag("text", y_title, x=0, y=TOP - 12))
    parts.append(tag("text", x_title, x=WIDTH / 2, y=HEIGHT - 4, text_anchor="middle"))
    parts += [_line(each, x_of, y_of) for each in series]
    chart = tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")
    names = (tag("span", f"● {each.name} ", class_=each.style) for each in series if each.name)
    return tag("figure", chart, *names)


def _line(series: Series, x_of: Callable, y_of: Callable) -> Markup:
    places = [(x_of(x), y_of(y)) for x, y in series.points]
    paths = ["M" + "L".join(f"{x},{y}" for x, y in places)]
    for (x, y), deviation in zip(series.points, series.deviations):
        if deviation:
            top, bottom = y_of(y + deviation), y_of(y - deviation)
            paths.append(f"M{x_of(x) - 5},{top}h10m-5,0V{bottom}m-5,0h10")
    parts = [tag("path", d=path, class_="line") for path in paths]
    if series.deviations or len(places) == 1:
        parts += [tag("circle", cx=x, cy=y, r=3, class_="mark") for x, y in places]
    return tag("g", *parts, class_=series.style)
