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
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import NamedTuple, TextIO

import torch

from minidpt.checkpoints.pretrained import NAMES, is_here, load
from minidpt.checkpoints.published import infer_config, read_published
from minidpt.clip import pictures
from minidpt.clip.pictures import MAX_PIXELS, white_notes
from minidpt.clip.workers import default_workers
from minidpt.data.batches import white_of
from minidpt.data.datasets import open_dataset
from minidpt.data.demo import is_demo
from minidpt.data.lists import Dataset, read_split, select_classes, split_content
from minidpt.exporting import check_target, export
from minidpt.files import locked, write_rows
from minidpt.model import PromptConfig
from minidpt.prompts import CLASS_TOKEN_POSITIONS
from minidpt.ranks import ALONE, join, started
from minidpt.runs.classify import classify, picture_paths
from minidpt.runs.command_line import (
    Parser,
    choose_device,
    keep_freed_memory,
    path_option,
    place,
    run_command,
    say,
)
from minidpt.runs.drawing import font_notes
from minidpt.runs.evaluation import (
    TestSet,
    copies_note,
    percent_correct,
    predicted,
    zero_shot_accuracy,
)
from minidpt.runs.explain import Explanations
from minidpt.runs.folders import (
    CONFIG,
    MODEL,
    SPLIT,
    SUMMARY,
    TRANSFER,
    TRANSFER_LOCK,
    Run,
    check_outside,
)
from minidpt.runs.precision import AUTO, PRECISIONS, choose_precision
from minidpt.runs.processes import command_of
from minidpt.runs.report import write_report
from minidpt.runs.results import tested_on, write_tables
from minidpt.trained import PromptedCLIP, build_model, load_model

CLIP_SETTINGS = {"model": str, "device": str, "precision": str, "exact_gelu": bool,
                 "head_width": int | None, "image_size": int | None}  # fmt: skip
DATA_SETTINGS = {"data": str, **dict.fromkeys(("dataset", "classnames", "template"), str | None)}


