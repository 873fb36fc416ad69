"""Which of the five methods, and its options.

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
from dataclasses import dataclass

from .files import entries, shown

METHODS = ("zeroshot", "coop", "vpt", "vlp", "dpt")
CLASS_TOKEN_POSITIONS = ("end", "middle", "front")
BOUNDS = {"n_ctx": (1, 1000), "n_visual": (0, 1000), "visual_layers": (1, 1000),
          "class_aware_from": (1, 1000), "top_k": (1, 10**6), "alpha": (0, 1e30)}  # fmt: skip


@dataclass(frozen=True)
class PromptConfig:
    """Options of a method. Defaults are the paper's.

    method: "zeroshot", "coop", "vpt", "vlp" or "dpt".
    n_ctx, ctx_init, csc, class_token_position: the text context, see `TextPrompts`.
    n_visual: visual prompts per layer; 0 for none.
    class_aware_from: the first layer with class-aware prompts; None for the last layer only.
    top_k: classes that class-aware prompts are made from; more than there are means all.
    alpha: weight of the auxiliary loss of the class-aware prompts.
    visual_layers: visual prompts act in the layers 1 to this one; None for all (deep), 1 is
        shallow.

    Raises ValueError for a value outside these or `BOUNDS`, TypeError for a non-number, or a
    non-integer where an integer is required.
    """

    method: str = "dpt"
    n_ctx: int = 16
    ctx_init: str | None = None
    csc: bool = False
    class_token_position: str = "end"
    n_visual: int = 10
    class_aware_from: int | None = None
    top_k: int = 10
    alpha: float = 0.3
    visual_layers: int | None = None

    def __post_init__(self):
        entries(vars(self), "PromptConfig", csc=bool, ctx_init=str | None)
        choices = {"method": METHODS, "class_token_position": CLASS_TOKEN_POSITIONS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                got = shown(getattr(self, name))
                raise ValueError(f"{name} {got}: expected one of {', '.join(known)}")
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if value is None and name in ("class_aware_from", "visual_layers"):
                continue
            kind = numbers.Real if name == "alpha" else numbers.Integral
            if not isinstance(value, kind) or isinstance(value, bool):
                expected = "a number" if name == "alpha" else "a whole number"
                raise TypeError(f"{name}: expected {expected}, got {shown(value)}")
            # A NumPy number becomes Python's, which is what a saved model can hold.
            value = int(value) if isinstance(value, numbers.Integral) else float(value)
            if not least <= value <= most:  # nor NaN
                expected = f"at least {least} and at most {most}"
                raise ValueError(f"{name}: expected {expected}, got {shown(value)}")
            object.__setattr__(self, name, float(value) if name == "alpha" else value)

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
