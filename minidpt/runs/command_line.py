"""The command lines of train.py and eval.py: options of runs as `config.py` declares them."""

import argparse
import errno
import os
import re
from argparse import ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from contextlib import suppress
from dataclasses import Field, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ..checkpoints.pretrained import NAMES
from ..config import COMMON, KINDS, check_option
from ..data.samples import ReadOptions
from ..support.files import check_template, read_text, short_repr, to_single_line
from .config import FIELDS, GROUPS, OPTIONS, OUTPUT, RunConfig, expand_grid, flag
from .folders import CONFIG, RECORD, SWEEP, RunFolder, is_sweep


class Parser(argparse.ArgumentParser):
    """Parses a script's command line; options that were not given are not in its result.

    text: the description; of a script, its docstring, of which the first lines are shown.
    """

    def __init__(self, text: str = "", **settings: Any):
        super().__init__(
            description="\n\n".join(text.split("\n\n")[:2]),
            formatter_class=partial(RawDescriptionHelpFormatter, max_help_position=26),
            allow_abbrev=False,
            add_help=False,
            argument_default=argparse.SUPPRESS,
            **settings,
        )
        self.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
        self.groups = {title: self.add_argument_group(title) for title in GROUPS}

    def add_run_options(self, command: str | None = None, **changes: dict[str, Any]) -> None:
        """Add the options of runs: all for train.py, for eval.py those of a subcommand.

        changes: by option, what `add_argument` is to be told otherwise.
        """
        for name, about in OPTIONS.items():
            if command is not None and command not in about.eval_commands:
                continue
            default = FIELDS[name].default
            settings: dict[str, Any] = {"help": about.help} | changes.get(name, {})
            if about.choices:
                settings["help"] = f"{', '.join(about.choices)}: {settings['help']}"
            if command is None and default not in (None, False):
                settings["help"] += f" (default: {default})"
            kind = FIELDS[name].type.removesuffix(" | None")
            if FIELDS[name].type == "bool":
                settings["action"] = "store_true"
            elif kind == "bool":
                settings["action"] = argparse.BooleanOptionalAction
            elif "tuple" in kind:
                settings |= {"action": StoreTemplates, "nargs": "+", "metavar": about.metavar}
            else:
                settings["type"] = value_type(FIELDS[name])
                settings["metavar"] = about.metavar or ("N" if kind == "int" else None)
                settings.setdefault("nargs", "+" if about.is_grid else None)
            self.groups[about.group].add_argument(flag(name), **settings)

    def error(self, message: str) -> NoReturn:
        script = self.prog.partition(" ")[0]
        message = message.removeprefix("argument ")
        self.exit(2, f"{script}: error: {to_single_line(message)} (--help lists all options)\n")


class StoreTemplates(argparse.Action):
    """Stores one or more templates; a value without `{}` is a file with one a line."""

    def __call__(self, parser: Any, namespace: Namespace, values: Any, *option: Any) -> None:
        texts = []
        for text in values:
            where = f"--template: {short_repr(text)} without {{}} is a file of templates"
            texts += [text] if "{}" in text else map(str.strip, read_text(text, where).split("\n"))
        setattr(namespace, self.dest, check_template([*filter(None, texts)]))


def value_type(about: Field) -> Any:
    """Return the function that makes an option's value of its text, for argparse."""
    limits, (_, expected) = about.metadata["option"], KINDS[about.type.removesuffix(" | None")]

    def value(text: str) -> Any:
        if limits.is_path:
            return path_option(text)
        converted = text
        with suppress(ValueError):  # then `check_option` refuses the text
            converted = {"a whole number": int, "a number": float}.get(expected, str)(text)
        try:
            return check_option(about, converted)
        except (TypeError, ValueError) as error:
            message = str(error).removeprefix(f"{about.name}: ").removeprefix(f"{about.name} ")
            raise ArgumentTypeError(message) from None

    return value


