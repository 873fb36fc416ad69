"""Classifying pictures, however many: each result goes out as it comes, and none is kept."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import BinaryIO, TextIO

from ..clip.workers import PAUSE
from ..data.folders import images_in, unread_notes
from ..files import naming, writing_rows
from ..ranks import ALONE, Ranks
from ..trained import PREDICT_BATCH, Prediction, PromptedCLIP
from .command_line import report
from .progress_line import Progress, say

MAX_LINE = 2**16  # bytes of a path
GRACE = 0.001  # seconds to wait for one more path before those that are there are classified

Result = list[Prediction] | ValueError | OSError
Output = Callable[[str, Result, Path | None], None]  # takes path, result, file that explains it


def classify(
    model: PromptedCLIP,
    paths: Iterable[str],
    top: int,
    workers: int | None = None,
    table: str | None = None,
    lines: str | None = None,
    stdout: TextIO | None = None,
    explain: Callable[[str], Path] | None = None,
    ranks: Ranks = ALONE,
) -> int:
    """Print the likeliest classes of each picture, and write them into new files.

    table: a CSV file, which is there at the end, whole: also if nobody reads what is printed any
        more; and when it ends early, with the images so far.
    lines: a file of JSON, a line for each picture as it comes; "-": `stdout`, instead of text.
    explain: called with the path of each picture that could be read; the file it returns is named
        beside the classes, and in JSON.
    ranks: share a list of pictures; the first prints and writes, and the others return 0.

    Returns 2 if a picture could not be read, after the others.
    """
    if not ranks.first:
        help_classify(model, paths, top, workers, ranks)
        return 0
    total = len(paths) if isinstance(paths, list) else None
    stdout = stdout or sys.stdout
    show = partial(print_json, stdout) if lines == "-" else print_classes
    files = {table: csv_table} if table else {}
    if lines not in (None, "-"):
        files[lines] = json_lines
    status, count, pipe, stop = 0, 0, None, None
    with ExitStack() as stack:
        outputs = [stack.enter_context(kind(path)) for path, kind in files.items()]
        progress = None
        if total and total > PREDICT_BATCH and not stdout.isatty():
            progress = stack.enter_context(Progress("images", total))
        each = model.predict_each(paths, top, workers)
        if ranks.size > 1:
            each = classified_by_all(model, paths, top, workers, ranks)
        results = stack.enter_context(closing(each))
        try:
            for number, (path, result) in enumerate(results, start=1):
                explained = None
                if isinstance(result, Exception):
                    status = 2
                    report(result)
                elif explain:
                    explained = explain(path)
                for output in outputs:
                    output(path, result, explained)
                count += not isinstance(result, Exception)
                try:
                    if not pipe:
                        show(path, result, explained)
                except BrokenPipeError as error:
                    if not outputs:
                        raise
                    pipe = error
                if progress and (number % PREDICT_BATCH == 0 or number == total):
                    progress(number)
        except BaseException as error:
            if not outputs or not count:
                raise
            stop = error
    if stop:
        of = f" of {total}" if total else ""
        report(f"{' and '.join(files)}: stopped early, it has {count}{of} images")
    if stop or pipe:
        raise stop or pipe
    return status


def blocks_of(paths: list[str]) -> list[list[str]]:
    """What is classified at once. Several ranks take turns at it."""
    starts = range(0, len(paths), PREDICT_BATCH)
    return [paths[start : start + PREDICT_BATCH] for start in starts]


def help_classify(
    model: PromptedCLIP, paths: list[str], top: int, workers: int | None, ranks: Ranks
) -> None:
    """Classify what is this rank's, for the first one to take."""
    own = dict(list(enumerate(blocks_of(paths)))[ranks.rank :: ranks.size])
    with closing(model.predict_each(chain(*own.values()), top, workers)) as results:
        for number, block in own.items():
            content = [
                [type(result) is not ValueError, str(result)]
                if isinstance(result, Exception)
                else result
                for _, result in islice(results, len(block))
            ]
            ranks.put(f"classified {number}", content)


