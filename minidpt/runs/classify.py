"""Classify images, however many: each result goes out as it comes, and none is kept."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

from ..data.folders import images_in, unread_notes
from ..inference import PREDICT_BATCH, Result
from ..model import PromptedCLIP
from ..support.files import escape_formula, explain_full_disk
from ..support.progress import print_line, print_notes, track
from .entrypoint import print_error

MAX_LINE = 2**16  # bytes of a path


def classify(
    model: PromptedCLIP,
    batches: Iterable[list[str]],
    top: int,
    workers: int | None,
    table: str | None,
    lines: str | None,
    stdout: TextIO,
    explain: Callable[[str], Path] | None = None,
) -> int:
    """Print the likeliest classes of each image, and write them into new files.

    batches: of paths; a list of them, or an iterator that waits for the next one.
    table: a CSV file; lines: a file of JSON, or "-": `stdout`, instead of text. Both have a
        result as it comes, also if nobody reads any more what is printed.
    explain: called with the path of each image that could be read; returns a file to name.

    Returns 2 if an image could not be read, after the others.
    """
    total = sum(map(len, batches)) if isinstance(batches, list) else 0
    status, closed, message = 0, None, ""
    with ExitStack() as stack:
        outputs = [partial(print_json, stdout) if lines == "-" else print_classes]
        if table:
            outputs.append(partial(write_rows, stack.enter_context(new_file(table))))
        if lines not in (None, "-"):
            outputs.append(partial(print_json, stack.enter_context(new_file(lines))))
        results = (each for paths in batches for each in model.predict_each(paths, top, workers))
        if total > PREDICT_BATCH and not stdout.isatty():
            results = track(results, "images", total)
        for path, result in stack.enter_context(closing(results)):
            failed = isinstance(result, Exception)
            if failed:
                status = 2
                if str(result) != message:  # that of a model is the same for all images
                    print_error(result)
                message = str(result)
            explained = explain(path) if explain and not failed else None
            for output in list(outputs):
                try:
                    output(path, result, explained)
                except BrokenPipeError as error:
                    closed = error
                    outputs.remove(output)
            if not outputs:
                break
    if closed:
        raise closed
    return status


def print_classes(path: str, result: Result, explained: Path | None) -> None:
    """Print a line of text; none for an image that was not read."""
    if not isinstance(result, Exception):
        guesses = ", ".join(f"{name} {100 * share:.1f} %" for name, share in result)
        print_line(f"{path}: {guesses}" + (f" -> {explained}" if explained else ""))


def print_json(file: TextIO, path: str, result: Result, explained: Path | None) -> None:
    """Print JSON in a line of ASCII: "image", "predictions" or "error", "explained" if it is."""
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


def write_rows(file: TextIO, path: str, result: Result, explained: Path | None) -> None:
    """Write a row of CSV for each class of an image, and before the first image the header."""
    writer = csv.writer(file)
    if not file.tell():
        writer.writerow(("image", "class", "probability"))
    for name, share in () if isinstance(result, Exception) else result:
        writer.writerow(map(escape_formula, (path, name, f"{share:.6f}")))
    file.flush()


@contextmanager
def new_file(path: str) -> Iterator[TextIO]:
    """Open a new file; if the block raises, it goes while it is empty, else a line says so."""
    with explain_full_disk(path):
        file = open(path, "x", newline="", encoding="utf-8", errors="backslashreplace")
        try:
            with file:
                yield file
        except BaseException:
            if os.path.getsize(path):
                print_error(f"{path}: stopped early, it lacks images")
            else:
                os.unlink(path)
            raise


def image_batches(arguments: list[str]) -> Iterable[list[str]]:
    """List image files, of each folder the images in it and below; "-": `read_lines`."""
    if arguments == ["-"]:
        return read_lines(0)
    files = []
    for path in arguments:
        if not os.path.isdir(path):
            files.append(path)
            continue
        images = images_in(path)
        print_notes(f"{path}: {note}" for note in unread_notes(images.unread))
        files += images or [path]  # without an image it is an error in its place
    return [files]


def read_lines(descriptor: int) -> Iterator[list[str]]:
    """Yield the paths that come in one read of a file descriptor: its complete lines.

    Each line is a path, also an empty one: it gets an answer. The rest of a very long one is lost.
    """
    rest = b""
    while chunk := os.read(descriptor, MAX_LINE):
        *lines, rest = (rest + chunk).split(b"\n")
        rest = rest[:MAX_LINE]
        if lines:
            yield [os.fsdecode(line[:MAX_LINE].removesuffix(b"\r")) for line in lines]
    if rest:
        yield [os.fsdecode(rest.removesuffix(b"\r"))]
