"""Tables of what runs have given: mean ± standard deviation over seeds, as Markdown and CSV.

read_results: */summary.json below a folder -> Result, one for each run and what it was tested on
summarise:    Results that differ in nothing but their seed -> Row
tables, markdown, write_csv: the tables
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, NamedTuple

from ..data.layouts import LAYOUTS
from ..files import entries, good_name, one_line, one_line_errors, replacing, shown, write_rows
from ..model import METHODS, PromptConfig
from ..training import default_epochs
from .folders import CONFIG, FINGERPRINTS, NOT_COMPARED, SUMMARY, TRANSFER, Run

# Top-1 accuracy over the 11 data sets, ViT-B/32, 1 and 16 shots; read off a plot in CLIP-LoRA's
# repository (github.com/MaxZanella/CLIP-LoRA), ±0.2.
PUBLISHED = {
    "CoOp": (63.0, 75.7),
    "ProGrad": (64.8, 75.9),
    "TaskRes": (64.0, 76.8),
    "Tip-Adapter-F": (66.5, 77.1),
    "PLOT++": (66.5, 77.6),
    "CLIP-LoRA": (67.9, 78.9),
}
# What config.json says beside settings: it is in a `Result` already, or changes no result.
NOT_SETTINGS = {*NOT_COMPARED, "name", "dataset", "classes", "method", "prompts", "shots", "seed"}
# Options that runs of earlier versions did not have: as if they had not been given.
LATER = {"image_size": None, "head_width": None}
# Options of the training as published, beside those that depend on the data set (`_usual`).
PUBLISHED_OPTIONS = asdict(PromptConfig()) | {
    "batch_size": 32, "guidance_epochs": 30, "visual_lr": 0.01, "text_lr": 0.002,
}  # fmt: skip
# Settings that each data set has its own of.
OF_DATA = {"data", "data_fingerprint", "template", "classnames", "tested in", "tested by"}
OF_RUN = {"dataset": str, "model": str, "method": str, "shots": int, "seed": int, "tests": dict}
OF_TEST = {"zero_shot_accuracy": int | float, "accuracy": int | float, "tested": str | None,
           "settings": dict | None}  # fmt: skip
AT_MOST = {"shots": 10**9, "seed": 2**63, "zero_shot_accuracy": 100, "accuracy": 100}
ELEVEN = {layout.name for layout in LAYOUTS[:11]}  # the other four are tests of ImageNet's classes


class Result(NamedTuple):
    """One accuracy of one run, in percent.

    trained, tested: data sets, and the part of the classes if not all (`tested_on`).
    settings: what config.json says beyond that, without what changes no result, and what a test by
        eval.py had otherwise.
    """

    dataset: str
    trained: str
    tested: str
    model: str
    method: str
    shots: int
    settings: dict[str, Any]
    seed: int
    zero_shot_accuracy: float
    accuracy: float


class Row(NamedTuple):
    """Results that differ in their seed only. Accuracies in percent, by seed.

    variant: the settings that tell it from rows that are otherwise of the same kind, or "".
    unusual: options of the training that are not as published and not in `variant`.
    """

    dataset: str
    trained: str
    tested: str
    model: str
    method: str
    shots: int
    variant: str
    zero_shot_accuracy: float
    accuracies: dict[int, float]
    unusual: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float:
        """The mean over seeds."""
        return fmean(self.accuracies.values())

    @property
    def std(self) -> float:
        """The deviation over seeds, divided by their number, as in CoOp's published tables."""
        return pstdev(self.accuracies.values())

    @property
    def label(self) -> str:
        """The method, and what is special about it."""
        return f"{self.method} ({self.variant})" if self.variant else self.method


def tested_on(dataset: str, subset: str) -> str:
    """What a data set or a part of it is called in tables: "EuroSAT", "EuroSAT, base classes"."""
    return dataset if subset == "all" else f"{dataset}, {subset} classes"


