"""Classify images, however many: each result goes out as it comes, and only features are kept."""

import csv
import json
import os
import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from ..data.folders import images_in, unread_notes
from ..inference import PREDICT_BATCH, Classification, classify_each
from ..model import PromptedCLIP
from ..support.files import atomic_write, escape_formula, explain_write_error
from ..support.progress import print_line, print_notes, track
from .entrypoint import print_error

MAX_LINE = 2**16  # bytes of a path
HEADER = ("image", "label", "class", "probability", "unknown", "error")
# What JSON leaves as it is, though terminals act on it, lines may end in it, or UTF-8 lacks it.
UNSAFE = re.compile(r"[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


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
    status, closed, message, features = 0, None, "", {}
    with ExitStack() as stack:
        outputs = [partial(print_json, stdout) if args.json == "-" else print_classes]
        for path, write in ((args.csv, write_rows), (args.json, print_json)):
            if path not in (None, "-"):
                outputs.append(partial(write, stack.enter_context(open_output(path, args))))
        options = args.top, args.workers
        results = (each for paths in batches for each in classify_each(model, paths, *options))
        if total > PREDICT_BATCH and not stdout.isatty():
            results = track(results, "images", total)
        for path, result in stack.enter_context(closing(results)):
            answer = describe(model, path, result, args.unknown_below)
            if "error" in answer:
                status = 2
                if answer["error"] != message:  # that of a model is the same for all images
                    print_error(result)
                message = answer["error"]
            else:
                answer |= {"explained": str(draw_maps(path))} if draw_maps else {}
                features |= {path: result.features} if args.features else {}
            for output in list(outputs):
                try:
                    output(answer)
                except BrokenPipeError as error:
                    closed = error
                    outputs.remove(output)
            if not outputs and not args.features:
                break
        if args.features:
            write_features(args.features, model, features)
    if closed:
        raise closed
    return status


def describe(
    model: PromptedCLIP, image: str, result: Classification | Exception, unknown_below: float | None
) -> dict[str, Any]:
    """Return what JSON says of an image: "error", or "predictions" and perhaps "unknown"."""
    if isinstance(result, Exception):
        return {"image": image, "error": str(result)}
    keys, names = model.class_keys or model.classnames, model.classnames
    predictions = [
        {"label": keys[label], "class": names[label], "probability": round(share, 6)}
        for label, share in zip(result.labels, result.probabilities)
    ]
    answer = {"image": image, "predictions": predictions}
    if unknown_below is not None:
        answer["unknown"] = result.probabilities[0] < unknown_below
    return answer


def print_classes(answer: dict[str, Any]) -> None:
    """Print a line of text; none for an image that was not read."""
    if "error" in answer:
        return
    shares = [(each["class"], 100 * each["probability"]) for each in answer["predictions"]]
    guesses = ", ".join(f"{name} {percent:.1f} %" for name, percent in shares)
    guesses = f"unknown (likeliest: {guesses})" if answer.get("unknown") else guesses
    maps = f" -> {answer['explained']}" if "explained" in answer else ""
    print_line(f"{answer['image']}: {guesses}{maps}")


def print_json(file: TextIO, answer: dict[str, Any]) -> None:
    """Print a line of JSON in UTF-8, with the bytes of a path that are none as escapes."""
    line = json.dumps(answer, allow_nan=False, ensure_ascii=False)
    print(UNSAFE.sub(lambda letter: f"\\u{ord(letter[0]):04x}", line), file=file, flush=True)


def write_rows(file: TextIO, answer: dict[str, Any]) -> None:
    """Write a row of CSV for each class of an image, or its error; before the first the header."""
    writer = csv.DictWriter(file, HEADER, extrasaction="ignore")
    if not file.tell():
        writer.writeheader()
    answer = {**answer, "unknown": "unknown" if answer.get("unknown") else ""}
    for guess in answer.get("predictions", [{}]):
        row = {**answer, **guess}
        row |= {"probability": f"{guess['probability']:.6f}"} if guess else {}
        writer.writerow({name: escape_formula(value) for name, value in row.items()})
    file.flush()


@torch.no_grad()
def write_features(path: str, model: PromptedCLIP, features: dict[str, Tensor]) -> None:
    """Write an .npz file of normalised features of images, by path, and of the classes.

    paths: (N,), features: (N, E), classnames and class_keys: (C,), class_features: (C, E).
    """
    class_features = model.text_features(normalize=True).cpu()
    rows = torch.cat([class_features[:0], *(each[None] for each in features.values())])
    with atomic_write(path) as unfinished, open(unfinished, "wb") as file:
        np.savez(
            file, paths=np.array([*features], dtype=str), features=rows,
            classnames=model.classnames, class_keys=model.class_keys or model.classnames,
            class_features=class_features,
        )  # fmt: skip


@contextmanager
def open_output(path: str, args: Namespace) -> Iterator[TextIO]:
    """Open a file for results, which has each as it comes.

    If the block raises, a new file goes while it is empty, else a line says so. With --overwrite
    one that is there is replaced after the block; that of a stream, which may never end, at once.
    """
    settings = {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}
    if args.overwrite and os.path.exists(path) and args.images != ["-"]:
        with atomic_write(path) as unfinished, open(unfinished, "w", **settings) as file:
            yield file
        return
    with explain_write_error(path):
        file = open(path, "w" if args.overwrite else "x", **settings)
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
