"""The five methods and their options.

| method   | text side        | image side                                            |
|----------|------------------|-------------------------------------------------------|
| zeroshot | template         | plain                                                 |
| coop     | learned context  | plain                                                 |
| vpt      | template         | visual prompts                                        |
| vlp      | learned context  | visual prompts                                        |
| dpt      | learned context  | visual prompts below layer j, class-aware from j to L |

Layers are counted from 1, as in the paper.
"""

from __future__ import annotations

import numbers
from dataclasses import Field, dataclass, field, fields
from typing import Any, NamedTuple

from .support.files import check_template, short_repr

METHODS = ("zeroshot", "coop", "vpt", "vlp", "dpt")
COMMON, METHOD = "main options", "method"  # groups of options in --help
KINDS = {
    "bool": (bool, "true or false"),
    "int": (numbers.Integral, "a whole number"),
    "float": (numbers.Real, "a number"),
    "str": (str, "a text"),
    "str | tuple[str, ...]": (str | tuple | list, "a text, or several"),  # templates
}


class Option(NamedTuple):
    """Metadata of an option, beside its name, type and default.

    help, group, metavar: how `--help` shows it.
    bounds, choices: the least and the greatest number, or all values.
    read_by: the side or stage of a method that reads it: "text", "image", "class-aware",
        "guidance", or "training" (any but zero-shot); "" for all methods. Options with `read_by`
        default to the published value.
    decides_result: a resumed or repeated run must have the same value.
    resume_may_change: `--resume` accepts another value.
    is_grid: it accepts several values, which make a sweep.
    is_path: a file or folder.
    eval_commands: the subcommands of eval.py that have it, too.
    """

    help: str
    group: str
    metavar: str | None = None
    bounds: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    read_by: str = ""
    decides_result: bool = True
    resume_may_change: bool = False
    is_grid: bool = False
    is_path: bool = False
    eval_commands: tuple[str, ...] = ()


def option(default: Any, help: str, group: str, **more: Any) -> Any:
    """Declare a dataclass field that is an option, see `Option`."""
    return field(default=default, metadata={"option": Option(help, group, **more)})


def check_option(about: Field, value: object) -> Any:
    """Return an option's value: numbers of NumPy as Python's, one of its choices in lower case.

    Raises TypeError for a value of another type than the field's, ValueError for one that is not
    among its choices or outside its bounds.
    """
    name, limits = about.name, about.metadata["option"]
    if value is None and about.type.endswith("| None"):
        return None
    kind, expected = KINDS[about.type.removesuffix(" | None")]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{name}: expected {expected}, got {short_repr(value)}")
    if kind in (numbers.Integral, numbers.Real):
        value = int(value) if kind is numbers.Integral else float(value)
        least, greatest = limits.bounds
        if not least <= value <= greatest:  # nor NaN
            bound = f"least {least}" if value < least else f"most {greatest:,}"
            raise ValueError(f"{name}: expected at {bound}, got {short_repr(value)}")
    if "tuple" in about.type:
        value = check_template(value)
    if limits.choices and value.lower() not in limits.choices:
        raise ValueError(f"{name} {short_repr(value)}: expected one of {', '.join(limits.choices)}")
    return value.lower() if limits.choices else value


@dataclass(frozen=True)
class PromptConfig:
    """Options of a method. Defaults are the paper's. Raises as `check_option`.

    n_ctx, ctx_init, csc, class_token_position: the text context, see `TextPrompts`.
    n_visual: 0 for no visual prompts. top_k: a number above that of the classes selects all.
    """

    # fmt: off
    method: str = option("dpt", "method to train", COMMON, choices=METHODS, is_grid=True)
    n_ctx: int = option(16, "learned context vectors", METHOD, bounds=(1, 1000), read_by="text")
    ctx_init: str | None = option(
        None, "initialise the context with the words of a phrase; their number replaces --n-ctx",
        METHOD,
        metavar="PHRASE", read_by="text")
    csc: bool = option(False, "learn a context of its own for each class", METHOD, read_by="text")
    class_token_position: str = option(
        "end", "position of the class name in the prompt", METHOD, metavar="WHERE",
        choices=("end", "middle", "front"), read_by="text", eval_commands=("published",))
    n_visual: int = option(
        10, "visual prompts per layer", METHOD, bounds=(0, 1000), read_by="image")
    visual_layers: int | None = option(
        None, "insert visual prompts in the first N layers only (default: all; 1: shallow)", METHOD,
        bounds=(1, 1000), read_by="image")
    class_aware_from: int | None = option(
        None, "first layer with class-aware prompts, counted from 1 (default: the last)", METHOD,
        bounds=(1, 1000), read_by="class-aware")
    top_k: int = option(
        10, "classes selected for the class-aware prompts of an image", METHOD,
        bounds=(1, 10**6), read_by="class-aware", eval_commands=("published",))
    alpha: float = option(
        0.3, "weight of the auxiliary loss of DPT", "optimisation",
        bounds=(0, 1e30), read_by="class-aware")
    # fmt: on

    def __post_init__(self):
        for each in fields(self):
            object.__setattr__(self, each.name, check_option(each, getattr(self, each.name)))

    @property
    def learns_text(self) -> bool:
        """Whether the text context is learned."""
        return self.method in ("coop", "vlp", "dpt")

    @property
    def learns_image(self) -> bool:
        """Whether there are learned prompts on the image side."""
        return self.method in ("vpt", "vlp", "dpt")

    @property
    def guided(self) -> bool:
        """Whether training begins with general-knowledge guidance (both sides learn)."""
        return self.learns_text and self.learns_image

    def reads(self, about: Option) -> bool:
        """Whether an option changes anything for this method."""
        return {
            "": True,
            "training": self.method != "zeroshot",
            "text": self.learns_text,
            "image": self.learns_image,
            "guidance": self.guided,
            "class-aware": self.method == "dpt",
        }[about.read_by]
