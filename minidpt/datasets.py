"""What lies at a path: one of the fifteen data sets of layouts.py, or any other pictures.

open_dataset: recognise -> the split file, else the set's own lists, else class folders -> Dataset
"""

import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from .data import PARTS, Dataset, missing_files, read_split
from .folders import (
    LABELS,
    assemble,
    contents,
    images_in,
    open_csv,
    open_folder,
    parts_of_classes,
    sub_folders,
)
from .layouts import LAYOUTS, Layout, layout_of, plain
from .naming import Naming, imagenet_classnames, read_classnames, read_text


def open_dataset(
    path: str | os.PathLike,
    dataset: str | None = None,
    seed: int = 1,
    classnames: str | os.PathLike | None = None,
    template: str | None = None,
) -> Dataset:
    """Finds out what kind of data set lies at a path, and lists its pictures.

    `path` is a folder: of one of the fifteen data sets, of its pictures, or the one above; or with
    a labels.csv, with train/ and test/ (val/) of class folders, or with class folders. Or it is a
    CSV file of `path,label[,split]`, or a split file of `write_split`.

    `dataset` names one of the fifteen: `path` may then hold several, or its pictures in plain class
    folders. `classnames` is a file that renames classes (`read_classnames`), `template` replaces
    the data set's. Where no split is given, `seed` draws one: it is not the seed of the few-shot
    draw, so that all runs share a test set.

    Raises FileNotFoundError or ValueError (one line: expected, got, what to do).
    """
    root = Path(path).expanduser()
    layout = layout_of(dataset) if dataset is not None else None
    if template is not None and template.count("{}") != 1:
        raise ValueError(f"template: expected one {{}} for the class name, got '{template}'")
    renamed = read_classnames(classnames) if classnames is not None else {}

    override = {} if template is None else {"template": template}

    def wanted(naming: Naming) -> Naming:
        return replace(naming, renamed={**naming.renamed, **renamed}, **override)

    opened = _open(root, layout, wanted, seed)
    if renamed:
        count = sum(name in renamed.values() for name in opened.classnames)
        if not count:
            raise ValueError(
                f"class names {classnames}: expected lines for the classes of {opened.name} "
                f"({', '.join(opened.classnames[:3])}, ...), got none of them"
            )
        file = Path(classnames).name
        named = f"{opened.source}, {count} of {len(opened.classnames)} class names from {file}"
        opened = replace(opened, source=named)
    return opened


def _open(
    root: Path, layout: Layout | None, wanted: Callable[[Naming], Naming], seed: int
) -> Dataset:
    """The data set at `root`, called as `wanted`; `layout` if the caller named one."""
    if not root.exists():
        raise FileNotFoundError(f"data folder {root}: expected a folder, got nothing there")
    table = root if root.is_file() else root / LABELS
    if table.suffix.lower() == ".csv" and table.is_file():
        return open_csv(table, wanted(layout or Naming()), seed)
    if root.is_file() and root.suffix.lower() == ".json":
        dataset = read_split(root)
        return _called(dataset, wanted(Naming(template=dataset.template)))
    if root.is_file():
        raise ValueError(
            f"data folder {root}: expected a folder, got a file: pass its folder, a .csv of "
            f"path,label[,split], or a split.json of a run"
        )

    children = {plain(folder.name): folder for folder in sub_folders(root)}
    known = [layout] if layout else LAYOUTS
    found = [place for one in known if (place := _find(one, root, children))]
    if len(found) > 1:
        names = ", ".join(place.layout.name for place in found)
        raise ValueError(
            f"data folder {root}: expected one data set, got {names}: choose one (--dataset NAME)"
        )
    if layout and not found:
        found = [_find_class_folders(layout, root, children)]
    if not found:
        for one in LAYOUTS:  # its lists without its pictures?
            for folder in (root, root / one.inner):
                if any((folder / file).is_file() for file in (one.split_file, *one.lists.values())):
                    raise _incomplete(one, folder)
        return open_folder(root, wanted(Naming()), seed)
    return _open_place(found[0]._replace(layout=wanted(found[0].layout)), seed)


def _called(dataset: Dataset, naming: Naming) -> Dataset:
    """A data set of a split file with the naming's template, and its renamed classes."""
    names = [naming.renamed.get(name, name) for name in dataset.classnames]
    parts = {
        part: [item._replace(classname=names[item.label]) for item in getattr(dataset, part)]
        for part in PARTS
    }
    return replace(dataset, classnames=names, template=naming.template, **parts)