def path_option(text: str) -> str:
    """Return the path of an option, its ~ expanded; an unset variable gives an empty one."""
    if not text:
        raise ArgumentTypeError("expected a path, got an empty text")
    try:
        os.lstat(text)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            got = f"one of {len(os.fsencode(text))} bytes"
            raise ArgumentTypeError(f"expected a shorter path, got {got}") from None
    return os.path.expanduser(text)


class TrainCommand(NamedTuple):
    """What train.py is asked for."""

    options: dict[str, Any]  # those that were given, or are in a file; lists make a sweep
    out: str | None  # a folder, as is `resume`
    resume: str | None


def parse_train_command(text: str) -> TrainCommand:
    """Parse the command line. text: the docstring of train.py, for --help."""
    parser = Parser(text, usage="%(prog)s [options]")
    parser.add_run_options()
    add = parser.groups[COMMON].add_argument
    add("--out", type=path_option, metavar="DIR",
        help="new folder for a run or sweep (default: in runs/)")  # fmt: skip
    add("--resume", type=path_option, metavar="DIR",
        help="resume the interrupted run or sweep in this folder, with its settings")  # fmt: skip
    add("--config", type=path_option, metavar="FILE",
        help="take the settings of this config.json; other options override them")  # fmt: skip
    options = vars(parser.parse_args())
    out, resume, config = (options.pop(name, None) for name in ("out", "resume", "config"))
    for name in (name for name in options if OPTIONS[name].is_path and name != "data"):
        if options[name] not in NAMES and os.path.exists(options[name]):
            options[name] = os.path.realpath(options[name])  # eval.py may be called from elsewhere
    for name, value in (("--config", config), ("--out", out)):
        if resume and value:
            parser.error(f"{name}: expected without --resume, got both: leave one out")
    if resume or config:
        earlier = read_earlier(config, resume)
        if resume:
            check_moved(parser, options, earlier)
        options, out = earlier | options, resume or out
    if options.get("dataset") and options.get("data") is None:
        parser.error("--dataset: expected --data, the folder it lies in")
    if options.get("csc") and options.get("classes") == "base":
        parser.error("--csc: expected without --classes base, got both: leave one out")
    return TrainCommand(options, out, resume)


def read_earlier(config: str | None, resume: str | None) -> dict[str, Any]:
    """Return the options in the file that --config or --resume names."""
    path = Path(config or resume)
    if resume:
        path /= SWEEP if is_sweep(path) else CONFIG
        if not path.is_file():
            raise ValueError(f"--resume: expected a run folder, with {CONFIG}, got {resume}")
    options = RunFolder(path.parent).read_json(path.name)
    record = options.pop(RECORD, None)
    if not options:
        raise ValueError(f"{path}: expected the settings of a run, got none: pass its {CONFIG}")
    if resume and isinstance(record, dict):
        options["precision"] = record.get("precision")
    expand_grid(options, str(path))  # raises ValueError for what are no options
    return options


def check_moved(parser: Parser, options: dict[str, Any], earlier: dict[str, Any]) -> None:
    """Exit with an error if options beside --resume make another run."""
    changed = []
    for name, value in options.items():
        there = earlier.get(name, FIELDS[name].default)
        value = list(value) if isinstance(value, tuple) else value  # as JSON has it
        if not OPTIONS[name].resume_may_change and value not in (there, [there]):
            changed.append(flag(name))
    if changed:
        fix = "leave out, or start another run with --config"
        parser.error(f"{', '.join(sorted(changed))}: expected the run's with --resume: {fix}")


