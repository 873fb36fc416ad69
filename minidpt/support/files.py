"""Files of other people and our own: read within bounds, written whole.

Whoever reads a file ends in a value or in an error of one line, whatever bytes are in it:
`single_line_errors` around each reader, `read_text` and `read_json` for what is text, `entries` for
the types of what was read.
"""

from __future__ import annotations

import csv
import errno
import functools
import gc
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, get_args

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

Function = TypeVar("Function", bound=Callable)

MAX_MESSAGE = 500  # characters of an error
NO_MEMORY = "can't allocate memory"  # in torch's RuntimeError
MAX_TEXT = 256 * 1024**2  # bytes of a text file; a list of ImageNet's training pictures has 0.1 G
MAX_PICTURES = 2_000_000  # rows of a list of pictures; ImageNet has 1.3 million for training
MAX_ENTRIES = 1_000_000  # separators in any other text: each may become 200 bytes of objects
MAX_CLASSES = 25_000  # ImageNet-21k has 21,843
MAX_NAME = 500  # bytes of a class's name; the 77 tokens of a prompt hardly hold as many


def to_single_line(text: object, limit: int = MAX_MESSAGE) -> str:
    """A text in one line that is safe to print: control characters as \\x1b, the middle cut."""
    text = str(text)
    text = text if len(text) < 20_000 else f"{text[:9000]} … {text[-9000:]}"  # it may have 50 MB
    shown = printable(" ".join(text.split()))
    cut = limit // 3
    return shown if len(shown) <= limit else f"{shown[: limit - cut - 3]} … {shown[-cut:]}"


def single_line_errors(reader: Function) -> Function:
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
            if not (deep or isinstance(error, MemoryError) or NO_MEMORY in str(error)):
                raise
            problem = "nested too deeply" if deep else "out of memory"
            where = next(iter(args), None)
            where = where if isinstance(where, (str, os.PathLike)) else reader.__name__
            raise ValueError(to_single_line(f"{where}: {problem} ({type(error).__name__})")) from None
        except (ValueError, OSError) as error:
            if str(error) == to_single_line(error):
                raise
            kind = type(error) if isinstance(error, OSError) else ValueError
            raise kind(to_single_line(error)) from error

    return reading


@contextmanager
def gc_disabled() -> Iterator[None]:
    """No garbage collection: it would look at a million new objects again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_text(path: str | os.PathLike, where: str, most: int = MAX_ENTRIES) -> str:
    """The text of a UTF-8 file, every line ending in "\\n"; `where` begins the errors.

    Raises FileNotFoundError if it is no regular file, ValueError if it is not UTF-8, too large, or
    has more than `most` entries.
    """
    path = Path(path)
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no file" if path.exists() else "nothing there"
        raise FileNotFoundError(f"{where}: expected a file, got {got}")
    size = path.stat().st_size
    content = path.read_bytes() if size <= MAX_TEXT else b""
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    entries = sum(map(content.count, (b",", b";", b"\t", b"\n", b"[", b"{", b'":')))
    if size > MAX_TEXT or entries > most:
        got = f"{size:,} bytes" if size > MAX_TEXT else f"{entries:,}"
        raise ValueError(
            f"{where}: expected at most {MAX_TEXT:,} bytes and {most:,} entries, got {got}: "
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


def read_json(path: str | os.PathLike, where: str, most: int = MAX_ENTRIES) -> Any:
    """What a JSON file holds; raises as `read_text` and `parse_json`."""
    return parse_json(read_text(path, where, most), where)


def parse_json(text: str, where: str) -> Any:
    """Parse a JSON text; ValueError, which `where` begins, for what is no JSON.

    NaN, Infinity and numbers beyond a float's range are none: they lead comparisons astray. Nor is
    an object with two entries of one name.
    """

    def finite(number: str) -> float:
        if not math.isfinite(float(number)):
            raise ValueError(f"{number[:60]} is no finite number")
        return float(number)

    def integer(number: str) -> int:
        if len(number) > 300:
            finite(number)
        return int(number)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(content := dict(pairs)) < len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)
            raise ValueError(f"two entries {short_repr(twice[0][0])}")
        return content

    try:
        hooks = dict(parse_float=finite, parse_int=integer, parse_constant=finite)
        return json.loads(text, object_pairs_hook=unique, **hooks)
    except RecursionError:
        raise ValueError(f"{where}: expected JSON, got one nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where}: expected JSON, got {error}") from error


def check_fields(content: object, where: str, **kinds: Any) -> dict[str, Any]:
    """`content`, if it is a dict with text as keys and each named entry of the kind given for it.

    `name=str`, or `template=str | None` for an entry that may be missing; True is no number. Raises
    ValueError, which `where` begins.
    """
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{where}: expected named entries, got {short_repr(content)}")
    for name, kind in kinds.items():
        value = content.get(name)
        mistaken = isinstance(value, bool) and bool not in (get_args(kind) or (kind,))
        if mistaken or not isinstance(value, kind):
            expected = getattr(kind, "__name__", str(kind))
            got = short_repr(value) if name in content else "none"
            raise ValueError(f"{where}: expected an entry '{name}' ({expected}), got {got}")
    return content


def short_repr(value: object) -> str:
    """A value as an error shows it: text or number as it is, of anything else its type.

    What is nested may be endless, and so would be its text.
    """
    if isinstance(value, (str, bytes)):
        return repr(value[:60])
    plain = value is None or isinstance(value, (bool, float))
    plain = plain or isinstance(value, int) and abs(value) < 10**30
    return repr(value) if plain else f"a {type(value).__name__}"


def printable(text: str) -> str:
    """A text as one line that a terminal only shows: control characters as \\x1b, \\n and so on."""
    return "".join(
        letter if letter.isprintable() or letter in "\u00a0\u200c\u200d\u3000"
        else letter.encode("unicode_escape").decode()
        for letter in text
    )  # fmt: skip


@contextmanager
def explain_full_disk(path: str | os.PathLike) -> Iterator[None]:
    """What is written to `path` in the block: an OSError for want of room names it, and a fix."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            f"{path}: expected room for it, got {error.strerror}: make some, or name a place on "
            "another disk"
        ) from error