def parse_arguments():
    """The command line."""
    parser = Parser(__doc__)
    # fmt: off
    add = parser.add_argument_group("what most people need, the first of these or the next")
    task = add.add_mutually_exclusive_group(required=True)
    task.add_argument("--run", nargs="+", type=path_option, metavar="DIR",
        help="run folders of train.py, all with one CLIP")
    task.add_argument("--report", nargs="+", type=path_option, metavar="DIR",
        help="write report.html of a run, or of all runs in a folder, from their files")
    task.add_argument("--table", type=path_option, metavar="DIR",
        help="print and write the table of all runs in a folder")
    task.add_argument("--published", type=path_option, metavar="DIR",
        help="output folder of the published code of CoOp or DPT, tested on --data")
    add = add.add_argument
    add("--image", nargs="+", type=path_option, metavar="FILE",
        help="images, or folders of images, to classify; '-': paths from standard input, one a "
        "line, each answered as it comes")
    add("--per-class", action="store_true",
        help="print the accuracy of each class, too, and what it is mistaken for")
    add("--data", type=path_option, metavar="DIR",
        help="other data to test on, whatever train.py takes")
    add("--root", type=path_option, metavar="DIR",
        help="the run's image folder, if it has moved since the training")
    add("--model", type=path_option, help="CLIP's name or path, if it has moved; of --published, "
        "without it ViT-B/32")
    add("--device", help="cpu, cuda, cuda:N, xpu, mps; without it the run's")

    add = parser.add_argument_group("data").add_argument
    add("--dataset", nargs="+", metavar="NAME", help="which of the known data sets lies there")
    add("--classnames", type=path_option, metavar="FILE",
        help="renames classes: a line 'folder name' for each")
    add("--classes", choices=("all", "base", "new"), help="part of the classes to test on")
    add("--template", help="zero-shot prompt of the other data; without it the data set's")
    add("--workers", type=int, default=default_workers(),
        help="threads that read images; without it one for each processor")
    add("--max-pixels", type=int, default=MAX_PIXELS, help="of an image that is read")

    add = parser.add_argument_group("method").add_argument
    add("--precision", choices=[*PRECISIONS, AUTO],
        help="of the frozen CLIP; without it the run's; auto: measured, as train.py does")
    add("--top-k", type=int, help="of --published: classes that make class-aware prompts; without "
        f"it {PromptConfig.top_k}")
    add("--class-token-position", choices=CLASS_TOKEN_POSITIONS, metavar="WHERE",
        help="of --published: where the class name stands; without it the end")
    add("--exact-gelu", action="store_true", default=None, help="of --published, as for train.py")
    add("--head-width", type=int, help="of --published, as for train.py")
    add("--image-size", type=int, metavar="PIXELS", help="of --published, as for train.py")

    add = parser.add_argument_group("output").add_argument
    add("--top", type=int, default=5, help="classes to print for an image")
    add("--csv", type=path_option, metavar="FILE",
        help="new file for them, image,class,probability, or for --per-class")
    add("--json", type=path_option, metavar="FILE",
        help="new file for them, a line of JSON for each image as it comes; '-': standard output, "
        "and nothing else goes there")
    add("--explain", type=path_option, metavar="DIR",
        help="new folder for a PNG of each image: where the model looks, before and after tuning")
    add("--export", type=path_option, metavar="FILE",
        help="new file .pt2 for torch.export.load, or .onnx: a program that classifies images")
    # fmt: on
    args = parser.parse_args()
    of_published = ("exact_gelu", "head_width", "image_size", "top_k", "class_token_position")
    of_published = [name for name in of_published if getattr(args, name) is not None]
    if of_published and not args.published:
        parser.error(f"--{of_published[0].replace('_', '-')}: expected with --published; a run "
                     "has its own")  # fmt: skip
    if args.published and (not args.data or args.root):
        parser.error("--published: expected --data, the data set it is tested on, and no --root")
    if args.image and args.export:
        parser.error("--export: expected without --image: classify in a command of its own")
    task = "image" if args.image else "export" if args.export else None
    if task and len(args.run or []) != 1:
        parser.error(f"--{task}: expected one --run to classify with")
    if args.image and "-" in args.image[:-1] + args.image[1:]:
        parser.error("--image: expected '-' alone, got it beside other images")
    if args.explain and not args.image:
        parser.error("--explain: expected with --image, what it explains")
    if args.csv and not (args.image or args.per_class):
        parser.error("--csv: expected with --image or --per-class, whose classes it lists")
    if args.json and not args.image:
        parser.error("--json: expected with --image, whose classes it lists")
    if args.csv and len(args.run or []) + len(args.dataset or [1]) > 2:
        parser.error("--csv: expected one --run and one --dataset, got more")
    for option, path in new_files(args).items():
        if os.path.exists(path):
            parser.error(f"{option}: expected a new file, got {path}, which exists")
        if not os.path.isdir(os.path.dirname(path) or "."):
            parser.error(f"{option}: expected a file in a folder that exists, got {path}")
    if args.csv and args.csv == args.json:
        parser.error(f"--json: expected another file than --csv, got {args.json} for both")
    no_test = task or ("table" if args.table else "report" if args.report else None)
    if args.per_class and no_test:
        parser.error(f"--per-class: expected for a test, got --{no_test}")
    of_tests = ("data", "dataset", "classes", "classnames", "template", "root")
    given = [name for name in of_tests if getattr(args, name) is not None]
    if given and task:
        parser.error(f"--{given[0]}: expected for a test, got --{task}")
    if args.report and (wrong := {*given, *("image" for _ in args.image or [])} - {"root"}):
        parser.error(f"--{min(wrong)}: expected with --run, got --report, which tests nothing")
    given += [name for name in ("model", "device", "precision") if getattr(args, name) is not None]
    if given and args.table:
        parser.error(f"--{given[0]}: expected with --run, got --table, which tests nothing")
    if args.root and is_elsewhere(args):
        parser.error("--root: expected for the run's own test alone; elsewhere pass --data")
    for name in ("classnames", "template"):
        if name in given and not is_elsewhere(args):
            parser.error(f"--{name}: expected with --data, --dataset or --classes: the run's own "
                         "test has the run's")  # fmt: skip
    return args


