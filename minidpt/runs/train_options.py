"""The command line of train.py, and the settings that --resume and --config take from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoints.pretrained import NAMES
from ..config import COMMON
from .config import FIELDS, OPTIONS, expand_grid, flag
from .folders import CONFIG, SWEEP, is_sweep, read_options
from .parser import Parser, path_option


class TrainCommand(NamedTuple):
    """What train.py is asked for.

    options: by name those that were given, or are in the file; a list where several values make a
        sweep. source: whose errors they are.
    out, resume: folders, or None.
    """

    options: dict[str, Any]
    source: str
    out: str | None
    resume: str | None


def parse_train_command(text: str) -> TrainCommand:
    """Parse the command line. text: the docstring of train.py, for --help."""
    parser = Parser(text, usage="%(prog)s [options]")
    parser.add_run_options()
    add = parser.group(COMMON).add_argument
    add("--out", type=path_option, metavar="DIR",
        help="new run folder, or folder of a sweep; without it in runs/")  # fmt: skip
    add("--resume", type=path_option, metavar="DIR",
        help="resume the interrupted run or sweep in this folder, by its own settings")  # fmt: skip
    add("--config", type=path_option, metavar="FILE",
        help="settings of an earlier run, its config.json; options beside it override them"
    )  # fmt: skip
    options = vars(parser.parse_args())
    out, resume, config = (options.pop(name, None) for name in ("out", "resume", "config"))
    source = parser.prog
    for name in ("model", "classnames"):  # eval.py may be called from elsewhere
        path = Path(options.get(name, "")).expanduser()
        if name in options and options[name] not in NAMES and path.exists():
            options[name] = str(path.resolve())
    if resume and config:
        parser.error("--config: expected another run's without --resume, which has its own")
    if resume and out:
        parser.error("--out: expected without --resume, which writes to its own folder")
    resume = resume and str(Path(resume).expanduser())
    if resume or config:
        source, earlier = read_earlier(config, resume)
        if resume:
            check_moved(parser, options, earlier)
        options, out = earlier | options, resume or out
    if options.get("dataset") and options.get("data") is None:
        parser.error("--dataset: expected --data, the folder it lies in")
    if options.get("csc") and options.get("classes") == "base":
        parser.error("--csc: expected contexts that new classes can share, got one for each class")
    return TrainCommand(options, source, out, resume)


def read_earlier(config: str | None, resume: str | None) -> tuple[str, dict[str, Any]]:
    """Return the file that --config or --resume names, and the options in it."""
    path = Path(config or resume).expanduser()
    if resume:
        path /= SWEEP if is_sweep(path) else CONFIG
        if not path.is_file():
            raise ValueError(f"--resume: expected a run folder, with {CONFIG}, got {resume}")
    options, record = read_options(path)
    if not options:
        raise ValueError(f"{path}: expected the settings of a run, got none: pass its {CONFIG}")
    if resume and isinstance(record, dict):
        options["precision"] = record.get("precision")
    expand_grid(options, str(path))  # raises ValueError for what are no options
    return str(path), options


def check_moved(parser: Parser, options: dict[str, Any], earlier: dict[str, Any]) -> None:
    """Exit with an error if options beside --resume make another run."""
    changed = [
        flag(name)
        for name, value in options.items()
        if not OPTIONS[name].can_move
        and _listed(earlier.get(name, FIELDS[name].default)) != _listed(value)
    ]
    if changed:
        parser.error(
            f"{', '.join(sorted(changed))}: expected the run's settings with --resume: leave them "
            "out, or begin another run with --config"
        )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
