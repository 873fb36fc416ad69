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

from ..support.files import check_template, input_error, read_json, read_text, single_line_errors
from . import folders as listing
from . import labels_csv
from .folders import class_folders, list_images, split_folders, sub_folders
from .layouts import LAYOUTS, Layout, layout_of, plain
from .naming import Naming, imagenet_classnames, read_classnames
from .samples import DEFAULT_READ, Dataset, ReadOptions
from .splits import read_split


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
    a test set), or without `draw_split` all images are the test. Raises FileNotFoundError or
    ValueError (one line: expected, got, what to do).
    """
    root = Path(path).expanduser()
    layout = layout_of(dataset) if dataset is not None else None
    changes = dict(read=read, seed=seed, draws_split=draw_split, least_classes=least_classes)
    changes |= {"is_named": dataset is not None}
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
    raise input_error(f"data folder {root}", "a folder, .csv or split.json", "another file")


def _open_any_folder(
    root: Path, layout: Layout | None, adapt: Callable[[Naming], Naming]
) -> Dataset:
    """Decide what a folder is, and open it; `layout` if the caller named one."""
    children = {plain(folder.name): folder for folder in sub_folders(root)}
    layouts, naming = [layout] if layout else LAYOUTS, adapt(layout or Naming())
    located = list(filter(None, (find_dataset(each, root, children) for each in layouts)))
    if len(located) > 1:
        names = ", ".join(each.name for each in located)
        raise input_error(f"data folder {root}", "one data set", names, "pass --dataset")
    table = labels_csv.find_table(root)
    if table and not located and (layout is None or labels_csv.lists_images(table)):
        return labels_csv.open_csv(table, naming)
    if naming.read.columns is not None or naming.read.image_root is not None:
        expected = "a CSV file for --columns or --image-root"
        raise input_error(f"data folder {root}", expected, listing.contents(root))
    if layout and not located:
        located = [find_class_folders(layout, root, children)]
    for layout in located:
        dataset = _open_layout(adapt(layout))
        if dataset.name == layout.name and dataset.sizes != layout.published:
            classes, *counts = layout.published
            published = f"{classes} classes and {'/'.join(map(str, counts))} images"
            note = f"{layout.name} as published has {published}: mind this when you compare"
            dataset = dataset.with_notes(note)
        if table:
            note = f"is not read, as this is {dataset.name}: to read it, pass the file"
            dataset = dataset.with_notes(f"{table.name} {note}")
        return dataset

    for each in LAYOUTS:  # its lists without its images?
        if any((root / file).is_file() for file in (each.split_file, *each.lists.values())):
            raise incomplete_error(replace(each, folder=root))
    if (inner := listing.look_through(root)) != root:
        return _open_any_folder(inner, None, adapt)
    if alike := next((each for each in LAYOUTS if each.is_called(name_of(root))), None):
        naming = as_other_data(naming, replace(alike, folder=root, root=root))
    return listing.open_folder(root, naming)


def _open_layout(layout: Layout) -> Dataset:
    """List a recognised data set: by its split file, its own lists, or its class folders."""
    names, order = layout.file(layout.names), layout.file(layout.order)
    listed = read_classnames(names) if names else imagenet_classnames() if layout.numbered else {}
    renames = layout.renames
    if layout.numbered:
        numbers = {key: str(number) for number, key in enumerate(listed)}
        renames = {numbers.get(key, key): name for key, name in renames.items()}
        listed = {numbers[key]: name for key, name in listed.items()}
    listed = {**listed, **layout.renamed}
    layout = replace(layout, renamed=listed, renames=renames, order_file=order)
    root = layout.root

    if file := layout.file(layout.split_file):
        dataset = read_split(file, root, layout.name)
        is_ambiguous = len(set(dataset.classnames)) < len(dataset.classnames)
        return _rename_classes(replace(dataset, allow_duplicates=is_ambiguous), layout)
    if layout.lists and all(map(layout.file, layout.lists.values())):
        dataset = _open_lists(layout)
    elif layout.splits and all((root / split).is_dir() for split in layout.splits.values()):
        dataset = _open_splits(layout)
    elif layout.nested and not split_folders(root):
        dataset = _open_nested(layout)
    else:  # class folders, or train/ and test/ of them, that nothing else describes
        inside = {child.name for child in sub_folders(root)}
        few = len(inside) < 2 and not split_folders(root)
        if few or inside & set(layout.markers):  # that only a list can name
            raise incomplete_error(layout)
        is_other = layout.renamed and not layout.is_named and not looks_like(layout, root)
        dataset = listing.open_folder(root, as_other_data(layout, layout) if is_other else layout)
    if names:
        those = "the others" if renames else "class names"
        dataset = replace(dataset, source=f"{dataset.source}, {those} from {names.name}")
    return dataset


def _rename_classes(dataset: Dataset, naming: Naming) -> Dataset:
    """Give the data set of a split file the naming's template, and its renamed classes."""
    renamed = {**naming.renamed, **naming.renames}
    names = [renamed.get(name, name) for name in dataset.classnames]
    return naming.credit(dataset.renamed(names, naming.template), dataset.classnames)


