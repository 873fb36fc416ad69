"""Results of runs: read from their folders, grouped over seeds, averaged over data sets.

read_rows: */summary.json below a folder -> Row, one for runs that differ in their seed alone
average_rows: Rows -> Rows of means over data sets. tables.py lays all of them out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from ..config import METHODS
from ..data.folders import shorten
from ..data.samples import Dataset
from ..data.splits import split_content
from ..support import files
from . import folders
from .config import OPTIONS, flag, published_settings
from .folders import FINGERPRINTS, SUMMARY, TRANSFER, RunFolder

METHOD_NAMES = dict(zip(METHODS, ("zero-shot CLIP", "CoOp", "VPT", "VLP", "DPT"), strict=True))
PERCENTAGES = ("zero_shot_accuracy", "accuracy", "top5_accuracy", "mean_class_accuracy",
               "mean_confidence", "calibration_error", "largest_class_share")  # fmt: skip
OF_RUN = {"dataset": str, "model": str, "method": str, "shots": int, "seed": int, "tests": dict,
          "notes": list | None}  # fmt: skip
OF_TEST = dict.fromkeys(PERCENTAGES, int | float | None) | {
    "zero_shot_accuracy": int | float, "accuracy": int | float, "test_images": int | None,
    "tested": str | None, "settings": dict | None,
}  # fmt: skip
MOST_NOTES = 3  # of a run
SUBSETS = ("all", "base", "new")

# Settings that columns of tables name
FIELDS_OF_ROWS = {name for name, about in OPTIONS.items() if about.is_grid} | {"classes"}
TESTED = ("tested in", "tested by", "tested in precision")  # only where they are not the run's
OF_DATA = {"template", "classnames", "tested in", "tested by"}  # that each data set has its own of
LONG = {*FINGERPRINTS, "tested in", *(name for name, about in OPTIONS.items() if about.is_path)}


@dataclass(frozen=True)
class Row:
    """The results of one test of a run, or of several runs that differ in their seed only."""

    dataset: str
    trained: str  # the data set, or a subset of its classes (`tested_on`)
    tested: str
    model: str
    method: str
    shots: int  # 0 for zero-shot CLIP
    metrics: dict[int, dict[str, float]]  # by seed; those of `PERCENTAGES` that were measured
    settings: dict[str, Any] = field(default_factory=dict)  # all others that decide the result
    folder: str = ""  # of the data
    notes: tuple[str, ...] = ()
    # What `summarise` finds out by comparison with other rows:
    variant: dict[str, Any] = field(default_factory=dict)  # settings that tell it from these
    unusual: tuple[str, ...] = ()  # options that are not as published and not in `variant`
    shares_name: bool = False  # with another data set

    @property
    def data(self) -> tuple[str, str]:
        """The data set: its name, and the fingerprint that tells it from others of that name."""
        return self.dataset, self.settings.get("data_fingerprint", "")

    @property
    def kind(self) -> tuple:
        """What rows on several data sets have in common to be averaged, or compared."""
        return self.method, self.shots, self.describe_variant(100)

    @property
    def key(self) -> tuple:
        """What tells it from all other rows."""
        return self.data, self.model, self.trained, self.tested, self.kind

    @property
    def is_test_of_own_data(self) -> bool:
        """Whether its classes and images are those of the data set that was trained on."""
        return self.trained == self.tested and "tested in" not in self.settings

    @property
    def accuracies(self) -> dict[int, float]:
        """Top-1 accuracy by seed, in percent."""
        return {seed: metrics["accuracy"] for seed, metrics in self.metrics.items()}

    @property
    def accuracy(self) -> float:
        """The mean over seeds."""
        return self.mean("accuracy")

    @property
    def zero_shot_accuracy(self) -> float:
        """Zero-shot CLIP's, as these runs have measured it."""
        return self.mean("zero_shot_accuracy")

    @property
    def std(self) -> float:
        """The deviation over seeds, divided by their number, as in CoOp's published tables."""
        return pstdev(self.accuracies.values())

    def mean(self, metric: str) -> float | None:
        """Return the mean over seeds; None if a seed lacks it."""
        values = [metrics.get(metric) for metrics in self.metrics.values()]
        return None if None in values or not values else fmean(values)

    @cached_property
    def published(self) -> dict[str, Any]:
        """The published values of the settings that its method's training reads."""
        return published_settings(self.method, self.shots, self.dataset)

    @cached_property
    def default_names(self) -> set[str]:
        """The settings that have their default values; some depend on the row's epochs."""
        epochs = self.settings.get("epochs")
        defaults = published_settings(self.method, self.shots, self.dataset, epochs)
        defaults = {**defaults, "epochs": self.published.get("epochs")}
        return {n for n, value in self.settings.items() if n in defaults and defaults[n] == value}

    @property
    def label(self) -> str:
        """The method and its variant: "DPT (epochs 50)"; `footnotes` has the rest of that."""
        variant = self.describe_variant(60, long=False)
        return f"{METHOD_NAMES[self.method]} ({variant})" if variant else METHOD_NAMES[self.method]

    @property
    def footnotes(self) -> tuple[str, ...]:
        """Settings that tell it from other rows, but are no text for a cell."""
        long = {n: value for n, value in self.variant.items() if n in LONG and n != "tested in"}
        return tuple(describe_setting(name, value, 200) for name, value in sorted(long.items()))

    def describe_variant(self, limit: int, long: bool = True) -> str:
        """Return the settings of `variant`: "csc, epochs 50"; perhaps without `LONG` ones."""
        return ", ".join(
            describe_setting(name, value, limit)
            for name, value in sorted(self.variant.items())
            if long or name not in LONG
        )


