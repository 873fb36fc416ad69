"""Our own model file: what was learned, and what a model needs beside it; without CLIP."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..clip.white import White, checked_white
from ..files import entries, replacing, shown
from .reader import read_checkpoint

FORMATS = ("minidpt 1", "minidpt 2")  # 2: with an image_size, which 0.1.0 would not see
OF_CLIP = {"name": str, "quick_gelu": bool, "fingerprint": str, "image_size": int | None}


class SavedModel(NamedTuple):
    """What a model file holds.

    learned: name → tensor, as `PromptedCLIP.prompt_state_dict` names them.
    config: the fields of a `PromptConfig`.
    white: of pictures of more than 8 bits, see `clip/white.py`; None in files of earlier versions.
    clip: name, quick_gelu and fingerprint of the CLIP that it was learned on, and image_size, if
        its positional embeddings were interpolated for that (`CLIP.interpolate`).
    """

    learned: dict[str, Tensor]
    classnames: list[str]
    template: str
    config: dict[str, Any]
    white: White | None
    clip: dict[str, Any]


def write_model(path: str | os.PathLike, saved: SavedModel) -> None:
    """Write a model file; an existing one is replaced whole."""
    own = FORMATS[saved.clip.get("image_size") is not None]
    write_checkpoint(path, {"format": own, **saved._asdict()})


def write_checkpoint(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """Write what `read_checkpoint` reads; an existing file is replaced whole."""
    serialised = io.BytesIO()  # torch.save to a full disk is a RuntimeError
    torch.save(content, serialised)
    with replacing(path) as unfinished:
        unfinished.write_bytes(serialised.getvalue())


def read_model(path: str | os.PathLike) -> SavedModel:
    """Read a model file; the types of its entries are checked, not yet what is in them.

    Raises FileNotFoundError if it is missing, ValueError if it is another kind of file.
    """
    where = f"model file {path}"
    if not Path(path).is_file():
        raise FileNotFoundError(f"{where}: expected a file that minidpt saved, got none")
    content = read_checkpoint(path)  # torch.load of 2.4 would run a TorchScript archive
    found = content.get("format") if isinstance(content, dict) else None
    if isinstance(found, str) and re.fullmatch(r"minidpt [1-9]\d{0,8}", found):
        if int(found.split()[1]) > len(FORMATS):
            newer = f"'{found}', the format of a newer version: update minidpt"
            raise ValueError(f"{where}: expected '{FORMATS[-1]}' or older, got {newer}")
    try:
        entries(content, "content", format=str, classnames=list, template=str)
        if content["format"] not in FORMATS:
            raise ValueError(f"format {shown(content['format'])}")
        return SavedModel(
            entries(content.get("learned"), "learned"),
            content["classnames"],
            content["template"],
            entries(content.get("config"), "config"),
            checked_white(content.get("white")),
            entries(content.get("clip"), "clip", **OF_CLIP),
        )
    except ValueError as error:
        raise not_saved(path, error) from error


def not_saved(path: str | os.PathLike, error: Exception) -> ValueError:
    """The error for a file of another kind."""
    return ValueError(
        f"model file {path}: expected one that minidpt saved, got something else ({error})"
    )