def _open_splits(layout: Layout) -> Dataset:
    """Open by class folders of each split; a test/ with classes, unlike ImageNet's, is the test."""
    root = layout.root
    folders = {split: root / path for split, path in layout.splits.items()}
    if "train" in folders:
        test, classes = root / "test", class_names(root)
        if test.is_dir() and classes & {f.name for f in sub_folders(test)}:
            folders = {"train": folders["train"], "val": folders["test"], "test": test}
        if not layout.is_named and len(classes) < 0.9 * layout.published[0]:  # ImageNet-100
            layout = as_other_data(layout, layout)
    how = ", ".join(f"{os.path.relpath(path, layout.folder.parent)}/" for path in folders.values())
    splits = {split: list_images(class_folders(f, layout)) for split, f in folders.items()}
    notes = listing.loose_notes(root, *folders.values())
    return listing.assemble(root, splits, layout, how, notes)


def _open_lists(layout: Layout) -> Dataset:
    """Open by the set's own lists. Without one for val, a fifth of each class's train is val."""
    splits = {split: _read_list(layout, name) for split, name in layout.lists.items()}
    how = ", ".join(layout.lists.values())
    if "val" not in splits:
        generator = random.Random(layout.seed)
        splits["val"] = {}
        for key, files in splits["train"].items():
            generator.shuffle(files)
            count = round(0.2 * len(files))  # as CoOp's splits were made
            splits["val"][key], splits["train"][key] = files[:count], files[count:]
        how += f" (val: a fifth of train, drawn with the fixed seed {layout.seed})"
    return listing.assemble(layout.root, splits, layout, how)


def _read_list(layout: Layout, name: str) -> dict[str, list[str]]:
    """Read the images of each class in a list, classes in the order of their first image."""
    path = layout.file(name)
    where, files = f"list {path}", {}
    is_json = path.suffix == ".json"
    content = read_json(path, where) if is_json else read_text(path, where).split("\n")
    lists = list(content.values()) if isinstance(content, dict) else [content]
    if not all(type(lines) is list and set(map(type, lines)) == {str} for lines in lists):
        raise input_error(where, "lists of images by class", "something else")
    for number, line in enumerate(map(str.strip, chain(*lists)), start=1):
        if line and not line.startswith("#"):
            if not (match := re.fullmatch(layout.entry, line)):
                raise input_error(f"{where}, line {number}", "an image and its class", f"'{line}'")
            file = os.path.join(layout.root, f"{match['image']}.jpg")
            files.setdefault(match["key"], []).append(file)
    if missing := labels_csv.missing_files(chain(*files.values())):
        got = labels_csv.describe_missing(missing)
        raise FileNotFoundError(f"{where}: expected all its images in {layout.root}, got {got}")
    return files


def _open_nested(layout: Layout) -> Dataset:
    """Open by folders in folders: the classes are those that hold images."""
    root, files = layout.root, {}
    start = len(os.path.join(root, ""))
    for file in (images := listing.images_in(root)):
        files.setdefault(os.path.dirname(file[start:]).replace(os.sep, "/"), []).append(file)
    loose = [file[start:] for file in files.pop("", [])]
    if len(files) < 2:
        raise incomplete_error(layout)
    notes = (*listing.unread_notes(images.unread), *listing.in_no_class(loose))
    return listing.assemble(root, {"all": files}, layout, f"class folders in {root}", notes)


