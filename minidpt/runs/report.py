"""What a run or a sweep leaves to look at: predictions.csv, words.json, report.html.

The report is made from files alone. A section whose files, images or CLIP are not there is left
out, and a note says so.
"""

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import pstdev
from typing import Any, NamedTuple
from urllib.parse import quote

import torch
from torch import Tensor

from ..data.samples import Dataset
from ..data.splits import split_content
from ..images.decode import check_white_level
from ..images.transforms import eval_transform
from ..model import PromptedCLIP
from ..prompts import nearest_words
from ..support import files
from ..support.progress import print_line
from .attention_pngs import Panel, attention_panels
from .entrypoint import format_command
from .evaluation import EvalPredictions
from .folders import CONFIG, METRICS, MODEL, PREDICTIONS, REPORT, SPLIT, SUMMARY, WORDS, RunFolder
from .page import Markup, Series, bullets, image, line_chart, name, page, section, table, tag, text
from .results import METHOD_NAMES, OF_TEST, Row, read_rows
from .tables import Cell, Table, caption, tables

HEADER = (  # of predictions.csv: labels are what the data's files call a class
    "path", "label", "class", "learned label", "learned", "learned probability",
    "zero-shot label", "zero-shot", "zero-shot probability",
)  # fmt: skip
MISTAKES, SIDE = 24, 144  # most images, and pixels a side
THUMBNAILS, THUMBNAIL = 32, 96  # the same of training images
VECTORS, CONTEXTS = 64, 30  # most vectors of a context, and contexts of single classes
MATRIX, CLASSES = 30, 500  # most classes of a matrix, and that are listed
SIDES = {"visual": "image side", "text": "text side"}  # as "lr" calls them
METHODS = {
    "zeroshot": "Zero-shot CLIP (Radford et al. 2021): nothing is learned.",
    "coop": "CoOp, Context Optimization (Zhou et al. 2022): words around class names are learned.",
    "vpt": "VPT, Visual Prompt Tuning (Jia et al. 2022): learned vectors join an image's patches.",
    "vlp": "VLP, visual and language prompts (Xing et al. 2023): CoOp and VPT, learned together.",
    "dpt": "DPT, Dual-modality Prompt Tuning (Xing et al. 2023): VLP with prompts made for each "
    "image, from its likeliest classes.",
}
MEANINGS = {  # of numbers in summary.json: title, meaning
    "accuracy": ("accuracy", "test images that are classified right"),
    "zero_shot_accuracy": ("zero-shot accuracy", "the same before any training"),
    "largest_class_share": ("largest class", "accuracy of always naming the class with the most "
                            "test images"),
    "mean_class_accuracy": ("mean over classes", "accuracy where a small class counts as much as a "
                            "large one"),
    "top5_accuracy": ("top-5 accuracy", "test images whose class is among the five likeliest"),
    "mean_confidence": ("mean confidence", "mean probability of the predicted classes; more than "
                        "accuracy: too sure"),
    "calibration_error": ("calibration error", "mean distance of confidence from accuracy, in 15 "
                          "bins; 0 is best"),
}  # fmt: skip
Model = Callable[[], PromptedCLIP | None]


@files.single_line_errors
def write_report(
    folder: str | os.PathLike, model: Model = lambda: None, root: str | None = None
) -> list[str]:
    """Write report.html of a run's folder, or of a folder of runs; return notes.

    model: gives the run's, for maps of attention, or raises why it does not. root: of the images,
    if they have moved. Raises FileNotFoundError or ValueError if there is no run, or what it is
    cannot be read from its files.
    """
    run = RunFolder(folder)
    if run.path(CONFIG).is_file():
        report = RunReport(run, model, root)
        title, content, notes = report.title, report.content(), report.notes
    else:
        rows, left_out = read_rows(folder)
        title, content = sweep_report(run.folder, rows)
        notes = [f"Runs: {left_out}"] if left_out else []
    if notes:
        content.append(section("Notes", "Parts that are left out of this page.", bullets(notes)))
    run.write_text(REPORT, page(title, content))
    return notes


