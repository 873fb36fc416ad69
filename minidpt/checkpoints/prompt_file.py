"""Our prompt file: what was learned, and what a model needs beside it; without CLIP."""

from __future__ import annotations

import io
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..images.decode import WhiteLevel, check_white_level
from ..support.files import (
    atomic_write,
    check_class_keys,
    check_fields,
    check_template,
    short_repr,
)
from .reader import read_checkpoint

FORMAT = "minidpt 3"  # 1 and 2: of 0.1 and 0.2
FIELDS = {"learned": dict, "classnames": list, "template": str | tuple, "config": dict,
          "clip": dict, "class_keys": list | None, "allow_duplicates": bool}  # fmt: skip
CLIP_FIELDS = {"name": str, "quick_gelu": bool, "fingerprint": str, "image_size": int | None}


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
