"""Tables of results: as Markdown, which also lines up as plain text, and as CSV.

tables: Rows -> Tables of Cells, for `markdown` and report.py
"""

import os
from collections.abc import Iterable, Sequence
from statistics import pstdev
from typing import NamedTuple

from ..data.layouts import LAYOUTS
from ..support import files
from .folders import RunFolder
from .results import (
    PERCENTAGES,
    Row,
    average_rows,
    base_to_new,
    read_rows,
    summarise,
    zero_shot_row,
)

ELEVEN = [layout.name for layout in LAYOUTS[:11]]  # the other four are tests of ImageNet's classes


class Cell(NamedTuple):
    """A cell of a table. notes: stand below the tables, and their numbers in the cell."""

    text: str
    notes: Sequence[str] = ()
    is_best: bool = False


class Table(NamedTuple):
    """A table. rows: of methods by shots, for a chart."""

    title: Cell
    heads: Sequence[str]
    lines: Sequence[Sequence[Cell]]
    rows: Sequence[Row] = ()


# Read off a plot in CLIP-LoRA's repository, github.com/MaxZanella/CLIP-LoRA
PUBLISHED = Table(
    Cell("Published means over the 11 data sets, ViT-B/32 (read off a plot, ±0.2)"),
    ["method", "1 shot", "16 shots"],
    [list(map(Cell, line)) for line in (
        ("CoOp", "63.0", "75.7"), ("ProGrad", "64.8", "75.9"), ("TaskRes", "64.0", "76.8"),
        ("Tip-Adapter-F", "66.5", "77.1"), ("PLOT++", "66.5", "77.6"),
        ("CLIP-LoRA", "67.9", "78.9"),
    )],
)  # fmt: skip
Entry = tuple[tuple[str, ...], str, Row]  # the cells before the first accuracy, the column, the row


def tables(rows: Sequence[Row]) -> tuple[list[Table], dict[str, int]]:
    """Return for each CLIP means, data sets by shots, base to new, and tests on other data.

    Zero-shot CLIP stands in each, whether it was a run or not. Also returns the notes of the cells,
    numbered from 1 as they are read.
    """
    rows = summarise([*map(zero_shot_row, rows), *rows])
    rows = [*average_rows(rows), *rows]
    pages = []
    for model in sorted({row.model for row in rows}):
        of_model = [row for row in rows if row.model == model]
        triples = base_to_new(of_model)
        paired = [id(row) for triple in triples for row in triple]
        by_data: dict[tuple, list[Row]] = {}
        by_test: dict[tuple, list[Row]] = {}  # of what the run was not trained on
        for row in (row for row in of_model if id(row) not in paired):
            groups = by_data if row.is_test_of_own_data else by_test
            groups.setdefault((*row.data, row.trained, row.tested), []).append(row)
        datasets = sorted(row.dataset for row, *_ in by_data.values() if row.fingerprint)
        for group in by_data.values():
            pages.append(by_shots(group))
            if model == "ViT-B/32" and not group[0].fingerprint and datasets == sorted(ELEVEN):
                pages.append(PUBLISHED)
        if triples:
            columns = ("base", "new", "harmonic mean")
            entries = [((row.dataset, row.label, f"{row.shots or ''}"), column, row)
                       for triple in triples for column, row in zip(columns, triple)]  # fmt: skip
            heads = "data set", "method", "shots"
            pages.append(pivot(Cell(f"Base to new, CLIP {model}"), heads, columns, entries))
        if by_test:
            pages.append(cross_dataset(model, by_test.values()))
    cells = (cell for table in pages for line in ([table.title], *table.lines) for cell in line)
    notes = dict.fromkeys(note for cell in cells for note in cell.notes)
    return pages, {note: number for number, note in enumerate(notes, start=1)}


