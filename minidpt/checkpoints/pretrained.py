"""Pretrained CLIP weights by name or path: found on disk, or downloaded once and checked.

OpenAI's files are looked for under their own names, `ViT-B-32.pt` and so on, in `weights/` beside
this code, in the folder that MINIDPT_WEIGHTS names, and where OpenAI's package keeps them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import urllib.error
import urllib.request
from difflib import get_close_matches
from http.client import HTTPException
from os import PathLike
from pathlib import Path

from torch import Tensor
from torch import device as Device

from ..clip.network import CLIP
from ..clip.state_dict import build_clip
from ..files import locked, one_line_errors
from ..images.transforms import CLIP_MEAN, Preprocess
from ..progress import is_watched, job
from .formats import find_clip
from .repository import WEIGHTS, Config, read_config, read_weights, weights_in

# SHA-256 of OpenAI's files, which is also a part of their addresses (openai/CLIP, clip/clip.py).
SHA256 = {
    "ViT-B/32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B/16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L/14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    "ViT-L/14@336px": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
}
TINY = "tiny"  # the small model that this project ships in weights/
NAMES = (*SHA256, TINY)
BASE_URL = "https://openaipublic.azureedge.net/clip/models"
LEAST_BYTES = 300_000_000  # of OpenAI's files
CACHE = "~/.cache/clip"
TIMEOUT = 30  # seconds without an answer or a byte
logger = logging.getLogger(__name__)


@one_line_errors
def load(
    name_or_path: str | PathLike,
    device: str | Device = "cpu",
    quick_gelu: bool | None = None,
    exact_gelu: bool = False,
    head_width: int | None = None,
    image_size: int | None = None,
) -> tuple[CLIP, Preprocess]:
    """A pretrained CLIP, frozen and in fp32 on `device`, and the transform its images need.

    Args:
        name_or_path: one of `NAMES`, or an OpenAI archive, a state dict or safetensors file of
            OpenAI's, open_clip's or Hugging Face's names, wrapped in whatever, or a folder of
            open_clip or Hugging Face. A configuration beside such a file is honoured. A known name
            is downloaded (338 MB for ViT-B/32) if no folder holds the file, of which this package's
            logger has a warning unless a progress line shows it.
        quick_gelu, exact_gelu: as in `build_clip`; OpenAI's weights need the quick one.
        head_width: as in `build_clip`. This and the activation are for files without a
            configuration; with one they may only agree with it.
        image_size: pixels a side, see `CLIP.interpolate`; None: the checkpoint's.

    Returns: the model, with `clip.name` set to the name or to the file's without suffix, and
        `clip.notes` to lines about what was chosen; and Pillow image → tensor (3, R, R).
    Raises ValueError if the name is unknown or the file is no CLIP with a ViT, FileNotFoundError
        if the file does not exist or could not be downloaded.
    """
    name = os.fspath(name_or_path)
    known = name in NAMES
    path = file = find_or_download(name) if known else _existing(name)
    try:
        file = weights_in(path) if path.is_dir() else path
        found = find_clip(read_weights(file))
        config = None if known else read_config(file.parent, found.origin)
        exact = (exact_gelu or None) if quick_gelu is None else not quick_gelu
        if config is None:
            clip = build_clip(found.weights, exact_gelu=bool(exact), head_width=head_width)
        else:
            clip = _configured(found.weights, config, exact, head_width)
        stored = clip.visual.resolution
        if image_size is not None:
            clip.interpolate(image_size)
    except ValueError as error:
        text = str(error) if str(path) in str(error) else f"{path}: {error}"
        if name in SHA256:
            downloaded = path.parent == Path(CACHE).expanduser()
            fix = f"delete this file and load {name!r} again"
            text += ": " + (fix if downloaded else "it is not OpenAI's: move it away or mend it")
        raise ValueError(text) from error
    named_alike = not path.is_dir() and path.name in WEIGHTS  # after their folder, then
    clip.name = name if known else path.resolve().parent.name if named_alike else path.stem
    clip.notes = found.notes + clip.notes
    if config is None and (clip.exact_gelu or not (known or is_openais(file))):
        taken, other = ("exact", "quick") if clip.exact_gelu else ("quick", "exact")
        fix = f"{'leave out' if clip.exact_gelu else 'pass'} --exact-gelu"
        fix += f" (exact_gelu={not clip.exact_gelu})"
        said = f"the {taken} GELU was taken, which a checkpoint does not say"
        clip.notes += (f"{said}: if {clip.name} was trained with the {other} one, {fix}",)
    if clip.image_size:
        said = f"from {stored} to {image_size} pixels a side"
        clip.notes += (f"positional embeddings were interpolated {said}",)
    return clip.to(device), Preprocess(clip.visual.resolution, clip.mean, clip.std)


def _configured(
    weights: dict[str, Tensor], config: Config, exact: bool | None, head_width: int | None
) -> CLIP:
    """The CLIP of these weights as its configuration says; ValueError if the caller says else."""
    for asked, said, option in (
        (exact, config.exact_gelu, "exact_gelu"),
        (head_width, config.head_width, "head_width"),
    ):
        if asked not in (None, said):
            raise ValueError(f"{config.path} says {option} {said}, got {asked}: leave it out")
    options = (None, config.exact_gelu, config.head_width, config.text_head_width)
    clip = build_clip(weights, *options)
    config.check_sizes(clip)
    clip.mean, clip.std = config.mean, config.std
    gelu = "exact" if clip.exact_gelu else "quick"
    heads = f"heads {config.head_width} wide, of the text {config.text_head_width}"
    colours = f"mean {clip.mean}, std {clip.std}" if clip.mean != CLIP_MEAN else "CLIP's colours"
    clip.notes = (f"{config.path}: {gelu} GELU, {heads}, {colours}",)
    return clip


def is_openais(path: Path) -> bool:
    """Whether it is a file of OpenAI's, of any name; only one as large is read for the answer."""
    return path.stat().st_size >= LEAST_BYTES and _sha256(path) in SHA256.values()


