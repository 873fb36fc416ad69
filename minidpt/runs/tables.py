"""Tables of what runs have given (`results.py`), as Markdown and CSV."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from ..data.layouts import LAYOUTS
from ..files import one_line, one_line_errors, replacing, write_rows
from .results import Row, read_results, summarise, tested_on, unfinished

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
    """Which options are not as published; of which rows, if not of all."""
    owners: dict[str, set[tuple[str, int]]] = {}  # option → label and shots of its rows
    for row in learned:
        for option in row.unusual:
            owners.setdefault(option, set()).add((row.label, row.shots))
    options: dict[str, list[str]] = {}
    for option, own in owners.items():
        options.setdefault(_whose(own, learned), []).append(option)
    for whose, own in options.items():
        yield f"Not as published{whose}: {' '.join(own)}."


def _whose(own: set[tuple[str, int]], rows: Sequence[Row]) -> str:
    """ " (dpt, coop with 16 shots)" for some of the rows, nothing for all of them."""
    shots: dict[str, set[int]] = {}
    for row in rows:
        shots.setdefault(row.label, set()).add(row.shots)
    names = []
    for label, counts in shots.items():
        having = sorted(count for count in counts if (label, count) in own)
        if len(having) == len(counts):
            names.append(label)
        elif having:
            names.append(f"{label} with {' and '.join(map(str, having))} shots")
    return "" if names == list(shots) else f" ({', '.join(names)})"


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
