"""Files of learned prompts, without CLIP: ours, and those of the published code of CoOp and DPT.

Ours holds what was learned and what a model needs beside it. The published implementations save
three folders, `prompt_learner/`, `image_encoder.transformer.ctx_learner/` and
`image_encoder.transformer.extractor/` (CoOp only the first), each with `model.pth.tar-N`, a pickle
whose `state_dict` holds the tensors of that part, under names of their own. `read_published` reads
them without running anything that is in them.
"""

import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..clip.state_dict import check_tensors, listed
from ..images.decode import WhiteLevel, check_white_level
from ..support.files import atomic_write, check_class_keys, check_fields, check_template, short_repr
from .reader import read_checkpoint

FORMAT = "minidpt 3"  # 1 and 2: of 0.1 and 0.2
FIELDS = {"learned": dict, "classnames": list, "template": str | tuple, "config": dict,
          "clip": dict, "class_keys": list | None, "allow_duplicates": bool}  # fmt: skip
CLIP_FIELDS = {"name": str, "quick_gelu": bool, "fingerprint": str, "image_size": int | None}

TEXT = "prompt_learner"
VISUAL = "image_encoder.transformer.ctx_learner"
CLASS_AWARE = "image_encoder.transformer.extractor"
PUBLISHED_FILE = r"model\.pth\.tar-(\d{1,9})"
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


class SavedModel(NamedTuple):
    """The contents of a prompt file.

    learned: name → tensor, as `PromptedCLIP.prompt_state_dict` names them.
    config: the fields of a `PromptConfig`.
    white: of images of more than 8 bits, see `images/decode.py`.
    clip: name, quick_gelu and fingerprint of the CLIP that it was learned on, and image_size, if
        its positional embeddings were resized for that (`CLIP.resize_positional_embedding`).
    class_keys, allow_duplicates: of a `Dataset`.
    """

    learned: dict[str, Tensor]
    classnames: list[str]
    template: str | tuple[str, ...]
    config: dict[str, Any]
    white: WhiteLevel
    clip: dict[str, Any]
    class_keys: list[str] | None = None
    allow_duplicates: bool = False


def write_model(path: str | os.PathLike, saved: SavedModel) -> None:
    """Write a prompt file; an existing one is replaced whole."""
    write_checkpoint(path, {"format": FORMAT, **saved._asdict()})