def new_files(args) -> dict[str, str]:
    """Option → the file that is written for it."""
    given = {"--csv": args.csv, "--json": None if args.json == "-" else args.json,
             "--export": args.export}  # fmt: skip
    return {option: path for option, path in given.items() if path is not None}


def is_elsewhere(args) -> bool:
    """Whether the test is another than the one that train.py ends with."""
    return args.data is not None or args.dataset is not None or args.classes is not None


def main() -> int:
    """`evaluate`, with `--json -` so that nothing but JSON goes to standard output."""
    args, stdout = parse_arguments(), sys.stdout
    with redirect_stdout(sys.stderr if args.json == "-" else stdout):
        return evaluate(args, stdout)


def evaluate(args, stdout: TextIO) -> int:
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
        for option, file in new_files(args).items():
            check_outside(Path(file), data, "file", option)
    else:
        tests = tests_of(args, runs, configs)
        learned_from = [train_images(run, args.root) for run in runs]
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
    if args.image:
        paths = picture_paths(args.image)
        options = args.top, args.workers, args.csv, args.json, stdout
        if args.explain is None:
            return classify(models[0], paths, *options, ranks=ranks)
        root = split_content(runs[0].path(SPLIT)).get("root")
        data = [*args.image, *([root] if root else [])]
        for note in font_notes(models[0].classnames):
            say(f"note: {note}")
        with Explanations.new(args.explain, map(Path, data), models[0], args.top) as explanations:
            return classify(models[0], paths, *options, explanations.write)
    if args.export:
        export(models[0], args.export)
        size = clip.visual.resolution
        say(f"{args.export}: images (B, 3, {size}, {size}) to probabilities of "
            f"{len(models[0].classnames)} classes, {os.path.getsize(args.export) / 1e6:,.1f} MB "
            f"({clip.name} on {device} in {precision})")  # fmt: skip
        return 0

    for dataset, numbers in tests:
        test = TestSet(dataset.test, clip, workers=args.workers, ranks=ranks)
        files = [os.path.realpath(item.path) for item in dataset.test]
        if other:
            say(dataset.source)
            for note in dataset.notes:
                say(f"note: {note}")
        for number in numbers:
            run, model = runs[number], models[number]
            by = f" by {run.folder}" if len(runs) > 1 else ""
            if seen := sum(file in learned_from[number] for file in files):
                say(f"note: {seen} of the test images were trained on{by}")
            others = [file for file in files if file not in learned_from[number]]
            if ranks.first and (note := copies_note(learned_from[number], others)):
                say(f"note: {run.folder + ': ' if by else ''}{note}")
            white = model.white
            if white is not None:  # runs of earlier versions have none
                white = white_of(test.deep, white, args.workers, ranks)
                kinds = chain.from_iterable(ranks.tell(list(test.deep.values())))
                for note in white_notes(white, kinds):
                    say(f"note: {note}")
            test.show_by(white)
            begin = f"{run.folder}: " if len(runs) > 1 else ""
            if other:
                begin = f"{run.folder} on {dataset.name}: "
                model = model.for_classes(dataset.classnames, dataset.template)
            zero_shot, result = test_model(begin, model, test, f"on {device} in {precision}", args)
            if other and ranks.first:
                note_transfer(run, dataset, precision, zero_shot, result)
    return 0


def test_model(
    begin: str, model: PromptedCLIP, test: TestSet, where: str, args
) -> tuple[float, float]:
    """Zero-shot CLIP's accuracy and the model's, in percent; the first rank prints them."""
    labels = predicted(model, test).labels
    zero_shot = zero_shot_accuracy(model, test)
    result = percent_correct(labels, test.labels)
    if test.ranks.first:
        say(f"{begin}{model.config.method} accuracy {result:.2f} %, zero-shot {zero_shot:.2f} % "
            f"on {len(test)} test images ({model.clip.name} {where})")  # fmt: skip
        if args.per_class:
            say_classes(model.classnames, test.labels, labels, args.csv)
    return zero_shot, result