def describe_setting(name: str, value: Any, limit: int) -> str:
    """Return a setting in words: "epochs 50", "csc"; of a fingerprint both ends."""
    name, limit = name.replace("_", " "), 20 if name in FINGERPRINTS else limit
    return name if value is True else f"{name} {files.to_single_line(value, limit)}"


def tested_on(dataset: str, subset: str) -> str:
    """Return the name of a data set or subset in tables: "EuroSAT", "EuroSAT, base classes"."""
    return dataset if subset == "all" else f"{dataset}, {subset} classes"


def subset_of(dataset: str, name: str) -> str | None:
    """Return the subset that `tested_on` has named; None if that is another data set."""
    return next((each for each in SUBSETS if tested_on(dataset, each) == name), None)


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
    where = str(run.path(SUMMARY))
    dataset = files.validate_name(summary["dataset"], where, folder=True)
    if summary["method"] not in METHODS or summary["shots"] < 0:
        got = f"{files.short_repr(summary['method'])} with {summary['shots']} shots"
        raise ValueError(f"{where}: expected shots of a known method, got {got}")
    notes = read_notes(summary.get("notes") or [], where)
    # What train.py has tested counts, not what eval.py has tested under the same name.
    for name, test in {**noted_tests(run)[1], **summary["tests"]}.items():
        metrics = read_metrics(test, f"{run.folder}, test {name[:60]!r}")
        rows.append(Row(
            dataset, tested_on(dataset, config.classes), test.get("tested") or name,
            summary["model"], summary["method"], summary["shots"], {summary["seed"]: metrics},
            settings | (test.get("settings") or {}), config.data, notes,
        ))  # fmt: skip
    return rows


def read_notes(notes: list, where: str) -> tuple[str, ...]:
    """Return the first notes of a run, a line each. Raises ValueError for what is no text."""
    for note in notes:
        files.check_fields({"note": note}, where, note=str)
    shown = [files.to_single_line(note, 300) for note in notes[:MOST_NOTES]]
    if more := len(notes) - len(shown):
        shown.append(f"{more} more notes in {SUMMARY}")
    return tuple(shown)


def read_metrics(test: object, where: str) -> dict[str, float]:
    """Return the percentages of a test. Raises ValueError, which `where` begins."""
    test = files.check_fields(test, where, **OF_TEST)
    metrics = {name: test[name] for name in PERCENTAGES if test.get(name) is not None}
    for name, value in metrics.items():
        if not 0 <= value <= 100:
            raise ValueError(f"{where}: expected a percentage '{name}', got {value}")
    images = test.get("test_images")
    return metrics if images is None else {**metrics, "test_images": images}


