"""Pictures with class names: the lists of a data set.

open_dataset (datasets.py) or read_split (splits.py) -> few_shot, select_classes (shots.py)
-> batches.py

The user's folder is only ever read.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..files import good_name

DEFAULT_TEMPLATE = "a photo of a {}."
PARTS = ("train", "val", "test")


class Item(NamedTuple):
    """One picture: its file, its class as a number from 0, and as a name."""

    path: str
    label: int
    classname: str


@dataclass(frozen=True)
class Dataset:
    """Three lists of pictures with the names that they share.

    `classnames[label]` is the name for prompts, `template` such as "a photo of a {}.". `root` is
    the folder that all paths lie in, `source` one line that says what was recognised from which
    files, `notes` lines that the user should see (classes with few pictures, for example). `drawn`:
    (shots, seed) of the draw that train and val come from, if they do; `part`: of the classes.
    """

    name: str
    root: Path
    classnames: list[str]
    template: str
    train: list[Item]
    val: list[Item]
    test: list[Item]
    source: str
    notes: tuple[str, ...] = ()
    drawn: tuple[int, int] | None = None
    part: str = "all"

    def fingerprint(self) -> str:
        """SHA-256 of the class names and of each part's pictures: path below `root`, label.

        Wherever `root` lies. What is in the files does not count: a million of them would be read.
        """
        start = os.path.join(self.root, "")
        listed = [
            [(path.removeprefix(start), label) for path, label, _ in getattr(self, part)]
            for part in PARTS
        ]
        return hashlib.sha256(json.dumps([self.classnames, *listed]).encode()).hexdigest()

    def folders(self) -> list[Path]:
        """The user's folders, in which nothing is to be written; the outermost first.

        `root`, those that pictures lie in (the paths of a CSV file may lead anywhere), and those
        around several of these, as around class folders. The home folder and what is above it are
        left out: results lie below them, too.
        """
        holding = {os.path.dirname(item.path) for part in PARTS for item in getattr(self, part)}
        holding = set(map(os.path.abspath, holding))
        around = Counter(map(os.path.dirname, holding))
        found = {self.root, *holding, *(folder for folder, count in around.items() if count > 1)}
        home = Path(os.path.expanduser("~")).resolve()
        resolved = {Path(folder).resolve() for folder in found} - {home, *home.parents}
        return sorted(resolved, key=lambda folder: (len(folder.parts), folder))


def make_dataset(
    name: str,
    root: Path,
    classnames: list[str],
    template: str,
    listed: dict[str, list[Item]],
    how: str,
    notes: Iterable[str] = (),
) -> Dataset:
    """Puts a Dataset together and describes it in its line `source`; `how`: from which files.

    Raises ValueError for names that are none (`good_name`), whatever file they come from.
    """
    good_name(name, f"data in {root}", folder=True)
    for classname in classnames:
        good_name(classname, f"data set {name} in {root}")
    if len(classnames) > 1 == len(set(classnames)):
        raise ValueError(f"data set {name} in {root}: expected several names, got {classnames[:3]}")
    counts = "/".join(str(len(listed[part])) for part in PARTS)
    source = f"{name}: {len(classnames)} classes, {how}, {counts} images (train/val/test)"
    tested = {item.label for item in listed["test"]}
    untested = (
        f"class '{classname}' has no test image"
        for label, classname in enumerate(classnames)
        if label not in tested
    )
    notes = (*notes, *untested)
    return Dataset(name, root, classnames, template, **listed, source=source, notes=notes)
