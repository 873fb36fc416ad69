"""A page of HTML in one file that needs nothing else: no script, no font, no address.

tag, table, figure, picture -> Markup; page -> the text of the file
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable

from PIL import Image

from ..files import one_line, printable

LONGEST = 80  # characters of a name from the data
STYLE = """
:root { --paper: #fff; --ink: #1b1f24; --soft: #59636e; --rule: #d5dae0; --wash: #f4f6f8;
  --zero: #8a929c; --learned: #0072b2; --wrong: #d55e00;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b0578d; --c4: #a87d00; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181c; --ink: #e6e9ed; --soft: #9aa4af;
  --rule: #363d46; --wash: #1e2329; --zero: #8a929c; --learned: #56b4e9; --wrong: #f0883e;
  --c0: #56b4e9; --c1: #f0883e; --c2: #2fc99b; --c3: #dd93c0; --c4: #e2c04f; } }
* { box-sizing: border-box }
html { color-scheme: light dark; -webkit-text-size-adjust: 100% }
body { margin: 0 auto; padding: 24px 16px 48px; max-width: 1080px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere }
h2 { font-size: 18px; margin: 40px 0 4px }
h3 { font-size: 14px; margin: 20px 0 6px }
p { margin: 0 0 10px; max-width: 78ch; overflow-wrap: anywhere }
.soft, figcaption, summary { color: var(--soft); font-size: 13.5px }
ul { margin: 6px 0; padding-left: 20px; overflow-wrap: anywhere }
.numbers { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0 12px }
.numbers div { background: var(--wash); border-radius: 8px; padding: 10px 16px; flex: 1 1 150px }
.numbers b { display: block; font-size: 28px; line-height: 1.25; font-weight: 600;
  font-variant-numeric: tabular-nums }
.numbers .learned b { color: var(--learned) }
.grid { display: grid; gap: 20px;
  grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)) }
.wide { grid-template-columns: repeat(auto-fill, minmax(min(400px, 100%), 1fr)) }
figure > svg, .wide figure { max-width: 440px }
.narrow { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)) }
figure { margin: 0; min-width: 0 }
figcaption { overflow-wrap: anywhere }
figcaption { margin-top: 4px; line-height: 1.4 }
figcaption b { color: var(--ink); font-weight: 600 }
figcaption span, figcaption small { display: block }
figcaption i { font-style: normal; white-space: nowrap }
svg { display: block; width: 100%; height: auto; overflow: visible }
svg text { font-size: 11px; fill: var(--soft); font-family: inherit }
.axis { stroke: var(--rule); stroke-width: 1; fill: none }
.line { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round }
.dashed { stroke-dasharray: 5 4 }
.mark { fill: var(--paper); stroke: currentColor; stroke-width: 1.8 }
.full { fill: currentColor }
.shade { fill: var(--wash) }
.c0 { color: var(--c0) } .c1 { color: var(--c1) } .c2 { color: var(--c2) } .c3 { color: var(--c3) }
.c4 { color: var(--c4) } .cz { color: var(--zero) }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 13px; margin: 2px 0 0 }
.legend span { display: inline-flex; align-items: center; gap: 6px }
.legend svg { width: 26px; flex: none }
.legend em { font-style: normal; color: var(--ink) }
.scroll { overflow-x: auto; max-width: 100% }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 600 }
td, th { padding: 3px 12px 3px 0; vertical-align: baseline }
thead th { border-bottom: 1px solid var(--rule); color: var(--soft); font-weight: 500 }
tbody tr + tr td, tbody tr + tr th { border-top: 1px solid var(--rule) }
.number { text-align: right; white-space: nowrap }
.better { color: var(--learned) } .worse { color: var(--wrong) }
.classes { width: 100% } .classes th { font-weight: 400; min-width: 84px; overflow-wrap: anywhere }
.track { width: 45%; min-width: 90px; padding-right: 20px }
.track div { position: relative; height: 12px; top: 1px }
.track div::before { content: ""; position: absolute; left: 0; right: 0; top: 5.5px;
  border-top: 1px solid var(--rule) }
.track i { position: absolute; width: 10px; height: 10px; margin: 1px 0 0 -5px; border-radius: 5px;
  background: var(--learned) }
