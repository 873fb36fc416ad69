"""Test runs of train.py, classify images with one, export it, or tabulate many.

python eval.py --run RUN                      # its own test images again
python eval.py --run RUN --per-class          # and how each class fares
python eval.py --run RUN --data OTHER         # other data
python eval.py --run RUN --classes new        # base-to-new
python eval.py --run RUN --image a.jpg b.jpg  # or a folder
python eval.py --run RUN --image - --json -   # a service: paths in, JSON out
python eval.py --run RUN --image a.jpg --explain DIR  # a PNG of where it looks
python eval.py --run RUN --export FILE.pt2    # a program for torch alone
python eval.py --published OUT --data DATA    # prompts of the published code
python eval.py --report DIR                   # report.html of a run or a sweep
python eval.py --table DIR                    # all runs in a folder
torchrun --nproc_per_node=2 -- eval.py --run RUN    # by 2 processes
"""

from __future__ import annotations

import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TextIO

from minidpt.checkpoints.pretrained import NAMES, is_here, load
from minidpt.checkpoints.published import infer_config, read_published
from minidpt.clip import pictures
from minidpt.clip.white import White, white_notes
from minidpt.config import PromptConfig
from minidpt.data.batches import white_of
from minidpt.data.copies import copies_note
from minidpt.data.splits import split_content
from minidpt.exporting import check_target, export
from minidpt.ranks import ALONE, Ranks, join, started
from minidpt.runs.attention_pngs import attention_map_folder
from minidpt.runs.classify import classify, picture_paths
from minidpt.runs.command_line import run_command
from minidpt.runs.devices import choose_device, keep_freed_memory, place
from minidpt.runs.drawing import font_notes
from minidpt.runs.eval_options import is_elsewhere, new_files, parse_arguments
from minidpt.runs.evaluation import TestSet, percent_correct, predicted, zero_shot_accuracy
from minidpt.runs.folders import (
    CONFIG,
    MODEL,
    SPLIT,
    SUMMARY,
    Run,
    check_outside,
    folders_of,
)
from minidpt.runs.precision import AUTO, PRECISIONS, choose_precision
from minidpt.runs.predictions import print_class_accuracy
from minidpt.runs.processes import command_of
from minidpt.runs.progress_line import say, say_notes
from minidpt.runs.report import write_report
from minidpt.runs.results import noted_tests, record_cross_dataset
from minidpt.runs.sources import sources_of, tests_of
from minidpt.runs.tables import write_tables
from minidpt.trained import PromptedCLIP, build_model, load_model

CLIP_SETTINGS = {"model": str, "device": str, "precision": str, "exact_gelu": bool,
                 "head_width": int | None, "image_size": int | None}  # fmt: skip
DATA_SETTINGS = {"data": str, **dict.fromkeys(("dataset", "classnames", "template"), str | None)}


def main() -> int:
    """`evaluate`, with `--json -` so that nothing but JSON goes to standard output."""
    args, stdout = parse_arguments(__doc__), sys.stdout
    with redirect_stdout(sys.stderr if args.json == "-" else stdout):
        return evaluate(args, stdout)


