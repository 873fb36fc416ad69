"""Learned prompts under the names that the published implementations of CoOp and DPT give them.

They save three folders, `prompt_learner/`, `image_encoder.transformer.ctx_learner/` and
`image_encoder.transformer.extractor/` (CoOp only the first), each with `model.pth.tar-N`, a pickle
whose `state_dict` holds the tensors of that part. `read_published` reads them without running
anything that is in them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .checkpoint import read_checkpoint
from .clip import check_tensors
from .files import entries, one_line_errors

if TYPE_CHECKING:
    from .model import PromptedCLIP

TEXT = "prompt_learner"
VISUAL = "image_encoder.transformer.ctx_learner"
CLASS_AWARE = "image_encoder.transformer.extractor"
NOT_LEARNED = ("token_prefix", "token_suffix")  # frozen embeddings of the class names

GENERATOR_NAMES = {  # published, with the layer as {} → ours, in `ClassAwarePrompts`
    "meta_nets.{}.weight": "meta_net.weight",
    "meta_nets.{}.bias": "meta_net.bias",
    "attns.{}.qmlp.weight": "query.weight",
    "attns.{}.kmlp.weight": "key.weight",
    "attns.{}.vmlp.weight": "value.weight",
    "lns.{}.weight": "ln_class.weight",
    "lns.{}.bias": "ln_class.bias",
    "classfiers.{}.weight": "classifier.weight",
    "lns2.{}.weight": "ln_prompt.weight",
    "lns2.{}.bias": "ln_prompt.bias",
}


def parts_of(model: PromptedCLIP) -> dict[str, list[Tensor] | Tensor]:
    """Published name → our parameter, or the list of parameters that are its rows."""
    parts: dict[str, list[Tensor] | Tensor] = {}
    if model.text_prompts is not None:
        parts[f"{TEXT}.ctx"] = model.text_prompts.ctx
    if model.visual_prompts is not None:
        parts[f"{VISUAL}.ctx"] = model.visual_prompts.prompts
    if model.class_aware:
        parts[f"{CLASS_AWARE}.ctx"] = [generator.tokens for generator in model.class_aware]
    for layer, generator in enumerate(model.class_aware):
        for published, ours in GENERATOR_NAMES.items():
            name = f"{CLASS_AWARE}.{published.format(layer)}"
            parts[name] = generator.get_parameter(ours)
    return parts


def tensors_of(model: PromptedCLIP, grad: bool = False) -> dict[str, Tensor]:
    """The learned tensors by published name; or their gradients, zeros where there is none."""

    def value(parameter: Tensor) -> Tensor:
        if not grad:
            return parameter
        return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

    return {
        name: torch.stack([value(row) for row in part]) if isinstance(part, list) else value(part)
        for name, part in parts_of(model).items()
    }


@one_line_errors
def load_into(model: PromptedCLIP, tensors: Mapping[str, Tensor]) -> None:
    """Copy published tensors into the model. See `PromptedCLIP.load_published`."""
    given = {name: value for name, value in entries(dict(tensors), "published prompts").items()
             if name.rpartition(".")[2] not in NOT_LEARNED
             and not (isinstance(value, Tensor) and value.numel() == 0)}  # fmt: skip
    check_tensors(given, tensors_of(model), f"published prompts do not fit {model.config}")
    with torch.no_grad():
        for name, part in parts_of(model).items():
            if isinstance(part, list):
                for row, value in zip(part, given[name], strict=True):
                    row.copy_(value)
            else:
                part.copy_(given[name])


@one_line_errors
def read_published(folder: str | os.PathLike, epoch: int | None = None) -> dict[str, Tensor]:
    """The learned tensors of a run of the published code, for `PromptedCLIP.load_published`.

    Args:
        folder: the run's output folder, which holds `prompt_learner/` and perhaps the other two.
        epoch: N of `model.pth.tar-N`; None takes the latest.

    Raises FileNotFoundError if there is no such folder or file.
    """
    folder, tensors = Path(folder), {}
    parts = [part for part in (TEXT, VISUAL, CLASS_AWARE) if (folder / part).is_dir()]
    if not parts:
        raise FileNotFoundError(
            f"folder {folder}: expected {TEXT}/, {VISUAL}/ or {CLASS_AWARE}/ in it, got none: "
            "pass the output folder of a run of the published code"
        )
    saved = {part: saved_epochs(folder / part) for part in parts}
    common = set.intersection(*saved.values())  # a run may have been killed between two of them
    if not common or (epoch is not None and epoch not in common):
        wanted = "N" if epoch is None else epoch
        got = ", ".join(f"{part}: {sorted(epochs)}" for part, epochs in saved.items())
        raise FileNotFoundError(f"folder {folder}: expected model.pth.tar-{wanted}, got {got}")
    epoch = max(common) if epoch is None else epoch
    for part in parts:
        for name, value in read_state(folder / part / f"model.pth.tar-{epoch}").items():
            tensors[f"{part}.{name}"] = value
    return tensors


def saved_epochs(folder: Path) -> set[int]:
    """The numbers N of the files `model.pth.tar-N` in a folder."""
    names = (re.fullmatch(r"model\.pth\.tar-(\d+)", path.name) for path in folder.iterdir())
    return {int(name[1]) for name in names if name}


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors under `state_dict`. Raises ValueError if there is no such thing."""
    content = read_checkpoint(path)
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path}: expected a checkpoint with tensors in 'state_dict', got none")
    return state