def write_words(run: RunFolder, model: PromptedCLIP) -> None:
    """Write words.json: the nearest words of each vector of the context, or of each class's."""
    ctx = model.text_prompts.ctx.detach()
    contexts = zip(model.classnames, ctx[:CONTEXTS]) if ctx.dim() == 3 else [(None, ctx)]
    words = [{"class": name, "words": nearest_words(ctx, model.clip)} for name, ctx in contexts]
    run.write_json(WORDS, {"contexts": words})


class ClassResult(NamedTuple):
    """A class's test images, how many are recognised, and mistakes (class, count), most first."""

    images: int
    correct: int
    mistakes: list[tuple[int, int]]

    @property
    def accuracy(self) -> float:
        """In percent, of a class with test images."""
        return 100 * self.correct / self.images

    def taken_for(self, classnames: Sequence[str], most: int | None = 3) -> str:
        """Return the most frequent mistakes: "owl 3, gnu 1"."""
        return ", ".join(f"{classnames[label]} {count}" for label, count in self.mistakes[:most])


def class_results(labels: Tensor, predicted: Tensor, classes: int) -> list[ClassResult]:
    """Count for each class what its test images (N,) are taken for (N,)."""
    counts = [Counter() for _ in range(classes)]
    for label, prediction in sorted(zip(labels.tolist(), predicted.tolist(), strict=True)):
        counts[label][prediction] += 1
    return [
        ClassResult(count.total(), count.pop(label, 0), count.most_common())
        for label, count in enumerate(counts)
    ]


def print_class_accuracy(
    classnames: list[str], labels: Tensor, predicted: Tensor, table: str | None = None
) -> None:
    """Print each class's accuracy and its three most frequent mistakes.

    table: a CSV file for it, with all mistakes.
    """
    results = class_results(labels, predicted, len(classnames))
    width, rows = max(map(len, classnames)), []
    for classname, result in zip(classnames, results):
        accuracy = result.accuracy if result.images else ""
        share = f"{accuracy:6.2f} %" if result.images else "     -  "
        mistakes = f", taken for {result.taken_for(classnames)}" if result.mistakes else ""
        print_line(f"  {classname:{width}} {share}  {result.correct} of {result.images}{mistakes}")
        mistakes = result.taken_for(classnames, most=None)
        rows.append((classname, accuracy, result.correct, result.images, mistakes))
    if table:
        files.write_rows(table, ("class", "accuracy", "right", "total", "taken for"), rows)


def write_predictions(
    run: RunFolder, dataset: Dataset, learned: EvalPredictions, zero_shot: EvalPredictions
) -> None:
    """Write a line for each test image, in the order of split.json."""
    names = list(zip(dataset.class_keys or dataset.classnames, dataset.classnames))
    columns = []
    for predictions in (learned, zero_shot):
        shares = zip(predictions.predicted.tolist(), predictions.probabilities.tolist())
        columns.append([(*names[label], f"{share:.6f}") for label, share in shares])
    rows = (
        (os.path.relpath(item.path, dataset.root), *names[item.label], *after, *before)
        for item, after, before in zip(dataset.test, *columns, strict=True)
    )
    files.write_rows(run.path(PREDICTIONS), HEADER, rows)


@files.single_line_errors
def read_predictions(
    run: RunFolder, class_keys: Sequence[str]
) -> tuple[Tensor, EvalPredictions, EvalPredictions]:
    """Read the labels (N,), and the predictions that `write_predictions` wrote.

    Raises FileNotFoundError or ValueError.
    """
    path = run.path(PREDICTIONS)
    content = files.read_text(path, str(path), most=11 * files.MAX_IMAGES)
    cells = (str(files.escape_formula(key)) for key in class_keys)
    known = {cell.encode(errors="backslashreplace").decode(): n for n, cell in enumerate(cells)}
    try:
        header, *rows = csv.reader(io.StringIO(content, newline=""), strict=True)
        _, label, _, learned, _, share, zero_shot, _, other_share = zip(*rows, strict=True)
        labels = [torch.tensor([known[n] for n in each]) for each in (label, learned, zero_shot)]
        shares = [torch.tensor(list(map(float, column))) for column in (share, other_share)]
        if tuple(header) != HEADER or not all(((0 <= p) & (p <= 1)).all() for p in shares):
            raise ValueError("other columns, or a probability that is none")
    except (KeyError, ValueError, csv.Error) as error:
        expected = f"expected {', '.join(HEADER)}, with classes of {SPLIT}"
        raise ValueError(f"{path}: {expected}, got {error}") from None
    return labels[0], *map(EvalPredictions, labels[1:], shares)