# ---- recognition


class Place(NamedTuple):
    """Where a data set lies: its folder, and the folder of its pictures."""

    layout: Layout
    folder: Path
    images: Path

    def file(self, name: str) -> Path | None:
        """A list that belongs to it: in its folder, with the pictures, or beside either."""
        beside = (self.folder, self.images, self.folder.parent, self.images.resolve().parent)
        return next((where / name for where in beside if (where / name).is_file()), None)


def _find(layout: Layout, root: Path, children: dict[str, Path]) -> Place | None:
    """The data set at `root`; around it, if `root` is its folder of pictures; or in a child."""
    for folder in (root, root / layout.inner):
        if images := _images(layout, folder):
            return Place(layout, folder, images)
    for folder in (root.absolute().parent, root.resolve().parent):  # they differ for a link
        images = _images(layout, folder)
        if images and images.resolve() == root.resolve():
            return Place(layout, folder, images)
    named = [children[name] for name in map(plain, layout.folders) if name in children]
    others = children.values() if len(children) <= 30 else ()  # a few: they may be called anything
    for child in (*named, *others):
        for folder in (child, child / layout.inner):
            if images := _images(layout, folder):
                return Place(layout, folder, images)
    return None


def _images(layout: Layout, folder: Path) -> Path | None:
    """The data set's pictures, if this is its folder: by what lies in it, or by its name."""
    name = plain(Path(os.path.abspath(folder)).name)
    signed = any(any(folder.glob(sign)) for sign in (layout.split_file, *layout.signs))
    for images in layout.images:
        proven = signed or (images != "." and name in map(plain, layout.folders))
        parts = layout.parts.values() or (".",)
        if proven and all((folder / images / part).is_dir() for part in parts):
            return folder / images
    return None


def _find_class_folders(layout: Layout, root: Path, children: dict[str, Path]) -> Place:
    """The data set that the caller named, as class folders without a list to recognise it by.

    Raises FileNotFoundError if there are none.
    """
    child = next((children[n] for n in map(plain, layout.folders) if n in children), None)
    folder = child or root
    holds_sets = any(plain(name) in children for one in LAYOUTS for name in one.folders)
    for images in (*layout.images, "."):
        if images == "." and child is None and holds_sets:
            continue  # a folder of other data sets, not of classes
        if (folder / images).is_dir() and len(sub_folders(folder / images)) > 1:
            return Place(layout, folder, folder / images)
    raise _incomplete(layout, folder)


def _incomplete(layout: Layout, folder: Path) -> FileNotFoundError:
    """What was looked for, what was found, what to put where."""
    pictures = [f"{images}/" for images in layout.images if images != "."] or layout.signs
    lists = [layout.split_file] if layout.split else []
    if layout.lists:
        lists.append(" and ".join(layout.lists.values()))
    parts = [f"{part}/" for part in layout.parts.values() if part != "."]
    lists.append(" and ".join(parts) or "a folder for each class")
    mats = any(any(folder.glob(pattern)) for pattern in ("*.mat", "devkit/*.mat"))
    not_read = " (.mat files are not read)" if mats else ""
    return FileNotFoundError(
        f"{layout.name} in {folder}: expected pictures in {' or '.join(pictures)} with "
        f"{', or '.join(lists)}; got {contents(folder)}{not_read}: put them there or into "
        f"{layout.folders[0]}/ (CoOp's DATASETS.md says where to get them), or pass the folder "
        f"that has them"
    )


# ---- reading


def _open_place(place: Place, seed: int) -> Dataset:
    """Lists a recognised data set: by its split file, its own lists, or its class folders."""
    layout, _, images = place
    names = place.file(layout.names) if layout.names else None
    if names or layout.numbered:
        listed = read_classnames(names) if names else imagenet_classnames()
        if layout.numbered:
            listed = {str(number): name for number, name in enumerate(listed.values())}
        layout = replace(layout, renamed={**listed, **layout.renamed})
        place = place._replace(layout=layout)

    split = place.file(layout.split_file) if layout.split else None
    if split:
        return _compared(_called(read_split(split, images, layout.name), layout), layout)
    if layout.lists and all(map(place.file, layout.lists.values())):
        dataset = _open_lists(place, seed)
    elif layout.parts and all((images / part).is_dir() for part in layout.parts.values()):
        dataset = _open_parts(place, seed)
    elif layout.nested:
        dataset = _open_nested(place, seed)
    else:
        dataset = _open_class_folders(place, seed)
    if names:
        dataset = replace(dataset, source=f"{dataset.source}, class names from {names.name}")
    return _compared(dataset, layout)


