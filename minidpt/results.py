"""Tables of what runs have given: mean ± standard deviation over seeds, as Markdown and CSV.

read_results: */summary.json below a folder -> Result, one for each run and what it was tested on
summarise:    Results that differ in their seed only -> Row
markdown, write_csv: the tables
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import NamedTuple

from .layouts import LAYOUTS
from .model import METHODS
from .runs import SUMMARY, TRANSFER

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
ELEVEN = {layout.name for layout in LAYOUTS[:11]}  # the other four are tests of ImageNet's classes


class Result(NamedTuple):
    """One accuracy of one run, in percent. `tested`: the data set, and its classes if not all."""

    dataset: str
    tested: str
    model: str
    method: str
    shots: int
    seed: int
    zero_shot_accuracy: float
    accuracy: float


class Row(NamedTuple):
    """Results of all seeds. `std` divides by their number, as CoOp's published tables do."""

    dataset: str
    tested: str
    model: str
    method: str
    shots: int
    seeds: int
    zero_shot_accuracy: float
    accuracy: float
    std: float


def tested_on(dataset: str, subset: str) -> str:
    """What a test set is called in tables: "EuroSAT", "EuroSAT, base classes"."""
    return dataset if subset == "all" else f"{dataset}, {subset} classes"


def read_results(folder: str | os.PathLike) -> list[Result]:
    """The results of all finished runs in a folder and below.

    Raises FileNotFoundError if there is none, ValueError if one is damaged.
    """
    results = []
    for path in sorted(Path(folder).rglob(SUMMARY)):
        transfer = path.with_name(TRANSFER)
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            tests = dict(run["tests"])
            if transfer.is_file():
                tests |= json.loads(transfer.read_text(encoding="utf-8"))
            for tested, test in tests.items():
                accuracies = (float(test["zero_shot_accuracy"]), float(test["accuracy"]))
                named = (run["dataset"], tested, run["model"], run["method"])
                results.append(Result(*named, int(run["shots"]), int(run["seed"]), *accuracies))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path}: expected the result of a run of train.py, got "
                f"{type(error).__name__}: {error}"
            ) from error
    if not results:
        raise FileNotFoundError(f"folder {folder}: expected finished runs in it, got none")
    return results


def summarise(results: Iterable[Result]) -> list[Row]:
    """A row for all that differ in the seed only; by data set, method and shots."""
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        groups.setdefault(result[:5], []).append(result)
    rows = []
    for key, own in groups.items():
        accuracies = [result.accuracy for result in own]
        zero_shot = fmean(result.zero_shot_accuracy for result in own)
        rows.append(Row(*key, len(own), zero_shot, fmean(accuracies), pstdev(accuracies)))
    return sorted(rows, key=lambda row: (*row[:3], METHODS.index(row.method), row.shots))


def is_own_test(row: Row) -> bool:
    """Whether a test was on the data set that was trained on, or on a part of its classes."""
    return row.tested in (tested_on(row.dataset, part) for part in ("all", "base", "new"))


def harmonic_mean(first: float, second: float) -> float:
    """2ab/(a+b); 0 if both are."""
    return 2 * first * second / (first + second) if first + second else 0.0


def base_to_new(rows: Iterable[Row]) -> list[tuple[Row, Row, float]]:
    """Rows of base and new classes that belong together, with the harmonic mean of the two."""
    tested = {row[:5]: row for row in rows}
    pairs = []
    for base in tested.values():
        new_name = tested_on(base.dataset, "new")
        new = tested.get((base.dataset, new_name, *base[2:5]))
        if base.tested == tested_on(base.dataset, "base") and new:
            pairs.append((base, new, harmonic_mean(base.accuracy, new.accuracy)))
    return pairs


def markdown(rows: Sequence[Row]) -> str:
    """Tables to read: for each CLIP and data set methods by shots, then what goes beyond."""
    parts, averages = [], []
    for model in sorted({row.model for row in rows}):
        own = [row for row in rows if row.model == model]
        same = [row for row in own if row.tested == row.dataset]
        names = sorted({row.dataset for row in same})
        for name in names:
            title = f"{name}, CLIP {model}"
            parts.append(_by_shots(title, [row for row in same if row.dataset == name]))
        if averaged := _averages(same, names):
            averages.append(_by_shots(f"Mean of {len(names)} data sets, CLIP {model}", averaged))
        if pairs := base_to_new(own):
            parts.append(_base_to_new_table(f"Base to new, CLIP {model}", pairs))
        other = [row for row in own if not is_own_test(row)]
        if other:
            parts.append(_transfer_table(f"Trained on one, tested on another, CLIP {model}", other))
    if any(row.dataset in ELEVEN and row.tested == row.dataset for row in rows):
        parts.append(_published())
    seeds = sorted({row.seeds for row in rows if row.method != "zeroshot"})
    if seeds:
        count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        parts.append(f"Accuracy in percent, mean ± standard deviation over seeds ({count}).")
    return "\n\n".join(averages + parts) + "\n"


