"""Any pictures with class names: folders of classes, train/ val/ test/, a CSV file.

files of each part and class (`Parts`), how the classes are called (`Naming`) -> assemble -> Dataset
"""

import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple

from ..files import MAX_CLASSES
from ..progress import counted
from .lists import (
    IMAGE_SUFFIXES,
    PARTS,
    Dataset,
    Item,
    image_suffixes,
    make_dataset,
    missing_files,
    told,
)
from .naming import Naming, read_rows

# part -> class, as its folder or label is called -> its files. The part is "train", "val", "test",
# or "all": to be split by class.
Parts = dict[str, dict[str, list[str]]]

_PART_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_IN_ORDER = ("all", "train", "test", "val")  # the first that is there has all classes
LABELS = "labels.csv"  # in a folder: lists its pictures

_OF_SYSTEMS = {  # folders of network disks, of Windows, macOS, Unix and Python, in lower case; no
    # words that a class may be called by, such as Windows XP's RECYCLER
    *("@eadir", "@recycle", "@tmp", "@synoresource", "@sharebin", "#recycle", "#snapshot"),
    *("$recycle.bin", "system volume information", "found.000", "lost+found", "__macosx"),
    *("network trash folder", "~snapshot", "__pycache__"),
}
UNREAD_SUFFIXES = {  # of pictures in formats that are not read
    *(".heics", ".heifs", ".avifs", ".jp2", ".j2k", ".jpx", ".jxr", ".wdp", ".psd", ".psb", ".svg"),
    *(".eps", ".ico", ".tga", ".pcx", ".dds", ".exr", ".hdr", ".qoi", ".xcf", ".dcm", ".pnm"),
    *(".dng", ".raw", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf"),
    *(".rw2", ".raf", ".pef", ".srw", ".3fr", ".iiq", ".x3f", ".erf", ".kdc", ".dcr", ".mrw"),
}
_BEGINNINGS = re.compile(  # of JPEG, PNG, GIF, TIFF, BMP, PPM, WebP, AVIF and HEIF, JPEG XL
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8|II\*\0|MM\0\*|BM.{4}\0{4}|P[1-6]\s|RIFF.{4}WEBP"
    rb"|.{4}ftyp(avi[fs]|he[iv][cfsx]|mif1|msf1)|\xff\x0a|\0\0\0\x0cJXL ",
    re.DOTALL,
)


# ---- listing


class Pictures(list[str]):
    """The files of pictures, and how many pictures and "@eaDir/" are not read, by what they are."""

    def __init__(self, files: Iterable[str], unread: Counter[str]):
        super().__init__(files)
        self.unread = unread


def _is_shown(name: str) -> bool:
    """Whether a name is neither hidden nor of a folder that systems make for themselves."""
    return not name.startswith(".") and name.lower() not in _OF_SYSTEMS


def _of_systems(folder: str | os.PathLike) -> Counter[str]:
    with os.scandir(folder) as entries:
        return Counter(f"{e.name}/" for e in entries if e.name.lower() in _OF_SYSTEMS)


def sub_folders(folder: Path) -> list[Path]:
    """The visible folders in a folder, by name."""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if _is_shown(e.name) and e.is_dir()]
    return [folder / name for name in sorted(names)]


def images_in(folder: str | os.PathLike) -> Pictures:
    """The picture files in a folder and its sub-folders, sorted; hidden ones are left out.

    Links to folders are followed, but never to a folder that was seen or that contains this one.
    The system is asked about folders and links only, not about each file: a million files take
    seconds. Raises FileNotFoundError for a link to nothing.
    """
    suffixes = tuple(image_suffixes())
    seen = {_identity(parent) for parent in Path(folder).resolve().parents}
    files, unread, waiting = [], Counter(), [os.fspath(folder)]
    while waiting:
        current = waiting.pop()
        if (identity := _identity(current)) in seen:
            continue
        seen.add(identity)
        with os.scandir(current) as entries:
            for entry in entries:
                if not _is_shown(entry.name):
                    if entry.name.lower() in _OF_SYSTEMS:
                        unread[f"{entry.name}/"] += 1
                elif entry.is_dir():
                    waiting.append(entry.path)
                elif not entry.name.lower().endswith(suffixes):
                    if what := _passed_over(entry):
                        unread[what] += 1
                elif entry.is_file():
                    files.append(entry.path)
                elif entry.is_symlink():
                    raise FileNotFoundError(
                        f"picture {entry.path}: expected a file, got a link to nothing: remove it"
                    )
    return Pictures(sorted(files), unread)


