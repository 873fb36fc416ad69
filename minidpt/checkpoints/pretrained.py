"""Pretrained CLIP weights by name or path: found on disk, or downloaded once and checked.

OpenAI's files are looked for under their own names, `ViT-B-32.pt` and so on, in `weights/` beside
this code, in the folder that MINIDPT_WEIGHTS names, and where OpenAI's package keeps them.
"""

import hashlib
import logging
import os
import urllib.request
from http.client import HTTPException
from os import PathLike
from pathlib import Path

from torch import device as Device

from ..clip.network import CLIP, HEAD_WIDTH
from ..clip.state_dict import build_clip
from ..images.transforms import Preprocess
from ..support.files import atomic_write, file_lock, single_line_errors
from ..support.progress import task_progress
from .formats import WEIGHTS, Config, find_clip, read_config, read_weights, weights_in

# SHA-256 of OpenAI's files, which is also a part of their addresses (openai/CLIP, clip/clip.py).
SHA256 = {
    "ViT-B/32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B/16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L/14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    "ViT-L/14@336px": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
}
NAMES = (*SHA256, "tiny")  # the small model that this project ships in weights/
KNOWN = Config(quick_gelu=True, head_width=HEAD_WIDTH)  # what all of these have
BASE_URL = "https://openaipublic.azureedge.net/clip/models"
CACHE = "~/.cache/clip"
TIMEOUT = 30  # seconds without an answer or a byte
logger = logging.getLogger("minidpt")


@single_line_errors
def load(
    name_or_path: str | PathLike,
    device: str | Device = "cpu",
    quick_gelu: bool | None = None,
    head_width: int | None = None,
    image_size: int | None = None,
) -> tuple[CLIP, Preprocess]:
    """Load a pretrained CLIP, frozen and in fp32, and the transform that its images need.

    What is chosen on the way goes to the logger "minidpt": a guess or a download as a warning.

    Args:
        name_or_path: one of `NAMES`, or an OpenAI archive, a state dict or safetensors file of
            OpenAI's, open_clip's or Hugging Face's names, wrapped in whatever, or a folder of
            open_clip or Hugging Face. A configuration beside such a file is honoured. A known name
            is downloaded (338 MB for ViT-B/32) if no folder holds the file.
        quick_gelu, head_width: see `build_clip`; None: as the configuration says, which they must
            not contradict, without one True and 64, which those of known names have.
        image_size: pixels a side, see `CLIP.resize_positional_embedding`; None: the checkpoint's.

    Returns: the model, with `clip.name` set to the name or to the file's without suffix; and
        Pillow image → tensor (3, R, R).
    Raises ValueError if the name is unknown, an option does not fit, or the file is no CLIP with a
        ViT, FileNotFoundError if the file does not exist or could not be downloaded.
    """
    name = os.fspath(name_or_path)
    known = name in NAMES
    path = find_or_download(name) if known else Path(name).expanduser()
    if not path.exists():
        is_path = path.suffix or name.startswith((".", "~", os.sep))
        kind = FileNotFoundError if is_path else ValueError
        raise kind(f"no CLIP {name!r}: expected {', '.join(NAMES)} or an existing path")
    try:
        file = weights_in(path) if path.is_dir() else path
        named = read_weights(file)
        weights, origin = find_clip(named)
        config = KNOWN._replace(path=name) if known else read_config(file.parent, origin)
        quick_gelu = config.resolve("quick_gelu", quick_gelu)
        head_width = config.resolve("head_width", head_width)
        is_quick = quick_gelu is None or quick_gelu
        clip = build_clip(weights, is_quick, head_width, config.text_head_width)
        config.check_sizes(clip.visual)
        # Nobody but OpenAI writes this number beside the weights.
        if quick_gelu is None and "input_resolution" not in named:
            logger.warning(
                f"{path}: no file says its activation, so the quick GELU is used: if it was "
                "trained with the exact GELU, pass quick_gelu=False (--no-quick-gelu)"
            )
        clip.mean, clip.std = config.mean, config.std
        if image_size is not None:
            clip.resize_positional_embedding(image_size)
    except ValueError as error:
        raise ValueError(error if str(path) in str(error) else f"{path}: {error}") from error
    is_shared_name = not path.is_dir() and path.name in WEIGHTS  # then after the folder
    clip.name = name if known else path.resolve().parent.name if is_shared_name else path.stem
    return clip.to(device), Preprocess(clip.visual.resolution, clip.mean, clip.std)


def filename(name: str) -> str:
    """Return OpenAI's name of the file of a known model: ViT-L/14@336px → ViT-L-14-336px.pt."""
    return name.replace("/", "-").replace("@", "-") + ".pt"


def folders() -> list[Path]:
    """List the folders where weights are looked for, in this order.

    Raises FileNotFoundError if MINIDPT_WEIGHTS names no folder.
    """
    package = Path(__file__).resolve().parents[1]
    searched = [package / "weights", package.parent / "weights"]  # in a wheel, in a checkout
    if named := os.environ.get("MINIDPT_WEIGHTS"):
        if not Path(named).expanduser().is_dir():
            raise FileNotFoundError(f"MINIDPT_WEIGHTS is {named!r}: expected an existing folder")
        searched.append(Path(named).expanduser())
    return [*searched, Path(CACHE).expanduser()]


def find_file(name: str) -> Path | None:
    """Return the file of a known model; None if no folder has it. Raises as `folders`."""
    paths = (folder / filename(name) for folder in folders())
    return next(filter(Path.is_file, paths), None)


def find_or_download(name: str) -> Path:
    """Find the file of a known model; download it into OpenAI's cache folder if no folder has it.

    Raises FileNotFoundError if it cannot be had, saying what to put where.
    """
    if path := find_file(name):
        return path
    file = filename(name)
    if name not in SHA256:
        searched = ", ".join(map(str, folders()))
        raise FileNotFoundError(f"expected {file} in {searched}, got none: copy it there")
    target, url = Path(CACHE).expanduser() / file, f"{BASE_URL}/{SHA256[name]}/{file}"
    try:
        download(url, target, SHA256[name])
    except (OSError, HTTPException) as error:
        fix = f"try again, or put {url} at {target} or into the folder MINIDPT_WEIGHTS"
        raise FileNotFoundError(f"{name} could not be downloaded ({error}): {fix}") from error
    return target


def download(url: str, target: Path, sha256: str) -> None:
    """Download a file, verify its SHA-256, and put it in the place of `target`.

    Processes that fetch the same file wait for one another, and find it there then. What fails
    leaves nothing. Raises OSError or HTTPException, also if the hash is another one.
    """
    with file_lock(target.with_name(target.name + ".lock")):
        if target.is_file():  # another process was faster
            return
        with (
            atomic_write(target) as new_file,
            urllib.request.urlopen(url, timeout=TIMEOUT) as response,
            open(new_file, "wb") as file,
        ):
            total, digest = int(response.headers.get("Content-Length") or 0), hashlib.sha256()
            logger.warning(f"downloading {url} ({total / 1e6:,.0f} MB) to {target.parent}, once")
            with task_progress(f"MB of {target.name}", total // 10**6 or None) as report:
                while chunk := response.read(1 << 18):
                    file.write(chunk)
                    digest.update(chunk)
                    report(file.tell() // 10**6)
            if digest.hexdigest() != sha256:
                got = f"{file.tell():,} of {total:,} bytes with another SHA-256"
                raise ConnectionError(f"expected {sha256}, got {got}")
