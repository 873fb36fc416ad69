"""What each test image of a run is taken for: predictions.csv, and how each class fares."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..data.samples import Dataset
from ..support.files import (
    MAX_PICTURES,
    escape_formula,
    read_text,
    single_line_errors,
    write_rows,
)
from ..support.progress import print_line
from .evaluation import EvalPredictions
from .folders import PREDICTIONS, SPLIT, RunFolder

HEADER = ("path", "label", "learned", "learned probability", "zero-shot", "zero-shot probability")


class Predictions(NamedTuple):
    """Labels of N test images (N,), and the likeliest classes with probabilities."""

    labels: np.ndarray
    learned: np.ndarray
    learned_probability: np.ndarray
    zero_shot: np.ndarray
    zero_shot_probability: np.ndarray

    def surest_mistakes(self, most: int) -> list[int]:
        """Return the images that are taken for a wrong class with the greatest probability."""
        wrong = np.flatnonzero(self.learned != self.labels)
        return wrong[np.argsort(-self.learned_probability[wrong], kind="stable")][:most].tolist()


class ClassResult(NamedTuple):
    """A class's test images, how many are recognised, and (class, images) of what others are
    taken for, the most frequent first.
    """

    images: int
    correct: int
    mistakes: list[tuple[int, int]]

    @property
    def accuracy(self) -> float:
        """In percent, of a class with test images."""
        return 100 * self.correct / self.images

    def taken_for(self, classnames: Sequence[str], most: int | None = 3) -> str:
        """Return the most frequent mistakes: "owl 3, gnu 1"."""
        return ", ".join(f"{classnames[label]} {count}" for label, count in self.mistakes[:most])


def class_results(
    labels: Tensor | np.ndarray, predicted: Tensor | np.ndarray, classes: int
) -> list[ClassResult]:
    """Count for each class what its test images (N,) are taken for (N,)."""
    counts = [Counter() for _ in range(classes)]
    for label, prediction in zip(labels.tolist(), predicted.tolist(), strict=True):
        counts[label][prediction] += 1
    return [
        ClassResult(count.total(), count.pop(label, 0),
                    sorted(count.items(), key=lambda item: (-item[1], item[0])))
        for label, count in enumerate(counts)
    ]  # fmt: skip


def print_class_accuracy(
    classnames: list[str], labels: Tensor, predicted: Tensor, table: str | None = None
) -> None:
    """Print each class's accuracy and its three most frequent mistakes, then the classes' mean.

    table: a CSV file for it, with all mistakes.
    """
    results = class_results(labels, predicted, len(classnames))
    width, rows = max(map(len, classnames)), []
    for name, result in zip(classnames, results):
        accuracy = result.accuracy if result.images else ""
        share = f"{accuracy:6.2f} %" if result.images else "     -  "
        mistakes = f", taken for {result.taken_for(classnames)}" if result.mistakes else ""
        print_line(f"  {name:{width}} {share}  {result.correct} of {result.images}{mistakes}")
        mistakes = result.taken_for(classnames, most=None)
        rows.append((name, accuracy, result.correct, result.images, mistakes))
    accuracies = [result.accuracy for result in results if result.images]
    print_line(f"mean of {len(accuracies)} classes {fmean(accuracies):.2f} %")
    if table:
        write_rows(table, ("class", "accuracy", "right", "total", "taken for"), rows)


def write_predictions(
    run: RunFolder, dataset: Dataset, learned: EvalPredictions, zero_shot: EvalPredictions
) -> None:
    """Write a line for each test image, in the order of split.json."""
    columns = []
    for labels, probabilities in (learned, zero_shot):
        columns.append([dataset.classnames[label] for label in labels.tolist()])
        columns.append([f"{probability:.6f}" for probability in probabilities.tolist()])
    rows = (
        (os.path.relpath(item.path, dataset.root), item.classname, *predicted)
        for item, *predicted in zip(dataset.test, *columns, strict=True)
    )
    write_rows(run.path(PREDICTIONS), HEADER, rows)


@single_line_errors
def read_predictions(run: RunFolder, classnames: Sequence[str]) -> Predictions:
    """Read what `write_predictions` wrote. Raises FileNotFoundError or ValueError."""
    path = run.path(PREDICTIONS)
    content = read_text(path, str(path), most=8 * MAX_PICTURES)
    known = {str(escape_formula(name)): label for label, name in enumerate(classnames)}
    try:
        header, *rows = csv.reader(io.StringIO(content, newline=""), strict=True)
        _, label, learned, probability, zero_shot, other_probability = zip(*rows, strict=True)
        labels = [np.array([known[n] for n in column]) for column in (label, learned, zero_shot)]
        shares = [np.array(column, float) for column in (probability, other_probability)]
        if tuple(header) != HEADER or not all(np.all((0 <= p) & (p <= 1)) for p in shares):
            raise ValueError("other columns, or a probability that is none")
    except (KeyError, ValueError, csv.Error) as error:
        expected = f"expected {', '.join(HEADER)}, with classes of {SPLIT}"
        raise ValueError(f"{path}: {expected}, got {error}") from None
    return Predictions(labels[0], labels[1], shares[0], labels[2], shares[1])
