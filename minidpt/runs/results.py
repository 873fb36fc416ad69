"""Results of runs: read from their folders, grouped over seeds, averaged.

read_rows: */summary.json below a folder -> Row, one for runs that differ in their seed alone
average_rows, base_to_new: Rows -> Rows of means
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import harmonic_mean, mean
from typing import Any

from ..config import METHODS
from ..data.samples import Dataset
from ..data.splits import split_content
from ..support import files
from .config import OPTIONS, flag, published_settings
from .folders import CONFIG, SPLIT, SUMMARY, TRANSFER, TRANSFER_LOCK, RunFolder

METHOD_NAMES = dict(zip(METHODS, ("zero-shot CLIP", "CoOp", "VPT", "VLP", "DPT"), strict=True))
PERCENTAGES = ("zero_shot_accuracy", "accuracy", "top5_accuracy", "mean_class_accuracy",
               "mean_confidence", "calibration_error", "largest_class_share")  # fmt: skip
NUMBER = int | float
OF_RUN = {"dataset": str, "model": str, "method": str, "shots": int, "seed": int, "tests": dict,
          "notes": list | None}  # fmt: skip
OF_TEST = dict.fromkeys(PERCENTAGES, NUMBER | None) | dict.fromkeys(PERCENTAGES[:2], NUMBER)
OF_TEST |= {"test_images": int | None, "tested": str | None, "settings": dict | None}
MOST_NOTES = 20  # of a run

OF_ROWS = {name for name, about in OPTIONS.items() if about.is_grid} | {"classes"}
OF_TRAINING = {name for name, about in OPTIONS.items() if about.read_by}  # zero-shot has none
TESTED = ("tested in", "tested by", "tested in precision")  # only where they are not the run's
OF_DATA = {"template", "classnames", *TESTED}  # that each data set has its own of
LONG = {"clip_fingerprint", "tested in", *(n for n, about in OPTIONS.items() if about.is_path)}


@dataclass(frozen=True)
class Row:
    """The results of one test of a run, or of several runs that differ in their seed only."""

    dataset: str
    trained: str  # the data set, or a subset of its classes (`tested_on`)
    tested: str
    model: str
    method: str
    shots: int  # 0 for zero-shot CLIP
    metrics: dict[int, dict[str, float]]  # by seed: `PERCENTAGES` and "test_images"; {}: no mean
    settings: dict[str, Any] = field(default_factory=dict)  # all others that decide the result
    folder: str = ""  # of the data
    fingerprint: str = ""  # of the data, which tells data sets of one name apart
    notes: tuple[str, ...] = ()  # to stand below the tables
    means: dict[str, float] | None = None  # over seeds, if it is not the mean
    # `summarise` sets these by comparison with other rows:
    variant: str = ""  # settings that tell it from rows that are otherwise of the same kind
    label: str = ""  # the method, and what of `variant` fits in a cell; notes have the rest
    unusual: tuple[str, ...] = ()  # options that are not as published and not in `variant`
    data_notes: tuple[str, ...] = ()  # of a data set that shares its name with another

    @property
    def data(self) -> tuple[str, str]:
        return self.dataset, self.fingerprint

    @property
    def key(self) -> tuple:
        """What two runs have in common that differ in their seed only; sorts rows."""
        return (*self.data, self.trained, self.tested, self.model, METHODS.index(self.method),
                self.shots, json.dumps(self.settings, sort_keys=True))  # fmt: skip

    @property
    def kind(self) -> tuple[str, int, str]:
        """What rows on several data sets have in common to be averaged."""
        return self.method, self.shots, self.variant

    @property
    def is_test_of_own_data(self) -> bool:
        """Whether it was tested on the data and classes that it was trained on."""
        return self.trained == self.tested and "tested in" not in self.settings

    @property
    def accuracies(self) -> dict[int, float]:  # top-1, by seed
        return {seed: metrics["accuracy"] for seed, metrics in self.metrics.items()}

    def mean(self, metric: str) -> float | None:
        """Return the mean over seeds; None if a seed lacks it."""
        values = [metrics.get(metric) for metrics in self.metrics.values()]
        if self.means is not None:
            return self.means.get(metric)
        return mean(values) if values and None not in values else None


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
    paths = sorted(path.parent for path in Path(folder).rglob(SPLIT))
    runs = [RunFolder(path) for path in paths if os.path.lexists(path / CONFIG)]
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
    return summarise(tell_data_apart(results)), others


def read_results(run: RunFolder) -> list[Row]:
    """Read a row for each test of a finished run. Raises ValueError if it is damaged."""
    config, record = run.read_config()
    settings = config.result_settings() | record.result_settings()
    fingerprint = settings.pop("data_fingerprint")
    settings = {name: settings[name] for name in settings if name not in OF_ROWS}
    summary, rows, where = run.read_summary(**OF_RUN), [], str(run.path(SUMMARY))
    dataset = files.validate_name(summary["dataset"], where, folder=True)
    method, shots, seed = summary["method"], summary["shots"], summary["seed"]
    if method not in METHODS or shots < (method != "zeroshot"):
        got = f"{shots} of {files.short_repr(method)}"
        raise ValueError(f"{where}: expected shots of a known method, got {got}")
    notes = [files.to_single_line(note) for note in summary.get("notes") or []]
    if more := notes[MOST_NOTES:]:
        notes[MOST_NOTES:] = [f"more notes in {SUMMARY}: {len(more)}"]
    # What train.py has tested goes before what eval.py has tested under the same name.
    for name, test in {**noted_tests(run)[1], **summary["tests"]}.items():
        where = f"{run.folder}, test {name[:60]!r}"
        files.check_fields(test, where, **OF_TEST)
        metrics = {n: test[n] for n in (*PERCENTAGES, "test_images") if test.get(n) is not None}
        if wrong := [n for n in PERCENTAGES if not 0 <= metrics.get(n, 0) <= 100]:
            got = f"{wrong[0]} {metrics[wrong[0]]}"
            raise ValueError(f"{where}: expected percentages, got {got}")
        rows.append(Row(
            dataset, tested_on(dataset, config.classes), test.get("tested") or name,
            summary["model"], method, shots, {seed: metrics},
            settings | (test.get("settings") or {}), config.data, fingerprint, tuple(notes),
        ))  # fmt: skip
    return rows


def tell_data_apart(results: Sequence[Row]) -> list[Row]:
    """Add the folder to the fingerprint of data where the same run was made in several folders.

    Fingerprints are of the files' names: the images may be others.
    """
    folders_of_run: dict[tuple, set[str]] = {}
    for row in results:
        folders_of_run.setdefault((row.data, row.key, *row.metrics), set()).add(row.folder)
    alike = {data for (data, *_), roots in folders_of_run.items() if len(roots) > 1}
    return [
        replace(row, fingerprint=f"{row.fingerprint} {row.folder}") if row.data in alike else row
        for row in results
    ]


def summarise(results: Iterable[Row]) -> list[Row]:
    """Group results that differ in the seed only into rows, by data set, method and shots.

    Of runs that differ in nothing, not even the seed, the last counts.
    """
    groups: dict[tuple, dict[int, Row]] = {}  # all but the seed -> seed -> result
    for row in results:
        for seed in row.metrics:
            groups.setdefault(row.key, {})[seed] = row
    rows = []
    for _, group in sorted(groups.items()):
        notes = dict.fromkeys(note for row in group.values() for note in row.notes)
        metrics = {seed: group[seed].metrics[seed] for seed in sorted(group)}
        rows.append(replace(group[min(group)], metrics=metrics, notes=tuple(notes)))
    values: dict[tuple, set[str]] = {}  # of a setting, among the rows compared
    for row in rows:
        for name in row.settings.keys() | set(TESTED):
            value = json.dumps(row.settings.get(name))
            values.setdefault(comparison(row, name), set()).add(value)
    varying = {key for key, different in values.items() if len(different) > 1}
    names = Counter(name for name, _ in {row.data for row in rows})
    return [describe_row(row, varying, names[row.dataset] > 1) for row in rows]


def comparison(row: Row, name: str) -> tuple:
    """Return a setting, and with which rows it is compared: those of the CLIP; of the method, too,
    if zero-shot CLIP does not read it; of the test, if each data set has its own.

    What varies between data sets is named on all of them: only what is alike is averaged.
    """
    test = (*row.data, row.trained, row.tested) if name in OF_DATA else ()
    return name, row.model, row.method if name in OF_TRAINING else "", *test


def describe_row(row: Row, varying: set[tuple], shares_name: bool) -> Row:
    """Name what tells a row from others, but for default values; options may be unusual on all.

    Defaults are the published values; those of warm-up and guidance depend on the row's epochs.
    """
    kind = row.method, row.shots, row.dataset
    defaults = published_settings(*kind, epochs=row.settings.get("epochs"))
    defaults |= {"epochs": published_settings(*kind).get("epochs")}
    texts, unusual = {}, []
    for name, value in sorted(row.settings.items()):
        if value in (None, defaults.get(name)):
            continue
        shown = "" if value is True else files.to_single_line(value, 20 if name in LONG else 60)
        if comparison(row, name) in varying:
            shown = files.to_single_line(value, 200) if name == "tested in" else shown
            texts[name] = f"{name.replace('_', ' ')} {shown}".strip()
        elif name in OF_TRAINING:
            unusual.append(f"{flag(name)} {shown}".strip())
    short = ", ".join(text for name, text in texts.items() if name not in LONG)
    notes = [text for name, text in texts.items() if name in LONG]
    label = f"{METHOD_NAMES[row.method]} ({short})" if short else METHOD_NAMES[row.method]
    data_note = f"data in {row.folder} (fingerprint {row.fingerprint[:8]})"
    return replace(
        row, variant=", ".join(texts.values()), label=label, unusual=tuple(unusual),
        notes=tuple(dict.fromkeys([*notes, *row.notes])),
        data_notes=(data_note,) if shares_name else (),
    )  # fmt: skip


def zero_shot_row(row: Row) -> Row:
    """Return zero-shot CLIP's row of the same test: it depends on no setting of training."""
    accuracy = row.mean("zero_shot_accuracy")
    settings = {n: value for n, value in row.settings.items() if n not in OF_TRAINING}
    metrics = {0: {"zero_shot_accuracy": accuracy, "accuracy": accuracy}}
    return replace(row, method="zeroshot", shots=0, settings=settings, metrics=metrics, notes=())