def by_shots(rows: Sequence[Row]) -> Table:
    """Tabulate methods by shots; zero-shot CLIP is the same for any number of shots."""
    names = {n: f"{n} shot{'' if n == 1 else 's'}" if n else "accuracy"
             for n in sorted({row.shots for row in rows if row.shots}) or [0]}  # fmt: skip
    entries = [((row.label,), names[n], row) for row in rows for n in names
               if n == row.shots or not row.shots]  # fmt: skip
    title = Cell(f"{rows[0].tested}, CLIP {rows[0].model}", rows[0].data_notes)
    return pivot(title, ["method"], list(names.values()), entries)._replace(rows=rows)


def cross_dataset(model: str, groups: Iterable[Sequence[Row]]) -> Table:
    """Tabulate tests, each a group, on what the runs were not trained on."""
    entries = []
    for rows in groups:
        rows = [row for row in rows if row.metrics]
        for row in [row for row in rows if row.shots] or rows:
            zero_shot = f"{row.mean('zero_shot_accuracy'):.1f}"
            line = row.trained, row.tested, row.label, f"{row.shots or ''}", zero_shot
            entries.append((line, "accuracy", row))
    title = Cell(f"Trained on one, tested on another, CLIP {model}")
    heads = "trained on", "tested on", "method", "shots", "zero-shot"
    return pivot(title, heads, ["accuracy"], entries)


def pivot(
    title: Cell, heads: Sequence[str], columns: Sequence[str], entries: Sequence[Entry]
) -> Table:
    """Tabulate rows by line and column; those of a line differ in their column alone.

    The best of a column is the highest among the lines with the same cells before the method. A
    note stands at the method if all rows of the line have it.
    """
    at = heads.index("method")
    by_line: dict[tuple, dict[str, Row]] = {}
    rivals: dict[tuple, list[float]] = {}
    for line, column, row in entries:
        by_line.setdefault((line, row.data, row.variant), {})[column] = row
        if row.metrics:
            rivals.setdefault((line[:at], row.data, column), []).append(row.mean("accuracy"))
    lines = []
    for (line, data, _), by_column in by_line.items():
        first, *others = by_column.values()
        shared = [note for note in first.notes if all(note in row.notes for row in others)]
        cells = list(map(Cell, line))
        cells[at] = Cell(line[at], shared)
        if at:
            cells[0] = Cell(line[0], first.data_notes)
        for column in columns:
            cell = Cell("")
            if row := by_column.get(column):
                cell = accuracy_cell(row, shared, rivals.get((line[:at], data, column), []))
            cells.append(cell)
        lines.append(cells)
    return Table(title, [*heads, *columns], lines)


def accuracy_cell(row: Row, shared: Sequence[str], rivals: Sequence[float]) -> Cell:
    """Return "62.3 ± 0.7 (+12.3)": accuracy, deviation over seeds, gain over zero-shot CLIP."""
    notes = [note for note in row.notes if note not in shared]
    if not row.metrics:
        return Cell("–", notes)
    accuracy, gain = row.mean("accuracy"), row.mean("accuracy") - row.mean("zero_shot_accuracy")
    deviation = f" ± {pstdev(row.accuracies.values()):.1f}" if len(row.metrics) > 1 else ""
    above = f" ({round(gain, 1) + 0:+})" if row.shots else ""  # + 0: no -0.0
    is_best = len(rivals) > 1 and round(accuracy, 1) == round(max(rivals), 1)
    return Cell(f"{accuracy:.1f}{deviation}{above}", notes, is_best)