def write_checkpoint(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """Write what `read_checkpoint` reads; an existing file is replaced whole."""
    serialised = io.BytesIO()  # torch.save to a full disk is a RuntimeError
    torch.save(content, serialised)
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(serialised.getvalue())


def read_model(path: str | os.PathLike) -> SavedModel:
    """Read a prompt file; the types of its entries are checked, not yet what is in them.

    Raises FileNotFoundError if it is missing, ValueError if it is of another kind or version.
    """
    content = read_checkpoint(path, verify=True)  # torch.load of 2.4 would run TorchScript
    try:
        version = check_fields(content, "content", format=str)["format"]
        if version != FORMAT:
            fix = "train again, or use the version of minidpt that wrote it"
            raise ValueError(f"expected format '{FORMAT}', got {short_repr(version)}: {fix}")
        saved = SavedModel(**{name: content.get(name) for name in SavedModel._fields})
        check_fields(content, "content", **FIELDS)
        check_fields(saved.clip, "clip", **CLIP_FIELDS)
        check_class_keys(saved.class_keys, len(saved.classnames), "content")
        template, white = check_template(saved.template), check_white_level(saved.white)
        return saved._replace(template=template, white=white)
    except ValueError as error:
        raise ValueError(f"model file {path}: {error}") from error


def published_name(ours: str) -> tuple[str, int | tuple[()]]:
    """Return the published name of one of our learned tensors and its row there; (): all of it."""
    if ours in OUR_NAMES:
        return OUR_NAMES[ours], ()
    _class_aware, layer, name = ours.split(".", 2)
    if name == "tokens":
        return f"{CLASS_AWARE}.ctx", int(layer)
    return f"{CLASS_AWARE}.{GENERATOR_NAMES[name].format(layer)}", ()


def to_published(learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our learned tensors, or their gradients, to the published names."""
    published: dict[str, Tensor | list[Tensor]] = {}
    for ours, value in learned.items():  # layers in their order
        name, row = published_name(ours)
        published[name] = value if row == () else [*published.get(name, []), value]
    return {n: torch.stack(v) if isinstance(v, list) else v for n, v in published.items()}


def from_published(
    tensors: Mapping[str, Tensor], learned: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """Rename published tensors to the names of `learned`, whose shapes they must have.

    Raises ValueError, which `where` begins, if names or shapes differ or a number is not finite.
    """
    published = {
        name: value
        for name, value in check_fields(dict(tensors), "published prompts").items()
        if name.rpartition(".")[2] not in NOT_LEARNED
        and not (isinstance(value, Tensor) and value.numel() == 0)
    }
    check_tensors(published, to_published(learned), where)
    rows = {ours: published_name(ours) for ours in learned}
    return {ours: published[name][row] for ours, (name, row) in rows.items()}


def infer_config(tensors: Mapping[str, Tensor], layers: int) -> tuple[dict[str, Any], int | None]:
    """Infer method, numbers of prompts, csc and layers from what `read_published` returns.

    layers: of the CLIP's image side.

    Returns: fields of a `PromptConfig`; and how many classes it must have, None for any.
    Raises ValueError for the tensors of another method.
    """
    shapes = {name: tuple(v.shape) for name, v in tensors.items() if v.numel()}
    text, visual, aware = (shapes.get(f"{each}.ctx", ()) for each in (TEXT, VISUAL, CLASS_AWARE))
    are_prompts = len(text) in (0, 2, 3) and {len(visual), len(aware)} <= {0, 3}
    if not are_prompts or not (text or visual) or (aware and not text):
        got = listed([f"{name} {shape}" for name, shape in shapes.items()])
        raise ValueError(f"published prompts: expected CoOp's or DPT's, got {got}")
    method = "dpt" if aware else "vlp" if text and visual else "coop" if text else "vpt"
    config = {"method": method, "csc": len(text) == 3}
    if text:
        config["n_ctx"] = text[-2]
    plain_layers = layers - (aware[0] if aware else 0)  # without class-aware prompts
    if method != "coop":
        config["n_visual"] = visual[1] if visual else 0
        config["visual_layers"] = visual[0] if visual and visual[0] != plain_layers else None
    if aware:
        config["class_aware_from"] = plain_layers + 1
    of_classes = shapes.get(f"{CLASS_AWARE}.classfiers.0.weight", (None,))
    return config, text[0] if len(text) == 3 else of_classes[0]


def read_published(folder: str | os.PathLike, epoch: int | None = None) -> dict[str, Tensor]:
    """Read the learned tensors of a run of the published code, for `PromptedCLIP.load_published`.

    `folder` is the run's output folder, which holds `prompt_learner/` and perhaps the other two;
    of their files `model.pth.tar-N` those of `epoch` are taken, by default the latest.

    Raises FileNotFoundError if there is no such folder or file.
    """
    folder, tensors = Path(folder), {}
    components = [each for each in (TEXT, VISUAL, CLASS_AWARE) if (folder / each).is_dir()]
    saved = [{path.name for path in (folder / component).iterdir()} for component in components]
    common = set.intersection(*saved) if saved else ()  # a run may be killed between two of them
    epochs = [int(file[1]) for name in common if (file := re.fullmatch(PUBLISHED_FILE, name))]
    epochs = [number for number in epochs if epoch in (None, number)]
    if not epochs:
        file = f"model.pth.tar-{'N' if epoch is None else epoch}"
        files = f"{TEXT}/, {VISUAL}/ or {CLASS_AWARE}/, each with the same {file}, got none"
        raise FileNotFoundError(f"{folder}: expected {files}: pass CoOp's or DPT's output folder")
    for component in components:
        path = folder / component / f"model.pth.tar-{max(epochs)}"
        state = check_fields(read_checkpoint(path), str(path), state_dict=dict)["state_dict"]
        for name, value in check_fields(state, f"{path}, state_dict").items():
            if isinstance(value, Tensor):
                tensors[f"{component}.{name}"] = value
    return tensors