def average_rows(rows: Sequence[Row]) -> list[Row]:
    """Average for each CLIP over its data sets, if there are several, what was run on all.

    That is done for each seed that all of them have; the deviation is that of these means. What
    lacks a data set, or has no such seed, is a row without metrics, with a note.
    """
    groups: dict[tuple, list[Row]] = {}  # CLIP, subsets of the classes -> rows
    for row in rows:
        subsets = {tested_on(row.dataset, subset): subset for subset in ("all", "base", "new")}
        trained, tested = subsets[row.trained], subsets.get(row.tested)
        if row.is_test_of_own_data or (trained, tested) == ("base", "new"):
            groups.setdefault((row.model, trained, tested), []).append(row)
    averages = []
    for (_, trained, tested), group in sorted(groups.items()):
        datasets = {row.data: row for row in group}
        name = f"Mean of {len(datasets)} data sets"
        fields = {"dataset": name, "folder": "", "fingerprint": "", "data_notes": ()}
        fields |= {"trained": tested_on(name, trained), "tested": tested_on(name, tested)}
        kinds = {row.kind for row in group} if len(datasets) > 1 else ()
        for kind in sorted(kinds, key=lambda kind: (METHODS.index(kind[0]), *kind)):
            alike = [row for row in group if row.kind == kind]
            metrics, notes = mean_metrics(alike), ()
            if lacking := datasets.keys() - {row.data for row in alike}:
                names = [" with ".join([data[0], *datasets[data].data_notes]) for data in lacking]
                metrics, notes = {}, (f"no mean: no result on {files.shorten(sorted(names))}",)
            elif not metrics:
                notes = ("no mean: no seed that all data sets have",)
            averages.append(replace(alike[0], **fields, metrics=metrics, notes=notes))
    return averages


