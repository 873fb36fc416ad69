"""Tables of results: as Markdown, which also lines up as plain text, and as CSV.

tables: Rows -> Table, a page of Cells; `markdown` and report.py write them
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import harmonic_mean
from typing import NamedTuple

from ..data.layouts import LAYOUTS
from ..support import files
from .results import (
    PERCENTAGES,
    Row,
    average_rows,
    base_to_new,
    read_rows,
    zero_shot_rows,
)

# Top-1 accuracy over the 11 data sets, ViT-B/32, 1 and 16 shots; read off a plot in CLIP-LoRA's
# repository (github.com/MaxZanella/CLIP-LoRA), ±0.2.
PUBLISHED = {"CoOp": (63.0, 75.7), "ProGrad": (64.8, 75.9), "TaskRes": (64.0, 76.8),
             "Tip-Adapter-F": (66.5, 77.1), "PLOT++": (66.5, 77.6),
             "CLIP-LoRA": (67.9, 78.9)}  # fmt: skip
ELEVEN = [layout.name for layout in LAYOUTS[:11]]  # the other four are tests of ImageNet's classes


class Cell(NamedTuple):
    """A cell of a table.

    notes: stand below the tables, numbered. value: competes with the others of its column.
    """

    text: str
    notes: tuple[str, ...] = ()
    value: float | None = None
    is_best: bool = False


class Table(NamedTuple):
    title: Cell
    heads: Sequence[Cell]
    lines: Sequence[Sequence[Cell]]

    def rows(self) -> list[Sequence[Cell]]:
        """Return the title, the heads and the lines."""
        return [[self.title], self.heads, *self.lines]


def heading(text: str, notes: Sequence[str] = ()) -> Cell:
    return Cell(text, tuple(notes), is_best=True)


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return for each CLIP means, data sets by shots, base to new, and tests on other data."""
    pages = []
    for model in sorted({row.model for row in rows}):
        of_model = [row for row in rows if row.model == model]
        groups, pairs = by_shots_and_pairs(of_model)
        for group in groups:
            pages.append(shots_table(group))
            if model == "ViT-B/32" and is_mean_of_eleven(group, of_model):
                pages.append(published_table())
        if pairs:
            pages.append(base_to_new_table(pairs))
        paired = {row.key for pair in pairs for row in pair}
        crossed = [row for row in of_model if not row.is_test_of_own_data and row.key not in paired]
        if crossed:
            pages.append(cross_dataset_table(crossed))
    return pages


def by_shots_and_pairs(rows: Sequence[Row]) -> tuple[list[list[Row]], list[tuple[Row, Row]]]:
    """Group the rows of one CLIP by what they were trained and tested on, means first.

    Zero-shot CLIP is in each group, whether it was a run or not. Pairs of base and new classes are
    returned apart.
    """
    rows = [*zero_shot_rows(rows), *(row for row in rows if row.method != "zeroshot")]
    rows = [*average_rows(rows), *rows]
    pairs = base_to_new(rows)
    paired = {row.key for pair in pairs for row in pair}
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.is_test_of_own_data and row.key not in paired:
            groups.setdefault((*row.data, row.tested), []).append(row)
    return list(groups.values()), pairs


def is_mean_of_eleven(group: Sequence[Row], rows: Sequence[Row]) -> bool:
    """Whether a group is of means over the 11 data sets that papers report, with all classes."""
    datasets = {row.data for row in rows if row.tested == row.trained == row.dataset}
    is_mean = not group[0].data[1] and group[0].tested == group[0].dataset
    return is_mean and sorted(name for name, _ in datasets) == sorted(ELEVEN)


