"""What lies at a path: one of the fifteen data sets of layouts.py, or any other images.

open_dataset: recognise by the layout's markers, or its name -> the split file, else the set's own
lists, else class folders -> Dataset
"""

import os
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from ..support.files import check_template, read_json, read_text, single_line_errors
from . import folders as listing
from . import labels_csv
from .class_folders import class_folders, list_images, look_through, open_folder, split_folders
from .layouts import LAYOUTS, Layout, layout_of, plain
from .naming import Naming, imagenet_classnames, read_classnames
from .samples import DEFAULT_READ, Dataset, ReadOptions
from .splits import read_split


class DatasetLocation(NamedTuple):
    """Where a data set lies: its folder, and the folder of its images."""

    layout: Layout
    folder: Path
    images: Path
    named: bool = False  # by the caller, not recognised

    def file(self, name: str) -> Path | None:
        """Find a list that belongs to it: in its folder, with the images, or beside either."""
        beside = (self.folder, self.images, self.folder.parent, self.images.resolve().parent)
        return next((where / name for where in beside if (where / name).is_file()), None)


@single_line_errors
def open_dataset(
    path: str | os.PathLike,
    dataset: str | None = None,
    seed: int = 1,
    classnames: str | os.PathLike | None = None,
    template: str | Sequence[str] | None = None,
    read: ReadOptions = DEFAULT_READ,
    draw_split: bool = True,
    least_classes: int = 2,
) -> Dataset:
    """Find out what kind of data set lies at a path, and list its images.

    `path` is a folder: of one of the fifteen data sets, of its images, or the one above; or with
    a labels.csv or metadata.csv, with train/, val/, test/ of class folders, or with class folders.
    Or it is a CSV file of `path,label[,split]`, or a split file of `write_split`.

    `dataset` names one of the fifteen: `path` may then hold several, or its images in plain class
    folders. `classnames` is a file that renames classes (`read_classnames`), `template` replaces
    the data set's. Where no split is given, `seed` draws one (not the few-shot draw: all runs share
    a test set), or without `draw_split` all images are the test. `read` decides what is left open.

    Raises FileNotFoundError or ValueError (one line: expected, got, what to do).
    """
    root = Path(path).expanduser()
    layout = layout_of(dataset) if dataset is not None else None
    changes = dict(read=read, seed=seed, draws_split=draw_split, least_classes=least_classes)
    changes |= {} if template is None else {"template": check_template(template)}
    if classnames is not None:
        changes |= {"renames": read_classnames(classnames), "renames_file": os.fspath(classnames)}
    adapt = partial(replace, **changes)  # a Naming, to the caller's wishes

    if not root.exists():
        raise FileNotFoundError(f"data folder {root}: expected a folder or file, got nothing")
    if root.is_dir():
        dataset = _open_any_folder(root, layout, adapt)
        return dataset.with_notes(*listing.ignored_notes(root))
    if root.suffix.lower() == ".csv":
        return labels_csv.open_csv(root, adapt(layout or Naming()))
    if root.suffix.lower() == ".json":
        split = read_split(root, read.image_root)
        return _rename_classes(split, adapt(Naming(template=split.template)))
    raise ValueError(f"data folder {root}: expected a folder, .csv or split.json, got another file")


def _open_any_folder(
    root: Path, layout: Layout | None, adapt: Callable[[Naming], Naming]
) -> Dataset:
    """Decide what a folder is, and open it; `layout` if the caller named one."""
    children = {plain(folder.name): folder for folder in listing.sub_folders(root)}
    layouts, naming = [layout] if layout else LAYOUTS, adapt(layout or Naming())
    locations = list(filter(None, (find_dataset(each, root, children) for each in layouts)))
    if len(locations) > 1:
        names = ", ".join(location.layout.name for location in locations)
        raise ValueError(f"data folder {root}: expected one data set, got {names}: pass --dataset")
    table = labels_csv.find_table(root)
    if table and not locations and (layout is None or labels_csv.lists_images(table)):
        return labels_csv.open_csv(table, naming)
    if naming.read.columns is not None or naming.read.image_root is not None:
        expected = "a CSV file for --columns or --image-root"
        raise ValueError(f"data folder {root}: expected {expected}, got {listing.contents(root)}")
    if layout and not locations:
        locations = [find_class_folders(layout, root, children)]
    if locations:
        (location,) = locations
        location = location._replace(layout=adapt(location.layout), named=layout is not None)
        dataset = _compare_with_published(_open_location(location), location.layout)
        note = f"is not read, as this is {dataset.name}: to read it, pass the file"
        return dataset.with_notes(f"{table.name} {note}") if table else dataset

    for each in LAYOUTS:  # its lists without its images?
        if any((root / file).is_file() for file in (each.split_file, *each.lists.values())):
            raise incomplete_error(each, root)
    if (inner := look_through(root)) != root:
        return _open_any_folder(inner, None, adapt)
    if alike := next((each for each in LAYOUTS if each.is_called(name_of(root))), None):
        naming = as_other_data(naming, alike, root, class_names(root))
    return open_folder(root, naming)