def evaluate(args: Namespace, stdout: TextIO) -> int:
    """Test, classify or print a table."""
    pictures.MAX_PIXELS = args.max_pixels
    tasks = (args.table, args.report, args.export, args.published, args.explain)
    alone = any(tasks) or args.image == ["-"]
    if alone and not started().first:
        return 0  # several processes share tests and the pictures of a list
    if args.table:
        say(*write_tables(args.table).splitlines())
        return 0
    if args.report:
        for folder in args.report:
            notes = write_report(folder, partial(model_of, Run(folder), args), args.root)
            say(*(f"note: {folder}: {note}" for note in notes), f"{folder}: report.html")
        return 0

    if args.export:
        check_target(args.export)
    keep_freed_memory()
    if args.published:
        return test_published(args)

    # One CLIP for all runs. All files of the runs are read now: a damaged one is an error now.
    runs = [Run.open(folder) for folder in args.run]
    configs = [run.read_json(CONFIG, **DATA_SETTINGS, **CLIP_SETTINGS) for run in runs]
    settings = one_clip(args, configs)
    device, precision = settings.pop("device"), settings.pop("precision")
    ranks = ALONE if alone else join(device)
    other, tests, learned_from = is_elsewhere(args), [], []
    if args.image or args.export:
        noted = configs[0]["data"], split_content(runs[0].path(SPLIT)).get("root") or ""
        data = [Path(place) for place in (*(args.image or []), *noted) if place]
    else:
        tests = tests_of(args, runs, configs)
        data = chain.from_iterable(folders_of(dataset) for dataset, _ in tests)
        learned_from = [train_images(run, args.root) for run in runs]
    check_new_files(args, data)
    if other:
        for run in runs:
            noted_tests(run)
    clip, _ = load(settings.pop("model"), **settings)
    precision, reason = ranks.tell(choose_precision(precision, device, clip))[0]
    if args.precision == AUTO:
        say(f"CLIP {clip.name} on {device} in {precision} ({reason})")
    clip = place(clip, device, precision)
    models = [load_model(run.path(MODEL), clip) for run in runs]
    for run in runs:
        if not run.path(SUMMARY).is_file():
            again = shlex.join([*command_of("train"), "--resume", str(run.folder)])
            say(f"note: the training of {run.folder} was stopped before its end, or still runs; "
                f"to go on: {again}")  # fmt: skip
    where = f"on {device} in {precision}"
    if args.image:
        return classify_images(args, runs[0], models[0], ranks, stdout)
    if args.export:
        export(models[0], args.export)
        size = clip.visual.resolution
        say(f"{args.export}: images (B, 3, {size}, {size}) to probabilities of "
            f"{len(models[0].classnames)} classes, {os.path.getsize(args.export) / 1e6:,.1f} MB "
            f"({clip.name} {where})")  # fmt: skip
        return 0
    for dataset, numbers in tests:
        test = TestSet(dataset.test, clip, workers=args.workers, ranks=ranks)
        if other:
            say(dataset.source)
            say_notes(dataset.notes)
        for number in numbers:
            run, model = runs[number], models[number]
            name = f"{run.folder}: " if len(runs) > 1 else ""
            notes = [*seen_notes(learned_from[number], test), *show_by_white(model.white, test)]
            if args.classes == "new" and args.data is None and args.dataset is None:
                if configs[number].get("classes") != "base":
                    notes.append("the run has learned from these classes, too: they are not new")
            say_notes(f"{name}{note}" for note in notes)
            if other:
                name = f"{run.folder} on {dataset.name}: "
                model = model.for_classes(dataset.classnames, dataset.template)
            zero_shot, result = test_model(name, model, test, where, args)
            if other and ranks.first:
                record_cross_dataset(run, dataset, precision, zero_shot, result)
    return 0


def check_new_files(args: Namespace, data: Iterable[Path]) -> None:
    """ValueError if a file is to be written into one of the data folders."""
    files = new_files(args)
    data = list(data) if files else []
    for option, file in files.items():
        check_outside(Path(file), data, "file", option)


def classify_images(
    args: Namespace, run: Run, model: PromptedCLIP, ranks: Ranks, stdout: TextIO
) -> int:
    """The classes of pictures, and with --explain a PNG of each; as `classify` returns."""
    paths = picture_paths(args.image)
    options = args.top, args.workers, args.csv, args.json, stdout
    if args.explain is None:
        return classify(model, paths, *options, ranks=ranks)
    root = split_content(run.path(SPLIT)).get("root")
    data = map(Path, [*args.image, *([root] if root else [])])
    say_notes(font_notes(model.classnames))
    with attention_map_folder(args.explain, data, model, args.top) as draw_maps:
        return classify(model, paths, *options, draw_maps)


def seen_notes(learned_from: set[str], test: TestSet) -> Iterator[str]:
    """What of the test pictures was trained on, by name or as a copy."""
    if seen := sum(file in learned_from for file in test.files):
        yield f"{seen} of the test images were trained on"
    others = [file for file in test.files if file not in learned_from]
    if test.ranks.first and (note := copies_note(learned_from, others)):
        yield note


def show_by_white(white: White | None, test: TestSet) -> list[str]:
    """Show the test pictures by a model's white level, completed by their own; returns notes."""
    if white is None:  # of runs of earlier versions
        test.show_by(None)
        return []
    white = white_of(test.deep, white, test.workers, test.ranks)
    kinds = chain.from_iterable(test.ranks.tell(list(test.deep.values())))
    test.show_by(white)
    return white_notes(white, kinds)