def mean_metrics(rows: Sequence[Row]) -> dict[int, dict[str, float]]:
    """Average percentages over rows, for each seed that all have."""
    seeds = [seed for seed in rows[0].metrics if all(seed in row.metrics for row in rows)]
    each = [row.metrics[seed] for row in rows for seed in seeds]
    names = [name for name in PERCENTAGES if all(name in metrics for metrics in each)]
    return {seed: {n: mean(row.metrics[seed][n] for row in rows) for n in names} for seed in seeds}


def base_to_new(rows: Iterable[Row]) -> list[tuple[Row, Row, Row]]:
    """Pair rows of runs on base classes, tested on these and on new ones; add the harmonic mean.

    That is the mean of the two averages over seeds.
    """
    names, triples = PERCENTAGES[:2], []
    by_test = {(row.data, row.model, row.trained, row.kind, row.tested): row for row in rows}
    for (*key, tested), base in by_test.items():
        new = by_test.get((*key, tested_on(base.dataset, "new")))
        if new and base.trained == tested == tested_on(base.dataset, "base"):
            metrics = {
                seed: {n: harmonic_mean([values[n], new.metrics[seed][n]]) for n in names}
                for seed, values in base.metrics.items() if seed in new.metrics
            }  # fmt: skip
            means = {n: harmonic_mean([base.mean(n), new.mean(n)]) for n in names if metrics}
            both = f"{base.dataset}, harmonic mean of base and new"
            triples.append((base, new, replace(base, tested=both, metrics=metrics, means=means)))
    return triples


def record_cross_dataset(
    run: RunFolder, dataset: Dataset, precision: str, zero_shot: float, accuracy: float
) -> None:
    """Write a result on other data to transfer.json, for tables; not what train.py has tested.

    Its "settings" are those that are not the run's: the same test by others has its own entry.
    """
    config, record = run.read_config()
    root = str(dataset.root.resolve())
    of_run = split_content(run.path(SPLIT)).get("root"), config.template, record.precision
    tested = zip(TESTED, (root, dataset.template, precision), of_run, strict=True)
    settings = {name: value for name, value, usual in tested if value != usual}
    if dataset.name in noted_tests(run)[0] and not settings:
        return
    with files.file_lock(run.path(TRANSFER_LOCK)):  # not to lose what another process adds
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