def validate_name(name: object, where: str, folder: bool = False) -> str:
    """The name of a class, if it can stand in a prompt and a line; or of a data set, for `folder`.

    That one names a run's folder, and may come from a file of others: only as one component of a
    path it leaves no folder. Raises ValueError, which `where` begins.
    """
    text = name if isinstance(name, str) else ""
    most, blank, other = (180, " .", r"/\\") if folder else (MAX_NAME, " _", r"\udc80-\udcff")
    bad = rf"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udc7f\udd00-\udfff{other}]"
    long = len(text.encode(errors="surrogatepass")) > most
    if long or not text.strip(blank) or re.search(bad, text):
        kind = "data set's name, good for a folder" if folder else "class's name"
        wanted = f"a {kind}, up to {most} bytes, no control characters"
        raise ValueError(f"{where}: expected {wanted}, got {short_repr(name)}: rename it")
    return text


def canonical_classname(name: object, where: str) -> str:
    """Return a class name as prompts have it: `_` is a space, no space at either end or twice.

    Raises ValueError, which `where` begins, for what cannot be a class's name (`validate_name`).
    """
    return " ".join(validate_name(name, where).replace("_", " ").split())


def escape_formula(value: object) -> object:
    """A value for a CSV file: a text that a spreadsheet would compute has a ' before it.

    A NUL, which Python 3.10 cannot write, is spelt out.
    """
    if not isinstance(value, str):
        return value
    formula = value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return "'" * formula + value.replace("\0", r"\x00")


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """A place beside `path` to write to; at the end of the block it replaces what is at `path`.

    It is on the disk before it does, so that also after a power cut one of the two is whole. If the
    block raises, also when interrupted, what was there stays and the unfinished file goes. Of a
    process that was killed it stays, as `path` with ".part" behind it. Raises IsADirectoryError
    if `path` is a folder, FileExistsError if it is a device or a pipe.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected a file to replace, got a folder: move it away")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path}: expected a file to replace, got a device or a pipe")
    unfinished = path.with_name(path.name + ".part")
    try:
        with explain_full_disk(path):
            if unfinished.is_symlink():  # nothing is written to where it leads
                unfinished.unlink()
            yield unfinished
            _sync(unfinished, os.O_RDWR)
            os.replace(unfinished, path)
            with suppress(OSError):  # Windows opens no folders
                _sync(path.parent, os.O_RDONLY)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _sync(path: Path, mode: int) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_rows(
    path: str | os.PathLike, header: Iterable, rows: Iterable[Iterable], errors="surrogateescape"
) -> None:
    """Write a CSV file whole; by default names of files that are no text keep their bytes."""
    with atomic_write(path) as unfinished:
        with unfinished.open("w", newline="", encoding="utf-8", errors=errors) as file:
            for row in chain([header], rows):
                csv.writer(file).writerow(map(escape_formula, row))


@contextmanager
def file_lock(path: Path, busy: str | None = None) -> Iterator[bool]:
    """One process at a time, by an empty file; whether it is so: some file systems have no locks.

    The lock goes with the process, however that ends, so that a file left behind stops nobody.
    With another process in the block this one waits, or raises BlockingIOError that says `busy`.
    """
    is_locked = file = None
    while fcntl and not is_locked:
        file = open(path, "ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
            # Who had it has removed it since, if the name stands for another file now, or for none.
            with suppress(FileNotFoundError):
                is_locked = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except BlockingIOError:
            file.close()
            raise BlockingIOError(busy) from None
        except OSError:  # such as ENOLCK, ENOTSUP of a network's
            break
        if not is_locked:
            file.close()
    try:
        yield bool(is_locked)
    finally:
        if file:
            path.unlink(missing_ok=True)
            file.close()
