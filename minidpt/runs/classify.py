"""Classify images, however many: each result goes out as it comes, and only features are kept."""

from __future__ import annotations

import csv
import json
import os
import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import torch

from ..data.folders import images_in, unread_notes
from ..inference import PREDICT_BATCH, Classification, classify_each
from ..model import PromptedCLIP
from ..support.files import atomic_write, escape_formula, explain_full_disk
from ..support.progress import print_line, print_notes, track
from .entrypoint import print_error

MAX_LINE = 2**16  # bytes of a path
HEADER = ("image", "label", "class", "probability", "unknown", "error")
# What JSON leaves as it is, though terminals act on it, lines may end in it, or UTF-8 lacks it.
UNSAFE = re.compile(r"[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Answer(NamedTuple):
    """What is said of an image.

    result: its classification, or why it could not be read. guesses: the key of a class in the
        files of the data set, its name and probability, best first; none with an error.
    is_unknown: whether the first is below --unknown-below; None without that option.
    maps: the file of its attention maps, if any.
    """

    image: str
    result: Classification | ValueError | OSError
    guesses: list[tuple[str, str, float]]
    is_unknown: bool | None
    maps: Path | None


def classify(
    model: PromptedCLIP,
    batches: Iterable[list[str]],
    args: Namespace,
    stdout: TextIO,
    draw_maps: Callable[[str], Path] | None = None,
) -> int:
    """Print the likeliest classes of each image, and write them to the files that `args` names.

    batches: of paths; a list of them, or an iterator that waits for the next one.
    stdout: has JSON instead of text for "--json -". Files have a result as it comes, also if nobody
        reads any more what is printed; the features are written after the last.
    draw_maps: called with the path of each image that could be read; returns a file to name.

    Returns 2 if an image could not be read, after the others.
    """
    total = sum(map(len, batches)) if isinstance(batches, list) else 0
    status, closed, message, answers = 0, None, "", []
    with ExitStack() as stack:
        outputs = [partial(print_json, stdout) if args.json == "-" else print_classes]
        is_stream = args.images == ["-"]
        for path, write in ((args.csv, write_rows), (args.json, print_json)):
            if path not in (None, "-"):
                file = stack.enter_context(open_output(path, args.overwrite, is_stream))
                outputs.append(partial(write, file))
        if args.features:
            outputs.append(answers.append)
        options = args.top, args.workers
        results = (each for paths in batches for each in classify_each(model, paths, *options))
        if total > PREDICT_BATCH and not stdout.isatty():
            results = track(results, "images", total)
        for path, result in stack.enter_context(closing(results)):
            if failed := isinstance(result, Exception):
                status = 2
                if str(result) != message:  # that of a model is the same for all images
                    print_error(result)
                message = str(result)
            maps = draw_maps(path) if draw_maps and not failed else None
            answer = make_answer(model, path, result, args.unknown_below, maps)
            for output in list(outputs):
                try:
                    output(answer)
                except BrokenPipeError as error:
                    closed = error
                    outputs.remove(output)
            if not outputs:
                break
        if args.features:
            write_features(args.features, model, answers)
    if closed:
        raise closed
    return status


def make_answer(
    model: PromptedCLIP,
    image: str,
    result: Classification | ValueError | OSError,
    unknown_below: float | None,
    maps: Path | None,
) -> Answer:
    """Name the classes of an image, and decide whether it is unknown."""
    if isinstance(result, Exception):
        return Answer(image, result, [], None, maps)
    keys, names = model.class_keys or model.classnames, model.classnames
    guesses = [(keys[n], names[n], share) for n, share in zip(result.labels, result.probabilities)]
    is_unknown = None if unknown_below is None else guesses[0][2] < unknown_below
    return Answer(image, result, guesses, is_unknown, maps)


def print_classes(answer: Answer) -> None:
    """Print a line of text; none for an image that was not read."""
    if answer.guesses:
        guesses = ", ".join(f"{name} {100 * share:.1f} %" for _, name, share in answer.guesses)
        guesses = f"unknown (likeliest: {guesses})" if answer.is_unknown else guesses
        print_line(f"{answer.image}: {guesses}" + (f" -> {answer.maps}" if answer.maps else ""))


def print_json(file: TextIO, answer: Answer) -> None:
    """Print a line of JSON: "image", then "error", or "predictions" and what else there is."""
    entry = {"image": answer.image}
    if answer.is_unknown is not None:
        entry["unknown"] = answer.is_unknown
    if answer.guesses:
        entry["predictions"] = [
            {"label": key, "class": name, "probability": round(share, 6)}
            for key, name, share in answer.guesses
        ]
    else:
        entry["error"] = str(answer.result)
    if answer.maps:
        entry["explained"] = str(answer.maps)
    line = json.dumps(entry, allow_nan=False, ensure_ascii=False)
    print(UNSAFE.sub(lambda letter: f"\\u{ord(letter[0]):04x}", line), file=file, flush=True)


def write_rows(file: TextIO, answer: Answer) -> None:
    """Write a row of CSV for each class of an image, or its error; before the first the header."""
    writer = csv.writer(file)
    if not file.tell():
        writer.writerow(HEADER)
    unknown = "unknown" if answer.is_unknown else ""
    rows = [(key, name, f"{share:.6f}", unknown, "") for key, name, share in answer.guesses]
    for row in rows or [("", "", "", "", str(answer.result))]:
        writer.writerow(map(escape_formula, (answer.image, *row)))
    file.flush()


@torch.no_grad()
def write_features(path: str, model: PromptedCLIP, answers: list[Answer]) -> None:
    """Write an .npz file of normalised features, of the images that could be read and the classes.

    paths: (N,), features: (N, E), classnames and class_keys: (C,), class_features: (C, E).
    """
    answers = [answer for answer in answers if answer.guesses]
    class_features = model.text_features(normalize=True).cpu().numpy()
    features = [answer.result.features.numpy() for answer in answers]
    with atomic_write(path) as unfinished, open(unfinished, "wb") as file:
        np.savez(
            file,
            paths=np.array([answer.image for answer in answers], dtype=str),
            features=np.array(features, dtype=np.float32).reshape(-1, class_features.shape[1]),
            classnames=np.array(model.classnames),
            class_keys=np.array(model.class_keys or model.classnames),
            class_features=class_features,
        )


@contextmanager
def open_output(path: str, overwrite: bool, is_stream: bool) -> Iterator[TextIO]:
    """Open a file for results, which has each as it comes.

    If the block raises, a new file goes while it is empty, else a line says so. One that is there
    is replaced after the block; but that of a stream, which may never end, at once.
    """
    settings = {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}
    if overwrite and os.path.exists(path) and not is_stream:
        with atomic_write(path) as unfinished, open(unfinished, "w", **settings) as file:
            yield file
        return
    with explain_full_disk(path):
        file = open(path, "w" if overwrite else "x", **settings)
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
