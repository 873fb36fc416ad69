"""Which of the fifteen data sets lies where: by the markers of its layout, or by its name."""

import os
from pathlib import Path
from typing import NamedTuple

from .folders import contents, part_folders, sub_folders
from .layouts import LAYOUTS, Layout, plain


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
    """Find the data set's images, if this is its folder: by its markers, or by its name.

    Class folders without anything else are known by name and classes together.
    """
    named, marked = layout.is_called(name_of(folder)), has_markers(layout, folder)
    parts = layout.parts.values() or (".",)
    for images in layout.images:
        proven = marked or (images != "." and named)
        if proven and all((folder / images / part).is_dir() for part in parts):
            return DatasetLocation(layout, folder, folder / images)
    plain_classes = named and folder.is_dir() and looks_like(layout, folder)
    return DatasetLocation(layout, folder, folder) if plain_classes else None


def has_markers(layout: Layout, folder: Path) -> bool:
    """Return whether something lies in a folder that only this data set has."""
    markers = layout.markers or layout.images
    return any(any(folder.glob(marker)) for marker in (layout.split_file, *markers))


def looks_like(layout: Layout, folder: Path) -> bool:
    """Return whether class folders can be the data set's: as many as published, or some names."""
    classes = class_names(folder)
    known = {plain(name) for name in (*layout.classes, *layout.renamed, *layout.dropped)}
    as_many = len(classes - set(layout.dropped)) == layout.published[0]
    return as_many or not known.isdisjoint(map(plain, classes))


def class_names(folder: Path) -> set[str]:
    """Name the class folders in a folder, or in its train/ (test/, val/)."""
    return {f.name for f in sub_folders(next(iter(part_folders(folder).values()), folder))}


def name_of(folder: Path) -> str:
    """Return a folder's name, also that of "."."""
    return os.path.basename(os.path.abspath(folder))


def distinct_name(layout: Layout, folder: Path, classes: set[str]) -> tuple[str, str]:
    """Name a folder of other classes than the data set's, or fewer, and note why.

    As it is called, or with their number, ImageNet-100: under the data set's very name, it gets its
    settings and stands beside its published numbers.
    """
    name = folder.resolve().name
    fewer = f"{len(classes)} of {layout.name}'s {layout.published[0]} classes, or others"
    note = f"{fewer}: not taken for {layout.name}; else pass --dataset {layout.name}"
    return f"{name}-{len(classes)}" if name == layout.name else name, note


def find_class_folders(layout: Layout, root: Path, children: dict[str, Path]) -> DatasetLocation:
    """Find the data set that the caller named, as class folders without a list to know it by.

    Raises FileNotFoundError if there are none, ValueError if they are those of another one.
    """
    child = next((children[n] for n in map(plain, layout.folders) if n in children), None)
    folder = child or root
    if child is None and any(plain(n) in children for each in LAYOUTS for n in each.folders):
        raise incomplete_error(layout, folder)  # a folder of other data sets, not of classes
    for other in LAYOUTS:
        if other is not layout and find_dataset(other, folder, {}):
            got = f"{other.name}: pass --dataset {other.name}"
            raise ValueError(f"data folder {folder}: expected {layout.name}, got {got}")
    for images in (*layout.images, "."):
        if (folder / images).is_dir() and holds_classes(folder / images):
            return DatasetLocation(layout, folder, folder / images)
    raise incomplete_error(layout, folder)


def holds_classes(folder: Path) -> bool:
    """Return whether a folder has several sub-folders, or train/, val/ or test/."""
    return bool(part_folders(folder)) or len(sub_folders(folder)) > 1


def incomplete_error(layout: Layout, folder: Path) -> FileNotFoundError:
    """Say what was looked for, what was found, what to put where."""
    images = [f"{name}/" for name in layout.images if name != "."] or layout.markers
    parts = [f"{part}/" for part in layout.parts.values() if part != "."]
    lists = [
        layout.split_file if layout.split else "",
        " and ".join(layout.lists.values()),
        " and ".join(parts) or "a folder for each class",
    ]
    mats = any(any(folder.glob(pattern)) for pattern in ("*.mat", "devkit/*.mat"))
    not_read = " (.mat files are not read)" if mats else ""
    expected = f"images in {' or '.join(images)} with {', or '.join(filter(None, lists))}"
    return FileNotFoundError(
        f"{layout.name} in {folder}: expected {expected}; got {contents(folder)}{not_read}: put "
        f"them there or into {layout.folders[0]}/ (CoOp's DATASETS.md says where to get them)"
    )
