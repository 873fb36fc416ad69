"""Files: those of others are read within bounds, with one-line errors; ours are written whole."""

import csv
import errno
import functools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeVar, get_args

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

Function = TypeVar("Function", bound=Callable)

MAX_TEXT = 256 * 1024**2  # bytes of a text file; a list of ImageNet's training images has 0.1 G
MAX_IMAGES = 2_000_000  # rows of a list of images; ImageNet has 1.3 million for training
MAX_ENTRIES = 1_000_000  # separators in any other text: each may become 200 bytes of objects
MAX_CLASSES = 25_000  # ImageNet-21k has 21,843
MAX_NAME = 500  # bytes of a class's name; the 77 tokens of a prompt hardly hold as many
MAX_TEMPLATE = 1000  # characters
MAX_TEMPLATES = 1000  # CLIP's ensemble for ImageNet has 80


def to_single_line(text: object, limit: int = 500) -> str:
    """Make one line that is safe to print: control characters as \\x1b, the middle cut out."""
    text = str(text)
    text = text if len(text) < 20_000 else f"{text[:9000]} … {text[-9000:]}"  # it may have 50 MB
    line, end = printable(" ".join(text.split())), limit // 3
    return line if len(line) <= limit else f"{line[: limit - end - 3]} … {line[-end:]}"


def printable(text: str) -> str:
    """Escape what a terminal would not only show: control characters as \\x1b, \\n and so on."""
    return "".join(
        letter if letter.isprintable() or letter in "\u00a0\u200c\u200d\u3000"
        else letter.encode("unicode_escape").decode()
        for letter in text
    )  # fmt: skip


def short_repr(value: object) -> str:
    """Show a value in an error: text or number as it is, of anything else its type.

    What is nested may be endless, and so would be its text.
    """
    if isinstance(value, (str, bytes)):
        return repr(value[:60])
    is_short = isinstance(value, float | None) or isinstance(value, int) and abs(value) < 10**30
    return repr(value) if is_short else f"a {type(value).__name__}"


def shorten(names: list[str], count: int = 3) -> str:
    """Join the first of some names, and say how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def input_error(where: str, expected: str, got: object, fix: str = "") -> ValueError:
    """Return the error for bad input: `where` it is, expected, got, and how to mend it."""
    return ValueError(f"{where}: expected {expected}, got {got}" + (f": {fix}" if fix else ""))


def single_line_errors(reader: Function) -> Function:
    """Make every ValueError or OSError of a reader one line of at most 500 characters.

    Nesting too deep and too little memory become ValueErrors that begin with its first argument.
    """

    @functools.wraps(reader)
    def reading(*args: Any, **options: Any) -> Any:
        try:
            return reader(*args, **options)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            text, path = str(error), [*args, reader.__name__][0]
            if isinstance(error, MemoryError) or "can't allocate memory" in text:  # torch's words
                text = f"{path}: out of memory"
            elif isinstance(error, RecursionError):
                text = f"{path}: nested too deeply"
            elif isinstance(error, RuntimeError):
                raise
            if to_single_line(text) == str(error):
                raise
            kind = type(error) if isinstance(error, OSError) else ValueError
            raise kind(to_single_line(text)) from error

    return reading


def check_is_file(path: str | os.PathLike, where: str) -> None:
    """Raise FileNotFoundError, which begins with `where`, unless a path is a regular file's."""
    if not os.path.isfile(path):
        got = "a broken link" if os.path.islink(path) else "none"
        got = "a pipe or device" if os.path.exists(path) else got
        got = "a folder" if os.path.isdir(path) else got
        raise FileNotFoundError(f"{where}: expected a file, got {got}")


def read_text(path: str | os.PathLike, where: str, most: int = MAX_ENTRIES) -> str:
    """Read a UTF-8 file, every line ending in "\\n"; errors begin with `where`.

    Raises FileNotFoundError if it is no regular file, ValueError if it is not UTF-8, too large, or
    has more than `most` entries.
    """
    check_is_file(path, where)
    if (size := os.path.getsize(path)) > MAX_TEXT:
        raise ValueError(f"{where}: expected at most {MAX_TEXT:,} bytes, got {size:,}: split it")
    content = Path(path).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        got = f"got the byte {error.object[error.start]:#x}: save the file as UTF-8"
        raise ValueError(f"{where}, line {line}: expected UTF-8, {got}") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if (entries := sum(map(text.count, (",", ";", "\t", "\n", "[", "{", '":')))) > most:
        raise ValueError(f"{where}: expected at most {most:,} entries, got {entries:,}: split it")
    return text


def read_json(path: str | os.PathLike, where: str, most: int = MAX_ENTRIES) -> Any:
    """Read a JSON file; raises as `read_text` and `parse_json`."""
    return parse_json(read_text(path, where, most), where)


def parse_json(text: str, where: str) -> Any:
    """Parse a JSON text; raises ValueError, which begins with `where`, for what is no JSON.

    NaN, Infinity and numbers beyond a float's range are none: they lead comparisons astray. Nor is
    an object with two entries of one name.
    """

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError(f"{number[:60]} is no finite number")
        return int(number) if number.lstrip("-").isdecimal() else value

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(content := dict(pairs)) < len(pairs):
            ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise ValueError(f"two entries {short_repr(name)}")
        return content

    try:
        hooks = dict.fromkeys(("parse_float", "parse_int", "parse_constant"), finite)
        return json.loads(text, object_pairs_hook=unique, **hooks)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected JSON, got {error}") from error


