"""Results of runs, and tables of them.

read_rows: */summary.json below a folder -> Row, one for runs that differ in their seed alone
tables:    Rows -> Table, which `write_tables` writes as Markdown, and all rows as CSV
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, harmonic_mean, pstdev
from typing import Any, NamedTuple

from ..config import METHODS
from ..data.layouts import LAYOUTS
from ..data.samples import Dataset
from ..data.splits import split_content
from ..support import files
from . import folders
from .config import OPTIONS, flag, published_settings
from .folders import SUMMARY, TRANSFER, RunFolder

# Settings that each data set has its own of.
OF_DATA = {"data_fingerprint", "template", "classnames", "tested in", "tested by"}
FIELDS_OF_ROWS = {name for name, about in OPTIONS.items() if about.is_grid} | {"classes"}
OF_RUN = {"dataset": str, "model": str, "method": str, "shots": int, "seed": int, "tests": dict}
OF_TEST = {"zero_shot_accuracy": int | float, "accuracy": int | float}
# Top-1 accuracy over the 11 data sets, ViT-B/32, 1 and 16 shots; read off a plot in CLIP-LoRA's
# repository (github.com/MaxZanella/CLIP-LoRA), ±0.2.
PUBLISHED = {"CoOp": (63.0, 75.7), "ProGrad": (64.8, 75.9), "TaskRes": (64.0, 76.8),
             "Tip-Adapter-F": (66.5, 77.1), "PLOT++": (66.5, 77.6),
             "CLIP-LoRA": (67.9, 78.9)}  # fmt: skip
ELEVEN = {layout.name for layout in LAYOUTS[:11]}  # the other four are tests of ImageNet's classes
Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # title, heads, lines of cells


class Row(NamedTuple):
    """The accuracy of one run, or of several that differ in their seed only, in percent."""

    dataset: str
    trained: str  # the data set, or a subset of its classes (`tested_on`)
    tested: str
    model: str
    method: str
    shots: int
    variant: str  # the settings that tell it from rows that are otherwise of the same kind, or ""
    zero_shot_accuracy: float
    accuracies: dict[int, float]  # by seed
    settings: dict[str, Any] = {}  # all others that decide the result
    unusual: tuple[str, ...] = ()  # options that are not as published and not in `variant`

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
        """The method and its variant."""
        return f"{self.method} ({self.variant})" if self.variant else self.method


def tested_on(dataset: str, subset: str) -> str:
    """Return the name of a data set or subset in tables: "EuroSAT", "EuroSAT, base classes"."""
    return dataset if subset == "all" else f"{dataset}, {subset} classes"


@files.single_line_errors
def read_rows(folder: str | os.PathLike) -> tuple[list[Row], str]:
    """Read the rows of all finished runs in a folder and below; describe the runs left out.

    These are unfinished, damaged, or of an earlier version. Raises FileNotFoundError if there is no
    other.
    """
    results, left_out = [], []
    paths = sorted(path.parent for path in Path(folder).rglob(folders.SPLIT))
    runs = [RunFolder(path) for path in paths if os.path.lexists(path / folders.CONFIG)]
    finished = [run for run in runs if os.path.lexists(run.path(SUMMARY))]
    if unfinished := [run.folder.name for run in runs if run not in finished]:
        left_out.append(f"{len(unfinished)} not finished ({', '.join(unfinished)})")
    for run in sorted(finished, key=lambda run: run.path(SUMMARY).lstat().st_mtime):
        try:
            results += read_results(run)
        except (OSError, ValueError) as error:
            left_out.append(str(error))
    others = "; ".join(map(files.to_single_line, left_out))
    if not results:
        got = others or "none"
        raise FileNotFoundError(f"folder {folder}: expected finished runs in it, got {got}")
    return summarise(results), others


def read_results(run: RunFolder) -> list[Row]:
    """Read a row for each test of a finished run. Raises ValueError if it is damaged."""
    config, record = run.read_config()
    settings = config.result_settings() | record.result_settings()
    settings = {name: settings[name] for name in settings if name not in FIELDS_OF_ROWS}
    summary, rows = run.read_summary(**OF_RUN), []
    dataset = files.validate_name(summary["dataset"], str(run.path(SUMMARY)), folder=True)
    trained = tested_on(dataset, config.classes)
    for name, test in {**noted_tests(run)[1], **summary["tests"]}.items():
        where = f"{run.folder}, test {name[:60]!r}"
        files.check_fields(test, where, **OF_TEST, tested=str | None, settings=dict | None)
        zero_shot, accuracy = (float(test[key]) for key in OF_TEST)
        in_range = 0 <= zero_shot <= 100 and 0 <= accuracy <= 100
        if not in_range or summary["method"] not in METHODS:
            got = f"{zero_shot}, {accuracy} of {files.short_repr(summary['method'])}"
            raise ValueError(f"{where}: expected percentages of a known method, got {got}")
        rows.append(Row(
            dataset, trained, test.get("tested") or name, summary["model"], summary["method"],
            summary["shots"], "", zero_shot, {summary["seed"]: accuracy},
            settings | (test.get("settings") or {}),
        ))  # fmt: skip
    return rows


def summarise(results: Iterable[Row]) -> list[Row]:
    """Group results that differ in the seed only into rows, by data set, method and shots.

    Of runs that differ in nothing, not even the seed, the last counts.
    """
    groups: dict[tuple, dict[int, Row]] = {}  # all but seed and accuracies -> seed -> result
    for result in results:
        key = *result[:6], json.dumps(result.settings, sort_keys=True)
        for seed in result.accuracies:
            groups.setdefault(key, {})[seed] = result
    limits = dict.fromkeys(folders.FINGERPRINTS, 20)  # characters
    unusual, rows = {}, []  # settings with "usual" for what is published for method and data set
    for key, group in groups.items():
        first = next(iter(group.values()))
        usual = published_settings(first.method, first.shots, first.dataset)
        unusual[key] = {
            name: "usual" if name in usual and value == usual[name] else value
            for name, value in first.settings.items()
        }
    for key, group in groups.items():
        # A setting that varies between data sets is named on all: only what is alike is averaged.
        names = {
            name
            for other in groups if other[3:6] == key[3:6]
            for name in unusual[key].keys() | unusual[other].keys()
            if unusual[key].get(name) != unusual[other].get(name)
            and (name not in OF_DATA or other[:6] == key[:6])
        }  # fmt: skip
        first = next(iter(group.values()))
        rows.append(first._replace(
            variant=", ".join(
                f"{name} {files.to_single_line(first.settings[name], limits.get(name, 200))}"
                for name in sorted(names & first.settings.keys())
            ),
            zero_shot_accuracy=fmean(result.zero_shot_accuracy for result in group.values()),
            accuracies={seed: group[seed].accuracies[seed] for seed in sorted(group)},
            unusual=tuple(
                flag(name) if value is True else f"{flag(name)} {files.to_single_line(value, 200)}"
                for name, value in unusual[key].items()
                if value != "usual" and name not in names and name in OPTIONS
                and OPTIONS[name].read_by
            ),
        ))  # fmt: skip
    return sorted(rows, key=lambda row: (*row[:4], METHODS.index(row.method), row.shots))


def record_cross_dataset(
    run: RunFolder, dataset: Dataset, precision: str, zero_shot: float, accuracy: float
) -> None:
    """Write a result on other data to transfer.json, for tables; not what train.py has tested.

    Its "settings" are those that are not the run's: the same test by others has its own entry.
    """
    config, record = run.read_config()
    trained_root = split_content(run.path(folders.SPLIT)).get("root")
    root = str(dataset.root.resolve())
    settings = {
        "tested in": (root, trained_root),
        "tested by": (dataset.template, config.template),
        "tested in precision": (precision, record.precision),
    }
    settings = {name: value for name, (value, of_run) in settings.items() if value != of_run}
    is_tested = dataset.name in noted_tests(run)[0]
    if is_tested and not settings:
        return
    is_elsewhere = is_tested and root != trained_root  # other images of that name
    with files.file_lock(run.path(folders.TRANSFER_LOCK)):  # not to lose what another process adds
        _, noted = noted_tests(run)
        entry = ", ".join([dataset.name, *(f"{name} {value}" for name, value in settings.items())])
        noted[entry] = {
            "tested": f"{dataset.name} in {root}" if is_elsewhere else dataset.name,
            "zero_shot_accuracy": zero_shot, "accuracy": accuracy,
            "test_images": len(dataset.test), "root": root, "template": dataset.template,
            "settings": settings,
        }  # fmt: skip
        run.write_json(TRANSFER, noted)


def noted_tests(run: RunFolder) -> tuple[dict, dict]:
    """Read what train.py has tested, and what eval.py has: name → result."""
    has_summary, has_transfer = (os.path.lexists(run.path(name)) for name in (SUMMARY, TRANSFER))
    tested = run.read_summary(tests=dict)["tests"] if has_summary else {}
    return tested, run.read_json(TRANSFER) if has_transfer else {}


def markdown(rows: Sequence[Row]) -> str:
    """Return the tables as Markdown, and what their cells are."""
    return "\n\n".join(filter(None, [*map(_markdown, tables(rows)), caption(rows)])) + "\n"


def _markdown(table: Table) -> str:
    """Format a table so that its columns also line up as plain text."""
    title, heads, lines = table
    lines = [[files.to_single_line(text).replace("|", "\\|") for text in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in (heads, ["-" * width for width in widths], *lines)
    ]
    return "\n".join([f"**{files.to_single_line(title)}**\n", *(f"| {line} |" for line in lines)])


def caption(rows: Sequence[Row]) -> str:
    """Say over how many seeds accuracies are, and which options are not as published.

    "" if nothing was learned.
    """
    learned = [row for row in rows if row.method != "zeroshot"]
    if not learned:
        return ""
    least, *_, most = sorted(len(row.accuracies) for row in learned) * 2
    seeds = f"{least}" if least == most else f"{least} to {most}"
    about = "one seed" if most == 1 else f"mean ± standard deviation over {seeds} seeds"
    unusual: dict[str, list[str]] = {}  # which rows -> options
    for option in dict.fromkeys(option for row in learned for option in row.unusual):
        labels = dict.fromkeys(row.label for row in learned if option in row.unusual)
        of_all = all(option in row.unusual for row in learned)
        unusual.setdefault("" if of_all else f" ({', '.join(labels)})", []).append(option)
    return f"Accuracy in percent, {about}." + "".join(
        f" Settings not as published{where}: {' '.join(each)}." for where, each in unusual.items()
    )


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return for each CLIP and data set methods by shots, then what goes beyond."""
    parts = [_by_shots(title, averaged) for title, averaged in averages(rows).items()]
    for model in sorted({row.model for row in rows}):
        of_model = [row for row in rows if row.model == model]
        pairs = base_to_new(of_model)
        others = [row for row in of_model if not any(row in pair for pair in pairs)]
        parts += [_by_shots(title, same) for title, same in by_data_set(others).items()]
        lines = {}
        for base, new in pairs:
            zero_shot = base.zero_shot_accuracy, new.zero_shot_accuracy
            numbers = (f"{each:.1f}" for each in (*zero_shot, harmonic_mean(zero_shot)))
            lines.setdefault((base.dataset, "zero-shot", ""), numbers)
            if base.method != "zeroshot":
                mean = harmonic_mean([base.accuracy, new.accuracy])
                key = base.dataset, base.label, f"{base.shots}"
                lines[key] = _cell(base), _cell(new), f"{mean:.1f}"
        if pairs:
            heads = ["data set", "method", "shots", "base", "new", "harmonic mean"]
            lines = [[*key, *cells] for key, cells in lines.items()]
            parts.append((f"Base to new, CLIP {model}", heads, lines))
        if crossed := [row for row in others if row.trained != row.tested]:
            heads = ["trained on", "tested on", "method", "shots", "zero-shot", "accuracy"]
            lines = [[row.trained, row.tested, row.label, f"{row.shots}",
                      f"{row.zero_shot_accuracy:.1f}", _cell(row)] for row in crossed]  # fmt: skip
            parts.append((f"Trained on one, tested on another, CLIP {model}", heads, lines))
    if any(row.dataset in ELEVEN and row.tested == row.dataset for row in rows):
        lines = [[name, *(f"{mean:.1f}" for mean in means)] for name, means in PUBLISHED.items()]
        title = "Published means over the 11 data sets, ViT-B/32 (read off a plot, ±0.2)"
        parts.append((title, ["method", "1 shot", "16 shots"], lines))
    return parts