class RunReport:
    """The sections of a run's report; `notes` says which were left out, and why."""

    def __init__(self, run: RunFolder, model: Model, root: str | None):
        self.run, self.model, self.notes = run, model, []
        self.unreadable: list[Exception] = []  # of images
        self.config, self.record = run.read_config()
        self.split = split_content(run.path(SPLIT))
        self.root = root or self.split.get("root") or ""
        self.white_level = check_white_level(self.record.white_level)
        dataset = files.to_single_line(self.split.get("name") or "images", 80)
        self.title = f"{METHOD_NAMES[self.config.prompts.method]} on {dataset}"

    def content(self) -> list[Markup]:
        """Return the sections, but for those whose file is not there or damaged."""
        prompts, is_finished = self.config.prompts, self.run.path(SUMMARY).is_file()
        learns = prompts.method != "zeroshot"
        if not is_finished:
            fix = format_command("train", "--resume", self.run.folder)
            self.notes.append(f"no result yet: {fix} ends the run")
        sections = (
            (is_finished, "Accuracy", SUMMARY, self.accuracy),
            (learns, "Curves", METRICS, self.curves),
            (learns, "Training images", SPLIT, self.training_images),
            (is_finished, "Classes and mistakes", PREDICTIONS, self.classes),
            (is_finished and prompts.learns_text, "Words", WORDS, self.words),
        )
        made = [self._made(*about) for is_expected, *about in sections if is_expected]
        if self.unreadable:
            count = f"{len(self.unreadable)} images left out"
            self.notes.append(files.to_single_line(f"{count}: {self.unreadable[0]}"))
        settings = sorted((self.config.to_dict() | asdict(self.record)).items())
        rows = ((setting, files.to_single_line(value, 200)) for setting, value in settings)
        all_settings = tag("summary", "All settings"), table(("setting", "value"), rows)
        return [self.header(), *filter(None, made), tag("details", *all_settings)]

    def _made(self, title: str, file: str, make: Callable[[], Any]) -> Any:
        """Return what is made of a file, or None and a note of whatever is wrong with it."""
        try:
            return make()
        except (OSError, ValueError, LookupError, TypeError, ArithmeticError) as error:
            reason = str(error) if isinstance(error, (OSError, ValueError)) else repr(error)
            where = str(self.run.path(file))
            reason = reason if where in reason else f"{where}: {reason}"
            self.notes.append(files.to_single_line(f"{title}: left out: {reason}"))
            return None

    def header(self) -> Markup:
        """Return what was run on what."""
        config, split, method = self.config, self.split, self.config.prompts.method
        facts = [f"{len(split['classnames'])} classes ({config.classes})",
                 f"{len(split['test']):,} test images",
                 f"CLIP {files.to_single_line(config.model, 60)}"]  # fmt: skip
        if method != "zeroshot":
            facts[1:1] = ["1 shot" if config.shots == 1 else f"{config.shots} shots",
                          "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs",
                          f"{len(split['train']):,} training images"]  # fmt: skip
        about = tag("p", METHODS[method], class_="soft")
        facts = tag("p", " · ".join(facts), class_="soft")
        return tag("header", tag("h1", self.title), facts, about)

    def accuracy(self) -> Markup:
        """Return the result beside zero-shot CLIP's, what it means, and what else was tested."""
        summary = self.run.read_summary(**OF_TEST, seconds=int | float)
        accuracy, zero_shot = summary["accuracy"], summary["zero_shot_accuracy"]
        tiles = [
            (f"{summary[key]:.2f} %", title, about)
            for key, (title, about) in MEANINGS.items() if summary.get(key) is not None
        ]  # fmt: skip
        if self.config.prompts.method != "zeroshot":
            gain = f"{accuracy - zero_shot:+.2f}".replace("-", "−")
            tiles.insert(2, (gain, "gain", "in points over zero-shot CLIP"))
        tiles.append((f"{summary['seconds'] / 60:.1f} min", "time", "training and tests"))
        numbers = (tag("div", tag("b", number), words, tag("small", about))
                   for number, words, about in tiles)  # fmt: skip
        parts = [tag("div", *numbers, class_="grid numbers"), tag("p", tag("b", advice(summary)))]
        rows, _ = read_rows(self.run.folder)
        if len(rows) > 1:
            return tag("section", *parts, *html_tables(*tables(rows)))  # with the notes
        return tag("section", *parts, bullets(rows[0].notes))

    def curves(self) -> Markup:
        """Return charts of loss, accuracy on training views and learning rates by epoch."""
        path = self.run.path(METRICS)
        lines = files.read_text(path, str(path)).splitlines()
        records = [files.parse_json(line, f"{path}, line {n}") for n, line in enumerate(lines, 1)]
        if not records:
            raise ValueError("no epoch has ended")
        shaded = self.config.guidance_epochs if self.config.prompts.guided else None

        def chart(title: str, *keys: str) -> Markup:
            lines = []
            for number, key in enumerate(keys):
                points = [(each["epoch"], {**each, **each["lr"]}[key]) for each in records]
                lines.append(Series(SIDES.get(key, ""), f"c{number}", points))
            return line_chart(title, "epoch", lines, shaded=shaded)

        charts = [
            chart("training loss (cross-entropy, nats)", "loss"),
            chart("training accuracy (random crops), %", "train_accuracy"),
            chart("learning rate", *(side for side in SIDES if side in records[0]["lr"])),
        ]
        about = "Values of each epoch, on random crops of the training images."
        if shaded:
            about += " Shaded: guidance epochs; their loss adds that of the two branches."
        return section("Training", about, tag("div", *charts, class_="grid"))

    def training_images(self) -> Markup:
        """Return thumbnails of training images at even distances in their list, by classes."""
        samples, figures = self.split["train"], []
        for path, _, classname in samples[:: math.ceil(len(samples) / THUMBNAILS) or 1]:
            for about, view in self.views(path, THUMBNAIL):
                caption = tag("figcaption", name(classname, 40))
                figures.append(tag("figure", image(view, about), caption))
        about = f"{len(figures)} of {len(samples):,}, as CLIP sees them without random crops."
        return section("Training images", about, tag("div", *figures, class_="grid thumbnails"))

    def views(self, path: str, side: int, model: PromptedCLIP | None = None) -> list[Panel]:
        """Return what the model sees of an image, with maps of attention; nothing on an error."""
        file = os.path.join(self.root, path)
        try:
            if model:
                return attention_panels(model, file, side)[0]
            return [("What the model sees", eval_transform(self.white_level.open(file), side))]
        except (OSError, ValueError) as error:
            self.unreadable.append(error)
            return []

    def classes(self) -> Markup:
        """Return the accuracy by class, the confusion matrix, and mistakes."""
        names = self.split["classnames"]
        predictions = read_predictions(self.run, self.split.get("class_keys") or names)
        labels, *both = predictions
        results = [class_results(labels, each.predicted, len(names)) for each in both]
        parts = [accuracy_by_class(names, *results)]
        if len(names) <= MATRIX:
            parts.append(confusion_matrix(names, results[0]))
        parts.append(self._made("Images", SPLIT, lambda: self.mistakes(*predictions)))
        return Markup("".join(filter(None, parts)))

    def mistakes(
        self, labels: Tensor, learned: EvalPredictions, zero_shot: EvalPredictions
    ) -> Markup:
        """Return the surest mistakes, with maps of attention where the model is to be had."""
        samples, names = self.split["test"], self.split["classnames"]
        if len(samples) != len(labels):
            raise ValueError(f"expected the images of {SPLIT}, got predictions of others")
        right, before = learned.predicted == labels, zero_shot.predicted == labels
        surest = learned.probabilities.argsort(descending=True, stable=True)
        chosen = surest[~right[surest]][:MISTAKES].tolist()
        model = self._made("Maps of attention", MODEL, self.model) if chosen else None
        cards = []
        for index in chosen:
            path, label, _ = samples[index]
            captions = [
                tag("span", tag("b", name(names[label])), " taken for ",
                    tag("b", name(names[learned.predicted[index]])),
                    f" {100 * learned.probabilities[index]:.1f}\u00a0%"),
                tag("span", "zero-shot: ", name(names[zero_shot.predicted[index]]),
                    f" {100 * zero_shot.probabilities[index]:.1f}\u00a0%"),
                tag("small", name(path, 60)),
            ]  # fmt: skip
            images = (image(view, about) for about, view in self.views(path, SIDE, model))
            images = tag("div", *images, class_="views")
            cards.append(tag("figure", images, tag("figcaption", *captions)))
        about = (
            f"{right.sum():,} of {len(right):,} test images are classified right. Zero-shot CLIP "
            f"classifies {(right & ~before).sum():,} of these wrong, and "
            f"{(before & ~right).sum():,} of the others right. Shown are the {len(chosen)} "
            "mistakes with the highest probability."
        )
        if model:
            about += (
                " The maps show the attention of the class token in the last layer, "
                f"{'before and after' if self.config.prompts.learns_image else 'unchanged by'} "
                "tuning: blue is none, yellow four times the average or more."
            )
        return section("Surest mistakes", about, tag("div", *cards, class_="grid"))

    def words(self) -> Markup:
        """Return the nearest words of each learned context vector."""
        parts = []
        for context in self.run.read_json(WORDS)["contexts"]:
            rows = []
            for number, row in enumerate(context["words"][:VECTORS], start=1):
                near = (tag("span", word, " ", tag("small", f"{far:.2f}")) for word, far in row)
                rows.append((number, *near))
            parts += [tag("h3", name(context["class"]))] if context["class"] else []
            parts.append(table(("vector", "nearest", "2nd", "3rd", "4th", "5th"), rows))
        about = (
            "The tokens whose embeddings are nearest to each learned context vector, with the "
            "Euclidean distance. A hyphen marks a token that is not the end of a word."
        )
        return section("Learned context in words", about, *parts)