def shots_table(group: Sequence[Row]) -> Table:
    """Tabulate methods by shots, zero-shot CLIP first: it is the same for any number of shots.

    A note of all runs of the table stands at its title, one of a column or line at its head.
    """
    shots = sorted({row.shots for row in group if row.shots}) or [0]
    lines: dict[tuple, dict[int, Row]] = {}  # method and variant -> shots -> row
    for row in group:
        key = row.method, *row.kind[2:]
        lines.setdefault(key, {}).update(dict.fromkeys([row.shots] if row.shots else shots, row))
    learned = [row for row in group if row.method != "zeroshot"]
    of_table = shared_notes(learned)
    of_column = {
        count: shared_notes([row for row in learned if row.shots == count], of_table)
        for count in shots
    }
    cells = []
    for line in lines.values():
        first = next(iter(line.values()))
        of_line = shared_notes(list(line.values()), of_table)
        marked = {*of_table, *of_line}
        cells.append([
            Cell(first.label, (*first.footnotes, *of_line)),
            *(accuracy_cell(line[count], {*marked, *of_column[count]}) if count in line
              else Cell("") for count in shots),
        ])  # fmt: skip
    heads = [Cell(f"{n} shot{'' if n == 1 else 's'}" if n else "accuracy", of_column[n])
             for n in shots]  # fmt: skip
    title = f"{group[0].tested}, CLIP {group[0].model}"
    notes = *data_notes(group[0]), *of_table
    return Table(heading(title, notes), [Cell("method"), *heads], mark_best(cells))


