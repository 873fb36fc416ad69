"""Sections of a report that need no file: of predictions, and of the rows of tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image

from ..config import METHODS
from ..maps import AttentionMaps
from .charts import Series, legend, line_chart
from .drawing import overlay
from .page import Markup, joined, name, picture, section, table, tag
from .predictions import Predictions
from .results import Row
from .tables import caption, chart_groups, tables

MATRIX, PAIRS = 30, 30  # most classes of a matrix, and pairs of classes beyond
CLASSES, LISTED = 60, 1000  # most classes that are shown, and those that can be unfolded
METHOD_NAMES = dict(zip(METHODS, ("zero-shot CLIP", "CoOp", "VPT", "VLP", "DPT"), strict=True))


def flow(predictions: Predictions, subset: str) -> Markup:
    """How many pictures (of a subset of the classes) are right, and what that changed."""
    right = predictions.learned == predictions.labels
    before = predictions.zero_shot == predictions.labels
    won, lost = int((right & ~before).sum()), int((before & ~right).sum())
    said = f"{int(right.sum()):,} of {len(right):,} test images{subset} are recognised"
    if won or lost:
        said += f"; zero-shot CLIP mistakes {won:,} of these and recognises {lost:,} of the others"
    return tag("p", f"{said}.")


def by_class(predictions: Predictions) -> Markup:
    """Accuracy of each class beside zero-shot CLIP's, the lowest first."""
    learned = predictions.accuracies(predictions.learned)
    zero_shot = predictions.accuracies(predictions.zero_shot)
    counts = predictions.counts()
    order = [int(c) for c in np.argsort(learned, kind="stable") if counts[c]]

    def rows(classes: Iterable[int]) -> Markup:
        lines = [
            (name(predictions.classnames[c]), track(zero_shot[c], learned[c]),
             f"{zero_shot[c]:.1f}", f"{learned[c]:.1f}", change(learned[c] - zero_shot[c]),
             f"{counts[c]}")
            for c in classes
        ]  # fmt: skip
        heads = ("class", tag("span", "0 to 100 %"), "zero-shot", "learned", "change", "images")
        return table(heads, lines, class_="classes")

    about = "In percent, the lowest first: the ring is zero-shot CLIP, the dot what was learned."
    if len(order) <= CLASSES:
        return section("Accuracy by class", about, rows(order))
    more = f"The {len(order[:LISTED]):,} lowest of {len(order):,} classes"
    return section(
        "Accuracy by class",
        f"{about} The {CLASSES // 2} lowest of {len(order):,} classes.",
        rows(order[: CLASSES // 2]),
        tag("details", tag("summary", more), rows(order[:LISTED])),
    )


def track(zero_shot: float, learned: float) -> Markup:
    """Two accuracies on a line from 0 to 100 %."""
    left, width = min(zero_shot, learned), abs(learned - zero_shot)
    style = "worse" if learned < zero_shot else "better"
    bar = tag("u", class_=style, style=f"left:{left:.1f}%;width:{width:.1f}%")
    dots = (
        tag("i", class_="z", style=f"left:{zero_shot:.1f}%"),
        tag("i", style=f"left:{learned:.1f}%"),
    )
    return tag("td", tag("div", bar, *dots), class_="track")


def change(points: float) -> Markup:
    """Percentage points, gained or lost."""
    style = "better" if points > 0 else "worse" if points < 0 else ""
    return tag("td", f"{points:+.1f}".replace("-", "−"), class_=f"number {style}")


def confusion(predictions: Predictions) -> Markup:
    """What each class is taken for: a matrix, or of many classes the worst pairs."""
    names, pairs = predictions.classnames, predictions.confused()
    if len(names) > MATRIX:
        totals = predictions.counts()
        rows = [
            (
                name(names[label]),
                name(names[taken]),
                f"{count}",
                f"{100 * count / totals[label]:.0f} %",
            )
            for count, label, taken in pairs[:PAIRS]
        ]
        heads = ("class", "taken for", "images", "of the class")
        return section(
            "Most frequent mistakes",
            f"The {len(rows)} most frequent of {len(pairs):,} pairs.",
            table(heads, rows),
        )
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (predictions.labels, predictions.learned), 1)
    totals = counts.sum(axis=1)
    head = tag("tr", tag("th"), *(tag("th", tag("span", name(n, 24)), scope="col") for n in names))
    rows = [
        tag("tr", tag("th", name(names[label], 32), scope="row"),
            *(square(row[taken], totals[label], taken == label) for taken in range(len(names))))
        for label, row in enumerate(counts)
    ]  # fmt: skip
    about = "Rows are the true classes, columns what they are taken for; numbers of test images."
    matrix = tag("table", tag("thead", head), tag("tbody", *rows), class_="matrix")
    return section("Confusion matrix", about, tag("div", matrix, class_="scroll"))


def square(count: int, total: int, right: bool) -> Markup:
    """A cell of the matrix, the darker the more of the class."""
    if not count:
        return tag("td")
    share = 12 + 68 * count / total
    colour = "learned" if right else "wrong"
    style = f"background:color-mix(in srgb,var(--{colour}) {share:.0f}%,var(--wash))"
    return tag("td", f"{count}", style=style)


def two_maps(maps: AttentionMaps) -> bool:
    """Whether tuning has changed where the model looks."""
    return not torch.equal(maps.zero_shot, maps.tuned)


def card(
    predictions: Predictions,
    number: int,
    view: Image.Image | None,
    path: str,
    maps: AttentionMaps | None = None,
    place: int = 0,
) -> Markup:
    """A mistake: the picture, maps over it, and what it is taken for."""
    names = predictions.classnames
    true, taken = names[predictions.labels[number]], names[predictions.learned[number]]
    other = names[predictions.zero_shot[number]]
    shown = []
    if view is not None:
        shown = [picture(view, f"{true}, taken for {taken}")]
    if view is not None and maps:
        kinds = {"zero-shot CLIP": maps.zero_shot} | (
            {"tuned": maps.tuned} if two_maps(maps) else {}
        )
        shown += [
            picture(overlay(view, own[place]), f"attention, {kind}") for kind, own in kinds.items()
        ]
    shares = predictions.learned_probability, predictions.zero_shot_probability
    learned, before = (tag("i", f"{100 * own[number]:.1f} %") for own in shares)
    caption = tag(
        "figcaption",
        tag("span", tag("b", name(true)), " taken for ", tag("b", name(taken)), " ", learned),
        tag("span", "zero-shot: ", name(other), " ", before),
        tag("small", name(path, 60)),
    )
    return tag("figure", tag("div", *(tag("span", one) for one in shown), class_="shots"), caption)


def sweep_report(rows: Sequence[Row], begun: int) -> tuple[str, list[Markup], list[str]]:
    """Title, content and notes of the report of many runs."""
    runs = sum(len(row.accuracies) for row in rows if row.trained == row.tested)
    datasets = list(dict.fromkeys(row.trained for row in rows))
    methods = dict.fromkeys(METHOD_NAMES[row.method] for row in rows)
    title = f"{', '.join(methods)} on "
    title += datasets[0] if len(datasets) == 1 else f"{len(datasets)} data sets"
    labels = list(dict.fromkeys(row.label for row in rows if row.method != "zeroshot"))
    figures = []
    for heading, own in chart_groups(rows).items():
        learned = [row for row in own if row.method != "zeroshot"]
        if learned:
            figures.append(tag("figure", tag("h3", heading), *by_shots(learned, labels)))
    parts = [tag("h1", title), tag("p", f"{runs} runs. {caption(rows)}", class_="soft")]
    if figures:
        several = any(len(row.accuracies) > 1 for row in rows)
        about = "Mean over seeds; bars are one standard deviation to each side." * several
        parts.append(section("Accuracy", about, tag("div", *figures, class_="grid wide")))
    parts += [section("Tables", ""), *tables_of(rows)]
    return title, parts, [f"{begun} runs have no result yet: they are not in it."] if begun else []


def by_shots(rows: Sequence[Row], labels: Sequence[str]) -> tuple[Markup, Markup]:
    """A chart of accuracy against shots, or with one number of them against methods; its legend."""
    shots = sorted({row.shots for row in rows})
    own = [label for label in labels if any(row.label == label for row in rows)]
    alone = len(shots) == 1
    series = []
    for number, label in enumerate(own):
        at = [row for row in rows if row.label == label]
        aside = 0 if alone else 0.06 * (number - (len(own) - 1) / 2)
        points = [
            ((number if alone else shots.index(row.shots)) + aside, row.accuracy) for row in at
        ]
        colour = labels.index(label)
        deviations = [row.std for row in at]
        series.append(Series(label, f"c{colour % 5}", points, deviations, colour % 5))
    zero_shot = [Series("zero-shot", "cz", level=rows[0].zero_shot_accuracy)]
    categories = own if alone else [f"{count}" for count in shots]
    x_title = f"method, {shots[0]} shots" if alone else "shots (training images a class)"
    chart = line_chart("accuracy, %", x_title, [*zero_shot, *series], categories, (0, 100))
    return chart, legend([*series, *zero_shot])


def tables_of(rows: Sequence[Row]) -> list[Markup]:
    """The tables of table.md."""
    return [joined([tag("h3", one.title), table(one.heads, one.lines)]) for one in tables(rows)]
