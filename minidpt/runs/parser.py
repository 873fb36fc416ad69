"""The command lines: options of runs as `config.py` declares them, errors of one line."""

from __future__ import annotations

import argparse
from dataclasses import Field
from typing import Any, NoReturn

from ..config import KINDS, check_option
from ..support.files import short_repr, to_single_line
from .config import FIELDS, GROUPS, OPTIONS, flag


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows options in one column, and `N ...` for an option with several values."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=26)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        name = action.metavar or default_metavar
        return f"{name} ..." if action.nargs == "+" else "" if action.nargs == 0 else name

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return action.dest.rpartition("_")[2].upper()


class Parser(argparse.ArgumentParser):
    """Parses a script's command line; options that were not given are not in its result.

    text: the description; of a script, its docstring, of which the first lines are shown.
    """

    def __init__(self, text: str = "", **settings: Any):
        super().__init__(
            description="\n\n".join(text.split("\n\n")[:2]),
            formatter_class=HelpFormatter,
            allow_abbrev=False,
            add_help=False,
            argument_default=argparse.SUPPRESS,
            **settings,
        )
        self.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
        self.groups: dict[str, Any] = {}

    def group(self, title: str) -> Any:
        """Return the group of options with this title."""
        if title not in self.groups:
            self.groups[title] = self.add_argument_group(title)
        return self.groups[title]

    def add_run_options(self, command: str | None = None, **changes: dict[str, Any]) -> None:
        """Add the options of runs: all for train.py, for eval.py those of a subcommand.

        changes: by option, what `add_argument` is to be told otherwise.
        """
        for name, about in sorted(OPTIONS.items(), key=lambda item: GROUPS.index(item[1].group)):
            if command is not None and command not in about.commands:
                continue
            default = FIELDS[name].default
            text = about.help
            if about.choices:
                text += f": {', '.join(about.choices)}"
            if command is None and default not in (None, False):
                text += f" (default: {default})"
            settings: dict[str, Any] = {"help": text}
            kind = FIELDS[name].type.removesuffix(" | None")
            if FIELDS[name].type == "bool":
                settings["action"] = "store_true"
            elif kind == "bool":
                settings["action"] = argparse.BooleanOptionalAction
            else:
                settings["type"] = value_type(FIELDS[name])
                settings["metavar"] = about.metavar or ("N" if kind == "int" else None)
                settings["nargs"] = "+" if about.is_grid else None
            self.group(about.group).add_argument(flag(name), **settings | changes.get(name, {}))

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        script = self.prog.partition(" ")[0]
        message = message.removeprefix("argument ")
        self.exit(2, f"{script}: error: {to_single_line(message)} (--help lists all options)\n")


def value_type(about: Field) -> Any:
    """Return the function that makes an option's value of its text, for argparse."""
    limits, (_, expected) = about.metadata["option"], KINDS[about.type.removesuffix(" | None")]

    def value(text: str) -> Any:
        if limits.is_path:
            return path_option(text)
        try:
            number = {"a whole number": int, "a number": float}.get(expected, str)(text)
        except ValueError:
            got = f"got {short_repr(text)}"
            raise argparse.ArgumentTypeError(f"expected {expected}, {got}") from None
        try:
            return check_option(about, number)
        except ValueError as error:
            message = str(error).removeprefix(f"{about.name}: ").removeprefix(f"{about.name} ")
            raise argparse.ArgumentTypeError(message) from None

    return value


def path_option(text: str) -> str:
    """Return the text of an option that takes a path; an unset variable gives an empty one."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty text")
    return text