def test_published(args) -> int:
    """Test prompts of the published code: their shapes tell all but `top_k` and the position."""
    tensors = read_published(args.published)
    device = choose_device(args.device)
    sources = sources_of(args, {})
    datasets = [source.open() for source in sources]
    clip, _ = load(args.model or "ViT-B/32", exact_gelu=bool(args.exact_gelu),
                   head_width=args.head_width, image_size=args.image_size)  # fmt: skip
    precision, _ = choose_precision(args.precision, device, clip)
    clip = place(clip, device, precision)
    say(*(f"note: {note}" for note in clip.notes))
    inferred = infer_config(tensors, len(clip.visual.transformer.resblocks))
    config = PromptConfig(**inferred.config, top_k=args.top_k or PromptConfig.top_k,
                          class_token_position=args.class_token_position or "end")  # fmt: skip
    say(f"published {', '.join(f'{name} {value}' for name, value in inferred.config.items())}")
    for dataset in datasets:
        say(dataset.source, *(f"note: {note}" for note in dataset.notes))
        if inferred.classes not in (None, len(dataset.classnames)):
            raise ValueError(
                f"--published {args.published}: its prompts belong to {inferred.classes} classes, "
                f"{dataset.name} has {len(dataset.classnames)}: test it on the data of its training"
            )
        model = build_model(clip, dataset.classnames, dataset.template, config).eval()
        model.load_published(tensors)
        test = TestSet(dataset.test, clip, workers=args.workers)
        model.white = white_of(test.deep, workers=args.workers)
        say(*(f"note: {note}" for note in white_notes(model.white, test.deep.values())))
        test.show_by(model.white)
        test_model(f"{dataset.name}: ", model, test, f"on {device} in {precision}", args)
    return 0


def model_of(run: Run, args) -> PromptedCLIP:
    """The model of a run, with its CLIP, if that is on this machine: none is downloaded for it."""
    settings = one_clip(args, [run.read_json(CONFIG, **CLIP_SETTINGS)])
    device, precision, name = (settings.pop(key) for key in ("device", "precision", "model"))
    if name in NAMES and not is_here(name):
        raise FileNotFoundError(f"CLIP {name} is not on this machine (--model: where it is)")
    clip, _ = load(name, **settings)
    precision, _ = choose_precision(precision, device, clip)
    return load_model(run.path(MODEL), place(clip, device, precision))


def say_classes(
    classnames: list[str], labels: torch.Tensor, predicted: torch.Tensor, table: str | None = None
) -> None:
    """A line for each class: its accuracy, and the three that it is mistaken for most often.

    Then the mean of the classes' accuracies. `table`: a CSV file for it, with all mistakes.
    """
    width, rows, shares = max(map(len, classnames)), [], []
    for label, name in enumerate(classnames):
        counts = predicted[labels == label].bincount(minlength=len(classnames)).tolist()
        right, total = counts[label], sum(counts)
        wrong = sorted((-count, i) for i, count in enumerate(counts) if count and i != label)
        mistakes = [f"{classnames[i]} {-count}" for count, i in wrong]
        shares += [100 * right / total] if total else []
        share = f"{shares[-1]:6.2f} %" if total else "     -  "
        taken = f", taken for {', '.join(mistakes[:3])}" if wrong else ""
        say(f"  {name:{width}} {share}  {right} of {total}{taken}")
        rows.append((name, shares[-1] if total else "", right, total, ", ".join(mistakes)))
    say(f"mean of {len(shares)} classes {fmean(shares):.2f} %")
    if table:
        write_rows(table, ("class", "accuracy", "right", "total", "taken for"), rows)


def one_clip(args, configs: list[dict]) -> dict:
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