def find_dataset(layout: Layout, root: Path, children: dict[str, Path]) -> Layout | None:
    """Find the data set at `root`; around it, if `root` is its folder of images; or in a child."""
    around = (root.absolute().parent, root.resolve().parent)  # they differ for a link
    below = [children[name] for name in map(plain, layout.folders) if name in children]
    below += children.values() if len(children) <= 30 else ()  # a few may be called anything
    for folder in (root, *around, *below):
        for home in dict.fromkeys((folder, folder / layout.inner)):
            located = _locate(layout, home)
            if located and (folder not in around or located.root.resolve() == root.resolve()):
                return located
    return None


def _locate(layout: Layout, folder: Path) -> Layout | None:
    """Find the images, if this is the data set's folder: by markers, or by name and classes."""
    named = layout.is_called(name_of(folder))
    markers = layout.split_file, *(layout.markers or layout.images)  # only this data set has them
    marked = any(any(folder.glob(marker)) for marker in filter(None, markers))
    splits = layout.splits.values() or (".",)
    for images in layout.images:
        proven = marked or (images != "." and named)
        if proven and all((folder / images / split).is_dir() for split in splits):
            return replace(layout, folder=folder, root=folder / images)
    plain_classes = named and folder.is_dir() and looks_like(layout, folder)
    return replace(layout, folder=folder, root=folder) if plain_classes else None


def looks_like(layout: Layout, folder: Path) -> bool:
    """Return whether class folders can be the data set's: as many as published, or some names."""
    classes = class_names(folder)
    known = {plain(name) for name in (*layout.classes, *layout.renamed, *layout.dropped)}
    as_many = len(classes - set(layout.dropped)) == layout.published[0]
    return as_many or not known.isdisjoint(map(plain, classes))


def class_names(folder: Path) -> set[str]:
    """Name the class folders in a folder, or in its train/ (test/, val/)."""
    return {f.name for f in sub_folders(next(iter(split_folders(folder).values()), folder))}


def name_of(folder: Path) -> str:
    """Return a folder's name, also that of "."."""
    return os.path.basename(os.path.abspath(folder))


def as_other_data(naming: Naming, layout: Layout) -> Naming:
    """Name a folder of other classes than the data set's, or fewer (ImageNet-100); note why."""
    name, count = layout.folder.resolve().name, len(class_names(layout.root))
    others = f"these {count} classes are not {layout.name}'s {layout.published[0]}"
    note = f"{others}: read as your own data; if it is {layout.name}, pass --dataset {layout.name}"
    name = f"{name}-{count}" if name == layout.name else name
    return replace(naming, name=name, notes=(*naming.notes, note))


def find_class_folders(layout: Layout, root: Path, children: dict[str, Path]) -> Layout:
    """Find the data set that the caller named, as class folders without a list to know it by."""
    child = next((children[n] for n in map(plain, layout.folders) if n in children), None)
    layout = replace(layout, folder=child or root)
    if child is None and any(plain(n) in children for each in LAYOUTS for n in each.folders):
        raise incomplete_error(layout)  # a folder of other data sets, not of classes
    for other in LAYOUTS:
        if other.name != layout.name and find_dataset(other, layout.folder, {}):
            fix = f"pass --dataset {other.name}"
            raise input_error(f"data folder {layout.folder}", layout.name, other.name, fix)
    for images in (layout.folder / name for name in (*layout.images, ".")):
        if images.is_dir() and (split_folders(images) or len(sub_folders(images)) > 1):
            return replace(layout, root=images)
    raise incomplete_error(layout)


def incomplete_error(layout: Layout) -> FileNotFoundError:
    """Return the error of a data set without its images or lists: what to put where."""
    folder = layout.folder
    images = [f"{name}/" for name in layout.images if name != "."] or layout.markers
    splits = " and ".join(f"{split}/" for split in layout.splits.values() if split != ".")
    lists = " and ".join(layout.lists.values())
    sources = filter(None, (layout.split_file, lists, splits or "a folder for each class"))
    mats = any(any(folder.glob(pattern)) for pattern in ("*.mat", "devkit/*.mat"))
    return FileNotFoundError(
        f"{layout.name} in {folder}: expected images in {' or '.join(images)} with "
        f"{', or '.join(sources)}; got {listing.contents(folder)}"
        f"{' (.mat files are not read)' if mats else ''}: put them there or into "
        f"{layout.folders[0]}/ (CoOp's DATASETS.md says where to get them)"
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