# fmt: off
COMMANDS = {  # what it takes, what it does, its arguments beside the options of runs
    "test": ("RUN ...", "test runs on their own test images, or on other data",
             ("runs", "--per-class", "--csv", "--overwrite", "--among-all")),
    "predict": ("RUN IMAGE ...", "classify images",
                ("run", "images", "--top", "--unknown-below", "--csv", "--json", "--features",
                 "--overwrite", "--attention-maps")),
    "table": ("DIR", "print and write the table of all runs in a folder", ("folder",)),
    "report": ("DIR ...", "write report.html of runs from their files",
               ("folders", "--image-root")),
    "export": ("RUN FILE", "write a run's model as a program that classifies images",
               ("run", "file", "--overwrite")),
    "published": ("DIR --data DATA", "test prompts of the published code of CoOp or DPT",
                  ("folder", "--per-class", "--csv", "--overwrite")),
}
PATH = {"type": path_option}
ARGUMENTS = {
    "runs": PATH | dict(nargs="+", metavar="RUN", help="run folders, all with the same CLIP"),
    "run": PATH | dict(metavar="RUN", help="run folder that train.py has written"),
    "images": dict(nargs="+", metavar="IMAGE", help="images or folders of images; '-': paths from "
        "standard input, one per line, each answered at once"),
    "folder": PATH | dict(metavar="DIR", help="folder of runs"),
    "folders": PATH | dict(nargs="+", metavar="DIR", help="folder of a run, or of several runs"),
    "file": PATH | dict(metavar="FILE", help="new file: .pt2 for torch.export.load, or .onnx"),
    "--image-root": PATH | dict(metavar="DIR", help="folder of the run's images, if it has moved"),
    "--among-all": dict(action="store_true", help="choose among all of the run's classes, even if "
        "the data have only some"),
    "--per-class": dict(action="store_true", help="also print each class's accuracy and mistakes"),
    "--top": dict(type=value_type(FIELDS["top_k"]), default=5, metavar="N",  # as bounded as top_k
        help="classes of each image (default: 5)"),
    "--unknown-below": dict(type=float, metavar="P", help="call an image unknown if "
        "its likeliest class has a lower probability (0 to 1)"),
    "--features": PATH | dict(metavar="FILE", help="new .npz file for the normalised features of "
        "images and classes"),
    "--overwrite": dict(action="store_true", help="replace the files of an earlier command"),
    "--csv": PATH | dict(metavar="FILE", help="new file for the classes of each image, with "
        "probabilities"),
    "--json": PATH | dict(metavar="FILE",
        help="new file with a line of JSON for each image; '-': standard output"),
    "--attention-maps": PATH | dict(metavar="DIR", help="new folder with a PNG for each image that "
        "shows where the model looks, before and after tuning"),
}
OF_RUN = {  # what options of runs say where a run has its own
    "model": {"help": "name or path of CLIP, if it has moved"},
    "device": {"help": "cpu, cuda, cuda:N, xpu or mps (default: the run's)"},
    "precision": {"help": "precision of the frozen CLIP (default: the run's)"},
}
MARKS = {  # of what commands write, in their first bytes
    "--csv": rb"image,label,class,probability,|class,accuracy,right,", "--json": rb'\{"image": ',
    "--features": rb"PK.{28}paths\.npy",
}
OF_TABLE = {"--csv": {"help": "new file for the table of --per-class"}}
CHANGES = {  # else OF_RUN
    "test": {**OF_RUN, **OF_TABLE,
             "data": {"nargs": None, "help": "other data to test on, given as to train.py"},
             "classes": {"help": "classes to test on"},
             "image_root": {"help": "folder of the run's images, if it has moved; with --data "
                            "the folder that the paths in a CSV file start from"}},
    "published": {**OF_TABLE,
                  "data": {"nargs": None, "required": True, "help": "the data set to test on"},
                  "folder": {"help": "output folder of the published code"},
                  "model": {"help": f"{', '.join(NAMES)}, or a checkpoint (default: ViT-B/32)"}},
}
# fmt: on


