"""What lies at a path: one of the fifteen data sets of layouts.py, or any other pictures.

open_dataset: recognise -> the split file, else the set's own lists, else class folders -> Dataset
"""

import os
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

from ..files import collector_paused, one_line_errors, read_json, read_text
from .csv_file import LABELS, lists_pictures, open_csv
from .folders import assemble, open_folder, parts_of_classes
from .items import PARTS, Dataset
from .layouts import LAYOUTS, Layout, layout_of, plain
from .listing import (
    images_in,
    in_no_class,
    loose_notes,
    missing_files,
    part_folders,
    sub_folders,
    told,
    unread_note,
)
from .naming import Naming, imagenet_classnames, read_classnames
from .recognition import (
    Place,
    class_names,
    find_class_folders,
    find_place,
    fits,
    holds_classes,
    incomplete,
    is_signed,
    name_of,
    own_name,
)
from .splits import read_split


@one_line_errors
@collector_paused()
def open_dataset(
    path: str | os.PathLike,
    dataset: str | None = None,
    seed: int = 1,
    classnames: str | os.PathLike | None = None,
    template: str | None = None,
) -> Dataset:
    """Finds out what kind of data set lies at a path, and lists its pictures.

    `path` is a folder: of one of the fifteen data sets, of its pictures, or the one above; or with
    a labels.csv, with train/, val/, test/ of class folders, or with class folders. Or it is a CSV
    file of `path,label[,split]`, or a split file of `write_split`.

    `dataset` names one of the fifteen: `path` may then hold several, or its pictures in plain class
    folders. (Without it, these are recognised by the folder's name and their classes together, and
    a part of ImageNet's classes is called as its folder is.) `classnames` is a file that renames
    classes (`read_classnames`), `template` replaces the data set's. Where no split is given, `seed`
    draws one: it is not the seed of the few-shot draw, so that all runs share a test set.

    Raises FileNotFoundError or ValueError (one line: expected, got, what to do).
    """
    root = Path(path).expanduser()
    layout = layout_of(dataset) if dataset is not None else None
    if template is not None and template.count("{}") != 1:
        raise ValueError(f"template: expected one {{}} for the class name, got '{template}'")
    renamed = read_classnames(classnames) if classnames is not None else {}

    override = {} if template is None else {"template": template}

    def wanted(naming: Naming) -> Naming:
        return replace(naming, given=renamed, given_in=os.fspath(classnames or ""), **override)

    if not root.exists():
        raise FileNotFoundError(f"data folder {root}: expected a folder, got nothing there")
    if root.is_dir():
        return _open(root, layout, wanted, seed)
    if root.suffix.lower() == ".csv":
        return open_csv(root, wanted(layout or Naming()), seed)
    if root.suffix.lower() == ".json":
        split = read_split(root)
        return _called(split, wanted(Naming(template=split.template)))
    raise ValueError(
        f"data folder {root}: expected a folder, got a file: pass its folder, a .csv of "
        f"path,label[,split], or a split.json of a run"
    )


def _open(
    root: Path, layout: Layout | None, wanted: Callable[[Naming], Naming], seed: int
) -> Dataset:
    """The data set in the folder `root`, called as `wanted`; `layout` if the caller named one."""
    children = {plain(folder.name): folder for folder in sub_folders(root)}
    known = [layout] if layout else LAYOUTS
    found = [place for one in known if (place := find_place(one, root, children))]
    if len(found) > 1:
        names = ", ".join(place.layout.name for place in found)
        raise ValueError(
            f"data folder {root}: expected one data set, got {names}: choose one (--dataset NAME)"
        )
    table = root / LABELS
    if table.is_file() and not found and (layout is None or lists_pictures(table)):
        return open_csv(table, wanted(layout or Naming()), seed)
    if layout and not found:
        found = [find_class_folders(layout, root, children)]
    if not found:
        return _open_other(root, wanted, seed)
    place = found[0]._replace(layout=wanted(found[0].layout), named=layout is not None)
    dataset = _open_place(place, seed)
    if table.is_file():
        note = f"{LABELS} is not read, as this is {place.layout.name}: to read it, pass the file"
        dataset = replace(dataset, notes=(*dataset.notes, note))
    return dataset


def _open_other(root: Path, wanted: Callable[[Naming], Naming], seed: int) -> Dataset:
    """A folder that is none of the fifteen data sets, even if it is called as one of them."""
    for one in LAYOUTS:  # its lists without its pictures?
        for folder in (root, root / one.inner):
            if any((folder / file).is_file() for file in (one.split_file, *one.lists.values())):
                raise incomplete(one, folder)
    alike = next((one for one in LAYOUTS if one.is_called(name_of(root))), None)
    if alike is None:
        return open_folder(root, wanted(Naming()), seed)
    name = own_name(alike, root, class_names(root))
    dataset = open_folder(root, wanted(Naming(name=name)), seed)
    note = (
        f"not taken for {alike.name} in spite of the folder's name: it has other classes, or few; "
        f"pass --dataset {alike.name} if it is"
    )
    return replace(dataset, notes=(*dataset.notes, note))


def _called(dataset: Dataset, naming: Naming) -> Dataset:
    """A data set of a split file with the naming's template, and its renamed classes."""
    renamed = {**naming.renamed, **naming.given}
    names = [renamed.get(name, name) for name in dataset.classnames]
    parts = {
        part: [item._replace(classname=names[item.label]) for item in getattr(dataset, part)]
        for part in PARTS
    }
    called = replace(dataset, classnames=names, template=naming.template, **parts)
    return naming.credited(called, dataset.classnames)


