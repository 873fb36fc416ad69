"""Classify images, however many: each result goes out as it comes, and none is kept."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

from ..data.folders import images_in, unread_notes
from ..inference import PREDICT_BATCH, Prediction
from ..model import PromptedCLIP
from ..support.files import explain_full_disk, writing_rows
from ..support.progress import Progress, print_line
from .entrypoint import print_error

MAX_LINE = 2**16  # bytes of a path

Result = list[Prediction] | ValueError | OSError
Output = Callable[[str, Result, Path | None], None]  # takes path, result, file that explains it


def classify(
    model: PromptedCLIP,
    batches: Iterable[list[str]],
    top: int,
    workers: int | None = None,
    table: str | None = None,
    lines: str | None = None,
    stdout: TextIO | None = None,
    explain: Callable[[str], Path] | None = None,
) -> int:
    """Print the likeliest classes of each image, and write them into new files.

    batches: of paths; a list of them, or an iterator that waits for the next one.
    table: a CSV file, which is there at the end, whole: also if nobody reads what is printed any
        more; and when it ends early, with the images so far.
    lines: a file of JSON, a line for each image as it comes; "-": `stdout`, instead of text.
    explain: called with the path of each image that could be read; the file it returns is named
        beside the classes, and in JSON.

    Returns 2 if an image could not be read, after the others.
    """
    total = sum(map(len, batches)) if isinstance(batches, list) else None
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
        results = stack.enter_context(closing(_predict(model, batches, top, workers)))
        try:
            for number, (path, result) in enumerate(results, start=1):
                explained = None
                if isinstance(result, Exception):
                    status = 2
                    print_error(result)
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
        print_error(f"{' and '.join(files)}: stopped early, it has {count}{of} images")
    if stop or pipe:
        raise stop or pipe
    return status


def _predict(
    model: PromptedCLIP, batches: Iterable[list[str]], top: int, workers: int | None
) -> Iterator[tuple[str, Result]]:
    for paths in batches:
        yield from model.predict_each(paths, top, workers)


def print_classes(path: str, result: Result, explained: Path | None) -> None:
    """A line of text; none for an image that was not read."""
    if not isinstance(result, Exception):
        guesses = ", ".join(f"{name} {100 * share:.1f} %" for name, share in result)
        print_line(f"{path}: {guesses}" + (f" -> {explained}" if explained else ""))


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
    """A new CSV file with a row for each class of an image; see `writing_rows`."""
    with writing_rows(path, ("image", "class", "probability")) as write:

        def output(image: str, result: Result, explained: Path | None) -> None:
            if not isinstance(result, Exception):
                write((image, name, f"{share:.6f}") for name, share in result)

        yield output


@contextmanager
def json_lines(path: str) -> Iterator[Output]:
    """A new file with a line of JSON for each image; gone if the block raises without a line."""
    file = open(path, "x", encoding="ascii")
    try:
        yield partial(print_json, file)
    except BaseException:
        if not file.tell():
            os.unlink(path)
        raise
    finally:
        with explain_full_disk(path):
            file.close()


def image_batches(arguments: list[str]) -> Iterable[list[str]]:
    """List the files of `--image`, of each folder the images in it and below; "-": `read_lines`.

    Raises FileNotFoundError for a folder without images.
    """
    if arguments == ["-"]:
        return read_lines(0)
    files = []
    for path in arguments:
        if not os.path.isdir(path):
            files.append(path)
            continue
        images = images_in(path)
        note = "".join(unread_notes(images.unread))
        if not images:
            more = f"; {note}" if note else ""
            raise FileNotFoundError(f"folder {path}: expected images in it, got none{more}")
        if note:
            print_line(f"note: {path}: {note}")
        files += images
    return [files]


def read_lines(descriptor: int) -> Iterator[list[str]]:
    """Yield the paths that come in one read of a file descriptor: its complete lines.

    Each line is a path, also an empty one, so that whoever asks gets an answer to each. Of one
    longer than any path the beginning is, and its rest is not kept.
    """
    rest = b""
    while chunk := os.read(descriptor, MAX_LINE):
        *lines, rest = (rest + chunk).split(b"\n")
        rest = rest[:MAX_LINE]
        if lines:
            yield [_path(line) for line in lines]
    if rest:
        yield [_path(rest)]


def _path(line: bytes) -> str:
    return os.fsdecode(line[:MAX_LINE].removesuffix(b"\r"))
