"""What runs have given: mean ± standard deviation over seeds.

read_results: */summary.json below a folder -> Result, one for each run and what it was tested on
summarise:    Results that differ in nothing but their seed -> Row
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, NamedTuple

from ..config import METHODS
from ..files import entries, good_name, one_line, one_line_errors, shown
from .config import OPTIONS, RunConfig, RunRecord, flag
from .folders import CONFIG, FINGERPRINTS, SUMMARY, TRANSFER, RunFolder, is_run

# Settings that each data set has its own of.
OF_DATA = {"data_fingerprint", "template", "classnames", "tested in", "tested by"}
OF_RUN = {"dataset": str, "model": str, "method": str, "shots": int, "seed": int, "tests": dict}
OF_TEST = {"zero_shot_accuracy": int | float, "accuracy": int | float, "tested": str | None,
           "settings": dict | None}  # fmt: skip
AT_MOST = {"shots": 10**9, "seed": 2**63, "zero_shot_accuracy": 100, "accuracy": 100}


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
    config: RunConfig
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
    found = [path for path in Path(folder).rglob(SUMMARY) if is_run(path.parent)]
    for path in sorted(found, key=lambda path: (path.stat().st_mtime, path)):
        one = RunFolder(path.parent)
        run, (config, record) = one.read_json(SUMMARY, **OF_RUN), one.read_config()
        transfer = one.read_json(TRANSFER) if one.path(TRANSFER).is_file() else {}
        settings = compared_settings(config, record)
        trained = tested_on(good_name(run["dataset"], str(path), folder=True), config.classes)
        for name, test in {**transfer, **run["tests"]}.items():
            where = f"{path.parent}, test {name[:60]!r}"
            said = run | entries(test, where, **OF_TEST)
            wrong = [name for name, most in AT_MOST.items() if not 0 <= said[name] <= most]
            if wrong := wrong or ["method"] * (run["method"] not in METHODS):
                got = f"{wrong[0]} {shown(said[wrong[0]])}"
                raise ValueError(f"{where}: expected the result of a run of train.py, got {got}")
            results.append(Result(
                run["dataset"], trained, test.get("tested") or name, run["model"], run["method"],
                run["shots"], settings | (test.get("settings") or {}), config, run["seed"],
                float(test["zero_shot_accuracy"]), float(test["accuracy"]),
            ))  # fmt: skip
    if not results:
        got = f"{len(begun)} unfinished" if (begun := unfinished(folder)) else "none"
        raise FileNotFoundError(f"folder {folder}: expected finished runs in it, got {got}")
    return results


def unfinished(folder: str | os.PathLike) -> list[Path]:
    """The runs in a folder and below that have no result: stopped, or still learning."""
    begun = sorted(path.parent for path in Path(folder).rglob(CONFIG))
    return [run for run in begun if not (run / SUMMARY).is_file() and is_run(run)]


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
            settings, usual = first.settings, first.config.published_settings(first.dataset)
            name = ", ".join(named(name, settings[name]) for name in names if name in settings)
            zero_shot = fmean(result.zero_shot_accuracy for result in own.values())
            accuracies = {seed: result.accuracy for seed, result in sorted(own.items())}
            unusual = tuple(
                flag(option) + f" {one_line(value, 200)}" * (value is not True)
                for option, value in settings.items()
                if option not in names and usual.get(option, value) != value
            )
            rows.append(Row(*kind, name, zero_shot, accuracies, unusual))
    return sorted(rows, key=lambda row: (*row[:4], METHODS.index(row.method), row.shots))


def compared_settings(config: RunConfig, record: RunRecord) -> dict[str, Any]:
    """Return the settings by which rows are told apart, beside what a `Result` says by itself."""
    settings = config.result_settings() | record.result_settings()
    return {
        name: value
        for name, value in settings.items()
        if not (name in OPTIONS and OPTIONS[name].is_grid) and name != "classes"
    }


def _across(result: Result) -> dict[str, Any]:
    """The settings by which runs on several data sets differ: not in each one's own, or usual."""
    own = {name: value for name, value in result.settings.items() if name not in OF_DATA}
    usual = result.config.published_settings(result.dataset).items()
    return own | {name: "usual" for name, value in usual if name in own and own[name] == value}


def differences(settings: Sequence[dict[str, Any]]) -> list[str]:
    """The names of those that are not the same in all."""
    names = dict.fromkeys(name for own in settings for name in own)
    first = settings[0]
    return [n for n in names if any(own.get(n) != first.get(n) for own in settings)]


def named(setting: str, value: Any) -> str:
    """A setting as tables show it; of a fingerprint, its beginning."""
    if setting in FINGERPRINTS:
        return f"{FINGERPRINTS[setting]} fingerprint {str(value)[:8]}"
    return f"{setting} {one_line(value, 200)}"
