"""Training images that are test images, or training images of another class, too."""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .samples import Sample


def copies_note(train: Iterable[str], test: Iterable[str]) -> str:
    """Name the test images that are, byte for byte, training images, in a line; "" if none is."""
    copies = find_copies(train, test)
    first = f"test images that are also training images, byte for byte: {len(copies)}, as "
    return f"{first}{copies[0]}" if copies else ""


def find_copies(train: Iterable[str], test: Iterable[str]) -> list[str]:
    """List the test images that are, byte for byte, training images."""
    test = list(dict.fromkeys(test))
    labelled = [*((path, "train") for path in train), *((path, "test") for path in test)]
    copies = {path for group in _equal_files(labelled) for path, split in group if split == "test"}
    return [path for path in test if path in copies]


def two_classes_note(samples: Iterable[Sample]) -> str:
    """Name training images that are, byte for byte, in two classes, in a line; "" if none are."""
    classnames = {(sample.path, sample.label): sample.classname for sample in samples}
    groups = _equal_files(classnames)
    if not groups:
        return ""
    first = groups[0][0]
    other = next(key for key in groups[0] if key[1] != first[1])
    both = " and ".join(f"{key[0]} of '{classnames[key]}'" for key in (first, other))
    return f"training images in two classes, byte for byte: {len(groups)}, as {both}"


def _equal_files(labelled: Iterable[tuple[str, object]]) -> list[list[tuple[str, object]]]:
    """Group files that are the same, byte for byte, and do not all have the same label.

    Only files of the same size are opened, and only those that end alike are read: few. Files
    that are not there, or cannot be opened, are left out.
    """
    groups = [list(dict.fromkeys(labelled))]
    for read in (os.path.getsize, _end, _digest):
        smaller: dict[tuple[int, object], list[tuple[str, object]]] = {}
        for number, group in enumerate(groups):
            for path, label in group:
                with suppress(OSError):
                    smaller.setdefault((number, read(path)), []).append((path, label))
        groups = [each for each in smaller.values() if len({label for _, label in each}) > 1]
    return groups


def file_digest(path: str) -> str:
    """Return the size of a file in bytes and the SHA-256 of its content."""
    return f"{os.path.getsize(path)} {_digest(path).hex()}"


def _end(path: str) -> bytes:
    with open(path, "rb") as file:
        file.seek(-min(1024, os.path.getsize(path)), os.SEEK_END)
        return file.read()


def _digest(path: str) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()
