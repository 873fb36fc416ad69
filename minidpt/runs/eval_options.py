"""The command lines of eval.py: a subcommand each, with its own options."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError, Namespace
from typing import Any

from .config import OPTIONS, RunConfig, flag
from .parser import Parser, path_option


def parse_arguments(text: str) -> Namespace:
    """Parse the command line; options that are not given are None. text: eval.py's docstring."""
    parser = Parser(text, usage="%(prog)s COMMAND ... [options]")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND",
                                     prog=parser.prog, title="commands")  # fmt: skip
    for name, (takes, help_text, add_arguments) in COMMANDS.items():
        usage = f"%(prog)s {takes} [options]"
        command = commands.add_parser(name, help=help_text, text=help_text, usage=usage)
        add_arguments(command)
        command.add_run_options(name, **CHANGES.get(name, {}))
    given = vars(parser.parse_args())
    command = commands.choices[given["command"]]
    defaults = {action.dest: None for action in command._actions if action.dest != "help"}
    args = Namespace(**{**EVERYWHERE, **defaults, **given})
    args.max_pixels = args.max_pixels or RunConfig.max_pixels
    check(command, args)
    return args


def add_test(parser: Parser) -> None:
    """Add what `test` takes beside options of runs."""
    parser.add_argument("runs", nargs="+", type=path_option, metavar="RUN",
                        help="run folders of train.py, all with one CLIP")  # fmt: skip
    add = parser.group("data").add_argument
    add("--image-root", type=path_option, metavar="DIR",
        help="the run's image folder, if it has moved since the training")  # fmt: skip
    add_per_class(parser)


def add_predict(parser: Parser) -> None:
    """Add what `predict` takes beside options of runs."""
    parser.add_argument("run", type=path_option, metavar="RUN", help="run folder of train.py")
    parser.add_argument("images", nargs="+", type=path_option, metavar="IMAGE",
        help="images, or folders of images; '-': paths from standard input, one a line, each "
        "answered as it comes")  # fmt: skip
    add = parser.group("output").add_argument
    # fmt: off
    add("--top", type=positive, default=5, metavar="N",
        help="classes to print for an image (default: 5)")
    add("--csv", type=path_option, metavar="FILE",
        help="new file for them: image,class,probability")
    add("--json", type=path_option, metavar="FILE",
        help="new file for them, a line of JSON for each image as it comes; '-': standard output, "
        "and nothing else goes there")
    add("--attention-maps", type=path_option, metavar="DIR",
        help="new folder for a PNG of each image: where the model looks, before and after tuning")
    # fmt: on


def add_table(parser: Parser) -> None:
    """Add what `table` takes."""
    parser.add_argument("folder", type=path_option, metavar="DIR", help="folder of runs")


def add_report(parser: Parser) -> None:
    """Add what `report` takes beside options of runs."""
    parser.add_argument("folders", nargs="+", type=path_option, metavar="DIR",
                        help="a run, or a folder of runs")  # fmt: skip
    parser.group("data").add_argument("--image-root", type=path_option, metavar="DIR",
        help="the run's image folder, if it has moved since the training")  # fmt: skip


def add_export(parser: Parser) -> None:
    """Add what `export` takes beside options of runs."""
    parser.add_argument("run", type=path_option, metavar="RUN", help="run folder of train.py")
    parser.add_argument("file", type=path_option, metavar="FILE",
        help="new file: .pt2 for torch.export.load, or .onnx")  # fmt: skip


def add_published(parser: Parser) -> None:
    """Add what `published` takes beside options of runs."""
    parser.add_argument("folder", type=path_option, metavar="DIR",
                        help="output folder of the published code of CoOp or DPT")  # fmt: skip
    add_per_class(parser)


def add_per_class(parser: Parser) -> None:
    """Add the accuracy of each class to the output."""
    add = parser.group("output").add_argument
    add("--per-class", action="store_true",
        help="print the accuracy of each class, too, and what it is mistaken for")  # fmt: skip
    add("--csv", type=path_option, metavar="FILE", help="new file for --per-class")


COMMANDS = {
    "test": ("RUN ...", "test runs on their own test images, or on other data", add_test),
    "predict": ("RUN IMAGE ...", "classify images", add_predict),
    "table": ("DIR", "print and write the table of all runs in a folder", add_table),
    "report": ("DIR ...", "write report.html of runs from their files", add_report),
    "export": ("RUN FILE", "write a run's model as a program that classifies images", add_export),
    "published": ("DIR --data DATA", "test prompts of the published code", add_published),
}
CHANGES: dict[str, dict[str, dict[str, Any]]] = {  # of the options of runs
    "test": {
        "data": {"help": "other data to test on, whatever train.py takes"},
        "classes": {"help": "part of the classes to test on: all, base, new"},
    },
    "published": {"data": {"required": True, "help": "the data set to test on"}},
}
EVERYWHERE = dict(csv=None, per_class=False, classes=None, image_root=None, max_pixels=None)


def positive(text: str) -> int:
    """Return a whole number from 1 on, for argparse."""
    value = int(text) if text.isdecimal() and len(text) < 20 else 0
    if not 1 <= value <= 10**6:
        bound = "most 1,000,000" if value else "least 1"
        raise ArgumentTypeError(f"expected at {bound}, got {text[:60]}")
    return value


def check(parser: Parser, args: Namespace) -> None:
    """Exit with an error for options that do not go together, and files that cannot be new."""
    is_test = args.command in ("test", "published")
    if is_test and args.csv and not args.per_class:
        parser.error("--csv: expected with --per-class, whose table it holds")
    if is_test and args.csv and len(getattr(args, "runs", "x")) + len(args.dataset or "x") > 2:
        parser.error("--csv: expected one run and one --dataset, got more")
    if args.command == "test":
        is_other = evaluates_other_data(args)
        if args.image_root and is_other:
            parser.error("--image-root: expected for the run's own test; elsewhere pass --data")
        for name in ("classnames", "template"):
            if getattr(args, name) and not is_other:
                parser.error(f"{flag(name)}: expected with --data, --dataset or --classes: the "
                             "run's own test has the run's")  # fmt: skip
    if args.command == "predict" and "-" in args.images and len(args.images) > 1:
        parser.error("IMAGE: expected '-' alone, got it beside other images")
    new_files = [(name, getattr(args, name, None)) for name in ("csv", "json")]
    new_files = [(flag(name), path) for name, path in new_files if path not in (None, "-")]
    for option, path in new_files:
        if os.path.exists(path):
            parser.error(f"{option}: expected a new file, got {path}, which exists")
        if not os.path.isdir(os.path.dirname(path) or "."):
            parser.error(f"{option}: expected a file in a folder that exists, got {path}")
    if len({os.path.realpath(path) for _, path in new_files}) < len(new_files):
        parser.error(f"--json: expected another file than --csv, got {args.json} for both")


def evaluates_other_data(args: Namespace) -> bool:
    """Whether the test is another than the one that train.py ends with."""
    return args.data is not None or args.dataset is not None or args.classes is not None


def published_config(args: Namespace) -> RunConfig:
    """Return the options of runs that `published` was given, others with their defaults."""
    options = {"model": args.model or "ViT-B/32"}
    for name, about in OPTIONS.items():
        if "published" in about.commands and not about.is_grid and getattr(args, name) is not None:
            options[name] = getattr(args, name)
    return RunConfig.from_dict(options)