def summarise(results: Iterable[Row]) -> list[Row]:
    """Group results that differ in the seed only into rows, by data set, method and shots.

    Of runs that differ in nothing, not even the seed, the last counts.
    """
    groups: dict[tuple, dict[int, Row]] = {}  # all but the seed -> seed -> result
    for result in results:
        settings = json.dumps(result.settings, sort_keys=True)
        key = (*result.data, result.trained, result.tested, result.model,
               METHODS.index(result.method), result.shots, settings)  # fmt: skip
        for seed in result.metrics:
            groups.setdefault(key, {})[seed] = result
    rows = [pool_seeds(groups[key]) for key in sorted(groups)]
    varying = varying_settings(rows)
    fingerprints: dict[str, set] = {}
    for row in rows:
        fingerprints.setdefault(row.dataset, set()).add(row.data)
    return [
        replace(
            row,
            variant=(variant := variant_of(row, varying)),
            unusual=unusual_options(row, variant),
            shares_name=len(fingerprints[row.dataset]) > 1,
        )
        for row in rows
    ]


def pool_seeds(group: dict[int, Row]) -> Row:
    """Return one row of results by seed."""
    seeds = sorted(group)
    notes = dict.fromkeys(note for seed in seeds for note in group[seed].notes)
    metrics = {seed: group[seed].metrics[seed] for seed in seeds}
    return replace(group[seeds[0]], metrics=metrics, notes=tuple(notes))


def varying_settings(rows: Sequence[Row]) -> set[tuple]:
    """Return the settings that tell rows apart, as `comparison` names them.

    Values that are all alike, or all the default ones of their rows, tell none apart.
    """
    values: dict[tuple, set[str]] = {}
    defaults: dict[tuple, set[bool]] = {}
    for row in rows:
        for name in row.settings.keys() | set(TESTED):
            key, value = comparison(row, name), row.settings.get(name)
            values.setdefault(key, set()).add(json.dumps(value))
            defaults.setdefault(key, set()).add(name in row.default_names)
    return {key for key in values if len(values[key]) > 1 and defaults[key] != {True}}


def comparison(row: Row, name: str) -> tuple:
    """Return the key of the rows that a row is compared with in a setting.

    These are all of its CLIP, and of its test if each data set has its own value; of its method if
    zero-shot CLIP does not read it. What varies between data sets is named on all of them: only
    what is alike is averaged.
    """
    test = (*row.data, row.trained, row.tested) if name in OF_DATA else ()
    return name, row.model, row.method if is_of_training(name) else "", *test


def is_of_training(name: str) -> bool:
    """Whether zero-shot CLIP does not depend on a setting."""
    return name in OPTIONS and bool(OPTIONS[name].read_by)


def variant_of(row: Row, varying: set[tuple]) -> dict[str, Any]:
    """Return the settings that vary, but for the fingerprint of the data and default values."""
    return {
        name: value
        for name, value in row.settings.items()
        if comparison(row, name) in varying
        and name != "data_fingerprint"
        and name not in row.default_names
        and value is not None
        and value is not False
    }


def unusual_options(row: Row, variant: dict[str, Any]) -> tuple[str, ...]:
    """Return the options, as they are typed, that are neither as published nor in `variant`."""
    return tuple(
        flag(name) if value is True else f"{flag(name)} {files.to_single_line(value, 200)}"
        for name, value in row.settings.items()
        if name in row.published and value != row.published[name] and name not in variant
    )


def zero_shot_rows(rows: Sequence[Row]) -> list[Row]:
    """Return a row of zero-shot CLIP for each test and its settings, as the runs measured it."""
    measured: dict[tuple, Row] = {}
    for row in sorted(rows, key=lambda row: METHODS.index(row.method)):
        variant = {n: value for n, value in row.variant.items() if not is_of_training(n)}
        accuracy = row.zero_shot_accuracy
        plain = replace(
            row, method="zeroshot", shots=0, variant=variant, unusual=(),
            notes=row.notes if row.method == "zeroshot" else (),
            metrics={0: {"accuracy": accuracy, "zero_shot_accuracy": accuracy}},
        )  # fmt: skip
        measured.setdefault(plain.key, plain)
    return list(measured.values())


