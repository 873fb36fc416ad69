"""Which of the fifteen data sets lies where: by what lies in a folder, or by its name."""

import os
from pathlib import Path
from typing import NamedTuple

from .layouts import LAYOUTS, Layout, plain
from .listing import contents, part_folders, sub_folders


class Place(NamedTuple):
    """Where a data set lies: its folder, and the folder of its pictures."""

    layout: Layout
    folder: Path
    images: Path
    named: bool = False  # by the caller, not recognised

    def file(self, name: str) -> Path | None:
        """A list that belongs to it: in its folder, with the pictures, or beside either."""
        beside = (self.folder, self.images, self.folder.parent, self.images.resolve().parent)
        return next((where / name for where in beside if (where / name).is_file()), None)


def find_place(layout: Layout, root: Path, children: dict[str, Path]) -> Place | None:
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
    """The data set's pictures, if this is its folder: by what lies in it, or by its name.

    Class folders without anything else are known by both.
    """
    named, signed = layout.is_called(name_of(folder)), is_signed(layout, folder)
    for images in layout.images:
        proven = signed or (images != "." and named)
        parts = layout.parts.values() or (".",)
        if proven and all((folder / images / part).is_dir() for part in parts):
            return folder / images
    return folder if named and folder.is_dir() and fits(layout, folder) else None


def is_signed(layout: Layout, folder: Path) -> bool:
    """Whether something lies in a folder that only this data set has."""
    return any(any(folder.glob(sign)) for sign in (layout.split_file, *layout.signs))


def fits(layout: Layout, folder: Path) -> bool:
    """Whether class folders can be the data set's: as many as published, or some by name."""
    found = class_names(folder)
    known = {plain(name) for name in (*layout.classes, *layout.renamed, *layout.dropped)}
    as_many = len(found - set(layout.dropped)) == layout.published[0]
    return as_many or not known.isdisjoint(map(plain, found))


def class_names(folder: Path) -> set[str]:
    """The class folders in a folder, or in its train/ (test/, val/)."""
    return {f.name for f in sub_folders(next(iter(part_folders(folder).values()), folder))}


def name_of(folder: Path) -> str:
    return Path(os.path.abspath(folder)).name


def own_name(layout: Layout, folder: Path, classes: set[str]) -> str:
    """What to call a folder of other classes, or fewer, than the data set has: as it is called...

    ...or with their number, ImageNet-100: under its very name, it gets the data set's settings and
    stands beside its published numbers.
    """
    name = folder.resolve().name
    return f"{name}-{len(classes)}" if name == layout.name else name


def find_class_folders(layout: Layout, root: Path, children: dict[str, Path]) -> Place:
    """The data set that the caller named, as class folders without a list to recognise it by.

    Raises FileNotFoundError if there are none, ValueError if they are those of another one.
    """
    child = next((children[n] for n in map(plain, layout.folders) if n in children), None)
    folder = child or root
    holds_sets = child is None and any(plain(n) in children for one in LAYOUTS for n in one.folders)
    for other in LAYOUTS:
        if other.name != layout.name and not holds_sets and find_place(other, folder, {}):
            raise ValueError(
                f"data folder {folder}: expected {layout.name}, got {other.name}: pass --dataset "
                f"{other.name}, or the folder of {layout.name}"
            )
    for images in (*layout.images, "."):
        if images == "." and holds_sets:
            continue  # a folder of other data sets, not of classes
        if (folder / images).is_dir() and holds_classes(folder / images):
            return Place(layout, folder, folder / images)
    raise incomplete(layout, folder)


def holds_classes(folder: Path) -> bool:
    return bool(part_folders(folder)) or len(sub_folders(folder)) > 1


def incomplete(layout: Layout, folder: Path) -> FileNotFoundError:
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