def advice(summary: dict[str, Any]) -> str:
    """Say what to do about a result that is worse than one without training; "" for others."""
    zero_shot, largest = summary["zero_shot_accuracy"], summary.get("largest_class_share") or 0
    if summary["accuracy"] >= max(zero_shot, largest):
        return ""
    better, fix = "zero-shot CLIP", "more --shots, more --epochs or lower learning rates"
    if largest > zero_shot:
        better = "naming the largest class each time"
        fix = "class names in plain words (--classnames), another --template or a larger --model"
    return f"This result is worse than {better}: try {fix}."


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
        track = Markup(
            f'<svg viewBox="-3 0 106 10" class="track {style}"><path d="M0,5H100" class="axis"/>'
            f'<path d="M{before:.1f},2v6m0,-3H{after:.1f}" class="line"/>'
            f'<circle cx="{after:.1f}" cy="5" r="2" class="mark"/></svg>'
        )
        rows.append((
            name(classnames[label]), track, f"{before:.1f}", f"{after:.1f}", change,
            learned[label].images, learned[label].taken_for(classnames),
        ))  # fmt: skip
    heads = ("class", "0 to 100 %", "zero-shot", "learned", "change", "images", "taken for")
    about = "In percent, the lowest first. The dash is zero-shot CLIP, the dot the learned prompts."
    if len(labels) > CLASSES:
        about += f" The {CLASSES} lowest of {len(labels):,} classes."
    return section("Accuracy by class", about, table(heads, rows))


