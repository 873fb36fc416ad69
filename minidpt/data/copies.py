"""Test pictures that are training pictures, too."""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def copies_note(train: Iterable[str], test: Iterable[str]) -> str:
    """Which test pictures are, byte for byte, training pictures, in a line; empty if none is.

    Only files of the same size are looked at, and read whole if they end alike: few of many. Files
    that are not there, or cannot be opened, are left out.
    """
    keys: list[dict[str, tuple]] = [dict.fromkeys(train, ()), dict.fromkeys(test, ())]
    for read in (_size, _end, _digest):
        for number, known in enumerate(keys):
            keys[number] = {}
            for path, key in known.items():
                with suppress(OSError):
                    keys[number][path] = (*key, read(path))
        both = set(keys[0].values()) & set(keys[1].values())
        keys = [{path: key for path, key in own.items() if key in both} for own in keys]
    copies = list(keys[1])
    if not copies:
        return ""
    return (
        f"test images that are also training images, byte for byte: {len(copies)}, as {copies[0]}"
    )


def _size(path: str) -> int:
    if not os.path.isfile(path):  # a fifo would be waited for
        raise FileNotFoundError(path)
    return os.path.getsize(path)


def _end(path: str) -> bytes:
    with open(path, "rb") as file:
        file.seek(-min(1024, os.path.getsize(path)), os.SEEK_END)
        return file.read()


def _digest(path: str) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()