def classified_by_all(
    model: PromptedCLIP, paths: list[str], top: int, workers: int | None, ranks: Ranks
) -> Iterator[tuple[str, Result]]:
    """`predict_each` of all pictures in their order, most of it what others `help_classify`."""
    blocks = blocks_of(paths)
    with closing(model.predict_each(chain(*blocks[:: ranks.size]), top, workers)) as own:
        for number, block in enumerate(blocks):
            if number % ranks.size == 0:
                yield from islice(own, len(block))
                continue
            for path, result in zip(block, ranks.take(f"classified {number}"), strict=True):
                if result and isinstance(result[-1], str):
                    result = (OSError if result[0] else ValueError)(result[1])
                else:
                    result = [Prediction(*each) for each in result]
                yield path, result


def print_classes(path: str, result: Result, explained: Path | None) -> None:
    """A line of text; none for a picture that was not read."""
    if not isinstance(result, Exception):
        guesses = ", ".join(f"{name} {100 * share:.1f} %" for name, share in result)
        say(f"{path}: {guesses}" + (f" -> {explained}" if explained else ""))


def print_json(file: TextIO, path: str, result: Result, explained: Path | None) -> None:
    """A line of JSON, in ASCII: {"image": ..., "predictions": [...]}, or "error" in their place.

    With "explained": the file that explains them, if there is one.
    """
    entry = {"image": path}
    if isinstance(result, Exception):
        entry["error"] = str(result)
    else:
        entry["predictions"] = [
            {"class": name, "probability": round(share, 6)} for name, share in result
        ]
    if explained:
        entry["explained"] = str(explained)
    print(json.dumps(entry, allow_nan=False), file=file, flush=True)


@contextmanager
def csv_table(path: str) -> Iterator[Output]:
    """A new CSV file with a row for each class of a picture; see `writing_rows`."""
    with writing_rows(path, ("image", "class", "probability")) as write:

        def output(picture: str, result: Result, explained: Path | None) -> None:
            for name, share in () if isinstance(result, Exception) else result:
                write((picture, name, f"{share:.6f}"))

        yield output


@contextmanager
def json_lines(path: str) -> Iterator[Output]:
    """A new file with a line of JSON for each picture; gone if the block raises without a line."""
    file = open(path, "x", encoding="ascii")
    try:
        yield partial(print_json, file)
    except BaseException:
        if not file.tell():
            os.unlink(path)
        raise
    finally:
        with naming(path):
            file.close()


def picture_paths(given: list[str]) -> list[str] | Iterator[str]:
    """The files of `--image`, and of each folder the images in it and below; "-": `arriving`.

    Raises FileNotFoundError for a folder without images.
    """
    if given == ["-"]:
        return arriving(open(0, "rb", closefd=False))  # sys.stdin could not be closed while read
    files = []
    for path in given:
        if os.path.isdir(path):
            found = images_in(path)
            note = "".join(unread_notes(found.unread))
            if not found:
                more = f"; {note}" if note else ""
                raise FileNotFoundError(f"folder {path}: expected images in it, got none{more}")
            if note:
                say(f"note: {path}: {note}")
            files += found
        else:
            files.append(path)
    return files


def arriving(stream: BinaryIO) -> Iterator[str]:
    """The lines of a stream, which are paths, as they come; `PAUSE` when there are no more by now.

    Each line is a path, also an empty one, so that whoever asks gets an answer to each. Of one
    longer than any path the beginning is, and its rest is not kept.
    """
    arrived: Queue[str | OSError | None] = Queue(2 * PREDICT_BATCH)

    def read() -> None:
        try:
            for line in iter(lambda: stream.readline(MAX_LINE), b""):
                arrived.put(os.fsdecode(line.removesuffix(b"\n").removesuffix(b"\r")))
                while len(line) == MAX_LINE and not line.endswith(b"\n"):
                    line = stream.readline(MAX_LINE)
            arrived.put(None)
        except OSError as error:
            arrived.put(error)

    Thread(target=read, daemon=True).start()  # nothing ends the wait for a line
    while True:
        try:
            path = arrived.get(timeout=GRACE)
        except Empty:
            yield PAUSE
            path = arrived.get()
        if path is None:
            return
        if isinstance(path, OSError):
            raise path
        yield path