def _open_location(location: DatasetLocation) -> Dataset:
    """List a recognised data set: by its split file, its own lists, or its class folders."""
    layout, _, images, _ = location
    names = location.file(layout.names)
    listed = read_classnames(names) if names else imagenet_classnames() if layout.numbered else {}
    renames = layout.renames
    if layout.numbered:
        numbers = {key: str(number) for number, key in enumerate(listed)}
        renames = {numbers.get(key, key): name for key, name in renames.items()}
        listed = {numbers[key]: name for key, name in listed.items()}
    layout = replace(layout, renamed={**listed, **layout.renamed}, renames=renames)
    location = location._replace(layout=layout)

    if file := location.file(layout.split_file):
        dataset = read_split(file, images, layout.name)
        is_ambiguous = len(set(dataset.classnames)) < len(dataset.classnames)
        return _rename_classes(replace(dataset, allow_duplicates=is_ambiguous), layout)
    if layout.lists and all(map(location.file, layout.lists.values())):
        dataset = _open_lists(location)
    elif layout.splits and all((images / split).is_dir() for split in layout.splits.values()):
        dataset = _open_splits(location)
    elif layout.nested and not split_folders(images):
        dataset = _open_nested(location)
    else:
        dataset = _open_class_folders(location)
    if names:
        those = "the others" if renames else "class names"
        dataset = replace(dataset, source=f"{dataset.source}, {those} from {names.name}")
    return dataset


def _rename_classes(dataset: Dataset, naming: Naming) -> Dataset:
    """Give the data set of a split file the naming's template, and its renamed classes."""
    renamed = {**naming.renamed, **naming.renames}
    names = [renamed.get(name, name) for name in dataset.classnames]
    return naming.credit(dataset.renamed(names, naming.template), dataset.classnames)


def _compare_with_published(dataset: Dataset, layout: Layout) -> Dataset:
    """Add a note if it is not what papers report: a part of the data set, another split."""
    if dataset.name != layout.name or dataset.sizes == layout.published:
        return dataset
    classes, *counts = layout.published
    published = f"{classes} classes and {'/'.join(map(str, counts))} images"
    note = f"{layout.name} as published has {published}: mind this when you compare"
    return dataset.with_notes(note)


def _open_splits(location: DatasetLocation) -> Dataset:
    """Open by class folders of each split; a test/ with classes, unlike ImageNet's, is the test."""
    layout, folder, images, named = location
    folders = {split: images / path for split, path in layout.splits.items()}
    if "train" in folders:
        test, classes = images / "test", class_names(images)
        if test.is_dir() and classes & {f.name for f in listing.sub_folders(test)}:
            folders = {"train": folders["train"], "val": folders["test"], "test": test}
        if not named and len(classes) < 0.9 * layout.published[0]:  # ImageNet-100
            layout = as_other_data(layout, layout, folder, classes)
    how = ", ".join(f"{os.path.relpath(path, folder.parent)}/" for path in folders.values())
    splits = {split: list_images(class_folders(f, layout)) for split, f in folders.items()}
    notes = listing.loose_notes(images, *folders.values())
    return listing.assemble(images, splits, layout, how, notes)


def _open_class_folders(location: DatasetLocation) -> Dataset:
    """Open by class folders (or train/ and test/ of them) that nothing else describes."""
    layout, folder, images, named = location
    inside = {child.name for child in listing.sub_folders(images)}
    few = len(inside) < 2 and not split_folders(images)
    if few or inside & set(layout.markers):  # that only a list can name
        raise incomplete_error(layout, folder)
    if layout.renamed and not named and not looks_like(layout, images):  # other classes in it
        layout = as_other_data(layout, layout, folder, class_names(images))
    return open_folder(images, layout)


