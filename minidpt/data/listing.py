"""What lies in a folder: its images, its folders of classes, its train/, val/ and test/."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path

from ..images.decode import MORE_FORMATS, formats

IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", *chain(*MORE_FORMATS.values())),
}
PART_NAMES = {  # what a folder, or a cell of a CSV file, calls a split
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
IN_ORDER = ("all", "train", "test", "val")  # the first that is there has all classes
MANY = 1000  # missing files are enough to know of
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


def image_suffixes() -> set[str]:
    """`IMAGE_SUFFIXES` without those of formats that this Pillow has not."""
    missing = MORE_FORMATS.keys() - set(formats())
    return IMAGE_SUFFIXES - {suffix for name in missing for suffix in MORE_FORMATS[name]}


class ImageFiles(list[str]):
    """The paths of images, and of how many more the format is not read, by their suffix."""

    def __init__(self, files: Iterable[str], unread: Counter[str]):
        super().__init__(files)
        self.unread = unread


def _visible(folder: str | os.PathLike) -> Iterator[os.DirEntry]:
    """Scan a folder, leaving out what is hidden, and folders that systems make for themselves."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.lower() not in _OF_SYSTEMS:
                yield entry


def sub_folders(folder: Path) -> list[Path]:
    """List the visible folders in a folder, by name."""
    return [folder / name for name in sorted(e.name for e in _visible(folder) if e.is_dir())]


def images_in(folder: str | os.PathLike) -> ImageFiles:
    """List the image files in a folder and its sub-folders, sorted; hidden ones are left out.

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
        for entry in _visible(current):
            if entry.is_dir():
                waiting.append(entry.path)
            elif not entry.name.lower().endswith(suffixes):
                if kind := _unread_kind(entry):
                    unread[kind] += 1
            elif entry.is_file():
                files.append(entry.path)
            elif entry.is_symlink():
                raise FileNotFoundError(
                    f"image {entry.path}: expected a file, got a link to nothing: remove it"
                )
    return ImageFiles(sorted(files), unread)


def _unread_kind(entry: os.DirEntry) -> str:
    """Return an unread image's suffix, or "without ending"; an empty text for other files."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in UNREAD_SUFFIXES or suffix in IMAGE_SUFFIXES:
        return suffix
    if not suffix and entry.is_file():
        with suppress(OSError), open(entry.path, "rb") as file:
            if _BEGINNINGS.match(file.read(16)):
                return "without ending"
    return ""


def unread_note(unread: Counter[str]) -> str:
    """Say how many images are not read, of which kinds; empty if none."""
    kinds = sorted(unread.items(), key=lambda kind: (-kind[1], kind))
    named = ", ".join(f"{count} {what}" for what, count in kinds)
    return f"not read: {named} (convert or rename pictures)" if named else ""


def loose_notes(*folders: Path) -> tuple[str, ...]:
    """Note the images beside class folders, which are in no class: how many, and the first.

    folders: those that hold class folders, or hold these, the data folder first.
    """
    suffixes, loose = tuple(image_suffixes()), []
    for folder in dict.fromkeys(folders):
        loose += sorted(
            os.path.relpath(entry.path, folders[0])
            for entry in _visible(folder)
            if entry.is_file()
            if entry.name.lower().endswith(suffixes) or _unread_kind(entry)
        )
    return in_no_class(loose)


def in_no_class(loose: list[str]) -> tuple[str, ...]:
    """Note images by their paths, if there are any."""
    images = "1 picture" if len(loose) == 1 else f"{len(loose)} pictures"
    return (f"not read: {images} in no class folder, first {loose[0]}",) if loose else ()


def _identity(folder: str | os.PathLike) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def part_folders(folder: Path) -> dict[str, Path]:
    """Map a part to its folder (train/, val/, test/ and other words for them).

    In the order of `IN_ORDER`. Raises ValueError for two folders of a part.
    """
    folders: dict[str, Path] = {}
    for child in sub_folders(folder):
        part = PART_NAMES.get(child.name.lower())
        if part and folders.setdefault(part, child) != child:
            raise ValueError(
                f"data folder {folder}: expected one folder for {part}, got {folders[part].name}/ "
                f"and {child.name}/: merge them or rename one"
            )
    return {part: folders[part] for part in IN_ORDER if part in folders}


def contents(folder: Path) -> str:
    """Describe what lies in a folder, in a few words for an error."""
    names = sorted(f"{e.name}/" if e.is_dir() else e.name for e in _visible(folder))
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more if names else "no folder and no file"


def describe_missing(missing: list[str]) -> str:
    """Say how many files are missing, and the first of them."""
    more = " or more" if len(missing) == MANY else ""
    there = " (which is no regular file)" if os.path.lexists(missing[0]) else ""
    return f"{len(missing)}{more} missing, the first {missing[0]}{there}"


def missing_files(paths: Iterable[str]) -> list[str]:
    """List those of the paths that are no regular files, nor links to one; at most `MANY`.

    Folders of which many files are asked for are listed, which on a network disk is much faster
    than to ask for each file.
    """
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        by_folder.setdefault(os.path.dirname(path), []).append(path)
    missing: list[str] = []
    for folder, asked in by_folder.items():
        if len(asked) > 20 and os.path.isdir(folder):
            wanted = set(map(os.path.basename, asked))
            with os.scandir(folder) as entries:
                there = {
                    entry.name for entry in entries if entry.name in wanted and entry.is_file()
                }
            asked = [path for path in asked if os.path.basename(path) not in there]
        others = (path for path in dict.fromkeys(asked) if not os.path.isfile(path))
        missing += islice(others, MANY - len(missing))
        if len(missing) == MANY:
            break
    return missing
