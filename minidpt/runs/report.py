"""report.html: a run or a sweep to look at, made from its files alone.

A section whose files, images or CLIP are not there is left out, and a note says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from ..config import METHODS
from ..data.splits import split_content
from ..images.decode import check_white_level
from ..images.transforms import eval_pixels
from ..model import PromptedCLIP
from ..prompts import nearest_words
from ..support.files import atomic_write, parse_json, read_text, single_line_errors, to_single_line
from .attention_pngs import Panel, attention_panels
from .folders import CONFIG, METRICS, MODEL, PREDICTIONS, REPORT, SPLIT, SUMMARY, WORDS, RunFolder
from .page import Markup, Series, image, line_chart, name, page, section, table, tag
from .predictions import ClassResult, Predictions, class_results, read_predictions
from .results import LEFT_OUT, Row, caption, chart_groups, left_out, read_rows, tables

METHOD_NAMES = dict(zip(METHODS, ("zero-shot CLIP", "CoOp", "VPT", "VLP", "DPT"), strict=True))
MISTAKES, SIDE = 24, 144  # most images, and pixels a side
VECTORS, CONTEXTS = 64, 30  # most vectors of a context, and contexts of single classes
MATRIX, CLASSES = 30, 500  # most classes of a matrix, and that are listed
SIDES = {"visual": "image side", "text": "text side"}  # as "lr" calls them
Model = Callable[[], PromptedCLIP | None]


@single_line_errors
def write_report(
    folder: str | os.PathLike, model: Model = lambda: None, root: str | None = None
) -> list[str]:
    """Write report.html of a run's folder, or of a folder of runs; return notes.

    model: gives the run's, for maps of attention, or raises why it does not. root: of the images,
    if they have moved. Raises FileNotFoundError or ValueError if there is no run, or what it is
    cannot be read from its files.
    """
    folder = Path(folder)
    if (folder / CONFIG).is_file():
        report = RunReport(RunFolder(folder), model, root)
        title, content, notes = report.title, report.content(), report.notes
    else:
        title, content = sweep_report(read_rows(folder))
        count = len(left_out(folder))
        notes = [f"{count} runs {LEFT_OUT} are not in it."] if count else []
    if notes:
        items = (tag("li", note) for note in notes)
        content.append(section("Notes", "What is left out of this page.", tag("ul", *items)))
    with atomic_write(folder / REPORT) as unfinished:
        unfinished.write_text(page(title, content), encoding="utf-8")
    return notes


def write_words(run: RunFolder, model: PromptedCLIP) -> None:
    """Write words.json: the nearest words of each vector of the context, or of each class's."""
    ctx = model.text_prompts.ctx.detach()
    contexts = zip(model.classnames, ctx[:CONTEXTS]) if ctx.dim() == 3 else [(None, ctx)]
    words = [{"class": name, "words": nearest_words(ctx, model.clip)} for name, ctx in contexts]
    run.write_json(WORDS, {"contexts": words})


