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
from typing import NamedTuple

import torch
from torch import Tensor

from ..clip.state_dict import check_tensors, listed
from ..files import entries, one_line_errors
from .reader import read_checkpoint

TEXT = "prompt_learner"
VISUAL = "image_encoder.transformer.ctx_learner"
CLASS_AWARE = "image_encoder.transformer.extractor"
MAPLE = "MultiModalPromptLearner"  # MaPLe's folder
OTHERS = {"compound_prompt": "MaPLe", "meta_net.linear": "CoCoOp"}  # pieces of names → whose
NOT_LEARNED = ("token_prefix", "token_suffix")  # frozen embeddings of the class names

OUR_NAMES = {  # as `PromptedCLIP.prompt_state_dict` names them
    "text_prompts.ctx": f"{TEXT}.ctx",
    "visual_prompts.prompts": f"{VISUAL}.ctx",
}
GENERATOR_NAMES = {  # those of `ClassAwarePrompts` → published, with the layer as {}
    "meta_net.weight": "meta_nets.{}.weight",
    "meta_net.bias": "meta_nets.{}.bias",
    "query.weight": "attns.{}.qmlp.weight",
    "key.weight": "attns.{}.kmlp.weight",
    "value.weight": "attns.{}.vmlp.weight",
    "ln_class.weight": "lns.{}.weight",
    "ln_class.bias": "lns.{}.bias",
    "classifier.weight": "classfiers.{}.weight",
    "ln_prompt.weight": "lns2.{}.weight",
    "ln_prompt.bias": "lns2.{}.bias",
}


def published_name(ours: str) -> tuple[str, int | None]:
    """The published name of one of our learned tensors, and which of its rows it is, if one."""
    if ours in OUR_NAMES:
        return OUR_NAMES[ours], None
    _class_aware, layer, name = ours.split(".", 2)
    if name == "tokens":
        return f"{CLASS_AWARE}.ctx", int(layer)
    return f"{CLASS_AWARE}.{GENERATOR_NAMES[name].format(layer)}", None


def to_published(learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our learned tensors, or their gradients, under the published names."""
    whole: dict[str, Tensor] = {}
    rows: dict[str, list[Tensor]] = {}
    for ours, value in learned.items():  # layers in their order
        name, row = published_name(ours)
        if row is None:
            whole[name] = value
        else:
            rows.setdefault(name, []).append(value)
    return whole | {name: torch.stack(values) for name, values in rows.items()}


def from_published(
    tensors: Mapping[str, Tensor], learned: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """Published tensors under the names of `learned`, whose shapes they must have.

    Raises ValueError, which `where` begins, if names or shapes differ or a number is not finite.
    """
    given = {name: value for name, value in entries(dict(tensors), "published prompts").items()
             if name.rpartition(".")[2] not in NOT_LEARNED
             and not (isinstance(value, Tensor) and value.numel() == 0)}  # fmt: skip
    check_tensors(given, to_published(learned), where)
    named = {ours: published_name(ours) for ours in learned}
    return {
        ours: given[name] if row is None else given[name][row]
        for ours, (name, row) in named.items()
    }


class Inferred(NamedTuple):
    """What published tensors tell of the run that learned them.

    config: fields of a `PromptConfig`. classes: how many it must have; None: any.
    """

    config: dict[str, str | int | bool | None]
    classes: int | None


@one_line_errors
def infer_config(tensors: Mapping[str, Tensor], layers: int) -> Inferred:
    """Method, numbers of prompts, csc and layers, from the shapes that `read_published` returns.

    Args:
        layers: of the CLIP's image side.

    Raises ValueError for the tensors of another method.
    """
    shapes = {name: tuple(v.shape) for name, v in tensors.items() if v.numel()}
    for piece, method in OTHERS.items():
        if any(piece in name for name in shapes):
            raise ValueError(f"published prompts: expected CoOp's or DPT's, got {method}'s")
    dimensions = {f"{TEXT}.ctx": (2, 3), f"{VISUAL}.ctx": (3,), f"{CLASS_AWARE}.ctx": (3,)}
    text, visual, aware = (shapes.get(name, ()) for name in dimensions)
    for name, counts in dimensions.items():
        if name in shapes and len(shapes[name]) not in counts:
            raise ValueError(f"published prompts: {name} has the shape {shapes[name]}")
    method = {
        (True, False, False): "coop",
        (False, True, False): "vpt",
        (True, True, False): "vlp",
        (True, False, True): "dpt",
        (True, True, True): "dpt",
    }.get((bool(text), bool(visual), bool(aware)))
    if method is None:
        raise ValueError(f"published prompts: expected CoOp's or DPT's, got {listed([*shapes])}")
    first = layers + 1 - (aware[0] if aware else 0)  # with class-aware prompts
    config = {"method": method, "csc": len(text) == 3}
    config |= {"n_ctx": text[-2]} if text else {}
    if method != "coop":
        config["n_visual"] = visual[1] if visual else 0
        config["visual_layers"] = visual[0] if visual and visual[0] != first - 1 else None
    config |= {"class_aware_from": first} if aware else {}
    of_classes = shapes.get(f"{CLASS_AWARE}.classfiers.0.weight", ())
    classes = text[0] if len(text) == 3 else of_classes[0] if of_classes else None
    return Inferred(config, classes)


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
    if (folder / MAPLE).is_dir():
        raise ValueError(
            f"folder {folder}: expected CoOp's or DPT's prompts, got MaPLe's ({MAPLE})"
        )
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
