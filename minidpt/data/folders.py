"""Any images with class names in folders: of classes, or train/ val/ test/ of them.

files of each part and class (`Parts`), how the classes are called (`Naming`) -> assemble -> Dataset
"""

import random
from collections import Counter
from dataclasses import replace
from itertools import repeat
from pathlib import Path

from ..progress import counted
from .listing import (
    ImageFiles,
    contents,
    image_suffixes,
    images_in,
    loose_notes,
    part_folders,
    sub_folders,
    unread_note,
)
from .naming import Naming
from .samples import PARTS, Dataset, Sample, make_dataset

# part -> class, as its folder or label is called -> its files. The part is "train", "val", "test",
# or "all": to be split by class.
Parts = dict[str, dict[str, list[str]]]


def open_folder(root: Path, naming: Naming, seed: int) -> Dataset:
    """Open the data set of folders train/, val/, test/ of class folders, or of class folders.

    A folder of such a name is never a class. train/ alone is split as class folders are; without
    train/, the data set is only a test. Raises ValueError (one line: expected, got, what to do).
    """
    folders, notes = part_folders(root), []
    read = [f"{folders[part].name}/" for part in PARTS if part in folders]
    others = [f"{f.name}/" for f in sub_folders(root) if f not in folders.values()]
    if folders and others and not any(map(sub_folders, folders.values())):  # bus/, car/, train/
        raise ValueError(
            f"data folder {root}: expected class folders in {', '.join(read)}, got none there and "
            f"{', '.join(others[:3])} beside: if it is a class, call its folder {read[0][:-1]}_ "
            f"(prompts leave the _ out)"
        )
    how = f"folders {', '.join(read)}"
    if not folders:
        folders, others, how = {"all": root}, [], f"class folders in {root}"
    elif list(folders) == ["train"]:
        folders, how = {"all": folders["train"]}, f"class folders in {read[0]}"
        notes = [f"no test/ beside {read[0]}: the test is drawn from it"]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        notes.append(f"read: {', '.join(read)}; not read: {others[0]}{more}")
    dataset = assemble(root, class_folders_of_parts(folders, naming), naming, how, seed)
    notes = (*dataset.notes, *notes, *loose_notes(root, *folders.values()))
    return replace(dataset, notes=notes)


def assemble(
    root: Path, parts: Parts, naming: Naming, how: str, seed: int, keys: list[str] | None = None
) -> Dataset:
    """Make a Dataset of the files of each part and class.

    `keys` are the classes in the order of labels (None: sorted; those of the first part count).
    "all" is split by class, 50 % train, 20 % val, 30 % test, with `seed`. Without "test", "val" is
    the test; without "train", it is a test set only. Every class must have an image in the first
    part.
    """
    first = next(iter(parts))
    keys = keys or naming.ordered(parts[first])
    names, notes = naming.classnames(root, keys)
    lists = [files for by_class in parts.values() for files in by_class.values()]
    unread = sum((files.unread for files in lists if isinstance(files, ImageFiles)), Counter())
    notes += filter(None, [unread_note(unread)])
    if empty := [key for key in keys if not parts[first].get(key)]:
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        got = "; ".join([f"none for '{empty[0]}'{more}", *filter(None, [unread_note(unread)])])
        raise ValueError(
            f"data folder {root}: expected images ({' '.join(sorted(image_suffixes()))}) of every "
            f"class, got {got}: add some, remove the class, or pass the folder of the classes"
        )
    if "all" in parts:
        parts = _split_by_class({key: parts["all"][key] for key in keys}, seed)
        how += f", no split file: drawn 50/20/30 % with the fixed seed {seed}"
    elif "test" not in parts and "val" in parts:
        parts = {**parts, "test": parts["val"], "val": {}}
        how += " (no test/, so val/ is the test set)"
    if not any(parts.get("test", {}).values()):
        raise ValueError(f"data folder {root}: expected images for the test, got none: add some")

    listed: dict[str, list[Sample]] = {part: [] for part in PARTS}
    labels = {key: label for label, key in enumerate(names)}
    for part, by_class in parts.items():
        for key, files in by_class.items():
            if key not in labels:
                raise ValueError(
                    f"data folder {root}: expected only classes that {first} has, got '{key}' "
                    f"in {part}: add {first} images of it or remove it"
                )
            listed[part] += map(Sample, files, repeat(labels[key]), repeat(names[key]))
    name = naming.name or root.resolve().name
    classnames = list(names.values())
    dataset = make_dataset(name, root, classnames, naming.template, listed, how, notes)
    return naming.credit(dataset, keys)


def _split_by_class(files: dict[str, list[str]], seed: int) -> Parts:
    """50 % train, 20 % val, 30 % test; two or more images give one for training, one for test."""
    generator = random.Random(seed)
    parts: Parts = {part: {} for part in PARTS}
    for key, of_class in files.items():
        shuffled = list(of_class)
        generator.shuffle(shuffled)
        count = len(shuffled)
        train = max(1, round(0.5 * count))
        val = max(0, min(round(0.2 * count), count - train - 1))
        parts["train"][key] = shuffled[:train]
        parts["val"][key] = shuffled[train : train + val]
        parts["test"][key] = shuffled[train + val :]
    return parts


def class_folders_of_parts(folders: dict[str, Path], naming: Naming) -> Parts:
    """List the class folders of each part; the first part must have two classes, the test one."""
    least = {"val": 0, "test": 1, next(iter(folders)): 2}
    return {part: _class_folders(own, naming, least[part]) for part, own in folders.items()}


def _class_folders(folder: Path, naming: Naming, at_least: int) -> dict[str, list[str]]:
    classes = [f for f in sub_folders(folder) if f.name not in naming.dropped]
    if not classes and at_least:
        raise ValueError(
            f"data folder {folder}: expected a folder for each class (or train/ and test/ of class "
            f"folders, or labels.csv), got {contents(folder)}: make one folder for each class"
        )
    if len(classes) < at_least:
        raise ValueError(
            f"data folder {folder}: expected at least {at_least} class folders, got only "
            f"'{classes[0].name}': add a class, or pass the folder of the classes"
        )
    listed = counted(classes, "class folders listed", len(classes))
    return {class_folder.name: images_in(class_folder) for class_folder in listed}