def _by_shots(title: str, rows: Sequence[Row]) -> str:
    """Methods down, shots across; zero-shot first."""
    shots = sorted({row.shots for row in rows if row.shots}) or [0]
    cells = {(row.method, row.shots): _cell(row) for row in rows}
    zero_shot = f"{fmean(row.zero_shot_accuracy for row in rows):.1f}"
    lines = [["zero-shot", *([zero_shot] * len(shots))]]
    for method in METHODS:
        if method != "zeroshot" and any(row.method == method for row in rows):
            lines.append([method, *(cells.get((method, count), "") for count in shots)])
    heads = [f"{count} shot{'s' * (count != 1)}" if count else "accuracy" for count in shots]
    return _table(title, ["method", *heads], lines)


def _averages(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The mean over data sets where several were run, for what was run on all of them."""
    if len(names) < 2:
        return []
    averaged = []
    for method, shots in sorted({(row.method, row.shots) for row in rows}):
        own = [row for row in rows if (row.method, row.shots) == (method, shots)]
        if len(own) == len(names):
            means = [fmean(row[i] for row in own) for i in (6, 7, 8)]
            averaged.append(Row("", "", own[0].model, method, shots, own[0].seeds, *means))
    return averaged


def _base_to_new_table(title: str, pairs: Sequence[tuple[Row, Row, float]]) -> str:
    lines, seen = [], set()
    for base, new, mean in pairs:
        if base.dataset not in seen:
            seen.add(base.dataset)
            plain = base.zero_shot_accuracy, new.zero_shot_accuracy
            percents = (f"{value:.1f}" for value in (*plain, harmonic_mean(*plain)))
            lines.append([base.dataset, "zero-shot", "", *percents])
        if base.method != "zeroshot":
            cells = _cell(base), _cell(new), f"{mean:.1f}"
            lines.append([base.dataset, base.method, f"{base.shots}", *cells])
    heads = ["data set", "method", "shots", "base", "new", "harmonic mean"]
    return _table(title, heads, lines)


def _transfer_table(title: str, rows: Sequence[Row]) -> str:
    lines = [
        [row.dataset, row.tested, row.method, f"{row.shots}", f"{row.zero_shot_accuracy:.1f}",
         _cell(row)]
        for row in rows
    ]  # fmt: skip
    return _table(
        title, ["trained on", "tested on", "method", "shots", "zero-shot", "accuracy"], lines
    )


def _published() -> str:
    lines = [[name, f"{one:.1f}", f"{sixteen:.1f}"] for name, (one, sixteen) in PUBLISHED.items()]
    title = (
        "Published means over the 11 data sets, ViT-B/32 "
        "(read off a plot in CLIP-LoRA's repository, ±0.2)"
    )
    return _table(title, ["method", "1 shot", "16 shots"], lines)


def _cell(row: Row) -> str:
    return f"{row.accuracy:.1f} ± {row.std:.1f}" if row.seeds > 1 else f"{row.accuracy:.1f}"


def _table(title: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as plain text."""
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    rule = ["-" * width for width in widths]
    rows = [
        "| " + " | ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (heads, rule, *lines)
    ]
    return f"**{title}**\n\n" + "\n".join(rows)


def write_csv(rows: Sequence[Row], path: str | os.PathLike) -> None:
    """All rows, one a line, in full digits; base-to-new with its harmonic mean as a row more."""
    path = Path(path)
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows(rows)
        for base, new, mean in base_to_new(rows):
            zero_shot = harmonic_mean(base.zero_shot_accuracy, new.zero_shot_accuracy)
            both = f"{base.dataset}, harmonic mean of base and new"
            writer.writerow([base.dataset, both, *base[2:6], zero_shot, mean, ""])
    os.replace(unfinished, path)


def write_tables(folder: str | os.PathLike) -> str:
    """Writes table.md and table.csv of all finished runs in a folder; returns the Markdown.

    Raises as `read_results`.
    """
    rows = summarise(read_results(folder))
    text = markdown(rows)
    (Path(folder) / "table.md").write_text(text, encoding="utf-8")
    write_csv(rows, Path(folder) / "table.csv")
    return text
