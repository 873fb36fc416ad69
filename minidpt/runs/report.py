"""report.html: a run or a sweep to look at, made from its files alone.

What a part needs and is not there, such as the pictures, CLIP, or predictions.csv of a run of an
earlier version, is left out, and a note says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..clip.pictures import open_image
from ..clip.transforms import central_view, to_uint8
from ..clip.white import checked_white
from ..data.splits import split_content
from ..files import entries, one_line, one_line_errors, parse_json, read_json, read_text, replacing
from ..maps import attention_maps
from ..prompts import nearest_words
from ..trained import PromptedCLIP
from .charts import Series, legend, line_chart
from .folders import CONFIG, METRICS, REPORT, SPLIT, SUMMARY, WORDS, Run
from .page import Markup, joined, name, page, section, table, tag
from .predictions import Predictions, read_predictions
from .results import left_out, read_results, summarise
from .sections import (
    METHOD_NAMES,
    by_class,
    card,
    confusion,
    flow,
    sweep_report,
    tables_of,
    two_maps,
)

MISTAKES = 24  # most pictures
VECTORS, CONTEXTS = 64, 30  # most vectors of a context, and contexts of single classes
SIDE = 144  # pixels of a thumbnail
NUMBERS = ("epoch", "loss", "train_accuracy")  # of a line of metrics.jsonl
LARGEST = torch.finfo(torch.float32).max  # of them
SIDES = {"visual": ("image side", "c0"), "text": ("text side", "c1")}  # as "lr" calls them


@one_line_errors
def write_report(
    folder: str | os.PathLike,
    model: Callable[[], PromptedCLIP] | None = None,
    root: str | None = None,
) -> list[str]:
    """Write report.html of a run's folder, or of a folder of runs; returns notes.

    model: gives the run's, for maps of attention, or raises why it does not. root: of the pictures,
    if they have moved. Raises FileNotFoundError or ValueError if there is no run, or what it is
    cannot be read from its files.
    """
    folder = Path(folder)
    if (folder / CONFIG).is_file():
        report = RunReport(Run(folder), model, root)
        title, content, notes = report.title, report.content(), report.notes
    else:
        rows = summarise(read_results(folder))
        title, content, notes = sweep_report(rows, len(left_out(folder)))
    if notes:
        items = (tag("li", note) for note in notes)
        content.append(section("Notes", "What is left out of this page.", tag("ul", *items)))
    with replacing(folder / REPORT) as unfinished_file:
        unfinished_file.write_text(page(title, content), encoding="utf-8")
    return notes


def write_words(run: Run, model: PromptedCLIP) -> None:
    """words.json: the nearest words of each vector of the context, or of each class's."""
    ctx = model.text_prompts.ctx.detach()
    own = zip(model.classnames, ctx[:CONTEXTS]) if ctx.dim() == 3 else [(None, ctx)]
    contexts = [{"class": name, "words": nearest_words(ctx, model.clip)} for name, ctx in own]
    run.write_json(WORDS, {"contexts": contexts})