def check_fields(content: object, where: str, **kinds: Any) -> dict[str, Any]:
    """Return `content`, a dict with text as keys, if each named entry is of its kind.

    `name=str`, or `template=str | None` for an entry that may be missing; True is no number. Raises
    ValueError, which begins with `where`.
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


def validate_name(name: object, where: str, folder: bool = False) -> str:
    """Return a class's name if it can stand in a prompt and a line; with `folder`, a data set's.

    That one names a run's folder and may come from a file of others: it must be one component of a
    path. Raises ValueError, which begins with `where`.
    """
    text = name if isinstance(name, str) else ""
    most, blank, other = (180, " .", r"/\\") if folder else (MAX_NAME, " _", r"\udc80-\udcff")
    bad = rf"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udc7f\udd00-\udfff{other}]"
    long = len(text.encode(errors="surrogatepass")) > most
    if long or not text.strip(blank) or re.search(bad, text):
        kind = "data set's name, good for a folder" if folder else "class's name"
        expected = f"a {kind}, up to {most} bytes, no control characters"
        raise ValueError(f"{where}: expected {expected}, got {short_repr(name)}: rename it")
    return text


def canonical_classname(name: object, where: str) -> str:
    """Return a class name as prompts have it, single spaces for `_`; raises as `validate_name`."""
    return " ".join(validate_name(name, where).replace("_", " ").split())


def check_template(template: object) -> str | tuple[str, ...]:
    """Return a template as a text, several as a tuple; ValueError unless each has `{}` once."""
    texts = [template] if isinstance(template, str) else template
    if not isinstance(texts, Sequence) or not 1 <= len(texts) <= MAX_TEMPLATES:
        got = len(texts) if isinstance(texts, Sequence) else short_repr(template)
        raise ValueError(f"template: expected 1 to {MAX_TEMPLATES:,} texts, got {got}")
    for text in texts:
        is_text = isinstance(text, str) and len(text) <= MAX_TEMPLATE
        if not is_text or text.count("{}") != 1 or set("{}") & set(text.replace("{}", "")):
            expected = f"up to {MAX_TEMPLATE} characters with {{}} once, where the class name goes"
            raise ValueError(f"template {short_repr(text)}: expected {expected}")
    return str(texts[0]) if len(texts) == 1 else tuple(map(str, texts))


def check_class_keys(keys: list | None, count: int, where: str) -> list[str] | None:
    """Return what the files of a data set call its classes; ValueError unless a text for each."""
    if keys is not None and (len(keys) != count or not all(type(key) is str for key in keys)):
        got = short_repr(keys)
        raise ValueError(f"{where}: expected class_keys, a text for each of {count}, got {got}")
    return keys


def escape_formula(value: object) -> object:
    """Return a value for a CSV file: before a text that a spreadsheet would compute stands a '."""
    if not isinstance(value, str):
        return value
    value = value.replace("\0", r"\x00")  # which Python 3.10 cannot write
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


@contextmanager
def explain_write_error(path: str | os.PathLike) -> Iterator[None]:
    """Make an OSError of the block name the path it writes to, and a fix."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            expected, fix = "free space", "free some, or write to another disk"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            expected, fix = "a folder to write to", "allow it, or write to another folder"
        elif error.errno == errno.ENOENT and not os.path.isdir(os.path.dirname(path) or "."):
            expected, fix = "its folder", "it was removed meanwhile: run the command again"
        else:
            raise
        text = f"{path}: expected {expected}, got {error.strerror}: {fix}"
        raise type(error)(text) from error


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a new file to write to, which replaces what is at `path` at the end of the block.

    It is on the disk before, so that also after a power cut one of the two is whole. If the block
    raises, also when interrupted, what was there stays and the new file goes; of a process that was
    killed it stays. Raises FileExistsError if `path` is a folder, a device or a pipe.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path}: expected a file to replace, got a folder, device or pipe")
    with explain_write_error(path):
        unfinished = _create_unfinished(path)
        try:
            yield unfinished
            with open(unfinished, "r+b") as file:
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise


def _create_unfinished(path: Path) -> Path:
    """Create the empty file `path`.part, or `path`-2.part, … : what is there is not touched."""
    for number in count(1):
        suffix = f"-{number}.part" if number > 1 else ".part"
        with suppress(FileExistsError):
            (unfinished := path.with_name(path.name + suffix)).touch(exist_ok=False)
            return unfinished


def write_rows(path: str | os.PathLike, header: Iterable, rows: Iterable[Iterable]) -> None:
    """Write a CSV file whole; bytes of a file's name that are no text are spelt out."""
    with atomic_write(path) as unfinished:
        with unfinished.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            writer.writerows(map(escape_formula, row) for row in chain([header], rows))


@contextmanager
def file_lock(path: Path, busy: str | None = None) -> Iterator[None]:
    """Let one process at a time into the block, by an empty file, where the file system has locks.

    The lock ends with the process: a file left behind stops nobody. Creates its folder. While
    another is in the block, waits, or raises BlockingIOError with text `busy`. Raises
    FileExistsError if no file has its name.
    """
    with explain_write_error(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path}: expected a file, got a folder or pipe: remove it")
    with ExitStack() as files:
        while fcntl:
            with explain_write_error(path):
                file = files.enter_context(open(path, "ab"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
                # Its owner has removed it since, if the name is of another file now, or of none.
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                        break
            except BlockingIOError:
                raise BlockingIOError(busy) from None
            except OSError:  # such as ENOLCK, ENOTSUP of a network's
                break
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