def caption(rows: Sequence[Row]) -> str:
    """Say what the numbers of tables are, and which options are not as published."""
    learned = [row for row in rows if row.shots]
    if not learned:
        return "Top-1 accuracy in percent."
    least, *_, most = sorted(len(row.metrics) for row in learned) * 2
    seeds = f"{most}" if least == most else f"{least} to {most}"
    about = (f"mean ± standard deviation over {seeds} seeds (divided by their number, as in CoOp's "
             "tables)")  # fmt: skip
    sentences = [f"Top-1 accuracy in percent, {about if most > 1 else 'one seed'}; in parentheses "
                 "the gain over zero-shot CLIP in points; the best in bold."]  # fmt: skip
    if counts := [len(row.metrics) for row in average_rows(learned) if row.metrics]:
        fewer = f", {min(counts)} of up to {most}" if min(counts) < most else ""
        sentences.append(f"A mean of data sets averages the seeds that all of them have{fewer}.")
    if base_to_new(learned):
        sentences.append("A harmonic mean is that of two average accuracies.")
    options: dict[str, list[str]] = {}  # which rows -> options
    for option in dict.fromkeys(option for row in learned for option in row.unusual):
        labels = dict.fromkeys(row.label for row in learned if option in row.unusual)
        of_all = all(option in row.unusual for row in learned)
        options.setdefault("" if of_all else f" ({', '.join(labels)})", []).append(option)
    sentences += [f"Settings not as published{which}: {' '.join(each)}."
                  for which, each in options.items()]  # fmt: skip
    return " ".join(sentences)


def markdown(rows: Sequence[Row]) -> str:
    """Return the tables as Markdown, what their cells are, and their numbered notes."""
    pages, numbers = tables(rows)
    notes = [f"{number}. {files.to_single_line(note)}" for note, number in numbers.items()]
    parts = [*(markdown_table(table, numbers) for table in pages), caption(rows), "\n".join(notes)]
    return "\n\n".join(filter(None, parts)) + "\n"


def markdown_table(table: Table, numbers: dict[str, int]) -> str:
    """Format a table so that its columns also line up as plain text."""

    def format_cell(cell: Cell) -> str:
        text = files.to_single_line(cell.text).replace("|", "\\|")
        marks = "".join(f" [{numbers[note]}]" for note in cell.notes)
        return (f"**{text}**" if cell.is_best else text) + marks

    lines = [list(table.heads), *(list(map(format_cell, line)) for line in table.lines)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    lines = [" | ".join(map(str.ljust, line, widths)) for line in lines]
    title = format_cell(table.title._replace(is_best=True))
    return "\n".join([f"{title}\n", *(f"| {line} |" for line in lines)])


def write_csv(rows: Sequence[Row], path: str | os.PathLike) -> None:
    """Write all rows in full digits, also those of means and harmonic means."""
    rows = [*rows, *(row for row in average_rows(rows) if row.metrics)]
    rows += [harmonic for *_, harmonic in base_to_new(rows)]
    seeds = sorted({seed for row in rows if row.shots for seed in row.metrics})
    records = []
    for row in rows:
        accuracies = row.accuracies if row.shots else {}  # zero-shot CLIP has no seeds
        records.append({
            "dataset": row.dataset, "trained": row.trained, "tested": row.tested,
            "model": row.model, "method": row.method, "shots": row.shots or None,
            "variant": row.variant, "seeds": len(accuracies) or None,
            "zero_shot_accuracy": row.mean("zero_shot_accuracy"), "accuracy": row.mean("accuracy"),
            "std": pstdev(accuracies.values()) if len(accuracies) > 1 else None,
            **{name: row.mean(name) for name in (*PERCENTAGES[2:], "test_images")},
            "data": row.folder, "data_fingerprint": row.fingerprint[:64],
            "notes": "; ".join(row.notes),
            **{f"seed {seed}": accuracies.get(seed) for seed in seeds},
        })  # fmt: skip
    files.write_rows(path, records[0], (record.values() for record in records))


def write_tables(folder: str | os.PathLike) -> str:
    """Write table.md and table.csv of a folder; return the Markdown. Raises as `read_rows`."""
    rows, left_out = read_rows(folder)
    text = markdown(rows)
    if left_out:
        text += f"\nRuns left out of the tables: {left_out}.\n"
    sweep = RunFolder(folder)
    sweep.write_text("table.md", text)
    write_csv(rows, sweep.path("table.csv"))
    return text
