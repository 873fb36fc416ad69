"""Test images that are training images, too."""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def copies_note(train: Iterable[str], test: Iterable[str]) -> str:
    """Name the test images that are, byte for byte, training images, in a line; "" if none is.

    Only files of the same size are opened, and only those that end alike are read: few. Files
    that are not there, or cannot be opened, are left out.
    """
    candidates = [list(dict.fromkeys(train)), list(dict.fromkeys(test))]
    for read in (os.path.getsize, _end, _digest):
        keys: list[dict[str, object]] = [{}, {}]
        for paths, key_of in zip(candidates, keys, strict=True):
            for path in paths:
                with suppress(OSError):
                    key_of[path] = read(path)
        both = set(keys[0].values()) & set(keys[1].values())
        candidates = [[path for path, key in key_of.items() if key in both] for key_of in keys]
    copies = candidates[1]
    first = f"test images that are also training images, byte for byte: {len(copies)}, as "
    return f"{first}{copies[0]}" if copies else ""


def _end(path: str) -> bytes:
    with open(path, "rb") as file:
        file.seek(-min(1024, os.path.getsize(path)), os.SEEK_END)
        return file.read()


def _digest(path: str) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()
