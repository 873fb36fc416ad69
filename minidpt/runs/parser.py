"""The parser of the command lines: options within bounds, a short --help, errors of one line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import torch

from ..clip.network import MAX_RESOLUTION
from ..config import BOUNDS as OF_PROMPTS
from ..files import one_line, shown

# The least and the greatest value of each option of the scripts: more is a slip of the hand, and
# would end in want of memory, of threads or of bits.
BOUNDS = {
    "shots": (1, 10**6), "seed": (0, 2**63 - 1), "epochs": (0, 10**6), "batch_size": (1, 10**5),
    "class_chunk": (0, 10**6), "workers": (0, 1000), "max_pixels": (1, 10**12), "top": (1, 10**6),
    "guidance_epochs": (0, 10**6), "warmup_epochs": (0, 10**6), "visual_lr": (0, math.inf),
    "text_lr": (0, math.inf), "image_size": (1, MAX_RESOLUTION), "head_width": (1, 10**4),
    **OF_PROMPTS,
}  # fmt: skip


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Short: one column of options, choices and defaults behind what an option is."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=26)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said, default = action.help, action.default
        if action.choices:
            said = f"{said}: {', '.join(action.choices)}"
        if default in (None, False, argparse.SUPPRESS):
            return said
        default = " ".join(map(str, default)) if isinstance(default, list) else default
        return f"{said} (default: {default})"

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        name = action.metavar or ("N" if action.type is int else default_metavar)
        return f"{name} ..." if action.nargs == "+" else "" if action.nargs == 0 else name

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return action.dest.rpartition("_")[2].upper()


class Parser(argparse.ArgumentParser):
    """An argument parser that knows `BOUNDS`, and whose errors are one line.

    text: a script's docstring; its first lines and examples are shown by --help.
    given: the names of the options that the last command line had.
    """

    def __init__(self, text: str):
        about = "\n\n".join(text.split("\n\n")[:2])
        super().__init__(
            usage="%(prog)s [options]",
            description=about,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
        self.given: set[str] = set()

    def parse_args(self, arguments: Any = None, namespace: Any = None) -> argparse.Namespace:
        """The options; exits as `error` if a number is out of bounds."""
        defaults = {one.dest: one.default for one in self._actions if one.dest != "help"}
        absent = object()
        args = super().parse_args(arguments, argparse.Namespace(**dict.fromkeys(defaults, absent)))
        self.given = {name for name, value in vars(args).items() if value is not absent}
        for name in defaults.keys() - self.given:
            setattr(args, name, defaults[name])
        for name, (least, most) in BOUNDS.items():
            given = getattr(args, name, None)
            for value in given if isinstance(given, list) else [given]:
                if value is not None and not least <= value <= most:
                    bound = f"least {least}" if value < least else f"most {most:,}"
                    self.error(f"{flag(name)}: expected at {bound}, got {value}")
        return args

    def command_line(self, settings: Mapping[str, Any], where: str) -> list[str]:
        """The arguments that say these settings.

        Raises ValueError, which `where` begins, for a name that no option has, and for a value of
        another type than the option's.
        """
        options = {one.dest: one for one in self._actions if one.dest != "help"}
        kinds = {bool: ("true or false", bool), int: ("a whole number", int),
                 finite: ("a number", int, float)}  # fmt: skip
        said = []
        for name, value in settings.items():
            if name not in options:
                got = f"{shown(name)}, which is none: correct or remove it"
                raise ValueError(f"{where}: expected options of {self.prog}, got {got}")
            action, listed = options[name], isinstance(value, list)
            flag, several = action.option_strings[-1], action.nargs == "+"
            if value is None and action.default is None:
                continue
            kind = bool if action.nargs == 0 else action.type
            expected, *types = kinds.get(kind, ("a text", str))
            for one in value if listed and several else [value]:
                option = listed and type(one) is str and one.startswith("-")
                if type(one) not in types or option:
                    expected += ", or a list of them" * several
                    got = f"{shown(one)}: correct or remove it"
                    raise ValueError(f"{where}: {flag}: expected {expected}, got {got}")
            if listed:
                said += [flag, *map(str, value)]
            else:
                said += [flag] * value if kind is bool else [f"{flag}={value}"]
        return said

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: error: {one_line(message)} (--help lists all options)\n")


def flag(name: str) -> str:
    """An option as it is typed, of the name that its value has."""
    return f"--{name.replace('_', '-')}"


def path_option(text: str) -> str:
    """The type of an option that takes a path: no empty one, such as an unset variable gives."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty text")
    return text


def finite(text: str) -> float:
    """The type of an option that takes a number, finite in fp32; float takes nan and inf, too."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) <= torch.finfo(torch.float32).max:
        raise argparse.ArgumentTypeError(f"expected a finite number, got '{text}'")
    return value