@one_line_errors
def read_results(folder: str | os.PathLike) -> list[Result]:
    """The results of all finished runs in a folder and below, the oldest first.

    Raises FileNotFoundError if there is none, ValueError if one is damaged.
    """
    results = []
    for path in sorted(Path(folder).rglob(SUMMARY), key=lambda path: (path.stat().st_mtime, path)):
        one = Run(path.parent)
        run, config = one.read_json(SUMMARY, **OF_RUN), one.read_json(CONFIG, classes=str)
        transfer = one.read_json(TRANSFER) if one.path(TRANSFER).is_file() else {}
        config = LATER | config
        settings = {key: value for key, value in config.items() if key not in NOT_SETTINGS}
        trained = tested_on(good_name(run["dataset"], str(path), folder=True), config["classes"])
        for name, test in {**transfer, **run["tests"]}.items():
            where = f"{path.parent}, test {name[:60]!r}"
            said = run | entries(test, where, **OF_TEST)
            wrong = [name for name, most in AT_MOST.items() if not 0 <= said[name] <= most]
            if wrong := wrong or ["method"] * (run["method"] not in METHODS):
                got = f"{wrong[0]} {shown(said[wrong[0]])}"
                raise ValueError(f"{where}: expected the result of a run of train.py, got {got}")
            results.append(Result(
                run["dataset"], trained, test.get("tested") or name, run["model"], run["method"],
                run["shots"], settings | (test.get("settings") or {}), run["seed"],
                float(test["zero_shot_accuracy"]), float(test["accuracy"]),
            ))  # fmt: skip
    if not results:
        got = f"{len(begun)} unfinished" if (begun := unfinished(folder)) else "none"
        raise FileNotFoundError(f"folder {folder}: expected finished runs in it, got {got}")
    return results


def unfinished(folder: str | os.PathLike) -> list[Path]:
    """The runs in a folder and below that have no result: stopped, or still learning."""
    begun = sorted(path.parent for path in Path(folder).rglob(CONFIG))
    return [run for run in begun if not (run / SUMMARY).is_file()]


def summarise(results: Iterable[Result]) -> list[Row]:
    """A row for all that differ in the seed only; by data set, method and shots.

    Of runs that differ in nothing, not even the seed, the last counts.
    """
    kinds: dict[tuple, dict[str, dict[int, Result]]] = {}  # kind → settings → seed → result
    for result in results:
        variants = kinds.setdefault(result[:6], {})
        settings = json.dumps(result.settings, sort_keys=True)
        variants.setdefault(settings, {})[result.seed] = result
    compared: dict[tuple, list[dict[str, Any]]] = {}  # model, method, shots → settings
    for kind, variants in kinds.items():
        for own in variants.values():
            compared.setdefault(kind[3:], []).append(_across(next(iter(own.values()))))
    rows = []
    for kind, variants in kinds.items():
        # A setting that varies between data sets is named on all: only what is alike is averaged.
        names = differences([json.loads(settings) for settings in variants])
        names = dict.fromkeys([*names, *differences(compared[kind[3:]])])
        for own in variants.values():
            first = next(iter(own.values()))
            settings, usual = first.settings, _usual(first)
            name = ", ".join(named(name, settings[name]) for name in names if name in settings)
            zero_shot = fmean(result.zero_shot_accuracy for result in own.values())
            accuracies = {seed: result.accuracy for seed, result in sorted(own.items())}
            unusual = tuple(
                f"--{option.replace('_', '-')}" + f" {one_line(value, 200)}" * (value is not True)
                for option, value in settings.items()
                if option not in names and usual.get(option, value) != value
            )
            rows.append(Row(*kind, name, zero_shot, accuracies, unusual))
    return sorted(rows, key=lambda row: (*row[:4], METHODS.index(row.method), row.shots))


def _across(result: Result) -> dict[str, Any]:
    """The settings by which runs on several data sets differ: not in each one's own, or usual."""
    own = {name: value for name, value in result.settings.items() if name not in OF_DATA}
    usual = _usual(result).items()
    return own | {name: "usual" for name, value in usual if name in own and own[name] == value}


def _usual(result: Result) -> dict[str, Any]:
    """The options of the training of a run as published."""
    epochs = default_epochs(result.method, result.shots, result.dataset)
    warmup = 1 if result.dataset == "ImageNet" else 10
    return {**PUBLISHED_OPTIONS, "epochs": epochs, "warmup_epochs": warmup}


def differences(settings: Sequence[dict[str, Any]]) -> list[str]:
    """The names of those that are not the same in all."""
    names = dict.fromkeys(name for own in settings for name in own)
    first = settings[0]
    return [n for n in names if any(own.get(n) != first.get(n) for own in settings)]


def named(setting: str, value: Any) -> str:
    """A setting as tables show it; of a fingerprint, its beginning."""
    if setting in FINGERPRINTS:
        return f"{FINGERPRINTS[setting]} {str(value)[:8]}"
    return f"{setting} {one_line(value, 200)}"


def harmonic_mean(first: float, second: float) -> float:
    """2ab/(a+b); 0 if both are."""
    return 2 * first * second / (first + second) if first + second else 0.0


def base_to_new(rows: Iterable[Row]) -> list[tuple[Row, Row, float]]:
    """Rows of runs on base classes, tested on these and on the new ones, and the harmonic mean."""
    rows = {row[:7]: row for row in rows}
    pairs = []
    for base in rows.values():
        if base.tested == base.trained == tested_on(base.dataset, "base"):
            new = rows.get(base._replace(tested=tested_on(base.dataset, "new"))[:7])
            if new:
                pairs.append((base, new, harmonic_mean(base.accuracy, new.accuracy)))
    return pairs