def _open_lists(location: DatasetLocation) -> Dataset:
    """Open by the set's own lists. Without one for val, a fifth of each class's train is val."""
    layout = location.layout
    splits = {split: _read_list(location, name) for split, name in layout.lists.items()}
    how = ", ".join(layout.lists.values())
    if "val" not in splits:
        generator = random.Random(layout.seed)
        splits["val"] = {}
        for key, files in splits["train"].items():
            generator.shuffle(files)
            count = round(0.2 * len(files))  # as CoOp's splits were made
            splits["val"][key], splits["train"][key] = files[:count], files[count:]
        how += f" (val: a fifth of train, drawn with the fixed seed {layout.seed})"
    keys = _in_order(location, splits["train"])
    return listing.assemble(location.images, splits, layout, how, keys=keys)


def _read_list(location: DatasetLocation, name: str) -> dict[str, list[str]]:
    """Read the images of each class in a list, classes in the order of their first image."""
    path = location.file(name)
    where = f"list {path}"
    if path.suffix == ".json":
        content = read_json(path, where)
        lists = list(content.values()) if isinstance(content, dict) else [content]
    else:
        lists = [read_text(path, where).split("\n")]
    if not all(type(lines) is list and set(map(type, lines)) == {str} for lines in lists):
        raise ValueError(f"{where}: expected lists of images by class, got something else")
    files: dict[str, list[str]] = {}
    for number, line in enumerate(map(str.strip, chain.from_iterable(lists)), start=1):
        if line and not line.startswith("#"):
            if not (match := re.fullmatch(location.layout.entry, line)):
                got = f"'{line}'"
                raise ValueError(
                    f"{where}, line {number}: expected an image and its class, got {got}"
                )
            file = os.path.join(location.images, f"{match['image']}.jpg")
            files.setdefault(match["key"], []).append(file)
    if missing := labels_csv.missing_files(chain(*files.values())):
        got = labels_csv.describe_missing(missing)
        raise FileNotFoundError(f"{where}: expected all its images in {location.images}, got {got}")
    return files


def _open_nested(location: DatasetLocation) -> Dataset:
    """Open by folders in folders: the classes are those that hold images."""
    layout, folder, root, _ = location
    start, files = len(os.path.join(root, "")), {}
    for file in (images := listing.images_in(root)):
        files.setdefault(os.path.dirname(file[start:]).replace(os.sep, "/"), []).append(file)
    loose = [file[start:] for file in files.pop("", [])]
    if len(files) < 2:
        raise incomplete_error(layout, folder)
    notes = (*listing.unread_notes(images.unread), *listing.in_no_class(loose))
    how, keys = f"class folders in {root}", _in_order(location, files)
    return listing.assemble(root, {"all": files}, layout, how, notes, keys)


def _in_order(location: DatasetLocation, files: dict[str, list[str]]) -> list[str]:
    """Put the classes in the order of labels: as the data set lists them, or sorted."""
    path = location.file(location.layout.order)
    if path is None:
        return location.layout.ordered(files)
    listed = [line.strip().strip("/") for line in read_text(path, f"list {path}").split("\n")]
    if unknown := files.keys() - set(listed):
        raise ValueError(f"list {path}: expected all classes, got none called '{min(unknown)}'")
    return [key for key in listed if key in files]


def find_dataset(layout: Layout, root: Path, children: dict[str, Path]) -> DatasetLocation | None:
    """Find the data set at `root`; around it, if `root` is its folder of images; or in a child."""
    around = (root.absolute().parent, root.resolve().parent)  # they differ for a link
    below = [children[name] for name in map(plain, layout.folders) if name in children]
    below += children.values() if len(children) <= 30 else ()  # a few may be called anything
    for folder in (root, *around, *below):
        for home in dict.fromkeys((folder, folder / layout.inner)):
            location = _locate(layout, home)
            if location and (folder not in around or location.images.resolve() == root.resolve()):
                return location
    return None


def _locate(layout: Layout, folder: Path) -> DatasetLocation | None:
    """Find the images, if this is the data set's folder: by markers, or by name and classes."""
    named = layout.is_called(name_of(folder))
    markers = layout.split_file, *(layout.markers or layout.images)  # only this data set has them
    marked = any(any(folder.glob(marker)) for marker in filter(None, markers))
    splits = layout.splits.values() or (".",)
    for images in layout.images:
        proven = marked or (images != "." and named)
        if proven and all((folder / images / split).is_dir() for split in splits):
            return DatasetLocation(layout, folder, folder / images)
    plain_classes = named and folder.is_dir() and looks_like(layout, folder)
    return DatasetLocation(layout, folder, folder) if plain_classes else None