def _passed_over(entry: os.DirEntry) -> str:
    """What a picture is that is not read: its suffix, or "without ending". Empty for others."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in UNREAD_SUFFIXES or suffix in IMAGE_SUFFIXES:
        return suffix
    if not suffix and entry.is_file():
        with suppress(OSError), open(entry.path, "rb") as file:
            if _BEGINNINGS.match(file.read(16)):
                return "without ending"
    return ""


def unread_note(unread: Counter[str]) -> str:
    """How many pictures and system folders are not read, of which kinds; empty if none."""
    kinds = sorted(unread.items(), key=lambda kind: (-kind[1], kind))
    named = ", ".join(f"{count} {what}" for what, count in kinds)
    return f"not read: {named} (convert or rename pictures)" if named else ""


def loose_notes(*folders: Path) -> tuple[str, ...]:
    """A note of pictures beside class folders, which are in no class: how many, and the first.

    folders: those that hold class folders, or hold these, the data folder first.
    """
    suffixes, loose = tuple(image_suffixes()), []
    for folder in folders:
        with os.scandir(folder) as entries:
            loose += sorted(
                os.path.relpath(entry.path, folders[0])
                for entry in entries
                if _is_shown(entry.name) and entry.is_file()
                if entry.name.lower().endswith(suffixes) or _passed_over(entry)
            )
    many = f"{len(loose)} picture{'s' * (len(loose) > 1)}"
    return (f"not read: {many} in no class folder, first {loose[0]}",) if loose else ()


def _identity(folder: str | os.PathLike) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def part_folders(folder: Path) -> dict[str, Path]:
    """Part -> its folder (train/, val/, test/ and other words for them), the first of all classes.

    That is train/, else test/. Raises ValueError for two folders of a part.
    """
    found: dict[str, Path] = {}
    for child in sub_folders(folder):
        part = _PART_NAMES.get(child.name.lower())
        if part and found.setdefault(part, child) != child:
            raise ValueError(
                f"data folder {folder}: expected one folder for {part}, got {found[part].name}/ "
                f"and {child.name}/: merge them or rename one"
            )
    return {part: found[part] for part in _IN_ORDER if part in found}


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
        own.unread += _of_systems(folder)
    return pictures


def parts_of_classes(folders: dict[str, Path], naming: Naming) -> Parts:
    """The class folders of each part; the first part must have two classes, the test one."""
    least = {"val": 0, "test": 1, next(iter(folders)): 2}
    return {part: class_folders(own, naming, least[part]) for part, own in folders.items()}


def contents(folder: Path) -> str:
    """What lies in a folder, in a few words for an error."""
    with os.scandir(folder) as entries:
        names = sorted(e.name + "/" * e.is_dir() for e in entries if _is_shown(e.name))
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]).replace("\n", " ") + more if names else "no folder and no file"


# ---- folders


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


# ---- CSV files

_COLUMNS = {  # without other signs than letters, and without an s at the end
    "path": {"path", "file", "filename", "filepath", "image", "imagename", "imagepath", "img"},
    "label": {"label", "lbl", "class", "classname", "category"},
    "split": {"split", "part", "subset", "set"},
}


def open_csv(path: Path, naming: Naming, seed: int) -> Dataset:
    """The data set of a CSV file of `path,label[,split]`; paths start from the file's folder.

    Its `root` is the innermost folder around the pictures: the file may lie anywhere.
    A header may name these columns in any order, among others. Without one, the first row must
    begin with a picture file. The split is train, val or test; without one, it is drawn. Raises
    ValueError or FileNotFoundError with the line's number.
    """
    where = f"labels {path}"
    start = os.path.join(os.path.abspath(path.parent), "")
    columns, width, rows, notes = _table(read_rows(path, where), where)
    at_path, at_label, at_split = map(columns.get, _COLUMNS)
    needed = 1 + max(columns.values())
    parts: Parts = {}
    lines: dict[str, int] = {}  # picture -> line
    first_lines: dict[str, int] = {}  # class -> line
    for line, row in rows:
        whole = len(row) == width or len(row) >= needed and not any(row[width:])
        part = "all" if at_split is None else whole and _PART_NAMES.get(row[at_split].lower())
        if not (whole and row[at_path] and row[at_label] and part):
            expected = "a path, a label" + " and train, val or test" * (at_split is not None)
            many = f" ({len(row)} cells for {width} columns: quote one that has a separator in it)"
            got = ",".join(row) + many * (len(row) > width)
            raise ValueError(f"{where}, line {line}: expected {expected}, got {got}")
        file, label = row[at_path], row[at_label]
        file = file if os.path.isabs(file) else start + file
        if lines.setdefault(file, line) != line:
            raise ValueError(
                f"{where}, line {line}: expected each picture once, got {row[at_path]} again "
                f"(line {lines[file]}): remove one"
            )
        if first_lines.setdefault(label, line) == line and len(first_lines) > MAX_CLASSES:
            raise ValueError(f"{where}: expected at most {MAX_CLASSES:,} labels, got more")
        parts.setdefault(part, {}).setdefault(label, []).append(file)
    if len(first_lines) < 2:
        raise ValueError(f"{where}: expected at least 2 labels, got {list(first_lines)}: add some")

    if missing := missing_files(lines):
        raise FileNotFoundError(
            f"{where}, line {lines[missing[0]]}: expected pictures, got {told(missing)}: mend the "
            "path"
        )
    parts = {part: parts[part] for part in _IN_ORDER if part in parts}
    first = next(iter(parts))
    for label, line in first_lines.items():
        if label not in parts[first]:
            raise ValueError(
                f"{where}, line {line}: expected only labels that {first} has, got '{label}': "
                f"add {first} pictures of it or remove it"
            )
    named = path.resolve().parent.name if path.name == LABELS else path.stem
    naming = replace(naming, name=naming.name or named)
    root = Path(os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in lines]))
    dataset = assemble(root, parts, naming, path.name, seed)
    return replace(dataset, notes=(*dataset.notes, *notes))


def lists_pictures(path: Path) -> bool:
    """Whether a CSV file has the columns that `open_csv` reads; others lie in data sets, too."""
    try:
        _table(read_rows(path, f"labels {path}"), f"labels {path}")
    except ValueError:
        return False
    return True


class _Table(NamedTuple):
    """Which column is the path, which the label, which the split; how many there are; the rows."""

    columns: dict[str, int]
    width: int
    rows: Iterator[tuple[int, list[str]]]
    notes: list[str]


def _table(rows: Iterator[tuple[int, list[str]]], where: str) -> _Table:
    line, first = next(rows, (1, []))
    columns: dict[str, int] = {}
    notes = []
    for number, cell in enumerate(first):
        word = re.sub(r"[\W_]", "", cell.lower())
        for name, words in _COLUMNS.items():
            if {word, word.removesuffix("s")} & words and columns.setdefault(name, number) < number:
                taken = first[columns[name]]
                notes.append(f"the {name} is read from the column '{taken}', not from '{cell}'")
    if "path" in columns and "label" in columns:
        return _Table(columns, len(first), rows, notes)
    if len(first) in (2, 3) and os.path.splitext(first[0])[1].lower() in IMAGE_SUFFIXES:
        columns = {name: number for number, name in enumerate(_COLUMNS) if number < len(first)}
        return _Table(columns, len(first), chain([(line, first)], rows), [])
    raise ValueError(
        f"{where}, line {line}: expected a header path,label[,split], or a picture file and its "
        f"label, got {','.join(first) or 'an empty file'}"
    )
