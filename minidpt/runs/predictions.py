"""What each test picture of a run is taken for: predictions.csv, and what follows from it."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch

from ..data.samples import Dataset
from ..files import MAX_PICTURES, cell, one_line_errors, read_text, write_rows
from .evaluation import Predicted
from .folders import PREDICTIONS, SPLIT, RunFolder
from .progress_line import say

HEADER = ("path", "label", "learned", "learned probability", "zero-shot", "zero-shot probability")


class Predictions(NamedTuple):
    """N test pictures of C classes: labels (N,), and the likeliest classes with probabilities."""

    classnames: list[str]
    labels: np.ndarray
    learned: np.ndarray
    learned_probability: np.ndarray
    zero_shot: np.ndarray
    zero_shot_probability: np.ndarray

    def accuracies(self, predicted: np.ndarray) -> np.ndarray:
        """The accuracy of each class (C,), in percent; NaN for one without a test picture."""
        right = np.bincount(self.labels[predicted == self.labels], minlength=len(self.classnames))
        with np.errstate(invalid="ignore"):
            return 100 * right / self.counts()

    def counts(self) -> np.ndarray:
        """Test pictures of each class (C,)."""
        return np.bincount(self.labels, minlength=len(self.classnames))

    def confused(self) -> list[tuple[int, int, int]]:
        """Pairs that are taken for one another: pictures, label, predicted; the most first."""
        pairs = self.labels * len(self.classnames) + self.learned
        found, counts = np.unique(pairs[self.learned != self.labels], return_counts=True)
        pairs = np.stack([counts, *divmod(found, len(self.classnames))], axis=1)
        return sorted(map(tuple, pairs.tolist()), key=lambda row: (-row[0], row[1:]))

    def surest_mistakes(self, most: int) -> list[int]:
        """The pictures that are taken for a wrong class with the greatest probability."""
        wrong = np.flatnonzero(self.learned != self.labels)
        return wrong[np.argsort(-self.learned_probability[wrong], kind="stable")][:most].tolist()


def write_predictions(run: RunFolder, dataset: Dataset, learned: Predicted, zero_shot: Predicted) -> None:
    """A line for each test picture, in the order of split.json."""
    columns = [
        column.tolist()
        for predicted in (learned, zero_shot)
        for column in (predicted.labels, predicted.probabilities)
    ]
    names = dataset.classnames
    rows = (
        (os.path.relpath(item.path, dataset.root), item.classname,
         names[one], f"{share:.6f}", names[other], f"{other_share:.6f}")
        for item, one, share, other, other_share in zip(dataset.test, *columns, strict=True)
    )  # fmt: skip
    write_rows(run.path(PREDICTIONS), HEADER, rows, "backslashreplace")


@one_line_errors
def read_predictions(run: RunFolder, classnames: Sequence[str]) -> Predictions:
    """What `write_predictions` wrote. Raises FileNotFoundError or ValueError."""
    path = run.path(PREDICTIONS)
    content = read_text(path, str(path), most=8 * MAX_PICTURES)
    known = {str(cell(name)): label for label, name in reversed(list(enumerate(classnames)))}
    try:
        header, *rows = csv.reader(io.StringIO(content, newline=""), strict=True)
        if tuple(header) != HEADER or not rows:
            raise ValueError(f"columns {', '.join(header)[:100]} of {len(rows)} pictures")
        columns = list(zip(*rows, strict=True))
        labels = [np.array([known[name] for name in columns[place]]) for place in (1, 2, 4)]
        shares = [np.array(columns[place], float) for place in (3, 5)]
        if not all(np.all((0 <= own) & (own <= 1)) for own in shares):
            raise ValueError("a probability that is none")
    except (KeyError, ValueError, IndexError, csv.Error) as error:
        expected = f"expected {', '.join(HEADER)}, with classes of {SPLIT}"
        raise ValueError(f"{path}: {expected}, got {error}") from None
    label, learned, zero_shot = labels
    return Predictions(list(classnames), label, learned, shares[0], zero_shot, shares[1])


def say_classes(
    classnames: list[str], labels: torch.Tensor, predicted: torch.Tensor, table: str | None = None
) -> None:
    """A line for each class: its accuracy, and the three that it is mistaken for most often.

    Then the mean of the classes' accuracies. `table`: a CSV file for it, with all mistakes.
    """
    width, rows, shares = max(map(len, classnames)), [], []
    for label, name in enumerate(classnames):
        counts = predicted[labels == label].bincount(minlength=len(classnames)).tolist()
        right, total = counts[label], sum(counts)
        wrong = sorted((-count, i) for i, count in enumerate(counts) if count and i != label)
        mistakes = [f"{classnames[i]} {-count}" for count, i in wrong]
        shares += [100 * right / total] if total else []
        share = f"{shares[-1]:6.2f} %" if total else "     -  "
        taken = f", taken for {', '.join(mistakes[:3])}" if wrong else ""
        say(f"  {name:{width}} {share}  {right} of {total}{taken}")
        rows.append((name, shares[-1] if total else "", right, total, ", ".join(mistakes)))
    say(f"mean of {len(shares)} classes {fmean(shares):.2f} %")
    if table:
        write_rows(table, ("class", "accuracy", "right", "total", "taken for"), rows)
