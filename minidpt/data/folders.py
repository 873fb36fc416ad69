"""What lies in a folder: images, folders of classes, train/ val/ test/ of them.

open_folder: folders of splits or of classes -> files of each split and class (`Splits`), what
classes are called (`Naming`) -> assemble -> Dataset
"""

import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path

from ..images.decode import MORE_FORMATS, formats
from ..support.files import input_error, shorten
from ..support.progress import track
from .layouts import plain
from .naming import Naming
from .samples import SPLITS, Dataset, Sample, make_dataset

IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", *chain(*MORE_FORMATS.values())),
}
SPLIT_NAMES = {  # what a folder, or a cell of a CSV file, calls a split
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
IN_ORDER = ("all", "train", "test", "val")  # the first that is there has all classes
_OF_SYSTEMS = {  # folders of network disks, of Windows, macOS, Unix and Python, in lower case; no
    # words that a class may be called by, such as Windows XP's RECYCLER
    *("@eadir", "@recycle", "@tmp", "@synoresource", "@sharebin", "#recycle", "#snapshot"),
    *("$recycle.bin", "system volume information", "found.000", "lost+found", "__macosx"),
    *("network trash folder", "~snapshot", "__pycache__"),
}
_UNREAD = {  # suffixes of images in formats that are not read, or not by every Pillow
    *IMAGE_SUFFIXES,
    *(".heics", ".heifs", ".avifs", ".jp2", ".j2k", ".psd", ".svg", ".eps", ".ico", ".tga", ".dcm"),
    *(".exr", ".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef"),
}
_IF_MISSING = {"eval": "test", "evaluation": "test", "trainval": "train"}  # without test/, train/
_SPLITS = {**SPLIT_NAMES, **_IF_MISSING}
# A word of a folder's name: a split's, or one that says no more than "folder", or both: trainset
_WORD = re.compile(
    rf"({'|'.join(_SPLITS)}|)"
    "((?:data)?(?:sets?|images?|imgs?|pictures?|pics?|photos?|files?|folders?|samples?|splits?)?)"
)
_FIX = "if these are the classes, pass --folders-are-classes"
# split ("all": to be split by class) -> class, as its folder or label is called -> its files
Splits = dict[str, dict[str, list[str]]]


class ImageFiles(list[str]):
    """The paths of images, and of how many more the format is not read, by their suffix."""

    unread: Counter[str]


FOLDER, IMAGE, LINK = "folder", "image", "link"  # kinds of `scan`; the last leads nowhere


def scan(folder: str | os.PathLike) -> Iterator[tuple[str, str, str]]:
    """Yield name, path and kind of all but what is hidden or made by systems for themselves.

    Kinds: FOLDER, IMAGE, LINK (an image's name, but broken or circular), the suffix of an image
    that is not read or "without ending", of all else "".
    """
    missing = MORE_FORMATS.keys() - set(formats())  # in this Pillow
    suffixes = IMAGE_SUFFIXES.difference(*map(MORE_FORMATS.get, missing))
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.lower() not in _OF_SYSTEMS:
                yield entry.name, entry.path, _kind(entry, suffixes)


def _kind(entry: os.DirEntry, suffixes: set[str]) -> str:
    suffix = os.path.splitext(entry.name)[1].lower()
    with suppress(OSError):  # a link that leads to itself
        if entry.is_dir():
            return FOLDER
        if entry.is_file():
            if suffix in suffixes:
                return IMAGE
            return suffix if suffix in _UNREAD else "" if suffix else "without ending"
    return LINK if suffix in suffixes and entry.is_symlink() else ""


def sub_folders(folder: Path) -> list[Path]:
    """List the visible folders in a folder, by name."""
    return [folder / name for name in sorted(n for n, _, kind in scan(folder) if kind == FOLDER)]


def holds_images(folder: str | os.PathLike) -> bool:
    """Return whether images lie directly in a folder."""
    return any(kind == IMAGE for _, _, kind in scan(folder))


def images_in(folder: str | os.PathLike) -> ImageFiles:
    """List the image files in a folder and its sub-folders, sorted; hidden ones are left out.

    Links to folders are followed, but never to a folder that was seen or that contains this one.
    Raises FileNotFoundError for a link to nothing.
    """
    seen = set(map(str, Path(folder).resolve().parents))
    files, waiting = ImageFiles(), [os.fspath(folder)]
    files.unread = Counter()
    while waiting:
        current = waiting.pop()
        if (identity := os.path.realpath(current)) in seen:
            continue
        seen.add(identity)
        for _, path, kind in scan(current):
            if kind == FOLDER:
                waiting.append(path)
            elif kind == IMAGE:
                files.append(path)
            elif kind == LINK:
                raise FileNotFoundError(f"image {path}: expected a file, got a broken link")
            elif kind:
                files.unread[kind] += 1
    files.sort()
    return files


def unread_notes(unread: Counter[str]) -> list[str]:
    """Note how many images are not read, of which kinds, if there are any."""
    named = ", ".join(f"{count} {kind}" for kind, count in sorted(unread.items()))
    return [f"not read: {named} (convert or rename images)"] if named else []


def ignored_notes(folder: Path) -> list[str]:
    """Note the folders that systems have made for themselves, such as __MACOSX, if any."""
    names = sorted(f"{name}/" for name in os.listdir(folder) if name.lower() in _OF_SYSTEMS)
    return [f"ignored: {shorten(names)}"] if names else []


def loose_notes(*folders: Path) -> tuple[str, ...]:
    """Note the images beside class folders in `folders`, the data folder first."""
    loose = []
    for folder in dict.fromkeys(folders):
        paths = (path for _, path, kind in scan(folder) if kind not in ("", FOLDER, LINK))
        loose += sorted(os.path.relpath(path, folders[0]) for path in paths)
    return in_no_class(loose)


def in_no_class(loose: list[str]) -> tuple[str, ...]:
    """Note images by their paths, if there are any."""
    images = "1 image" if len(loose) == 1 else f"{len(loose)} images"
    return (f"not read: {images} in no class folder, first {loose[0]}",) if loose else ()


def contents(folder: Path) -> str:
    """Describe what lies in a folder, in a few words for an error."""
    names = sorted(f"{name}/" if kind == FOLDER else name for name, _, kind in scan(folder))
    return shorten(names, 6) or "no folder and no file"


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

    def rank(child: Path) -> tuple[bool, bool]:  # test/, eval/, test_images/, eval_images/
        name = child.name.lower()
        return name not in _SPLITS, any(word in name for word in _IF_MISSING)

    folders = {}
    for split in IN_ORDER:
        children = sorted((child for child in named if named[child][0] == split), key=rank)
        if len(children) > 1 and rank(children[0]) == rank(children[1]):
            got, fix = f"{children[0].name}/ and {children[1].name}/", "merge or rename them"
            raise input_error(f"data folder {folder}", f"one folder for {split}", got, fix)
        if children:
            folders[split] = children[0]
    return folders


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
    names, holders = {}, {}
    for folder in folders:
        inner = () if holds_images(folder) else sub_folders(look_through(folder))
        names[folder] = {each.name.casefold(): f"{each.name}/" for each in inner}
        for name in names[folder]:
            holders.setdefault(name, []).append(folder)
    for folder, inner in names.items():
        several = [holders[name] for name in inner if len(holders[name]) > 1]
        counts = Counter(chain(*several)) if len(several) > 1 else Counter()
        if others := {each for each, count in counts.items() if count > 1} - {folder}:
            shared = inner.keys() & names[next(each for each in names if each in others)].keys()
            alike = [f"{each.name}/" for each in names if len(names[each].keys() & shared) > 1]
            return alike, sorted(map(inner.get, shared))
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
        raise input_error(f"data folder {root}", expected, f"none there ({contents(root)})", _FIX)
    classes, how = class_folders(root, naming, naming.least_classes), f"class folders in {root}"
    if splits := _list_splits_in(classes):
        how = f"{', '.join(f'{split}/' for split in splits)} in the {how}"
    else:
        splits = {"all": _list_classes(root, classes, naming)}
    return assemble(root, splits, naming, how, loose_notes(root))


def _open_split_folders(root: Path, folders: dict[str, Path], naming: Naming) -> Dataset:
    """Open folders of splits; beside train/, those without images of its classes are left out."""
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
        else:
            not_read = f"not {'tested' if split == 'test' else 'read'}: {folders[split].name}/"
            got = f"no images in folders of the classes ({contents(folders[split])})"
            notes.append(f"{not_read}, which has {got}")
    read = ", ".join(f"{folders[split].name}/" for split in SPLITS if split in splits)
    unread = [f"{f.name}/" for f in sub_folders(root) if f not in folders.values()]
    loose, how = loose_notes(root, *map(folders.get, splits)), f"folders {read}"
    if list(splits) == ["train"]:
        splits, how = {"all": splits["train"]}, f"class folders in {read}"
        notes.insert(0, f"no labelled test/ beside {read}: test images are drawn from it")
    if unread:
        notes.append(f"read: {read}; not read: {shorten(unread)}")
    return assemble(root, splits, naming, how, (*notes, *loose))


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
        fix = f"{_FIX}, else pass one of them as --data"
        raise input_error(f"data folder {root}", "class folders", got, fix)
    return list_images(classes)


def class_folders(folder: Path, naming: Naming, at_least: int = 0) -> list[Path]:
    """Return the folders of classes in a folder. Raises ValueError for less than `at_least`."""
    classes = [f for f in sub_folders(folder) if f.name not in naming.dropped]
    if len(classes) < at_least:
        expected = f"at least {at_least} class folders (or train/ and test/ of them, or labels.csv)"
        raise input_error(f"data folder {folder}", expected, contents(folder))
    return classes


def list_images(classes: list[Path]) -> dict[str, list[str]]:
    """List the images in class folders, by the names of these."""
    return {f.name: images_in(f) for f in track(classes, "class folders listed", len(classes))}


def assemble(
    root: Path, splits: Splits, naming: Naming, how: str, notes: Iterable[str] = ()
) -> Dataset:
    """Make a Dataset of the files of each split and class; `how`, for its `source`: from which.

    The first split has all classes, and an image of each. "all" is split by class, or is the test.
    Without "test", "val" is the test; without "train", it is a test set only.
    """
    first, where = next(iter(splits)), f"data folder {root}"
    keys = naming.ordered(splits[first])
    names, shared_names = naming.classnames(root, keys)
    lists = [files for by_class in splits.values() for files in by_class.values()]
    unread = sum((files.unread for files in lists if isinstance(files, ImageFiles)), Counter())
    if empty := [key for key in keys if not splits[first].get(key)]:
        fix = "; ".join([*unread_notes(unread), "add some or remove the class"])
        got = f"none for '{empty[0]}' ({len(empty)} such); {fix}"
        raise input_error(where, "images of every class", got)
    if is_split_drawn := "all" in splits and naming.draws_split:
        splits = _split_by_class({key: splits["all"][key] for key in keys}, naming.seed)
        how += f", no split file: drawn 50/20/30 % with the fixed seed {naming.seed}"
    elif "all" in splits:
        splits, how = {"test": splits["all"]}, f"{how}, no split file: every image is a test image"
    elif "test" not in splits and "val" in splits:
        splits = {**splits, "test": splits["val"], "val": {}}
        how += " (no labelled test, so val is the test set)"
    if not any(splits.get("test", {}).values()):
        raise input_error(where, "images for the test", "none", "add some")

    listed: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    labels = {key: label for label, key in enumerate(names)}
    for split, by_class in splits.items():
        for key, files in by_class.items():
            if key not in labels:
                alike = [other for other in labels if plain(other) == plain(key)]
                got = f"'{key}' in {split}" + (f" for '{alike[0]}'" if alike else "")
                fix = "rename it" if alike else "remove it"
                raise input_error(where, f"only classes of {first}", got, fix)
            listed[split] += map(Sample, files, repeat(labels[key]), repeat(names[key]))
    name, classnames = naming.name or root.resolve().name, list(names.values())
    dataset = make_dataset(
        name, root, classnames, listed, how, template=naming.template, class_keys=list(names),
        notes=(*shared_names, *unread_notes(unread)), is_split_drawn=is_split_drawn,
        allow_duplicates=len(set(map(str.casefold, classnames))) < len(classnames),
    )  # fmt: skip
    return naming.credit(dataset, keys).with_notes(*naming.notes, *notes)


def _split_by_class(files: dict[str, list[str]], seed: int) -> Splits:
    """Draw 50 % train, 20 % val, 30 % test; of two images one for training, one for the test."""
    generator = random.Random(seed)
    splits: Splits = {split: {} for split in SPLITS}
    for key, of_class in files.items():
        shuffled = list(of_class)
        generator.shuffle(shuffled)
        count = len(shuffled)
        train = max(1, round(0.5 * count))
        val = max(0, min(round(0.2 * count), count - train - 1))
        splits["train"][key] = shuffled[:train]
        splits["val"][key] = shuffled[train : train + val]
        splits["test"][key] = shuffled[train + val :]
    return splits