class Table(NamedTuple):
    """Cells as text, under heads."""

    title: str
    heads: Sequence[str]
    lines: Sequence[Sequence[str]]


def markdown(rows: Sequence[Row]) -> str:
    """Tables to read, and what they hold."""
    return "\n\n".join(filter(None, [*map(_markdown, tables(rows)), over(rows)])) + "\n"


def over(rows: Sequence[Row]) -> str:
    """What the cells of tables are: over how many seeds, and by which options, if not by those that
    are published; "" if nothing was learned.
    """
    learned = [row for row in rows if row.method != "zeroshot"]
    seeds = sorted({len(row.accuracies) for row in learned})
    if not seeds:
        return ""
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    said = f"mean ± standard deviation over seeds ({count})" if seeds != [1] else "one seed"
    return " ".join([f"Accuracy in percent, {said}.", *_unpublished(learned)])


def _unpublished(learned: Sequence[Row]) -> Iterator[str]:
    """A sentence for the options that all rows have and that are not published, and for others."""
    labels: dict[str, dict[str, None]] = {}  # option -> of which rows
    for option, label in ((option, row.label) for row in learned for option in row.unusual):
        labels.setdefault(option, {})[label] = None
    everywhere = len({row.label for row in learned})
    options: dict[str, list[str]] = {}
    for option, own in labels.items():
        options.setdefault("" if len(own) == everywhere else ", ".join(own), []).append(option)
    for whose, own in options.items():
        yield f"Not as published: {whose}{': ' * bool(whose)}{' '.join(own)}."