def shared_notes(rows: Sequence[Row], but: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the notes that all rows have."""
    notes = rows[0].notes if rows else ()
    return tuple(n for n in notes if n not in but and all(n in row.notes for row in rows))


def data_notes(row: Row) -> tuple[str, ...]:
    """Return a note that tells a data set from others of its name, if there are such."""
    if not row.shares_name:
        return ()
    return (f"data in {row.folder}, fingerprint {row.data[1][:8]}",)


def accuracy_cell(row: Row, marked: Iterable[str] = ()) -> Cell:
    """Return a row's accuracy, with its notes but for those `marked` elsewhere."""
    notes = tuple(note for note in row.notes if note not in marked)
    if not row.metrics:
        return Cell("–", notes)
    std = row.std if len(row.metrics) > 1 else None
    zero_shot = None if row.method == "zeroshot" else row.zero_shot_accuracy
    return number_cell(row.accuracy, zero_shot, std)._replace(notes=notes)


def number_cell(accuracy: float, zero_shot: float | None, std: float | None = None) -> Cell:
    """Return a cell of an accuracy, its deviation, and the gain over zero-shot CLIP."""
    deviation = "" if std is None else f" ± {std:.1f}"
    gain = "" if zero_shot is None else f" ({round(accuracy - zero_shot, 1) + 0:+})"  # not -0.0
    return Cell(f"{accuracy:.1f}{deviation}{gain}", value=accuracy)


def mark_best(lines: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    """Mark the highest value of each column, if there are several; to one decimal, as shown."""
    columns = []
    for column in zip(*lines, strict=True):
        values = [round(cell.value, 1) for cell in column if cell.value is not None]
        best = max(values) if len(values) > 1 else None
        columns.append([
            cell._replace(is_best=cell.value is not None and round(cell.value, 1) == best)
            for cell in column
        ])  # fmt: skip
    return [list(line) for line in zip(*columns, strict=True)]


def published_table() -> Table:
    lines = [[Cell(name), *(Cell(f"{mean:.1f}") for mean in means)]
             for name, means in PUBLISHED.items()]  # fmt: skip
    title = "Published means over the 11 data sets, ViT-B/32 (read off a plot, ±0.2)"
    return Table(heading(title), list(map(Cell, ("method", "1 shot", "16 shots"))), lines)


def base_to_new_table(pairs: Sequence[tuple[Row, Row]]) -> Table:
    """Tabulate accuracies on base and new classes, and the harmonic mean of both."""
    by_data: dict[tuple, list[list[Cell]]] = {}
    for base, new in pairs:
        mean = Cell("–")
        if base.metrics and new.metrics:
            zero_shot = harmonic_mean([base.zero_shot_accuracy, new.zero_shot_accuracy])
            is_learned = base.method != "zeroshot"
            mean = harmonic_mean([base.accuracy, new.accuracy])
            mean = number_cell(mean, zero_shot if is_learned else None)
        by_data.setdefault(base.data, []).append([
            Cell(base.dataset, data_notes(base)), Cell(base.label, (*base.footnotes, *base.notes)),
            Cell(f"{base.shots or ''}"),
            accuracy_cell(base, base.notes), accuracy_cell(new, base.notes), mean,
        ])  # fmt: skip
    heads = map(Cell, ("data set", "method", "shots", "base", "new", "harmonic mean"))
    lines = [line for block in by_data.values() for line in mark_best(block)]
    return Table(heading(f"Base to new, CLIP {pairs[0][0].model}"), list(heads), lines)


def cross_dataset_table(rows: Sequence[Row]) -> Table:
    """Tabulate tests on other data, or other classes, than were trained on."""
    by_test: dict[tuple, list[list[Cell]]] = {}
    for row in rows:
        root = row.variant.get("tested in")
        tested = Cell(row.tested, (f"data in {root}",) if root else ())
        by_test.setdefault(tested, []).append([
            Cell(row.trained, data_notes(row)), tested,
            Cell(row.label, (*row.footnotes, *row.notes)), Cell(f"{row.shots or ''}"),
            Cell(f"{row.zero_shot_accuracy:.1f}"), accuracy_cell(row, row.notes),
        ])  # fmt: skip
    heads = map(Cell, ("trained on", "tested on", "method", "shots", "zero-shot", "accuracy"))
    lines = [line for block in by_test.values() for line in mark_best(block)]
    title = f"Trained on one, tested on another, CLIP {rows[0].model}"
    return Table(heading(title), list(heads), lines)


def number_notes(pages: Iterable[Table]) -> dict[str, int]:
    """Return the notes of the cells, numbered from 1 as they are read."""
    cells = chain.from_iterable(chain(*table.rows()) for table in pages)
    notes = dict.fromkeys(note for cell in cells for note in cell.notes)
    return {note: number for number, note in enumerate(notes, start=1)}


def caption(rows: Sequence[Row]) -> str:
    """Say what the numbers of tables are, and which options are not as published."""
    learned = [row for row in rows if row.method != "zeroshot"]
    if not learned:
        return "Top-1 accuracy in percent."
    count, most = count_seeds(learned)
    text = "Top-1 accuracy in percent, one seed"
    if most != "1":
        text = (f"Top-1 accuracy in percent: mean ± standard deviation over {most} seeds (divided "
                "by their number, as in CoOp's tables)")  # fmt: skip
    sentences = [
        f"{text}; in parentheses the gain over zero-shot CLIP in points; the best in bold."
    ]
    if means := [row for row in average_rows(learned) if row.metrics]:
        _, common = count_seeds(means)
        common = "" if common == most else f" ({common} of up to {count})"
        sentences.append("Means of data sets: averaged over the data sets for each seed that all "
                         f"of them have{common}, then over these seeds.")  # fmt: skip
    if base_to_new(learned):
        sentences.append("Harmonic means are those of average accuracies.")
    return " ".join([*sentences, *unusual_settings(learned)])


def count_seeds(rows: Sequence[Row]) -> tuple[int, str]:
    counts = sorted({len(row.metrics) for row in rows})
    return counts[-1], f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def unusual_settings(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each set of rows with options that are not as published."""
    options: dict[str, list[str]] = {}  # which rows -> options
    for option in dict.fromkeys(option for row in rows for option in row.unusual):
        labels = dict.fromkeys(row.label for row in rows if option in row.unusual)
        of_all = all(option in row.unusual for row in rows)
        options.setdefault("" if of_all else f" ({', '.join(labels)})", []).append(option)
    return [f"Settings not as published{which}: {' '.join(each)}."
            for which, each in options.items()]  # fmt: skip


def markdown(rows: Sequence[Row]) -> str:
    """Return the tables as Markdown, what their cells are, and their numbered notes."""
    pages = tables(rows)
    numbers = number_notes(pages)
    notes = [f"{number}. {files.to_single_line(note)}" for note, number in numbers.items()]
    parts = [*(markdown_table(table, numbers) for table in pages), caption(rows), "\n".join(notes)]
    return "\n\n".join(filter(None, parts)) + "\n"


def markdown_table(table: Table, numbers: dict[str, int]) -> str:
    """Format a table so that its columns also line up as plain text."""

    def format_cell(cell: Cell) -> str:
        text = files.to_single_line(cell.text).replace("|", "\\|")
        marks = "".join(f" [{numbers[note]}]" for note in cell.notes)
        return (f"**{text}**" if cell.is_best else text) + marks

    title, *lines = (list(map(format_cell, line)) for line in table.rows())
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    ]
    return "\n".join([f"{title[0]}\n", *(f"| {line} |" for line in lines)])


def write_csv(rows: Sequence[Row], path: str | os.PathLike) -> None:
    """Write all rows in full digits, then means over data sets, and harmonic means."""
    rows = [*rows, *(row for row in average_rows(rows) if row.metrics)]
    seeds = sorted({seed for row in rows if row.method != "zeroshot" for seed in row.metrics})
    records = [csv_record(row, seeds) for row in rows]
    records += [harmonic_record(base, new, seeds) for base, new in base_to_new(rows)]
    files.write_rows(path, records[0], (record.values() for record in records))


def csv_record(row: Row, seeds: Sequence[int]) -> dict[str, object]:
    """Return the columns of a row by name; zero-shot CLIP has neither shots nor seeds."""
    accuracies = {} if row.method == "zeroshot" else row.accuracies
    return {
        "dataset": row.dataset, "trained": row.trained, "tested": row.tested,
        "model": row.model, "method": row.method, "shots": row.shots if accuracies else None,
        "variant": row.describe_variant(200), "seeds": len(accuracies) or None,
        "zero_shot_accuracy": row.zero_shot_accuracy, "accuracy": row.accuracy,
        "std": row.std if len(accuracies) > 1 else None,
        **{name: row.mean(name) for name in PERCENTAGES[2:]},
        "test_images": next(iter(row.metrics.values())).get("test_images"), "data": row.folder,
        "data_fingerprint": row.data[1], "notes": "; ".join(row.notes),
        **{f"seed {seed}": accuracies.get(seed) for seed in seeds},
    }  # fmt: skip


def harmonic_record(base: Row, new: Row, seeds: Sequence[int]) -> dict[str, object]:
    """Return the columns of the harmonic mean of two averages, and of each seed's accuracies."""
    metrics = {
        seed: {name: harmonic_mean([base.metrics[seed][name], new.metrics[seed][name]])
               for name in ("zero_shot_accuracy", "accuracy")}
        for seed in base.metrics if seed in new.metrics
    }  # fmt: skip
    tested = f"{base.dataset}, harmonic mean of base and new"
    record = csv_record(replace(base, tested=tested, metrics=metrics), seeds)
    return record | {"accuracy": harmonic_mean([base.accuracy, new.accuracy]), "std": None}


def write_tables(folder: str | os.PathLike) -> str:
    """Write table.md and table.csv of a folder; return the Markdown. Raises as `read_rows`."""
    rows, left_out = read_rows(folder)
    text = markdown(rows)
    if left_out:
        text += f"\nRuns left out of the tables: {left_out}.\n"
    with files.atomic_write(Path(folder) / "table.md") as unfinished_file:
        unfinished_file.write_text(text, encoding="utf-8")
    write_csv(rows, Path(folder) / "table.csv")
    return text
