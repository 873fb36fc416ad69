"""Results of runs: read from their folders, grouped over seeds, and completed by eval.py.

read_results: */summary.json below a folder -> Row, one for each run and what it was tested on
summarise:    Rows that differ in nothing but their seed -> one Row
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, NamedTuple

from ..config import METHODS
from ..data.samples import Dataset
from ..support.files import (
    check_fields,
    file_lock,
    short_repr,
    single_line_errors,
    to_single_line,
    validate_name,
)
from .config import OPTIONS, flag, published_settings
from .folders import (
    CONFIG,
    FINGERPRINTS,
    SPLIT,
    SUMMARY,
    TRANSFER,
    TRANSFER_LOCK,
    RunFolder,
    is_earlier_version,
    is_run,
)

# Settings that each data set has its own of.
OF_DATA = {"data_fingerprint", "template", "classnames", "tested in", "tested by"}
FIELDS_OF_ROWS = {name for name, about in OPTIONS.items() if about.is_grid} | {"classes"}
LEFT_OUT = "that are not finished or of an earlier version"  # of runs
OF_RUN = {"dataset": str, "model": str, "method": str, "shots": int, "seed": int, "tests": dict}
OF_TEST = {"zero_shot_accuracy": int | float, "accuracy": int | float}


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


@single_line_errors
def read_results(folder: str | os.PathLike) -> list[Row]:
    """Read the results of all finished runs in a folder and below, the oldest first.

    Runs of earlier versions are left out. Raises FileNotFoundError if there is no other, ValueError
    if one is damaged.
    """
    results = []
    paths = [path for path in Path(folder).rglob(SUMMARY) if is_run(path.parent)]
    for path in sorted(paths, key=lambda path: (path.stat().st_mtime, path)):
        if is_earlier_version(path.parent):
            continue
        run = RunFolder(path.parent)
        config, record = run.read_config()
        settings = config.result_settings() | record.result_settings()
        settings = {name: settings[name] for name in settings if name not in FIELDS_OF_ROWS}
        summary = run.read_json(SUMMARY, **OF_RUN)
        dataset = validate_name(summary["dataset"], str(path), folder=True)
        trained = tested_on(dataset, config.classes)
        for name, test in {**noted_tests(run)[1], **summary["tests"]}.items():
            where = f"{run.folder}, test {name[:60]!r}"
            check_fields(test, where, **OF_TEST, tested=str | None, settings=dict | None)
            zero_shot, accuracy = (float(test[key]) for key in OF_TEST)
            in_range = 0 <= zero_shot <= 100 and 0 <= accuracy <= 100
            if not in_range or summary["method"] not in METHODS:
                got = f"{zero_shot}, {accuracy} of {short_repr(summary['method'])}"
                raise ValueError(f"{where}: expected percentages of a known method, got {got}")
            results.append(Row(
                dataset, trained, test.get("tested") or name, summary["model"], summary["method"],
                summary["shots"], "", zero_shot, {summary["seed"]: accuracy},
                settings | (test.get("settings") or {}),
            ))  # fmt: skip
    if not results:
        got = f"{len(others)} {LEFT_OUT}" if (others := left_out(folder)) else "none"
        raise FileNotFoundError(f"folder {folder}: expected finished runs in it, got {got}")
    return results


def left_out(folder: str | os.PathLike) -> list[Path]:
    """List the runs in a folder and below that `read_results` leaves out, for `LEFT_OUT`."""
    runs = sorted(path.parent for path in Path(folder).rglob(CONFIG) if is_run(path.parent))
    return [run for run in runs if not (run / SUMMARY).is_file() or is_earlier_version(run)]


def summarise(results: Iterable[Row]) -> list[Row]:
    """Group results that differ in the seed only into rows, by data set, method and shots.

    Of runs that differ in nothing, not even the seed, the last counts.
    """
    groups: dict[tuple, dict[int, Row]] = {}  # all but seed and accuracies -> seed -> result
    for result in results:
        key = *result[:6], json.dumps(result.settings, sort_keys=True)
        for seed in result.accuracies:
            groups.setdefault(key, {})[seed] = result
    unusual = {key: _without_usual(next(iter(group.values()))) for key, group in groups.items()}
    rows = []
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
        named = sorted(names & first.settings.keys())
        rows.append(first._replace(
            variant=", ".join(
                f"{FINGERPRINTS[name]} fingerprint {str(first.settings[name])[:8]}"
                if name in FINGERPRINTS
                else f"{name} {to_single_line(first.settings[name], 200)}"
                for name in named
            ),
            zero_shot_accuracy=fmean(result.zero_shot_accuracy for result in group.values()),
            accuracies={seed: group[seed].accuracies[seed] for seed in sorted(group)},
            unusual=tuple(
                flag(name) if value is True else f"{flag(name)} {to_single_line(value, 200)}"
                for name, value in unusual[key].items()
                if value != "usual" and name not in names and name in OPTIONS
                and OPTIONS[name].read_by
            ),
        ))  # fmt: skip
    return sorted(rows, key=lambda row: (*row[:4], METHODS.index(row.method), row.shots))


def _without_usual(result: Row) -> dict[str, Any]:
    """Return the settings with "usual" for what is published for the method and data set."""
    usual = published_settings(result.method, result.shots, result.dataset)
    return {
        name: "usual" if name in usual and value == usual[name] else value
        for name, value in result.settings.items()
    }


def record_cross_dataset(
    run: RunFolder, dataset: Dataset, precision: str, zero_shot: float, accuracy: float
) -> None:
    """Write a result on other data to transfer.json, for tables; not what train.py has tested.

    Its "settings" are those that are not the run's: the same test by others has its own entry.
    """
    config, record = run.read_config()
    trained_root = run.read_json(SPLIT, root=str)["root"]
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
    with file_lock(run.path(TRANSFER_LOCK)):  # not to lose what another process adds
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
    tested = run.read_json(SUMMARY, tests=dict)["tests"] if run.path(SUMMARY).is_file() else {}
    return tested, run.read_json(TRANSFER) if run.path(TRANSFER).is_file() else {}