def looks_like(layout: Layout, folder: Path) -> bool:
    """Return whether class folders can be the data set's: as many as published, or some names."""
    classes = class_names(folder)
    known = {plain(name) for name in (*layout.classes, *layout.renamed, *layout.dropped)}
    as_many = len(classes - set(layout.dropped)) == layout.published[0]
    return as_many or not known.isdisjoint(map(plain, classes))


def class_names(folder: Path) -> set[str]:
    """Name the class folders in a folder, or in its train/ (test/, val/)."""
    return {f.name for f in listing.sub_folders(next(iter(split_folders(folder).values()), folder))}


def name_of(folder: Path) -> str:
    """Return a folder's name, also that of "."."""
    return os.path.basename(os.path.abspath(folder))


def as_other_data(naming: Naming, layout: Layout, folder: Path, classes: set[str]) -> Naming:
    """Name a folder of other classes than the data set's, or fewer (ImageNet-100); note why."""
    name = folder.resolve().name
    others = f"these {len(classes)} classes are not {layout.name}'s {layout.published[0]}"
    note = f"{others}: read as your own data; if it is {layout.name}, pass --dataset {layout.name}"
    name = f"{name}-{len(classes)}" if name == layout.name else name
    return replace(naming, name=name, notes=(*naming.notes, note))


def find_class_folders(layout: Layout, root: Path, children: dict[str, Path]) -> DatasetLocation:
    """Find the data set that the caller named, as class folders without a list to know it by."""
    child = next((children[n] for n in map(plain, layout.folders) if n in children), None)
    folder = child or root
    if child is None and any(plain(n) in children for each in LAYOUTS for n in each.folders):
        raise incomplete_error(layout, folder)  # a folder of other data sets, not of classes
    for other in LAYOUTS:
        if other is not layout and find_dataset(other, folder, {}):
            got = f"{other.name}: pass --dataset {other.name}"
            raise ValueError(f"data folder {folder}: expected {layout.name}, got {got}")
    for images in (folder / name for name in (*layout.images, ".")):
        if images.is_dir() and (split_folders(images) or len(listing.sub_folders(images)) > 1):
            return DatasetLocation(layout, folder, images)
    raise incomplete_error(layout, folder)


def incomplete_error(layout: Layout, folder: Path) -> FileNotFoundError:
    """Say what was looked for, what was found, what to put where."""
    images = [f"{name}/" for name in layout.images if name != "."] or layout.markers
    splits = " and ".join(f"{split}/" for split in layout.splits.values() if split != ".")
    splits = splits or "a folder for each class"
    lists = layout.split_file, " and ".join(layout.lists.values())
    mats = any(any(folder.glob(pattern)) for pattern in ("*.mat", "devkit/*.mat"))
    not_read = " (.mat files are not read)" if mats else ""
    expected = (
        f"images in {' or '.join(images)} with {', or '.join(filter(None, (*lists, splits)))}"
    )
    got = f"got {listing.contents(folder)}{not_read}"
    return FileNotFoundError(
        f"{layout.name} in {folder}: expected {expected}; {got}: put "
        f"them there or into {layout.folders[0]}/ (CoOp's DATASETS.md says where to get them)"
    )


def folders_of(dataset: Dataset) -> list[Path]:
    """List the user's folders, in which nothing is to be written; the outermost first.

    `root`, those of the images, those around several of these; none that hold the home folder.
    Then the folder around a known data set's images (caltech-101/).
    """
    paths = (sample.path for sample in chain(*dataset.splits.values()))
    image_folders = set(map(os.path.abspath, map(os.path.dirname, paths)))
    around = Counter(map(os.path.dirname, image_folders))
    parents = (folder for folder, count in around.items() if count > 1)
    home = Path(os.path.expanduser("~")).resolve()
    resolved = {Path(folder).resolve() for folder in (dataset.root, *image_folders, *parents)}
    folders = sorted(resolved - {home, *home.parents}, key=lambda f: (len(f.parts), f))
    root = Path(os.path.abspath(dataset.root))
    for layout in LAYOUTS:
        if layout.name == dataset.name and root.name in layout.images:
            folder = root.parent
            if folder.name == layout.inner and layout.is_called(folder.parent.name):
                folder = folder.parent  # dtd/ of torchvision's dtd/dtd/images/
            folders.append(folder)
    return folders
