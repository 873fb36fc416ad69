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
    shorten,
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

    Words such as set and images, and numbers, do not count. None without a split, or with two.
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
    """Map splits to their folders, in `IN_ORDER`: train/, val/, test/, whatever lies beside them.

    Else others, if one is for training, another is not, and their names differ in these words only
    (seg_train/, seg_test/) or they hold folders of the same names. Raises ValueError for two of a
    split.
    """
    named = {f: split for f in sub_folders(folder) if (split := split_of(f.name))}
    splits, rests = ({split[n] for split in named.values()} for n in (0, 1))
    if any(f.name.lower() in _SPLITS for f in named):
        named = {f: split for f, split in named.items() if not split[1]}
    elif "train" not in splits or len(splits) < 2:
        return {}
    elif len(rests) == len(named) and len(find_alike(named)[0]) < len(named):
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

    A split's folder is not looked through, except in a folder of the same `split`.
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
    """Find folders without images that hold two or more folders of the same names: name both."""
    names = {}
    for folder in folders:
        inner = () if holds_images(folder) else sub_folders(look_through(folder))
        names[folder] = {each.name.casefold(): f"{each.name}/" for each in inner}
    for path, other in combinations([path for path in names if len(names[path]) > 1], 2):
        if len(shared := names[path].keys() & names[other].keys()) > 1:
            alike = [f"{each.name}/" for each in names if len(names[each].keys() & shared) > 1]
            return alike, sorted(map(names[path].get, shared))
    return [], []


def open_folder(root: Path, naming: Naming) -> Dataset:
    """Open the data set of folders train/, val/, test/ of class folders, or of class folders.

    train/ alone is split as class folders are; without train/, the data set is only a test. Class
    folders may each hold train/ and test/. Raises ValueError, also for what seems no class.
    """
    folders = split_folders(root)
    if any(map(sub_folders, folders.values())):
        return _open_split_folders(root, folders, naming)
    if folders and not naming.read.folders_are_classes:  # bus/, car/, train/
        expected = f"classes in {shorten([f'{path.name}/' for path in folders.values()])}"
        got = f"none there ({contents(root)})"
        raise ValueError(f"data folder {root}: expected {expected}, got {got}: {_AS_CLASSES}")
    classes, how = class_folders(root, naming, naming.least_classes), f"class folders in {root}"
    if splits := _list_splits_in(classes):
        how = f"{', '.join(f'{split}/' for split in splits)} in the {how}"
    else:
        splits = {"all": _list_classes(root, classes, naming)}
    return assemble(root, splits, naming, how, loose_notes(root))


def _open_split_folders(root: Path, folders: dict[str, Path], naming: Naming) -> Dataset:
    """Open folders of splits; beside train/, those without images of its classes are left out."""
    splits, notes = _list_splits(folders, naming)
    read = ", ".join(f"{folders[split].name}/" for split in SPLITS if split in splits)
    others = [f"{f.name}/" for f in sub_folders(root) if f not in folders.values()]
    loose, how = loose_notes(root, *map(folders.get, splits)), f"folders {read}"
    if list(splits) == ["train"]:
        splits, how = {"all": splits["train"]}, f"class folders in {read}"
        notes.insert(0, f"no labelled test/ beside {read}: test images are drawn from it")
    if others:
        notes.append(f"read: {read}; not read: {shorten(others)}")
    return assemble(root, splits, naming, how, (*notes, *loose))


def _list_splits(folders: dict[str, Path], naming: Naming) -> tuple[Splits, list[str]]:
    """List the images of splits that have any in folders of the first one's classes; and notes."""
    first, *others = folders
    folder = look_through(folders[first], first)
    classes = class_folders(folder, naming, naming.least_classes)
    splits, notes = {first: _list_classes(folder, classes, naming)}, []
    known = {plain(path.name) for path in classes}
    for split in others:
        classes = class_folders(folders[split], naming)
        if known.isdisjoint(plain(path.name) for path in classes):
            classes = class_folders(look_through(folders[split], split), naming)
        files = list_images(classes)
        is_known = len(classes) > 1 or not known.isdisjoint(map(plain, files))
        if is_known and any(files.values()):  # not test/unknown/
            splits[split] = files
            continue
        verb, name = "tested" if split == "test" else "read", folders[split].name
        got = f"no images in folders of the classes ({contents(folders[split])})"
        notes.append(f"not {verb}: {name}/, which has {got}")
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
    return splits


def _list_classes(root: Path, classes: list[Path], naming: Naming) -> dict[str, list[str]]:
    """List the images in class folders. Raises ValueError if these may be variants, or splits."""
    alike, shared = find_alike(classes)
    seem_classes = any(map(holds_images, classes)) and not any(map(split_of, shared))
    if alike and not seem_classes and not naming.read.folders_are_classes:
        got = f"{shorten(alike)}, which share {shorten(shared)}"
        fix = f"{_AS_CLASSES}, else pass one of them as --data"
        raise ValueError(f"data folder {root}: expected class folders, got {got}: {fix}")
    return list_images(classes)


def class_folders(folder: Path, naming: Naming, at_least: int = 0) -> list[Path]:
    """Return the folders of classes in a folder. Raises ValueError for less than `at_least`."""
    classes = [f for f in sub_folders(folder) if f.name not in naming.dropped]
    if len(classes) < at_least:
        expected = f"at least {at_least} class folders (or train/ and test/ of them, or labels.csv)"
        raise ValueError(f"data folder {folder}: expected {expected}, got {contents(folder)}")
    return classes


def list_images(classes: list[Path]) -> dict[str, list[str]]:
    """List the images in class folders, by the names of these."""
    return {f.name: images_in(f) for f in track(classes, "class folders listed", len(classes))}