def test_model(
    begin: str, model: PromptedCLIP, test: TestSet, where: str, args: Namespace
) -> tuple[float, float]:
    """Zero-shot CLIP's accuracy and the model's, in percent; the first rank prints them."""
    labels = predicted(model, test).labels
    zero_shot = zero_shot_accuracy(model, test)
    result = percent_correct(labels, test.labels)
    if test.ranks.first:
        say(f"{begin}{model.config.method} accuracy {result:.2f} %, zero-shot {zero_shot:.2f} % "
            f"on {len(test)} test images ({model.clip.name} {where})")  # fmt: skip
        if args.per_class:
            print_class_accuracy(model.classnames, test.labels, labels, args.csv)
    return zero_shot, result


def test_published(args: Namespace) -> int:
    """Test prompts of the published code: their shapes tell all but `top_k` and the position."""
    tensors = read_published(args.published)
    device = choose_device(args.device)
    sources = sources_of(args, {})
    datasets = [source.open() for source in sources]
    check_new_files(args, chain.from_iterable(map(folders_of, datasets)))
    clip, _ = load(args.model or "ViT-B/32", exact_gelu=bool(args.exact_gelu),
                   head_width=args.head_width, image_size=args.image_size)  # fmt: skip
    precision, _ = choose_precision(args.precision, device, clip)
    clip = place(clip, device, precision)
    say_notes(clip.notes)
    inferred = infer_config(tensors, len(clip.visual.transformer.resblocks))
    config = PromptConfig(**inferred.config, top_k=args.top_k or PromptConfig.top_k,
                          class_token_position=args.class_token_position or "end")  # fmt: skip
    say(f"published {', '.join(f'{name} {value}' for name, value in inferred.config.items())}")
    for dataset in datasets:
        say(dataset.source)
        say_notes(dataset.notes)
        if inferred.classes not in (None, len(dataset.classnames)):
            raise ValueError(
                f"--published {args.published}: its prompts belong to {inferred.classes} classes, "
                f"{dataset.name} has {len(dataset.classnames)}: test it on the data of its training"
            )
        model = build_model(clip, dataset.classnames, dataset.template, config).eval()
        model.load_published(tensors)
        test = TestSet(dataset.test, clip, workers=args.workers)
        say_notes(show_by_white({}, test))
        model.white = test.white
        test_model(f"{dataset.name}: ", model, test, f"on {device} in {precision}", args)
    return 0


def model_of(run: Run, args: Namespace) -> PromptedCLIP:
    """The model of a run, with its CLIP, if that is on this machine: none is downloaded for it."""
    settings = one_clip(args, [run.read_json(CONFIG, **CLIP_SETTINGS)])
    device, precision, name = (settings.pop(key) for key in ("device", "precision", "model"))
    if name in NAMES and not is_here(name):
        raise FileNotFoundError(f"CLIP {name} is not on this machine (--model: where it is)")
    clip, _ = load(name, **settings)
    precision, _ = choose_precision(precision, device, clip)
    return load_model(run.path(MODEL), place(clip, device, precision))


def one_clip(args: Namespace, configs: list[dict]) -> dict:
    """The `CLIP_SETTINGS` of all runs, the device as torch's. ValueError if they differ."""
    settings = {}
    for name in CLIP_SETTINGS:
        given = getattr(args, name, None)
        found = dict.fromkeys(c.get(name) for c in configs) if given is None else {given: None}
        if len(found) > 1:
            fix = f", or pass --{name}" if name in ("model", "device", "precision") else ""
            raise ValueError(
                f"--run: expected runs with one CLIP, got {name} {' and '.join(map(str, found))}: "
                f"test them one by one{fix}"
            )
        (settings[name],) = found
    if (precision := settings["precision"]) not in PRECISIONS and not args.precision:
        raise ValueError(f"{CONFIG}: expected precision {', '.join(PRECISIONS)}, got '{precision}'")
    try:
        settings["device"] = choose_device(settings["device"], started())
    except ValueError:
        settings["device"] = choose_device(args.device, started())  # the run's device is not here
    return settings


def train_images(run: Run, root: str | None) -> set[str]:
    """The files that a run has learned from, in `root` if it is not the noted one; links resolved.

    Raises ValueError if split.json is damaged.
    """
    split = split_content(run.path(SPLIT))
    files = (os.path.join(root or split.get("root") or "", file) for file, _, _ in split["train"])
    return set(map(os.path.realpath, files))


if __name__ == "__main__":
    run_command(main)