def _compared(dataset: Dataset, layout: Layout) -> Dataset:
    """With a note if it is not what papers report about: a part of the data set, another split."""
    found = (len(dataset.classnames), *(len(getattr(dataset, part)) for part in PARTS))
    if dataset.name != layout.name or found == layout.published:
        return dataset
    classes, *counts = layout.published
    note = (
        f"{layout.name} as published has {classes} classes and {'/'.join(map(str, counts))} "
        f"images: mind this when you compare"
    )
    return replace(dataset, notes=(*dataset.notes, note))


def _open_parts(place: Place, seed: int) -> Dataset:
    """By a folder of class folders for each part."""
    layout, folder, images = place
    folders = {part: images / own for part, own in layout.parts.items()}
    how = ", ".join(f"{os.path.relpath(own, folder.parent)}/" for own in folders.values())
    return assemble(images, parts_of_classes(folders, layout), layout, how, seed)


def _open_class_folders(place: Place, seed: int) -> Dataset:
    """By class folders (or train/ and test/ of them) that nothing else describes."""
    layout, folder, images = place
    inside = {child.name for child in sub_folders(images)}
    if len(inside) < 2 or inside & set(layout.signs):  # pictures that only a list can name
        raise _incomplete(layout, folder)
    dataset = open_folder(images, layout, seed)
    usual = layout_of(layout.name).renamed.values()
    if usual and not set(usual) & set(dataset.classnames):  # other classes in the same layout
        dataset = open_folder(images, replace(layout, name=folder.resolve().name), seed)
    return dataset


def _open_lists(place: Place, seed: int) -> Dataset:
    """By the data set's own lists. Without one for val, a fifth of each class's train is val."""
    layout, _, images = place
    parts = {part: _read_list(place, name) for part, name in layout.lists.items()}
    how = ", ".join(layout.lists.values())
    if "val" not in parts:
        generator = random.Random(seed)
        parts["val"] = {}
        for key, own in parts["train"].items():
            generator.shuffle(own)
            count = round(0.2 * len(own))  # as CoOp's splits were made
            parts["val"][key], parts["train"][key] = own[:count], own[count:]
        how += f" (val: a fifth of train, drawn with the fixed seed {seed})"
    return assemble(images, parts, layout, how, seed, _in_order(place, parts["train"]))


def _read_list(place: Place, name: str) -> dict[str, list[str]]:
    """The pictures of each class in a list, classes in the order of their first picture."""
    path = place.file(name)
    where = f"list {path}"
    text = read_text(path, where)
    try:
        by_class = json.loads(text).values() if path.suffix == ".json" else [text.splitlines()]
        lines = [line.strip() for own in by_class for line in own]
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: expected lists of pictures by class, got {error}") from error
    files: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        if line and not line.startswith("#"):
            file, key = place.layout.entry(line)
            if not key:
                raise ValueError(
                    f"{where}, line {number}: expected a picture and its class, got '{line}'"
                )
            files.setdefault(key, []).append(os.path.join(place.images, file))
    if missing := missing_files(file for own in files.values() for file in own):
        raise FileNotFoundError(
            f"{where}: expected all its pictures in {place.images}, got {len(missing)} missing, "
            f"the first {missing[0]}"
        )
    return files


def _open_nested(place: Place, seed: int) -> Dataset:
    """By folders in folders: the classes are those that hold pictures."""
    start = len(os.path.join(place.images, ""))
    files: dict[str, list[str]] = {}
    for file in images_in(place.images):
        files.setdefault(os.path.dirname(file[start:]).replace(os.sep, "/"), []).append(file)
    files.pop("", None)  # pictures outside all folders
    if len(files) < 2:
        raise _incomplete(place.layout, place.folder)
    how, order = f"class folders in {place.images}", _in_order(place, files)
    return assemble(place.images, {"all": files}, place.layout, how, seed, order)


def _in_order(place: Place, files: dict[str, list[str]]) -> list[str]:
    """The classes in the order of labels: as the data set lists them, or sorted."""
    path = place.file(place.layout.order) if place.layout.order else None
    if path is None:
        return place.layout.ordered(files)
    listed = [line.strip().strip("/") for line in read_text(path, f"list {path}").splitlines()]
    if unknown := files.keys() - set(listed):
        raise ValueError(
            f"list {path}: expected all classes, got none called '{min(unknown)}': mend the list"
        )
    return [key for key in listed if key in files]