.track i.z { background: var(--paper); border: 2px solid var(--zero) }
.track u { position: absolute; top: 4.5px; height: 3px; background: var(--learned); opacity: .45 }
.track u.worse { background: var(--wrong) }
.matrix td { width: 27px; height: 27px; min-width: 27px; padding: 0; text-align: center;
  border: 1px solid var(--paper); font-size: 12px; background: var(--wash); vertical-align: middle }
.matrix th, .matrix tbody tr + tr th { font-weight: 400; border: 0;
  padding: 0 8px 0 0; white-space: nowrap; vertical-align: middle }
.matrix thead th { vertical-align: bottom; padding: 0 0 6px; color: var(--ink) }
.matrix thead span { writing-mode: vertical-rl; transform: rotate(180deg); display: inline-block;
  line-height: 27px; max-height: 150px; overflow: hidden }
.shots { display: flex; gap: 3px } .shots span { flex: 1 1 0; min-width: 0 }
.shots img { display: block; width: 100%; border-radius: 4px }
.words td { white-space: nowrap } .words th { font-weight: 400; color: var(--soft) }
.words small { color: var(--soft); margin-left: 3px }
details { margin: 14px 0 } summary { cursor: pointer }
@media (max-width: 560px) { .classes td, .classes th { padding-right: 7px; font-size: 12.5px }
  .classes th { min-width: 78px } .track { min-width: 60px } }
@media print { body { max-width: none } }
"""


class Markup(str):
    """Text that is HTML already."""


def tag(name: str, /, *content: object, **attributes: object) -> Markup:
    """An element. Content that is no Markup, and every attribute, is escaped, whatever it holds.

    `class_` stands for class, `stroke_width` for stroke-width.
    """
    inside = "".join(part if isinstance(part, Markup) else text(part) for part in content)
    named = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"' for key, value in attributes.items()
    )
    return Markup(
        f"<{name}{named}>" if name in ("img", "meta", "br") else f"<{name}{named}>{inside}</{name}>"
    )


def text(value: object) -> Markup:
    """A value as text; control characters and what is no text of UTF-8 are spelt out."""
    return Markup(html.escape(printable(str(value))))


def name(value: object, longest: int = LONGEST) -> Markup:
    """A name from the data, cut in its middle, of whatever direction of writing."""
    return tag("bdi", one_line(value, longest))


def joined(parts: Iterable[Markup]) -> Markup:
    """One after the other."""
    return Markup("".join(parts))


def table(heads: Iterable[object], lines: Iterable[Iterable[object]], **attributes: str) -> Markup:
    """The first cell of a line is its head; cells that are numbers, or look so, stand right."""
    rows = [list(line) for line in lines]
    body = joined(
        tag("tr", tag("th", line[0], scope="row"), *map(_cell, line[1:])) for line in rows
    )
    numeric = [bool(rows) and all(map(_is_number, column)) for column in zip(*rows)]
    heads = [
        tag("th", head, scope="col", **{"class": "number"} if number else {})
        for head, number in zip(heads, numeric or [False] * 99)
    ]
    return tag(
        "div",
        tag("table", tag("thead", tag("tr", *heads)), tag("tbody", body), **attributes),
        class_="scroll",
    )


def _is_number(value: object) -> bool:
    if isinstance(value, Markup):
        return value.startswith('<td class="number')
    return value != "" and str(value)[0] in "+-−0123456789"


def _cell(value: object) -> Markup:
    if isinstance(value, Markup) and value.startswith("<td"):
        return value
    return tag("td", value, class_="number") if _is_number(value) else tag("td", value)


def picture(image: Image.Image, about: str) -> Markup:
    """A picture within the page, as JPEG."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=82)
    source = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
    side, height = image.size
    opening = f'<img src="{source}" width="{side}" height="{height}" alt="{text(about)}">'
    return Markup(opening)


def section(title: str, about: str, *content: Markup) -> Markup:
    """A heading, what is to be seen below it, and that."""
    return tag("section", tag("h2", title), tag("p", about, class_="soft"), *content)


def page(title: str, content: Iterable[Markup]) -> str:
    """The whole file. Its policy forbids the browser to fetch or to run anything."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    body = tag("body", joined(content))
    return f'<!doctype html>\n<html lang="en">{head}\n{body}</html>\n'