def confusion_matrix(classnames: Sequence[str], results: Sequence[ClassResult]) -> Markup:
    """Return a table of what each class is taken for, a cell the darker the more of the class."""
    rows = []
    for label, result in enumerate(results):
        cells = [""] * len(classnames)
        counts = [(label, result.correct)] if result.correct else []
        for other, count in [*counts, *result.mistakes]:
            mix = f"var(--{'c0' if other == label else 'c1'}) {80 * count / result.images:.0f}%"
            style = f"background:color-mix(in srgb,{mix},var(--wash))"
            cells[other] = tag("span", count, style=style)
        rows.append((name(classnames[label], 32), *cells))
    heads = ["", *(tag("span", name(each, 24)) for each in classnames)]
    about = "Numbers of test images: rows are true classes, columns predicted ones."
    return section("Confusion matrix", about, table(heads, rows, "matrix"))


def sweep_report(folder: Path, rows: Sequence[Row]) -> tuple[str, list[Markup]]:
    """Return title and content of the report of many runs."""
    runs = sum(len(row.metrics) for row in rows if row.is_test_of_own_data)
    datasets = list({(row.trained, row.data): row.trained for row in rows}.values())
    methods = dict.fromkeys(METHOD_NAMES[row.method] for row in rows)
    where = datasets[0] if len(datasets) == 1 else f"{len(datasets)} data sets"
    title = f"{', '.join(methods)} on {where}"
    labels = list(dict.fromkeys(row.label for row in rows if row.shots))
    pages, numbers = tables(rows)
    figures = [
        tag("div", tag("h3", html_cell(each.title, numbers)), chart_by_shots(each.rows, labels))
        for each in pages if any(row.shots and row.metrics for row in each.rows)
    ]  # fmt: skip
    parts = [tag("h1", title), tag("p", f"{runs} runs. {caption(rows)}", class_="soft")]
    if figures:
        about = "Means over seeds, if there are several, with bars of one standard deviation."
        parts.append(section("Accuracy", about, tag("div", *figures, class_="grid")))
    parts.append(section("Tables", "", *html_tables(pages, numbers)))
    texts = (METHODS[each] for each in METHODS if METHOD_NAMES[each] in methods)
    parts.append(section("Methods", "", bullets(texts)))
    links = []
    for run in sorted(path.parent for path in folder.rglob(SUMMARY)):
        target = (run / REPORT if (run / REPORT).is_file() else run).relative_to(folder)
        links.append(tag("a", run.relative_to(folder), href=quote(os.fsencode(target))))
    about = "Their folders, or their reports, which python eval.py report RUN makes."
    return title, [*parts, section("Runs", about, bullets(links))]