def tests_of(args, runs: list[Run], configs: list[dict]) -> list[tuple[Dataset, list[int]]]:
    """Data sets to test on, and the numbers of the runs to test on each."""
    tests = {}
    if not is_elsewhere(args):
        for number, run in enumerate(runs):
            dataset = read_split(run.path(SPLIT), args.root)
            tests.setdefault(tuple(dataset.test), (dataset, []))[1].append(number)
        return list(tests.values())
    for number, config in enumerate(configs):
        if args.dataset and args.data is None and is_demo(config["data"]):
            raise ValueError(
                "--dataset: expected --data, the folder it lies in: "
                f"{runs[number].folder} was trained on the demo's drawings"
            )
        for source in sources_of(args, config):
            if source not in tests:
                tests[source] = source.open(), []
            tests[source][1].append(number)
    return list(tests.values())


class Source(NamedTuple):
    """All that decides on pictures and classes of a test."""

    data: str
    dataset: str | None
    classnames: str | None
    template: str | None
    classes: str

    def open(self) -> Dataset:
        """The data set, or the part of it; its name says which."""
        dataset = open_dataset(
            self.data, self.dataset, classnames=self.classnames, template=self.template
        )
        dataset = select_classes(dataset, self.classes)
        return replace(dataset, name=tested_on(dataset.name, self.classes))


def sources_of(args, config: dict) -> list[Source]:
    """What the command line names, completed by where and what a run was trained on."""
    data = config["data"] if args.data is None else args.data
    classes = args.classes or "all"
    if args.data is not None or args.dataset:
        return [
            Source(data, name, args.classnames, args.template, classes)
            for name in args.dataset or [None]
        ]
    classnames = args.classnames or config.get("classnames")
    template = args.template or config.get("template")
    return [Source(data, config.get("dataset"), classnames, template, classes)]


def note_transfer(
    run: Run, dataset: Dataset, precision: str, zero_shot: float, result: float
) -> None:
    """Keep a result on other data beside the run's own, for tables; not what train.py tested.

    Its "settings" are those that are not the run's: `read_results` keeps apart what differs there,
    and the same test by other settings has an entry of its own.
    """
    config, trained_root = run.read_json(CONFIG), run.read_json(SPLIT, root=str)["root"]
    root = str(dataset.root.resolve())
    settings = {
        "tested in": (root, trained_root),
        "tested by": (dataset.template, config.get("template")),
        "tested in precision": (precision, config.get("precision")),
    }
    settings = {name: value for name, (value, own) in settings.items() if value != own}
    tested = dataset.name in noted_tests(run)[0]
    if tested and not settings:
        return
    with locked(run.path(TRANSFER_LOCK)):  # not to lose what another process adds
        _, noted = noted_tests(run)
        taken = tested and root != trained_root  # by other pictures of that name
        entry = ", ".join([dataset.name, *(f"{name} {value}" for name, value in settings.items())])
        noted[entry] = {
            "tested": f"{dataset.name} in {root}" if taken else dataset.name,
            "zero_shot_accuracy": zero_shot,
            "accuracy": result,
            "test_images": len(dataset.test),
            "root": root,
            "template": dataset.template,
            "settings": settings,
        }
        run.write_json(TRANSFER, noted)


def noted_tests(run: Run) -> tuple[dict, dict]:
    """What train.py has tested, and what eval.py has: name → result. Raises as `Run.read_json`."""
    tested = run.read_json(SUMMARY, tests=dict)["tests"] if run.path(SUMMARY).is_file() else {}
    return tested, run.read_json(TRANSFER) if run.path(TRANSFER).is_file() else {}


def train_images(run: Run, root: str | None) -> set[str]:
    """The files that a run has learned from, in `root` if it is not the noted one; links resolved.

    Raises ValueError if split.json is damaged.
    """
    split = split_content(run.path(SPLIT))
    files = (os.path.join(root or split.get("root") or "", file) for file, _, _ in split["train"])
    return set(map(os.path.realpath, files))


if __name__ == "__main__":
    run_command(main)