def _open_place(place: Place, seed: int) -> Dataset:
    """Lists a recognised data set: by its split file, its own lists, or its class folders."""
    layout, folder, images, _ = place
    names = place.file(layout.names) if layout.names else None
    if names or layout.numbered:
        listed = read_classnames(names) if names else imagenet_classnames()
        if layout.numbered:
            number_of = {key: str(number) for number, key in enumerate(listed)}
            listed = {number_of[key]: name for key, name in listed.items()}
            given = {number_of.get(key, key): name for key, name in layout.given.items()}
            layout = replace(layout, given=given)
        layout = replace(layout, renamed={**listed, **layout.renamed})
        place = place._replace(layout=layout)

    split = place.file(layout.split_file) if layout.split else None
    if split:
        return _compared(_called(read_split(split, images, layout.name), layout), layout)
    if layout.lists and all(map(place.file, layout.lists.values())):
        dataset = _open_lists(place, seed)
    elif layout.parts and all((images / part).is_dir() for part in layout.parts.values()):
        dataset = _open_parts(place, seed)
    else:
        nested = layout.nested and not part_folders(images)
        dataset = (_open_nested if nested else _open_class_folders)(place, seed)
        if not place.named and not is_signed(layout, folder):
            source = f"{dataset.source}, recognised by the name of {name_of(folder)}/"
            dataset = replace(dataset, source=source)
    if names:
        those = "the others" if layout.given else "class names"
        dataset = replace(dataset, source=f"{dataset.source}, {those} from {names.name}")
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
    """By a folder of class folders for each part; a test/ of them goes before val/.

    (ImageNet's own test/ has no classes.)
    """
    layout, folder, images, named = place
    folders = {part: images / own for part, own in layout.parts.items()}
    test, classes = images / "test", {f.name for f in sub_folders(next(iter(folders.values())))}
    if "train" in folders and test.is_dir() and classes & {f.name for f in sub_folders(test)}:
        folders = {"train": folders["train"], "val": folders["test"], "test": test}
    how = ", ".join(f"{os.path.relpath(own, folder.parent)}/" for own in folders.values())
    notes = ()
    if layout.subsets and not named and len(classes) < 0.9 * layout.published[0]:
        notes = (
            f"{len(classes)} of {layout.name}'s {layout.published[0]} classes, so it is not "
            f"called {layout.name} (--dataset {layout.name} does)",
        )
        layout = replace(layout, name=own_name(layout, folder, classes))
    dataset = assemble(images, parts_of_classes(folders, layout), layout, how, seed)
    loose = loose_notes(images, *folders.values())
    return replace(dataset, notes=(*dataset.notes, *notes, *loose))


def _open_class_folders(place: Place, seed: int) -> Dataset:
    """By class folders (or train/ and test/ of them) that nothing else describes."""
    layout, folder, images, named = place
    inside = {child.name for child in sub_folders(images)}
    if not holds_classes(images) or inside & set(layout.signs):  # that only a list can name
        raise incomplete(layout, folder)
    usual = layout_of(layout.name)
    if usual.renamed and not named and not fits(usual, images):  # other classes in the same layout
        layout = replace(layout, name=own_name(usual, folder, class_names(images)))
    return open_folder(images, layout, seed)


def _open_lists(place: Place, seed: int) -> Dataset:
    """By the data set's own lists. Without one for val, a fifth of each class's train is val."""
    layout, images = place.layout, place.images
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
    if path.suffix == ".json":
        content = read_json(path, where)
        lists = list(content.values()) if isinstance(content, dict) else [content]
    else:
        lists = [read_text(path, where).split("\n")]
    if not all(type(own) is list and set(map(type, own)) == {str} for own in lists):
        raise ValueError(f"{where}: expected lists of pictures by class, got something else")
    files: dict[str, list[str]] = {}
    for number, line in enumerate(map(str.strip, chain.from_iterable(lists)), start=1):
        if line and not line.startswith("#"):
            file, key = place.layout.entry(line)
            if not key:
                raise ValueError(
                    f"{where}, line {number}: expected a picture and its class, got '{line}'"
                )
            files.setdefault(key, []).append(os.path.join(place.images, file))
    if missing := missing_files(file for own in files.values() for file in own):
        raise FileNotFoundError(
            f"{where}: expected all its pictures in {place.images}, got {told(missing)}"
        )
    return files


def _open_nested(place: Place, seed: int) -> Dataset:
    """By folders in folders: the classes are those that hold pictures."""
    start = len(os.path.join(place.images, ""))
    files: dict[str, list[str]] = {}
    for file in (pictures := images_in(place.images)):
        files.setdefault(os.path.dirname(file[start:]).replace(os.sep, "/"), []).append(file)
    loose = [file[start:] for file in files.pop("", [])]
    if len(files) < 2:
        raise incomplete(place.layout, place.folder)
    how, order = f"class folders in {place.images}", _in_order(place, files)
    dataset = assemble(place.images, {"all": files}, place.layout, how, seed, order)
    unread = filter(None, [unread_note(pictures.unread)])
    return replace(dataset, notes=(*dataset.notes, *unread, *in_no_class(loose)))


def _in_order(place: Place, files: dict[str, list[str]]) -> list[str]:
    """The classes in the order of labels: as the data set lists them, or sorted."""
    path = place.file(place.layout.order) if place.layout.order else None
    if path is None:
        return place.layout.ordered(files)
    listed = [line.strip().strip("/") for line in read_text(path, f"list {path}").split("\n")]
    if unknown := files.keys() - set(listed):
        raise ValueError(
            f"list {path}: expected all classes, got none called '{min(unknown)}': mend the list"
        )
    return [key for key in listed if key in files]