class RunReport:
    """The parts of a run's report; `notes` says which were left out, and why."""

    def __init__(self, run: Run, model: Callable[[], PromptedCLIP] | None, root: str | None):
        self.run, self.model, self.root = run, model, root
        self.config = run.read_json(CONFIG, method=str, versions=dict | None)
        self.split = split_content(run.path(SPLIT))
        self.summary: dict[str, Any] = {}  # until `accuracy` has read it
        self.method = METHOD_NAMES.get(self.config["method"], self.config["method"])
        self.title = f"{self.method} on {one_line(self.split.get('name') or 'pictures', 80)}"
        self.notes: list[str] = []

    def content(self) -> list[Markup]:
        """All parts that can be made."""
        learns_text = self.config["method"] in ("coop", "vlp", "dpt")
        accuracy = self._made("Accuracy", self.accuracy)
        parts = [self.header(), accuracy]
        if self.config["method"] != "zeroshot":
            parts.append(self._made("Curves", self.curves))
        predictions = None

        def read() -> Markup:
            nonlocal predictions
            predictions = read_predictions(self.run, self.split["classnames"])
            subset = self.config.get("classes", "all")
            return flow(predictions, "" if subset == "all" else f" of the {subset} classes")

        parts.insert(2, self._made("Classes and mistakes", read))
        if predictions:
            parts += [by_class(predictions), confusion(predictions)]
            parts.append(self._made("Pictures", self.mistakes, predictions))
        if learns_text:
            parts.append(self._made("Words", self.words))
        rows = ((key, one_line(value, 200)) for key, value in sorted(self.config.items()))
        about = tag("summary", "All settings")
        return [*parts, tag("details", about, table(("setting", "value"), rows))]

    def _made(self, what: str, part: Callable[..., Markup], *arguments: Any) -> Markup:
        try:
            return part(*arguments)
        except (OSError, ValueError) as error:
            missing = isinstance(error, FileNotFoundError)
            hint = " (a stopped run, or one of an earlier version, has none)" * missing
            self.notes.append(one_line(f"{what}: left out: {error}{hint}"))
            return Markup("")

    def header(self) -> Markup:
        """What was run on what, in a line, and where the data lie."""
        config, split = self.config, self.split
        zero_shot = config["method"] == "zeroshot"
        said = [f"{len(split['classnames'])} classes"]
        if config.get("classes", "all") != "all":
            said[0] += f" ({config['classes']})"
        if not zero_shot:
            said += [f"{config.get('shots')} shots", f"seed {config.get('seed')}",
                     f"{config.get('epochs')} epochs"]  # fmt: skip
            said.append(f"{len(split['train']):,} training images")
        said += [f"{len(split['test']):,} test images", f"CLIP {one_line(config.get('model'), 60)}"]
        said += [f"{config.get('device')}, {config.get('precision')}"]
        if seconds := self.summary.get("seconds"):
            said.append(f"{seconds / 60:.1f} min")
        said.append(f"minidpt {(config.get('versions') or {}).get('minidpt', '')}")
        lines = [tag("h1", self.title), tag("p", " · ".join(said), class_="soft")]
        data = (
            f"Data {one_line(split.get('root'), 200)} · zero-shot prompt “{split.get('template')}”"
        )
        return joined([*lines, tag("p", data, class_="soft")])

    def accuracy(self) -> Markup:
        """The result beside zero-shot CLIP's; tables of what else was tested."""
        if not self.run.path(SUMMARY).is_file():
            raise ValueError(f"the training was stopped before its end, {SUMMARY} is not there")
        kinds = dict.fromkeys(("accuracy", "zero_shot_accuracy"), int | float)
        said = self.run.read_json(SUMMARY, seconds=int | float | None, **kinds)
        rows = summarise(read_results(self.run.folder))
        self.summary, result, zero_shot = said, said["accuracy"], said["zero_shot_accuracy"]
        tiles = [(f"{zero_shot:.2f} %", "zero-shot CLIP", "")]
        if self.config["method"] != "zeroshot":
            tiles.insert(0, (f"{result:.2f} %", f"{self.method}, test accuracy", "learned"))
            tiles.append((f"{result - zero_shot:+.2f}", "percentage points gained", ""))
        numbers = (tag("div", tag("b", n), text, class_=style) for n, text, style in tiles)
        return joined(
            [tag("div", *numbers, class_="numbers"), *(tables_of(rows) if len(rows) > 1 else [])]
        )

    def curves(self) -> Markup:
        """Loss, accuracy on training views and learning rates of each epoch."""
        records = self._epochs()
        config = entries(self.config, str(self.run.path(CONFIG)), guidance_epochs=int | None)
        shaded = config.get("guidance_epochs") if config["method"] in ("vlp", "dpt") else None

        def series(title: str, style: str, name: str) -> Series:
            return Series(title, style, [(record["epoch"], record[name]) for record in records])

        rates = [series(*SIDES[side], side) for side in SIDES if side in records[0]]
        loss = series("loss", "c0", "loss")
        right = series("accuracy", "c0", "train_accuracy")
        charts = [
            tag("figure", line_chart("training loss (cross-entropy, nats)", "epoch", [loss],
                                     shaded=shaded)),
            tag("figure", line_chart("accuracy on training views, %", "epoch", [right],
                                     bounds=(0, 100), shaded=shaded)),
            tag("figure", line_chart("learning rate", "epoch", rates, shaded=shaded),
                legend(rates)),
        ]  # fmt: skip
        about = "Of each epoch; views are random crops of the training images, mirrored or not."
        if shaded:
            about += (
                " Shaded is the guidance stage, where the loss is another: that of both branches."
            )
        return section("Training", about, tag("div", *charts, class_="grid"))

    def _epochs(self) -> list[dict[str, float]]:
        """Of each line the `NUMBERS`, and the learning rates of the `SIDES` that the first has."""
        path, records = str(self.run.path(METRICS)), []
        for number, line in enumerate(read_text(path, path).splitlines(), start=1):
            where, kinds = f"{path}, line {number}", dict.fromkeys(NUMBERS, int | float)
            said = entries(parse_json(line, where), where, lr=dict, **kinds)
            sides = [side for side in SIDES if side in (records or [said["lr"]])[0]]
            rates = entries(said["lr"], f"{where}, lr", **dict.fromkeys(sides, int | float))
            record = {name: said[name] for name in NUMBERS} | {side: rates[side] for side in sides}
            if wrong := [what for what, value in record.items() if abs(value) > LARGEST]:
                got = f"{record[wrong[0]]:g}"
                raise ValueError(f"{where}: expected {wrong[0]} as fp32 can be, got {got}")
            records.append(record)
        if not records:
            raise ValueError(f"{path}: expected a line for each epoch, got none")
        return records

    def mistakes(self, predictions: Predictions) -> Markup:
        """The surest mistakes, with maps of attention where the model is to be had."""
        files = self.split["test"]
        if len(files) != len(predictions.labels):
            raise ValueError(f"expected the pictures of {SPLIT}, got predictions of others")
        chosen = predictions.surest_mistakes(MISTAKES)
        if not chosen:
            return section("Mistakes", "There are none.")
        root, white = self.root or self.split.get("root") or "", self.config.get("white")
        model = self._model()
        size = SIDE if model is None else model.clip.visual.resolution
        opened: dict[int, tuple[Image.Image, np.ndarray]] = {}  # small views: a picture may be huge
        missing = []
        for number in chosen:
            path = os.path.join(root, files[number][0])
            try:
                image = open_image(path, checked_white(white))
                opened[number] = central_view(image, SIDE), to_uint8(central_view(image, size))
            except (OSError, ValueError) as error:
                missing.append(error)
        if missing:
            more = f"{len(missing)} of {len(chosen)} pictures left out"
            self.notes.append(one_line(f"Mistakes: {more}: {missing[0]}"))
        maps = None
        if opened and model is not None:
            pixels = torch.from_numpy(np.stack([seen for _, seen in opened.values()]))
            maps = attention_maps(model, model.clip.normalize(pixels))
        cards = [
            card(predictions, number, view, files[number][0], maps, place)
            for place, (number, (view, _)) in enumerate(opened.items())
        ]
        cards += [
            card(predictions, number, None, files[number][0])
            for number in chosen
            if number not in opened
        ]
        about = f"The {len(chosen)} with the greatest probability."
        style = "grid narrow"
        if maps:
            style = "grid"
            about += (
                " Beside the picture as the model sees it, where its class token looks in the last "
                "layer: blue nowhere, yellow four times what even attention would give"
            )
            about += ": left zero-shot CLIP, right after tuning." if two_maps(maps) else "."
        return section("Surest mistakes", about, tag("div", *cards, class_=style))

    def _model(self) -> PromptedCLIP | None:
        """None, and a note, if it is not to be had."""
        try:
            if self.model is None:
                raise ValueError("no model was given")
            return self.model()
        except (OSError, ValueError) as error:
            self.notes.append(one_line(f"Maps of attention: left out: {error}"))
            return None

    def words(self) -> Markup:
        """The nearest words of each learned context vector."""
        path = str(self.run.path(WORDS))
        parts = []
        for context in entries(read_json(path, path), path, contexts=list)["contexts"]:
            said = entries(context, path, words=list, **{"class": str | None})
            try:
                rows = [
                    (f"{number}", *(tag("td", w, tag("small", f"{d:.2f}")) for w, d in row))
                    for number, row in enumerate(said["words"][:VECTORS], start=1)
                ]
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}: expected words and distances: {error}") from error
            if said.get("class") is not None:
                parts.append(tag("h3", name(said["class"])))
            parts.append(
                table(("vector", "nearest", "2nd", "3rd", "4th", "5th"), rows, class_="words")
            )
        about = (
            "The tokens whose embeddings lie nearest to each vector of the learned context, with "
            "the Euclidean distance. A hyphen stands where a word goes on."
        )
        return section("Learned context in words", about, *parts)
