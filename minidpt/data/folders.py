"""Any pictures with class names in folders: of classes, or train/ val/ test/ of them.

files of each part and class (`Parts`), how the classes are called (`Naming`) -> assemble -> Dataset
"""

import random
from collections import Counter
from dataclasses import replace
from itertools import repeat
from pathlib import Path

from ..progress import counted
from .items import PARTS, Dataset, Item, make_dataset
from .listing import (
    Pictures,
    contents,
    image_suffixes,
    images_in,
    loose_notes,
    of_systems,
    part_folders,
    sub_folders,
    unread_note,
)
from .naming import Naming

# part -> class, as its folder or label is called -> its files. The part is "train", "val", "test",
# or "all": to be split by class.
Parts = dict[str, dict[str, list[str]]]


def open_folder(root: Path, naming: Naming, seed: int) -> Dataset:
    """The data set of folders train/, val/, test/ of class folders, or of class folders.

    A folder of such a name is never a class. train/ alone is split as class folders are; without
    train/, the data set is only a test. Raises ValueError (one line: expected, got, what to do).
    """
    folders = part_folders(root)
    if not folders:
        how = f"class folders in {root}"
        dataset = assemble(root, {"all": class_folders(root, naming)}, naming, how, seed)
        return replace(dataset, notes=(*dataset.notes, *loose_notes(root)))

    others = [f"{f.name}/" for f in sub_folders(root) if f not in folders.values()]
    read = [f"{folders[part].name}/" for part in PARTS if part in folders]
    if others and not any(map(sub_folders, folders.values())):  # vehicles: bus/, car/, train/
        name = read[0][:-1]
        raise ValueError(
            f"data folder {root}: expected class folders in {', '.join(read)}, got none there and "
            f"{', '.join(others[:3])} beside: if '{name}' is a class, call its folder {name}_ "
            f"(prompts leave the _ out)"
        )
    if list(folders) == ["train"]:
        parts, how = {"all": class_folders(folders["train"], naming)}, f"class folders in {read[0]}"
    else:
        parts, how = parts_of_classes(folders, naming), f"folders {', '.join(read)}"
    dataset = assemble(root, parts, naming, how, seed)
    notes = [f"no test/ beside {read[0]}: the test is drawn from it"] if "all" in parts else []
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        notes.append(f"read: {', '.join(read)}; not read: {others[0]}{more}")
    notes += loose_notes(root, *folders.values())
    return replace(dataset, notes=(*dataset.notes, *notes))


def assemble(
    root: Path, parts: Parts, naming: Naming, how: str, seed: int, keys: list[str] | None = None
) -> Dataset:
    """A Dataset of the files of each part and class.

    `keys` are the classes in the order of labels (None: sorted; those of the first part count).
    "all" is split by class, 50 % train, 20 % val, 30 % test, with `seed`. Without "test", "val" is
    the test; without "train", it is a test set only. Every class must have a picture in the first
    part.
    """
    first = next(iter(parts))
    keys = keys or naming.ordered(parts[first])
    names, notes = naming.classnames(root, keys)
    empty = [key for key in keys if not parts[first].get(key)]
    listed = (own for files in parts.values() for own in files.values())
    unread = unread_note(
        sum((own.unread for own in listed if isinstance(own, Pictures)), Counter())
    )
    if empty:
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        more += f"; {unread}" if unread else ""
        raise ValueError(
            f"folder {root}: expected pictures ({' '.join(sorted(image_suffixes()))}) of every "
            f"class, got none for '{empty[0]}'{more}: add some, remove the class, or pass the "
            f"folder of the classes if it is another"
        )
    if "all" in parts:
        parts = _split_by_class({key: parts["all"][key] for key in keys}, seed)
        how += f", no split file: drawn 50/20/30 % with the fixed seed {seed}"
    elif "test" not in parts and "val" in parts:
        parts = {**parts, "test": parts["val"], "val": {}}
        how += " (no test/, so val/ is the test set)"
    if not any(parts.get("test", {}).values()):
        raise ValueError(f"data folder {root}: expected pictures for the test, got none: add some")

    listed: dict[str, list[Item]] = {part: [] for part in PARTS}
    labels = {key: label for label, key in enumerate(names)}
    for part, files in parts.items():
        for key, own in files.items():
            if key not in labels:
                raise ValueError(
                    f"data folder {root}: expected only classes that {first} has, got '{key}' "
                    f"in {part}: add {first} pictures of it or remove it"
                )
            listed[part] += map(Item, own, repeat(labels[key]), repeat(names[key]))
    name = naming.name or root.resolve().name
    classnames = list(names.values())
    notes = (*notes, unread) if unread else notes
    dataset = make_dataset(name, root, classnames, naming.template, listed, how, notes)
    return naming.credited(dataset, keys)


def _split_by_class(files: dict[str, list[str]], seed: int) -> Parts:
    """50 % train, 20 % val, 30 % test; two or more pictures give one for training, one for test."""
    generator = random.Random(seed)
    parts: Parts = {part: {} for part in PARTS}
    for key, own in files.items():
        own = list(own)
        generator.shuffle(own)
        train = max(1, round(0.5 * len(own)))
        val = max(0, min(round(0.2 * len(own)), len(own) - train - 1))
        parts["train"][key] = own[:train]
        parts["val"][key] = own[train : train + val]
        parts["test"][key] = own[train + val :]
    return parts


def class_folders(folder: Path, naming: Naming, at_least: int = 2) -> dict[str, list[str]]:
    """The pictures of each class folder. Raises ValueError for less than `at_least` classes."""
    found = [f for f in sub_folders(folder) if f.name not in naming.dropped]
    if not found and at_least:
        raise ValueError(
            f"data folder {folder}: expected a folder for each class (or train/ and test/ of class "
            f"folders, or labels.csv), got {contents(folder)}: make one folder for each class"
        )
    if len(found) < at_least:
        raise ValueError(
            f"data folder {folder}: expected at least {at_least} class folders, got only "
            f"'{found[0].name}': add a class, or pass the folder of the classes"
        )
    listed = counted(found, "class folders listed", len(found))
    pictures = {class_folder.name: images_in(class_folder) for class_folder in listed}
    for own in list(pictures.values())[:1]:  # it tells of what lies beside the classes, too
        own.unread += of_systems(folder)
    return pictures


def parts_of_classes(folders: dict[str, Path], naming: Naming) -> Parts:
    """The class folders of each part; the first part must have two classes, the test one."""
    least = {"val": 0, "test": 1, next(iter(folders)): 2}
    return {part: class_folders(own, naming, least[part]) for part, own in folders.items()}