def average_rows(rows: Sequence[Row]) -> list[Row]:
    """Average for each CLIP over its data sets, if there are several, what was run on all.

    That is done for each seed that all of them have; the deviation is that of these means. What
    lacks a data set, or has no such seed, is a row without metrics, with a note.
    """
    groups: dict[tuple, list[Row]] = {}  # CLIP, subsets of the classes -> rows
    for row in rows:
        if "tested in" not in row.settings and (tested := subset_of(row.dataset, row.tested)):
            trained = subset_of(row.dataset, row.trained)
            groups.setdefault((row.model, trained, tested), []).append(row)
    means = []
    for (_, trained, tested), group in sorted(groups.items()):
        datasets = {row.data: row for row in group}
        name = f"Mean of {len(datasets)} data sets"
        fields = {"dataset": name, "folder": "", "settings": {}, "shares_name": False}
        fields |= {"trained": tested_on(name, trained), "tested": tested_on(name, tested)}
        kinds = dict.fromkeys(row.kind for row in group) if len(datasets) > 1 else ()
        for kind in sorted(kinds, key=lambda kind: METHODS.index(kind[0])):
            alike = [row for row in group if row.kind == kind]
            metrics, notes = mean_metrics(alike), ()
            if lacking := datasets.keys() - {row.data for row in alike}:
                names = [name_with_folder(datasets[data]) for data in sorted(lacking)]
                metrics, notes = {}, (f"no mean: no result on {shorten(names)}",)
            elif not metrics:
                notes = ("no mean: no seed that all data sets have",)
            means.append(replace(alike[0], **fields, metrics=metrics, notes=notes))
    return means


def mean_metrics(rows: Sequence[Row]) -> dict[int, dict[str, float]]:
    """Average metrics over rows, for each seed that all have."""
    seeds = [seed for seed in rows[0].metrics if all(seed in row.metrics for row in rows)]
    means = {}
    for seed in seeds:
        each = [row.metrics[seed] for row in rows]
        shared = [name for name in PERCENTAGES if all(name in metrics for metrics in each)]
        means[seed] = {name: fmean(metrics[name] for metrics in each) for name in shared}
    return means


def name_with_folder(row: Row) -> str:
    """Return the data set's name, with its folder if there are two of that name."""
    return f"{row.dataset} in {row.folder}" if row.shares_name else row.dataset


def base_to_new(rows: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Pair rows of runs on base classes, tested on these and on the new ones."""
    by_key = {row.key: row for row in rows}
    pairs = []
    for base in by_key.values():
        new = by_key.get(replace(base, tested=tested_on(base.dataset, "new")).key)
        if new and base.trained == base.tested == tested_on(base.dataset, "base"):
            pairs.append((base, new))
    return pairs


def record_cross_dataset(
    run: RunFolder, dataset: Dataset, precision: str, zero_shot: float, accuracy: float
) -> None:
    """Write a result on other data to transfer.json, for tables; not what train.py has tested.

    Its "settings" are those that are not the run's: the same test by others has its own entry.
    """
    config, record = run.read_config()
    root = str(dataset.root.resolve())
    of_run = split_content(run.path(folders.SPLIT)).get("root"), config.template, record.precision
    tested = zip(TESTED, (root, dataset.template, precision), of_run, strict=True)
    settings = {name: value for name, value, usual in tested if value != usual}
    if dataset.name in noted_tests(run)[0] and not settings:
        return
    with files.file_lock(run.path(folders.TRANSFER_LOCK)):  # not to lose what another process adds
        _, noted = noted_tests(run)
        entry = ", ".join([dataset.name, *(f"{name} {value}" for name, value in settings.items())])
        noted[entry] = {
            "tested": dataset.name, "zero_shot_accuracy": zero_shot, "accuracy": accuracy,
            "test_images": len(dataset.test), "root": root, "template": dataset.template,
            "settings": settings,
        }  # fmt: skip
        run.write_json(TRANSFER, noted)


def noted_tests(run: RunFolder) -> tuple[dict, dict]:
    """Read what train.py has tested, and what eval.py has: name → result."""
    has_summary, has_transfer = (os.path.lexists(run.path(name)) for name in (SUMMARY, TRANSFER))
    tested = run.read_summary(tests=dict)["tests"] if has_summary else {}
    return tested, run.read_json(TRANSFER) if has_transfer else {}