def _existing(path: str) -> Path:
    """The path, if there is something; otherwise the error that fits a name or a path."""
    expanded = Path(path).expanduser()
    if expanded.exists():
        return expanded
    if expanded.suffix or path.startswith((".", "~", os.sep)):
        raise FileNotFoundError(
            f"{path} does not exist: expected a CLIP checkpoint, file or folder"
        )
    (meant,) = get_close_matches(path[:50].upper(), map(str.upper, NAMES), n=1) or [""]
    hint = "".join(f": did you mean {name}?" for name in NAMES if name.upper() == meant)
    choices = f"{', '.join(NAMES)} or the path of a checkpoint"
    raise ValueError(f"unknown CLIP {path!r}: expected one of {choices}{hint}")


def filename(name: str) -> str:
    """OpenAI's name of the file of a known model: ViT-L/14@336px → ViT-L-14-336px.pt."""
    return name.replace("/", "-").replace("@", "-") + ".pt"


def folders() -> list[Path]:
    """Where weights are looked for, in this order.

    Raises FileNotFoundError if MINIDPT_WEIGHTS names no folder.
    """
    package = Path(__file__).resolve().parents[1]
    found = [package / "weights", package.parent / "weights"]  # in a wheel, in a checkout
    if named := os.environ.get("MINIDPT_WEIGHTS"):
        if not Path(named).expanduser().is_dir():
            raise FileNotFoundError(f"MINIDPT_WEIGHTS is {named!r}: expected an existing folder")
        found.append(Path(named).expanduser())
    return [*found, Path(CACHE).expanduser()]


def is_here(name: str) -> bool:
    """Whether a folder has the file of a known model. Raises as `folders`."""
    return _found(name) is not None


def _found(name: str) -> Path | None:
    paths = (folder / filename(name) for folder in folders())
    return next(filter(Path.is_file, paths), None)


def find_or_download(name: str) -> Path:
    """The file of a known model, downloaded into OpenAI's cache folder if no folder has it.

    Raises FileNotFoundError if it cannot be had, saying what to put where, and ValueError if what
    arrived is not OpenAI's file.
    """
    file = filename(name)
    if found := _found(name):
        return found
    if name not in SHA256:
        searched = ", ".join(map(str, folders()))
        raise FileNotFoundError(
            f"{file} comes with the project and is in none of {searched}: copy weights/ as well"
        )
    target = Path(CACHE).expanduser() / file
    url = f"{BASE_URL}/{SHA256[name]}/{file}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        download(url, target, SHA256[name])
    except (OSError, HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise FileNotFoundError(
            f"{name} is not on this machine and could not be downloaded ({error}): "
            f"try again, or put {url} at {target} or into a folder that the environment variable "
            "MINIDPT_WEIGHTS names"
        ) from error
    return target


def download(url: str, target: Path, sha256: str) -> None:
    """Fetches a file to `target`, which appears only once it is complete and its hash is right.

    What has arrived is kept in `target.part`, and the next call goes on from there, or from the
    start if the server cannot. Nothing there is replaced by anything but the right file. Processes
    that fetch the same file wait for one another, and find it there then.

    Raises OSError or HTTPException if the connection fails, and ValueError for a wrong hash, after
    which the next call starts from nothing.
    """
    part = target.with_name(target.name + ".part")
    with locked(target.with_name(target.name + ".lock")):
        if target.is_file() and _sha256(target) == sha256:
            return
        try:
            _fetch(url, part)
        except urllib.error.HTTPError as error:
            if error.code != 416:  # range not satisfiable: the part is already the whole file
                raise
            error.close()
        if (got := _sha256(part)) != sha256:
            part.unlink()
            raise ValueError(
                f"{url}: expected SHA-256 {sha256}, got {got}: removed; try again, "
                "and if it stays wrong, something on the way to the server changes the file"
            )
        os.replace(part, target)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _fetch(url: str, part: Path) -> None:
    """Appends to `part` what it lacks; OSError if it stays short."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0  # the whole file comes, as it does from a server without ranges
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        if not is_watched():
            size = f"{total / 1e6:,.0f} MB" if total else "of unknown size"
            logger.warning("downloading %s (%s) to %s, once", part.stem, size, part.parent)
        with open(part, "ab" if have else "wb") as file, job(part.stem, total, "bytes") as tell:
            while chunk := response.read(1 << 18):
                file.write(chunk)
                have += len(chunk)
                tell(have)
    if total and have < total:
        raise ConnectionError(f"connection lost after {have:,} of {total:,} bytes; they are kept")