class RunReport:
    """The sections of a run's report; `notes` says which were left out, and why."""

    def __init__(self, run: RunFolder, model: Model, root: str | None):
        self.run, self.model, self.notes = run, model, []
        config, record = run.read_config()
        self.config = {**config.to_dict(), **asdict(record)}
        self.split = split_content(run.path(SPLIT))
        self.root = root or self.split.get("root") or ""
        self.method = METHOD_NAMES[self.config["method"]]
        self.title = f"{self.method} on {to_single_line(self.split.get('name') or 'images', 80)}"

    def content(self) -> list[Markup]:
        """Return all sections that can be made."""
        method, classnames = self.config["method"], self.split["classnames"]
        parts = [self.header(), self._made("Accuracy", SUMMARY, self.accuracy)]
        if method != "zeroshot":
            parts.append(self._made("Curves", METRICS, self.curves))
        predictions = self._made(
            "Classes and mistakes", PREDICTIONS, lambda: read_predictions(self.run, classnames)
        )
        if predictions:
            labels, count = predictions.labels, len(classnames)
            learned = class_results(labels, predictions.learned, count)
            zero_shot = class_results(labels, predictions.zero_shot, count)
            parts.append(accuracy_by_class(classnames, learned, zero_shot))
            if count <= MATRIX:
                parts.append(confusion_matrix(classnames, learned))
            parts.append(self._made("Images", SPLIT, lambda: self.mistakes(predictions)))
        if method in ("coop", "vlp", "dpt"):
            parts.append(self._made("Words", WORDS, self.words))
        rows = [(key, to_single_line(value, 200)) for key, value in sorted(self.config.items())]
        settings = table(("setting", "value"), rows)
        parts.append(tag("details", tag("summary", "All settings"), settings))
        return [part for part in parts if part]

    def _made(self, title: str, file: str, make: Callable[[], Any]) -> Any:
        """Return what is made of a file, or None and a note of whatever is wrong with it."""
        try:
            return make()
        except (OSError, ValueError, LookupError, TypeError, ArithmeticError) as error:
            reason = str(error) if isinstance(error, (OSError, ValueError)) else repr(error)
            where = str(self.run.path(file))
            reason = reason if where in reason else f"{where}: {reason}"
            self.notes.append(to_single_line(f"{title}: left out: {reason}"))
            return None

    def header(self) -> Markup:
        """Return what was run on what."""
        config, split = self.config, self.split
        facts = [f"{len(split['classnames'])} classes ({config['classes']})"]
        if config["method"] != "zeroshot":
            facts += [f"{config['shots']} shots", f"{config['epochs']} epochs"]
            facts.append(f"{len(split['train']):,} training images")
        facts.append(f"{len(split['test']):,} test images")
        facts.append(f"CLIP {to_single_line(config['model'], 60)}")
        return tag("header", tag("h1", self.title), tag("p", " · ".join(facts), class_="soft"))

    def accuracy(self) -> Markup:
        """Return the result beside zero-shot CLIP's, and tables of what else was tested."""
        kinds = dict.fromkeys(("accuracy", "zero_shot_accuracy", "seconds"), int | float)
        summary = self.run.read_json(SUMMARY, **kinds)
        accuracy, zero_shot = summary["accuracy"], summary["zero_shot_accuracy"]
        tiles = [(f"{zero_shot:.2f} %", "zero-shot CLIP")]
        if self.config["method"] != "zeroshot":
            tiles.insert(0, (f"{accuracy:.2f} %", f"{self.method}, test accuracy"))
            tiles.append((f"{accuracy - zero_shot:+.2f}", "percentage points gained"))
        tiles.append((f"{summary['seconds'] / 60:.1f} min", "training and tests"))
        numbers = (tag("div", tag("b", number), about) for number, about in tiles)
        rows = read_rows(self.run.folder)
        more = html_tables(rows) if len(rows) > 1 else []
        return tag("section", tag("div", *numbers, class_="numbers"), *more)

    def curves(self) -> Markup:
        """Return charts of loss, accuracy on training views and learning rates by epoch."""
        path = self.run.path(METRICS)
        lines = read_text(path, str(path)).splitlines()
        records = [parse_json(line, f"{path}, line {n}") for n, line in enumerate(lines, start=1)]
        if not records:
            raise ValueError("no epoch has ended")
        shaded = self.config["guidance_epochs"] if self.config["method"] in ("vlp", "dpt") else None

        def chart(title: str, *keys: str) -> Markup:
            lines = []
            for number, key in enumerate(keys):
                points = [(each["epoch"], {**each, **each["lr"]}[key]) for each in records]
                lines.append(Series(SIDES.get(key, ""), f"c{number}", points))
            return line_chart(title, "epoch", lines, shaded=shaded)

        charts = [
            chart("training loss (cross-entropy, nats)", "loss"),
            chart("accuracy on training views, %", "train_accuracy"),
            chart("learning rate", *(side for side in SIDES if side in records[0]["lr"])),
        ]
        about = "Of each epoch; views are random crops of the training images, mirrored or not."
        if shaded:
            about += " Shaded is the guidance stage, where the loss is that of both branches."
        return section("Training", about, tag("div", *charts, class_="grid"))

    def mistakes(self, predictions: Predictions) -> Markup:
        """Return the surest mistakes, with maps of attention where the model is to be had."""
        files, names = self.split["test"], self.split["classnames"]
        if len(files) != len(predictions.labels):
            raise ValueError(f"expected the images of {SPLIT}, got predictions of others")
        chosen = predictions.surest_mistakes(MISTAKES)
        model = self._made("Maps of attention", MODEL, self.model) if chosen else None
        cards, errors = [], []
        for index in chosen:
            label, learned, share, zero_shot, other_share = (each[index] for each in predictions)
            views, path = [], files[index][0]
            try:
                views = self._views(os.path.join(self.root, path), model)
            except (OSError, ValueError) as error:
                errors.append(error)
            captions = [
                tag("span", tag("b", name(names[label])), " taken for ",
                    tag("b", name(names[learned])), f" {100 * share:.1f}\u00a0%"),
                tag("span", "zero-shot: ", name(names[zero_shot]),
                    f" {100 * other_share:.1f}\u00a0%"),
                tag("small", name(path, 60)),
            ]  # fmt: skip
            images = tag("div", *(image(view, about) for about, view in views), class_="views")
            cards.append(tag("figure", images, tag("figcaption", *captions)))
        if errors:
            count = f"{len(errors)} of {len(chosen)} images left out"
            self.notes.append(to_single_line(f"Mistakes: {count}: {errors[0]}"))
        right, before = (
            each == predictions.labels for each in (predictions.learned, predictions.zero_shot)
        )
        about = (
            f"{right.sum():,} of {len(right):,} test images are recognised; zero-shot CLIP "
            f"mistakes {(right & ~before).sum():,} of these and recognises "
            f"{(before & ~right).sum():,} of the others. Below: the {len(chosen)} mistakes with "
            "the greatest probability."
        )
        if model:
            about += (
                " Beside the image, where its class token looks in the last layer (before and "
                "after tuning): blue nowhere, yellow four times what even attention would give."
            )
        return section("Surest mistakes", about, tag("div", *cards, class_="grid"))

    def _views(self, path: str, model: PromptedCLIP | None) -> list[Panel]:
        """Return an image as the model sees it, and maps of attention over it."""
        if model:
            return attention_panels(model, path, SIDE)[0]
        image = check_white_level(self.config["white_level"]).open(path)
        view = eval_pixels(image, SIDE)
        return [("What the model sees", Image.fromarray(view.transpose(1, 2, 0)))]

    def words(self) -> Markup:
        """Return the nearest words of each learned context vector."""
        parts = []
        for context in self.run.read_json(WORDS)["contexts"]:
            rows = [
                (number, *(tag("span", word, " ", tag("small", f"{distance:.2f}"))
                           for word, distance in row))
                for number, row in enumerate(context["words"][:VECTORS], start=1)
            ]  # fmt: skip
            parts += [tag("h3", name(context["class"]))] if context["class"] else []
            parts.append(table(("vector", "nearest", "2nd", "3rd", "4th", "5th"), rows))
        about = (
            "The tokens whose embeddings lie nearest to each vector of the learned context, with "
            "the Euclidean distance. A hyphen stands where a word goes on."
        )
        return section("Learned context in words", about, *parts)