def chart_by_shots(rows: Sequence[Row], labels: Sequence[str]) -> Markup:
    """Draw accuracies by shots; zero-shot CLIP's is the same for any number of them."""
    rows = [row for row in rows if row.metrics]
    shots = sorted({row.shots for row in rows if row.shots})
    series = [
        Series(row.label, "cz", [(x, row.mean("accuracy")) for x in (-0.5, len(shots) - 0.5)])
        for row in rows if not row.shots
    ]  # fmt: skip
    for number, label in enumerate(labels):
        aside = 0.5 * ((number + 0.5) / len(labels) - 0.5)  # so that bars do not hide others
        if same := [row for row in rows if row.shots and row.label == label]:
            points = [(shots.index(row.shots) + aside, row.mean("accuracy")) for row in same]
            deviations = [pstdev(row.accuracies.values()) for row in same]
            series.append(Series(label, f"c{number % 5}", points, deviations))
    x_title = "shots (training images per class)"
    return line_chart("accuracy, %", x_title, series, [f"{count}" for count in shots])


def html_tables(pages: Sequence[Table], numbers: dict[str, int]) -> list[Markup]:
    """Return the tables of table.md, and their numbered notes."""
    parts = []
    for title, heads, lines, _ in pages:
        content = table(heads, [[html_cell(cell, numbers) for cell in line] for line in lines])
        parts.append(tag("div", tag("h3", html_cell(title, numbers)), content))
    return [*parts, bullets(numbers, "ol")] if numbers else parts


def html_cell(cell: Cell, numbers: dict[str, int]) -> Markup:
    """Return a cell's text, and the numbers of its notes."""
    content = tag("b", cell.text) if cell.is_best else text(cell.text)
    marks = ", ".join(f"{numbers[note]}" for note in cell.notes)
    return Markup(content + tag("sup", marks)) if marks else content
