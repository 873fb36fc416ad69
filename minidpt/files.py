"""Files of other people and our own: read within bounds, written whole.

Whoever reads a file ends in a value or in an error of one line, whatever bytes are in it:
`one_line_errors` around each reader, `read_text` and `read_json` for what is text, `entries` for
the types of what was read.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args

Function = TypeVar("Function", bound=Callable)

MAX_MESSAGE = 500  # characters of an error
NO_MEMORY = "can't allocate memory"  # in torch's RuntimeError
MAX_TEXT = 256 * 1024**2  # bytes of a text file; a list of ImageNet's training pictures has 0.1 G
MAX_ENTRIES = 8_000_000  # separators in it: each may become an object of 100 bytes


def one_line(text: object, limit: int = MAX_MESSAGE) -> str:
    """A text in one line that is safe to print: no control characters, a long one's middle cut."""
    text = str(text)
    if len(text) > 10 * limit:
        text = f"{text[: 5 * limit]} … {text[-5 * limit :]}"  # what is cut anyway, but costs time
    shown = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return shown if len(shown) <= limit else f"{shown[: limit - 160]} … {shown[-150:]}"


def one_line_errors(reader: Function) -> Function:
    """A reader whose ValueError or OSError is one line of at most 500 characters.

    Its text may quote the file. Nesting too deep and too little memory become ValueErrors, too,
    which the path begins, if that is the reader's first argument.
    """

    @functools.wraps(reader)
    def reading(*args: Any, **options: Any) -> Any:
        try:
            return reader(*args, **options)
        except (RuntimeError, MemoryError) as error:
            deep = isinstance(error, RecursionError)
            if type(error) not in (RecursionError, MemoryError) and NO_MEMORY not in str(error):
                raise
            problem = "nested too deeply" if deep else "out of memory"
            where = next((a for a in args[:1] if isinstance(a, (str, os.PathLike))), "content")
            raise ValueError(one_line(f"{where}: {problem} ({type(error).__name__})")) from None
        except (ValueError, OSError) as error:
            if str(error) == one_line(error):
                raise
            kind = type(error) if isinstance(error, OSError) else ValueError
            raise kind(one_line(error)) from error

    return reading


def read_text(path: str | os.PathLike, where: str) -> str:
    """The text of a UTF-8 file; `where` begins the errors.

    Raises FileNotFoundError if it is no regular file, ValueError if it is not UTF-8 or too large.
    """
    path = Path(path)
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no file" if path.exists() else "nothing there"
        raise FileNotFoundError(f"{where}: expected a file, got {got}")
    size = path.stat().st_size
    content = path.read_bytes() if size <= MAX_TEXT else b""
    entries = sum(map(content.count, (b",", b";", b"\t", b"\n", b"[", b"{")))
    if size > MAX_TEXT or entries > MAX_ENTRIES:
        got = f"{size:,} bytes" if size > MAX_TEXT else f"{entries:,}"
        raise ValueError(
            f"{where}: expected at most {MAX_TEXT:,} bytes and {MAX_ENTRIES:,} entries, got {got}: "
            "split it"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{where}, line {line}: expected UTF-8, got the byte {content[error.start]:#x}: "
            f"save the file as UTF-8"
        ) from error


def read_json(path: str | os.PathLike, where: str) -> Any:
    """What a JSON file holds; raises as `read_text`, and ValueError for what is no JSON.

    NaN, Infinity and numbers beyond a float's range are none: they lead comparisons astray.
    """

    def finite(number: str) -> float:
        if not math.isfinite(float(number)):
            raise ValueError(f"{number[:60]} is no finite number")
        return float(number)

    text = read_text(path, where)
    try:
        return json.loads(text, parse_float=finite, parse_constant=finite)
    except RecursionError:
        raise ValueError(f"{where}: expected JSON, got one nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where}: expected JSON, got {error}") from error


def entries(content: object, where: str, **kinds: Any) -> dict[str, Any]:
    """`content`, if it is a dict with text as keys and each named entry of the kind given for it.

    `name=str`, or `template=str | None` for an entry that may be missing; True is no number. Raises
    ValueError, which `where` begins.
    """
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{where}: expected named entries, got {shown(content)}")
    for name, kind in kinds.items():
        value = content.get(name)
        mistaken = isinstance(value, bool) and bool not in (get_args(kind) or (kind,))
        if mistaken or not isinstance(value, kind):
            expected = getattr(kind, "__name__", str(kind))
            got = shown(value) if name in content else "none"
            raise ValueError(f"{where}: expected an entry '{name}' ({expected}), got {got}")
    return content


def shown(value: object) -> str:
    """A value as an error shows it: text or number as it is, of anything else its type.

    What is nested may be endless, and so would be its text.
    """
    if isinstance(value, (str, bytes)):
        return repr(value[:60])
    plain = value is None or isinstance(value, (bool, float))
    plain = plain or isinstance(value, int) and abs(value) < 10**30
    return repr(value) if plain else f"a {type(value).__name__}"


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A place beside `path` to write to; at the end of the block it replaces what is at `path`.

    If the block raises, also when interrupted, what was there stays and the unfinished file goes.
    """
    path = Path(path)
    unfinished = path.with_name(path.name + ".part")
    try:
        yield unfinished
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