def accuracy_by_class(
    classnames: Sequence[str], learned: Sequence[ClassResult], zero_shot: Sequence[ClassResult]
) -> Markup:
    """Return the accuracy of each class beside zero-shot CLIP's, the lowest first."""
    rows = []
    labels = [label for label, result in enumerate(learned) if result.images]
    for label in sorted(labels, key=lambda label: learned[label].accuracy)[:CLASSES]:
        before, after = zero_shot[label].accuracy, learned[label].accuracy
        style = "c0" if after > before else "c1" if after < before else ""
        change = tag("span", f"{after - before:+.1f}".replace("-", "−"), class_=style)
        rows.append((
            name(classnames[label]), accuracy_track(before, after), f"{before:.1f}", f"{after:.1f}",
            change, learned[label].images, learned[label].taken_for(classnames),
        ))  # fmt: skip
    heads = ("class", "0 to 100 %", "zero-shot", "learned", "change", "images", "taken for")
    about = "In percent, the lowest first: the dash is zero-shot CLIP, the dot what was learned."
    if len(labels) > CLASSES:
        about += f" The {CLASSES} lowest of {len(labels):,} classes."
    return section("Accuracy by class", about, table(heads, rows))


def accuracy_track(zero_shot: float, learned: float) -> Markup:
    """Draw a line between two accuracies on one from 0 to 100 %, the learned one as a dot."""
    style = "c1" if learned < zero_shot else "c0"
    return Markup(
        f'<svg viewBox="-3 0 106 10" class="track {style}"><path d="M0,5H100" class="axis"/>'
        f'<path d="M{zero_shot:.1f},2v6m0,-3H{learned:.1f}" class="line"/>'
        f'<circle cx="{learned:.1f}" cy="5" r="2" class="mark"/></svg>'
    )


