"""Folders of classes: as they are, in train/ and test/, or each with its own train/ and test/.

open_folder: folders of splits or of classes -> files of each split and class -> assemble -> Dataset
"""

import re
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

from ..support.progress import track
from .folders import (
    IN_ORDER,
    SPLIT_NAMES,
    Splits,
    assemble,
    contents,
    holds_images,
    images_in,
    loose_notes,
    sub_folders,
)
from .layouts import plain
from .naming import Naming
from .samples import SPLITS, Dataset

_IF_MISSING = {"eval": "test", "evaluation": "test", "trainval": "train"}  # without test/, train/
_SPLITS = {**SPLIT_NAMES, **_IF_MISSING}
# A word of a folder's name: a split's, or one that says no more than "folder", or both: trainset
_WORD = re.compile(
    rf"({'|'.join(_SPLITS)}|)"
    "((?:data)?(?:sets?|images?|imgs?|pictures?|pics?|photos?|files?|folders?|samples?|splits?)?)"
)
_AS_CLASSES = "if these are the classes, pass --folders-are-classes"


def split_of(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the split that a folder's name tells, and its other words: seg_train -> train, (seg,).

    Words such as set and images, and numbers, do not count. None for a name that tells no split, or
    two.
    """
    splits, rest = [], []
    for word in filter(None, re.split(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])", name)):
        match = _WORD.fullmatch(word.lower())
        if match and match[1]:
            splits.append(_SPLITS[match[1]])
        elif not match:
            rest.append(word.lower())
    return (splits[0], tuple(rest)) if len(splits) == 1 else None


def split_folders(folder: Path) -> dict[str, Path]:
    """Map splits to their folders, in `IN_ORDER`; nothing if the folders tell no splits.

    train/, val/ and test/ are splits, whatever lies beside them. Other folders are if one is for
    training, another is not, and their names differ in these words only (seg_train/, seg_test/) or
    they hold folders of the same names. Raises ValueError for two of a split.
    """
    named = {child: split_of(child.name) for child in sub_folders(folder)}
    named = {child: split for child, split in named.items() if split}
    if any(child.name.lower() in _SPLITS for child in named):
        named = {child: split for child, split in named.items() if not split[1]}
    else:
        splits, rests = ({each[n] for each in named.values()} for n in (0, 1))
        if "train" not in splits or len(splits) < 2:
            return {}
        if len(rests) == len(named) and len(find_alike(named)[0]) < len(named):
            return {}
    folders = {}
    for split in IN_ORDER:
        children = sorted((child for child in named if named[child][0] == split), key=_rank)
        if len(children) > 1 and _rank(children[0]) == _rank(children[1]):
            got = f"{children[0].name}/ and {children[1].name}/: merge or rename them"
            raise ValueError(f"data folder {folder}: expected one folder for {split}, got {got}")
        if children:
            folders[split] = children[0]
    return folders


def _rank(folder: Path) -> tuple[bool, bool]:
    """Order the folders of a split: test/, eval/, test_images/, eval_images/."""
    name = folder.name.lower()
    return name not in _SPLITS, any(word in name for word in _IF_MISSING)


def look_through(folder: Path, split: str | None = None) -> Path:
    """Return the folder of several folders that lies alone in a folder, if one does; else itself.

    The folder of a split is not looked through, except in a folder of the same `split`.
    """
    inner = folder
    for _ in range(10):  # links may lead in circles
        children = [] if holds_images(inner) else sub_folders(inner)
        if not children:
            break
        if len(children) > 1 or _SPLITS.get(children[0].name.lower(), split) != split:
            return inner
        inner = children[0]
    return folder


def find_alike(folders: Iterable[Path]) -> tuple[list[str], list[str]]:
    """Find folders that hold two or more folders of the same names: return the names of both.

    Those that hold an image are left out, a folder alone in one is looked through.
    """
    names = {}
    for folder in folders:
        inner = () if holds_images(folder) else sub_folders(look_through(folder))
        names[folder] = {each.name.casefold(): each.name for each in inner}
    for path, other in combinations([path for path in names if len(names[path]) > 1], 2):
        if len(shared := names[path].keys() & names[other].keys()) > 1:
            alike = [each.name for each in names if len(names[each].keys() & shared) > 1]
            return alike, sorted(map(names[path].get, shared))
    return [], []


def open_folder(root: Path, naming: Naming, seed: int) -> Dataset:
    """Open the data set of folders train/, val/, test/ of class folders, or of class folders.

    A folder of a split is never a class, see `split_folders`. train/ alone is split as class
    folders are; without train/, the data set is only a test. Class folders may each hold train/
    and test/. Raises ValueError (one line: expected, got, what to do), also for folders that look
    like variants of a data set, not like its classes.
    """
    folders = split_folders(root)
    if any(map(sub_folders, folders.values())):
        return _open_split_folders(root, folders, naming, seed)
    if folders and not naming.read.folders_are_classes:  # bus/, car/, train/
        expected = f"classes in {shorten([path.name for path in folders.values()])}"
        others = [f.name for f in sub_folders(root) if f not in folders.values()]
        got = f"none there, beside {shorten(others)}" if others else "none there"
        raise ValueError(f"data folder {root}: expected {expected}, got {got}: {_AS_CLASSES}")
    classes, how = class_folders(root, naming, naming.least_classes), f"class folders in {root}"
    if splits := _list_splits_in(classes):
        how = f"{shorten(list(splits))} in the {how}"
        return assemble(root, splits, naming, how, seed).with_notes(*loose_notes(root))
    notes = check_are_classes(root, classes, naming)
    dataset = assemble(root, {"all": list_images(classes)}, naming, how, seed)
    return dataset.with_notes(*notes, *loose_notes(root))


def _open_split_folders(root: Path, folders: dict[str, Path], naming: Naming, seed: int) -> Dataset:
    """Open folders of splits; beside train/, those without images of its classes are left out."""
    others = [f.name for f in sub_folders(root) if f not in folders.values()]
    names = {split: f"{folders[split].name}/" for split in SPLITS if split in folders}
    splits, notes = _list_splits(folders, naming)
    read = [names[split] for split in names if split in splits]
    for split in (split for split in names if split not in splits):
        verb = "tested" if split == "test" else "read"
        got = f"which has no images in folders of the classes ({contents(folders[split])})"
        notes.append(f"not {verb}: {names[split]}, {got}")
    loose = loose_notes(root, *map(folders.get, splits))
    how = f"folders {', '.join(read)}"
    if list(splits) == ["train"]:
        splits, how = {"all": splits["train"]}, f"class folders in {read[0]}"
        test = "labelled test/" if "test" in names else "test/"
        drawn = "the test is drawn from it" if naming.draws_split else "it is the test"
        notes.insert(0, f"no {test} beside {read[0]}: {drawn}")
    if others:
        notes.append(f"read: {', '.join(read)}; not read: {shorten(others, 1)}")
    return assemble(root, splits, naming, how, seed).with_notes(*notes, *loose)


def _list_splits(folders: dict[str, Path], naming: Naming) -> tuple[Splits, list[str]]:
    """List the images of splits that have any in folders of the first one's classes; and notes."""
    first, *others = folders
    folder = look_through(folders[first], first)
    classes = class_folders(folder, naming, naming.least_classes)
    notes = check_are_classes(folder, classes, naming)
    splits, known = {first: list_images(classes)}, {plain(path.name) for path in classes}
    for split in others:
        classes = class_folders(folders[split], naming, 0)
        if known.isdisjoint(plain(path.name) for path in classes):
            classes = class_folders(look_through(folders[split], split), naming, 0)
        files = list_images(classes)
        is_known = len(classes) > 1 or not known.isdisjoint(map(plain, files))
        if is_known and any(files.values()):  # not test/unknown/
            splits[split] = files
    return splits, notes


def _list_splits_in(classes: list[Path]) -> Splits:
    """List the images of class folders that all hold train/, and test/ or val/; else nothing."""
    inside = {}
    for path in classes:
        inside[path.name] = {} if holds_images(path) else split_folders(look_through(path))
        if "train" not in inside[path.name]:
            return {}
    trains = [folders["train"] for folders in inside.values()]  # none with variants of a data set
    if max(map(len, inside.values())) == 1 or find_alike(trains)[0]:
        return {}
    splits: Splits = {}
    for name, folders in track(inside.items(), "class folders listed", len(inside)):
        for split, path in folders.items():
            splits.setdefault(split, {})[name] = images_in(path)
    return {split: splits[split] for split in IN_ORDER if split in splits}


def check_are_classes(root: Path, classes: list[Path], naming: Naming) -> list[str]:
    """Raise ValueError if class folders hold folders of the same names, so may be no classes.

    Return a note if they probably are, as another one holds images.
    """
    alike, shared = find_alike(classes)
    if naming.read.folders_are_classes or not alike:
        return []
    got = f"{shorten(alike)}, which share {shorten(shared)}"
    if any(map(holds_images, classes)) and not any(map(split_of, shared)):
        return [f"taken for classes: {got}"]
    fix = f"{_AS_CLASSES}, else pass one of them"
    raise ValueError(f"data folder {root}: expected class folders, got {got}: {fix}")


def class_folders_by_split(folders: dict[str, Path], naming: Naming) -> Splits:
    """List the class folders of each split; the first must have two classes, the test one."""
    least = {"val": 0, "test": 1, next(iter(folders)): naming.least_classes}
    return {
        split: list_images(class_folders(path, naming, least[split]))
        for split, path in folders.items()
    }


def class_folders(folder: Path, naming: Naming, at_least: int) -> list[Path]:
    """Return the folders of classes in a folder. Raises ValueError for less than `at_least`."""
    classes = [f for f in sub_folders(folder) if f.name not in naming.dropped]
    if not classes and at_least:
        expected = "a folder for each class (or train/ and test/ of such, or labels.csv)"
        raise ValueError(f"data folder {folder}: expected {expected}, got {contents(folder)}")
    if len(classes) < at_least:
        got = f"only '{classes[0].name}': pass the folder of the classes"
        raise ValueError(f"data folder {folder}: expected at least 2 class folders, got {got}")
    return classes


def list_images(classes: list[Path]) -> dict[str, list[str]]:
    """List the images in class folders, by the names of these."""
    return {f.name: images_in(f) for f in track(classes, "class folders listed", len(classes))}


def shorten(names: list[str], count: int = 3) -> str:
    """Name the first of some folders, and say how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(f"{name}/" for name in names[:count]) + more