def charted(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Title → rows of one CLIP, trained and tested on the same; the means over data sets first."""
    kinds: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row[1:4]):
        if row.trained == row.tested:
            kinds.setdefault(f"{row.tested}, CLIP {row.model}", []).append(row)
    return _averages(rows) | kinds


def tables(rows: Sequence[Row]) -> list[Table]:
    """For each CLIP and data set methods by shots, then what goes beyond."""
    parts = [_by_shots(title, averaged) for title, averaged in _averages(rows).items()]
    for model in sorted({row.model for row in rows}):
        own = [row for row in rows if row.model == model]
        pairs = base_to_new(own)
        halves = [row for base, new, _ in pairs for row in (base, new)]
        same = [row for row in own if row.trained == row.tested and row not in halves]
        for name in sorted({row.tested for row in same}):
            title = f"{name}, CLIP {model}"
            parts.append(_by_shots(title, [row for row in same if row.tested == name]))
        if pairs:
            parts.append(_base_to_new_table(f"Base to new, CLIP {model}", pairs))
        if other := [row for row in own if row not in same and row not in halves]:
            parts.append(_transfer_table(f"Trained on one, tested on another, CLIP {model}", other))
    if any(row.dataset in ELEVEN and row.tested == row.dataset for row in rows):
        parts.append(_published())
    return parts


def _by_shots(title: str, rows: Sequence[Row]) -> Table:
    """Methods down, shots across; zero-shot first."""
    shots = sorted({row.shots for row in rows if row.shots}) or [0]
    cells = {(row.label, row.shots): _cell(row) for row in rows}
    zero_shot = {}  # accuracy → of which variant; most settings do not change it
    for row in rows:
        zero_shot.setdefault(f"{row.zero_shot_accuracy:.1f}", row.variant)
    lines = [
        [f"zero-shot ({variant})" if variant and len(zero_shot) > 1 else "zero-shot"]
        + [accuracy] * len(shots)
        for accuracy, variant in zero_shot.items()
    ]
    learned = dict.fromkeys(row.label for row in rows if row.method != "zeroshot")
    lines += [[label, *(cells.get((label, count), "") for count in shots)] for label in learned]
    heads = [f"{count} shot{'s' * (count != 1)}" if count else "accuracy" for count in shots]
    return Table(title, ["method", *heads], lines)


def _averages(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """For each CLIP the means over data sets where several were run, for what was run on all.

    They are taken for each seed that was run on all of them; the deviation is that of these means.
    """
    averages: dict[str, list[Row]] = {}
    whole = [row for row in rows if row.trained == row.tested == row.dataset]
    for kind in dict.fromkeys((row.model, row.method, row.shots, row.variant) for row in whole):
        names = {row.dataset for row in whole if row.model == kind[0]}
        own = [row for row in whole if (*row[3:6], row.variant) == kind]
        seeds = [seed for seed in own[0].accuracies if all(seed in row.accuracies for row in own)]
        if len(own) == len(names) > 1 and seeds:
            zero_shot = fmean(row.zero_shot_accuracy for row in own)
            means = {seed: fmean(row.accuracies[seed] for row in own) for seed in seeds}
            averaged = own[0]._replace(zero_shot_accuracy=zero_shot, accuracies=means)
            title = f"Mean of {len(names)} data sets, CLIP {kind[0]}"
            averages.setdefault(title, []).append(averaged)
    return dict(sorted(averages.items()))


def _base_to_new_table(title: str, pairs: Sequence[tuple[Row, Row, float]]) -> Table:
    lines, seen = [], set()
    for base, new, mean in pairs:
        if base.dataset not in seen:
            seen.add(base.dataset)
            plain = base.zero_shot_accuracy, new.zero_shot_accuracy
            percents = (f"{value:.1f}" for value in (*plain, harmonic_mean(*plain)))
            lines.append([base.dataset, "zero-shot", "", *percents])
        if base.method != "zeroshot":
            cells = _cell(base), _cell(new), f"{mean:.1f}"
            lines.append([base.dataset, base.label, f"{base.shots}", *cells])
    heads = ["data set", "method", "shots", "base", "new", "harmonic mean"]
    return Table(title, heads, lines)


def _transfer_table(title: str, rows: Sequence[Row]) -> Table:
    lines = [
        [row.trained, row.tested, row.label, f"{row.shots}", f"{row.zero_shot_accuracy:.1f}",
         _cell(row)]
        for row in rows
    ]  # fmt: skip
    return Table(
        title, ["trained on", "tested on", "method", "shots", "zero-shot", "accuracy"], lines
    )


def _published() -> Table:
    lines = [[name, f"{one:.1f}", f"{sixteen:.1f}"] for name, (one, sixteen) in PUBLISHED.items()]
    title = (
        "Published means over the 11 data sets, ViT-B/32 "
        "(read off a plot in CLIP-LoRA's repository, ±0.2)"
    )
    return Table(title, ["method", "1 shot", "16 shots"], lines)


def _cell(row: Row) -> str:
    return (
        f"{row.accuracy:.1f} ± {row.std:.1f}" if len(row.accuracies) > 1 else f"{row.accuracy:.1f}"
    )


def _markdown(table: Table) -> str:
    """A table whose columns also line up as plain text."""
    lines = [[one_line(text).replace("|", "\\|") for text in line] for line in table.lines]
    widths = [max(map(len, column)) for column in zip(table.heads, *lines, strict=True)]
    rule = ["-" * width for width in widths]
    rows = [
        "| " + " | ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (table.heads, rule, *lines)
    ]
    return f"**{one_line(table.title)}**\n\n" + "\n".join(rows)


def write_csv(rows: Sequence[Row], path: str | os.PathLike) -> None:
    """All rows, one a line, in full digits; base-to-new with its harmonic mean as a row more."""
    seeds = sorted({seed for row in rows for seed in row.accuracies})
    header = [*Row._fields[:7], "seeds", "zero_shot_accuracy", "accuracy", "std"]
    header += [f"seed {seed}" for seed in seeds]
    lines = [
        (row, row.zero_shot_accuracy, row.accuracy, row.std if len(row.accuracies) > 1 else "")
        for row in rows
    ]
    for base, new, mean in base_to_new(rows):
        zero_shot = harmonic_mean(base.zero_shot_accuracy, new.zero_shot_accuracy)
        means = {
            seed: harmonic_mean(accuracy, new.accuracies[seed])
            for seed, accuracy in base.accuracies.items()
            if seed in new.accuracies
        }
        tested = f"{base.dataset}, harmonic mean of base and new"
        lines.append((base._replace(tested=tested, accuracies=means), zero_shot, mean, ""))
    cells = (
        [*row[:7], len(row.accuracies), *numbers, *(row.accuracies.get(s, "") for s in seeds)]
        for row, *numbers in lines
    )
    write_rows(path, header, cells, "backslashreplace")


@one_line_errors
def write_tables(folder: str | os.PathLike) -> str:
    """Writes table.md and table.csv of all finished runs in a folder; returns the Markdown.

    Raises as `read_results`.
    """
    rows = summarise(read_results(folder))
    text = markdown(rows)
    if others := unfinished(folder):
        names = one_line(", ".join(run.name for run in others))
        text += f"\nRuns that are not finished, so not in the tables: {len(others)} ({names}).\n"
    with replacing(Path(folder) / "table.md") as unfinished_file:
        unfinished_file.write_text(text, encoding="utf-8")
    write_csv(rows, Path(folder) / "table.csv")
    return text