def confusion_matrix(classnames: Sequence[str], results: Sequence[ClassResult]) -> Markup:
    """Return a table of what each class is taken for, a cell the darker the more of the class."""
    rows = []
    for label, result in enumerate(results):
        cells = [""] * len(classnames)
        counts = {label: result.correct, **dict(result.mistakes)}
        for other in filter(counts.get, counts):
            count = counts[other]
            mix = f"var(--{'c0' if other == label else 'c1'}) {80 * count / result.images:.0f}%"
            style = f"background:color-mix(in srgb,{mix},var(--wash))"
            cells[other] = tag("span", count, style=style)
        rows.append((name(classnames[label], 32), *cells))
    heads = ["", *(tag("span", name(each, 24)) for each in classnames)]
    about = "Rows are the true classes, columns what they are taken for; in test images."
    return section("Confusion matrix", about, table(heads, rows, "matrix"))


def sweep_report(rows: Sequence[Row]) -> tuple[str, list[Markup]]:
    """Return title and content of the report of many runs."""
    runs = sum(len(row.accuracies) for row in rows if row.trained == row.tested)
    datasets = list(dict.fromkeys(row.trained for row in rows))
    methods = dict.fromkeys(METHOD_NAMES[row.method] for row in rows)
    where = datasets[0] if len(datasets) == 1 else f"{len(datasets)} data sets"
    title = f"{', '.join(methods)} on {where}"
    labels = list(dict.fromkeys(row.label for row in rows if row.method != "zeroshot"))
    figures = []
    for heading, group in chart_groups(rows).items():
        if learned := [row for row in group if row.method != "zeroshot"]:
            figures.append(tag("div", tag("h3", heading), chart_by_shots(learned, labels)))
    parts = [tag("h1", title), tag("p", f"{runs} runs. {caption(rows)}", class_="soft")]
    if figures:
        about = "Mean over seeds; bars are one standard deviation to each side."
        parts.append(section("Accuracy", about, tag("div", *figures, class_="grid")))
    return title, [*parts, section("Tables", "", *html_tables(rows))]


def chart_by_shots(rows: Sequence[Row], labels: Sequence[str]) -> Markup:
    """Draw accuracy against shots."""
    shots = sorted({row.shots for row in rows})
    ends = [(x, rows[0].zero_shot_accuracy) for x in (-0.5, len(shots) - 0.5)]
    series = [Series("zero-shot", "cz", ends, dashed=True)]
    for number, label in enumerate(labels):
        aside = 0.5 * ((number + 0.5) / len(labels) - 0.5)  # so that bars do not hide others
        if group := [row for row in rows if row.label == label]:
            points = [(shots.index(row.shots) + aside, row.accuracy) for row in group]
            deviations = [row.std for row in group]
            series.append(Series(label, f"c{number % 5}", points, deviations))
    x_title = "shots (training images a class)"
    return line_chart("accuracy, %", x_title, series, [f"{count}" for count in shots])


def html_tables(rows: Sequence[Row]) -> list[Markup]:
    """Return the tables of table.md."""
    return [tag("div", tag("h3", t.title), table(t.heads, t.lines)) for t in tables(rows)]