def parse_eval_command(text: str) -> Namespace:
    """Parse the command line; options that are not given are None. text: eval.py's docstring."""
    parser = Parser(text, usage="%(prog)s COMMAND ... [options]")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND",
                                     prog=parser.prog, title="commands")  # fmt: skip
    for name, (takes, help_text, arguments) in COMMANDS.items():
        usage = f"%(prog)s {takes} [options]"
        command = commands.add_parser(name, help=help_text, text=help_text, usage=usage)
        changes = CHANGES.get(name, OF_RUN)
        command.add_run_options(name, **changes)
        for argument in arguments:
            owner = command.groups[OUTPUT] if argument.startswith("--") else command
            owner.add_argument(argument, **ARGUMENTS[argument] | changes.get(argument, {}))
    options = vars(parser.parse_args())
    names = [*(argument.strip("-").replace("-", "_") for argument in ARGUMENTS), *OPTIONS]
    args = Namespace(**{**dict.fromkeys(names), **options})
    args.max_pixels = args.max_pixels or RunConfig.max_pixels
    check_eval_command(commands.choices[args.command], args)
    return args


def check_eval_command(parser: Parser, args: Namespace) -> None:
    """Exit with an error for options that do not go together, and files that cannot be new."""
    if args.csv and args.command != "predict":
        if not args.per_class:
            parser.error("--csv: expected with --per-class: add it")
        if len(args.runs or [0]) + len(args.dataset or [0]) > 2:
            parser.error("--csv: expected one run and one --dataset, got more")
    if args.command == "test":
        is_other = evaluates_other_data(args)
        of_other = {each.name for each in fields(ReadOptions)} - {"image_root"}
        for name in sorted(of_other | {"classnames", "template", "among_all"}):
            if getattr(args, name) and not is_other:
                parser.error(f"{flag(name)}: expected with --data, --dataset or --classes, got "
                             "none of these: add one")  # fmt: skip
    if args.command == "predict" and "-" in args.images and len(args.images) > 1:
        parser.error("IMAGE: expected '-' alone, got it beside other images")
    if args.unknown_below is not None and not 0 <= args.unknown_below <= 1:
        parser.error(f"--unknown-below: expected 0 to 1, got {args.unknown_below}")
    maps = args.attention_maps and os.path.realpath(args.attention_maps)
    options: dict[str, str] = {}  # by file
    for name, path in new_files(args):
        if (other := options.setdefault(os.path.realpath(path), name)) != name:
            parser.error(f"{name}: expected another file than {other}, got {path} for both")
        if path == "-":
            parser.error(f"{name}: expected a file, got '-'")
        if os.path.lexists(path) and not (args.overwrite and is_output(path, name)):
            expected = "a new file, or with --overwrite an earlier output"
            parser.error(f"{name}: expected {expected}, got {path}")
        if not os.path.isdir(os.path.dirname(path) or "."):
            parser.error(f"{name}: expected a file in a folder that exists, got {path}")
        if maps and Path(os.path.realpath(path)).is_relative_to(maps):
            parser.error(f"{name}: expected a file outside --attention-maps, got {path}")
        if name == "--features" and not path.endswith(".npz"):
            parser.error(f"{name}: expected a name that ends in .npz, got {path}")


def new_files(args: Namespace) -> list[tuple[str, str]]:
    """Return the options that name a file to be written, with the files."""
    files = {"--csv": args.csv, "--json": args.json, "--features": args.features}
    return [each for each in files.items() if each[1] and each != ("--json", "-")]


def is_output(path: str, name: str) -> bool:
    """Whether a file may be one that an earlier command has written for an option."""
    if os.path.islink(path) or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return bool(re.match(MARKS[name], file.read(100), re.DOTALL))


def evaluates_other_data(args: Namespace) -> bool:
    """Whether the test is another than the one that train.py ends with."""
    return args.data is not None or args.dataset is not None or args.classes is not None


def published_config(args: Namespace) -> RunConfig:
    """Return the options of runs that `published` was given, others with their defaults."""
    values = {name: getattr(args, name) for name in OPTIONS if not OPTIONS[name].is_grid}
    options = {name: value for name, value in values.items() if value is not None}
    return RunConfig.from_dict({"model": "ViT-B/32", **options})
