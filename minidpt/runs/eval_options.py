"""The command lines of eval.py: a subcommand each, with its own options."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError, Namespace

from .config import DATA, OPTIONS, OUTPUT, RunConfig, flag
from .parser import Parser, path_option


def positive(text: str) -> int:
    """Return a whole number from 1 on, for argparse."""
    value = int(text) if text.isdecimal() and len(text) < 20 else 0
    if not 1 <= value <= 10**6:
        bound = "most 1,000,000" if value else "least 1"
        raise ArgumentTypeError(f"expected at {bound}, got {text[:60]}")
    return value


# fmt: off
COMMANDS = {  # what it takes, what it does, its arguments beside the options of runs
    "test": ("RUN ...", "test runs on their own test images, or on other data",
             ("runs", "--image-root", "--per-class", "--csv")),
    "predict": ("RUN IMAGE ...", "classify images",
                ("run", "images", "--top", "--csv", "--json", "--attention-maps")),
    "table": ("DIR", "print and write the table of all runs in a folder", ("folder",)),
    "report": ("DIR ...", "write report.html of runs from their files",
               ("folders", "--image-root")),
    "export": ("RUN FILE", "write a run's model as a program that classifies images",
               ("run", "file")),
    "published": ("DIR --data DATA", "test prompts of the published code of CoOp or DPT",
                  ("folder", "--per-class", "--csv")),
}
PATH = {"type": path_option}
ARGUMENTS = {
    "runs": PATH | dict(nargs="+", metavar="RUN", help="run folders of train.py, with one CLIP"),
    "run": PATH | dict(metavar="RUN", help="run folder of train.py"),
    "images": PATH | dict(nargs="+", metavar="IMAGE", help="images, or folders of images; '-': "
        "paths from standard input, one a line, answered as they come"),
    "folder": PATH | dict(metavar="DIR", help="folder of runs, or output of the published code"),
    "folders": PATH | dict(nargs="+", metavar="DIR", help="a run, or a folder of runs"),
    "file": PATH | dict(metavar="FILE", help="new file: .pt2 for torch.export.load, or .onnx"),
    "--image-root": PATH | dict(metavar="DIR", help="the run's image folder, if it has moved"),
    "--per-class": dict(action="store_true", help="print the accuracy of each class, too, and "
        "what it is mistaken for"),
    "--top": dict(type=positive, metavar="N", help="classes to print for an image (default: 5)"),
    "--csv": PATH | dict(metavar="FILE", help="new file: classes and probabilities of each image, "
        "or with --per-class the accuracy of each class"),
    "--json": PATH | dict(metavar="FILE", help="new file, a line of JSON for each image as it "
        "comes; '-': standard output, and nothing else goes there"),
    "--attention-maps": PATH | dict(metavar="DIR", help="new folder for a PNG of each image: where "
        "the model looks, before and after tuning"),
}
CHANGES = {  # of the options of runs
    "test": {"data": {"help": "other data to test on, whatever train.py takes"},
             "classes": {"help": "part of the classes to test on: all, base, new"}},
    "published": {"data": {"required": True, "help": "the data set to test on"}},
}
# fmt: on


def parse_arguments(text: str) -> Namespace:
    """Parse the command line; options that are not given are None. text: eval.py's docstring."""
    parser = Parser(text, usage="%(prog)s COMMAND ... [options]")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND",
                                     prog=parser.prog, title="commands")  # fmt: skip
    for name, (takes, help_text, arguments) in COMMANDS.items():
        usage = f"%(prog)s {takes} [options]"
        command = commands.add_parser(name, help=help_text, text=help_text, usage=usage)
        for argument in arguments:
            group = command.group(DATA if argument == "--image-root" else OUTPUT)
            owner = group if argument.startswith("--") else command
            owner.add_argument(argument, **ARGUMENTS[argument])
        command.add_run_options(name, **CHANGES.get(name, {}))
    given = vars(parser.parse_args())
    names = [*(argument.strip("-").replace("-", "_") for argument in ARGUMENTS), *OPTIONS]
    args = Namespace(**{**dict.fromkeys(names), **given})
    args.top, args.max_pixels = args.top or 5, args.max_pixels or RunConfig.max_pixels
    check(commands.choices[args.command], args)
    return args


def check(parser: Parser, args: Namespace) -> None:
    """Exit with an error for options that do not go together, and files that cannot be new."""
    if args.csv and args.command != "predict":
        if not args.per_class:
            parser.error("--csv: expected with --per-class, whose table it holds")
        if len(args.runs or [0]) + len(args.dataset or [0]) > 2:
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
    for option, path in new_files(args):
        if os.path.exists(path):
            parser.error(f"{option}: expected a new file, got {path}, which exists")
        if not os.path.isdir(os.path.dirname(path) or "."):
            parser.error(f"{option}: expected a file in a folder that exists, got {path}")
    if len({os.path.realpath(path) for _, path in new_files(args)}) < len(new_files(args)):
        parser.error(f"--json: expected another file than --csv, got {args.json} for both")


def new_files(args: Namespace) -> list[tuple[str, str]]:
    """Return the options that name a file to be written, with the files."""
    files = [("--csv", args.csv), ("--json", args.json)]
    return [(option, path) for option, path in files if path not in (None, "-")]


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