def by_data_set(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Group rows of one CLIP that were trained and tested on the same, by title."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row[1:4]):
        if row.trained == row.tested:
            groups.setdefault(f"{row.tested}, CLIP {row.model}", []).append(row)
    return groups


def averages(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Average for each CLIP over its data sets, if there are several, what was run on all.

    That is done for each seed that was run on all of them; the deviation is that of these means.
    """
    rows = [row for row in rows if row.trained == row.tested == row.dataset]
    groups: dict[str, list[Row]] = {}
    for model, *kind in dict.fromkeys((row.model, *row[4:7]) for row in rows):
        same_model = [row for row in rows if row.model == model]
        group = [row for row in same_model if [*row[4:7]] == kind]
        seeds = [s for s in group[0].accuracies if all(s in row.accuracies for row in group)]
        count = len({row.dataset for row in same_model})
        if len(group) == count > 1 and seeds:
            groups.setdefault(f"Mean of {count} data sets, CLIP {model}", []).append(
                group[0]._replace(
                    zero_shot_accuracy=fmean(row.zero_shot_accuracy for row in group),
                    accuracies={s: fmean(row.accuracies[s] for row in group) for s in seeds},
                )
            )
    return dict(sorted(groups.items()))


def _by_shots(title: str, rows: Sequence[Row]) -> Table:
    """Tabulate methods by shots, zero-shot first."""
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
    heads = [f"{n} shot{'' if n == 1 else 's'}" if n else "accuracy" for n in shots]
    return title, ["method", *heads], lines


def _cell(row: Row) -> str:
    deviation = f" ± {row.std:.1f}" if len(row.accuracies) > 1 else ""
    return f"{row.accuracy:.1f}{deviation}"


def write_csv(rows: Sequence[Row], path: str | os.PathLike) -> None:
    """Write all rows in full digits, and of base-to-new a row of its harmonic mean."""
    lines = [(row, row.accuracy, row.std if len(row.accuracies) > 1 else "") for row in rows]
    for base, new in base_to_new(rows):
        both = [seed for seed in base.accuracies if seed in new.accuracies]
        row = base._replace(
            tested=f"{base.dataset}, harmonic mean of base and new",
            zero_shot_accuracy=harmonic_mean([base.zero_shot_accuracy, new.zero_shot_accuracy]),
            accuracies={s: harmonic_mean([base.accuracies[s], new.accuracies[s]]) for s in both},
        )
        lines.append((row, harmonic_mean([base.accuracy, new.accuracy]), ""))
    seeds = sorted({seed for row in rows for seed in row.accuracies})
    header = [*Row._fields[:7], "seeds", "zero_shot_accuracy", "accuracy", "std"]
    cells = (
        [*row[:7], len(row.accuracies), row.zero_shot_accuracy, accuracy, std]
        + [row.accuracies.get(seed, "") for seed in seeds]
        for row, accuracy, std in lines
    )
    files.write_rows(path, header + [f"seed {seed}" for seed in seeds], cells)


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


def base_to_new(rows: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Pair rows of runs on base classes, tested on these and on the new ones."""
    by_kind = {row[:7]: row for row in rows}
    pairs = []
    for base in by_kind.values():
        if base.tested == base.trained == tested_on(base.dataset, "base"):
            if new := by_kind.get(base._replace(tested=tested_on(base.dataset, "new"))[:7]):
                pairs.append((base, new))
    return pairs
