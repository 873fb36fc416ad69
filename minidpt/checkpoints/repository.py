"""A folder as open_clip or Hugging Face write it: its file of weights, and its configuration.

A configuration tells what no tensor does: the activation, the width of heads, the colours. It also
tells parts that minidpt does not have, which are refused by their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..clip.network import CLIP
from ..files import entries, read_json, shown
from ..images.transforms import CLIP_MEAN, CLIP_STD, Colours
from .formats import HUGGING_FACE
from .reader import read_state_dict

INDEX = ".index.json"  # of weights in several files
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "model.safetensors" + INDEX,
    "pytorch_model.bin",
    "pytorch_model.bin" + INDEX,
)
OPEN_CLIP_CONFIG = "open_clip_config.json"
HUGGING_FACE_CONFIG, HUGGING_FACE_COLOURS = "config.json", "preprocessor_config.json"
MAX_SHARDS = 1000
EOT = (2, 49407, None)  # 2: what Hugging Face's files said before 2023, meaning the largest id

# open_clip's settings that make the model we have, or nothing that a loaded model does. Any other
# is a part that we do not have, unless it is off.
MODEL = {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "custom_text", "init_logit_scale",
         "nonscalar_logit_scale"}  # fmt: skip
SIDE = {"width", "layers", "head_width", "heads", "image_size", "patch_size", "mlp_ratio",
        "context_length", "vocab_size", "patch_dropout", "pad_id", "eos_id", "attn_pooler_queries",
        "attn_pooler_heads"}  # fmt: skip
USUAL = {"pool_type": ("tok", "argmax"), "pos_embed_type": ("learnable",), "proj_type": ("linear",),
         "block_type": ("default",), "timm_pool": ("avg",), "timm_proj": ("linear",),
         "hf_proj_type": ("mlp",), "hf_pooler_type": ("mean_pooler",),
         "hf_model_pretrained": (True,)}  # fmt: skip
# How pictures are resized, where a configuration says it; 3 is Pillow's number of bicubic.
RESIZING = {"interpolation": "bicubic", "resize_mode": "shortest", "resample": 3, "do_resize": True,
            "do_center_crop": True, "do_rescale": True, "do_normalize": True}  # fmt: skip


class Config(NamedTuple):
    """What a configuration says of a CLIP beyond its tensors, and the sizes that these must have.

    sizes: as `check_sizes` calls them; what the file does not say is missing.
    """

    path: Path
    exact_gelu: bool
    head_width: int
    text_head_width: int
    mean: Colours
    std: Colours
    sizes: dict[str, int]

    def check_sizes(self, clip: CLIP) -> None:
        """ValueError if the file is the configuration of another model."""
        vision, text = clip.visual.transformer.resblocks, clip.transformer.resblocks
        got = {
            "vision width": clip.visual.proj.shape[0],
            "vision layers": len(vision),
            "patch": clip.visual.conv1.kernel_size[0],
            "image size": clip.visual.resolution,
            "text width": clip.text_projection.shape[0],
            "text layers": len(text),
        }
        for name, size in self.sizes.items():
            if size != got[name]:
                raise ValueError(
                    f"{self.path} says {name} {shown(size)}, the tensors have {got[name]}: "
                    "it is of another model; move one of them away"
                )


def weights_in(folder: Path) -> Path:
    """The file of weights in a folder, or the index of several; FileNotFoundError if none."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    there = sorted(path.name for path in folder.iterdir())
    got = ", ".join(there[:5]) + " …" * (len(there) > 5) or "nothing"
    raise FileNotFoundError(f"folder {folder}: expected {', '.join(WEIGHTS)} in it, got {got}")


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by their dotted names, or of the files that an index names.

    Raises as `read_state_dict`, and ValueError for an index that does not fit its files.
    """
    if not path.name.endswith(INDEX):
        return read_state_dict(path)
    index = entries(read_json(path, str(path)), str(path), weight_map=dict)
    shard_of = entries(index["weight_map"], str(path))
    shards = dict.fromkeys(map(str, shard_of.values()))
    if len(shards) > MAX_SHARDS:
        raise ValueError(f"{path}: expected at most {MAX_SHARDS} files, got {len(shards):,}")
    for shard in shards:
        if shard in ("", ".", "..") or set(shard) & set("/\\\0:"):
            raise ValueError(f"{path}: expected names of files beside it, got {shown(shard)}")
    tensors = {}
    for shard in shards:
        own = read_state_dict(path.with_name(shard))
        named = {name for name, other in shard_of.items() if other == shard}
        if wrong := sorted(named ^ own.keys()):
            raise ValueError(f"{path} and {shard} differ in {wrong[0]}: download both again")
        tensors |= own
    return tensors


def read_config(folder: Path, origin: str) -> Config | None:
    """The configuration in the folder of weights that `origin` named; None if there is none.

    Raises ValueError if it is damaged, of another kind of model, or names a part that we do not
    have.
    """
    name = HUGGING_FACE_CONFIG if origin == HUGGING_FACE else OPEN_CLIP_CONFIG
    path = folder / name
    if not path.is_file():
        return None
    content = entries(read_json(path, str(path)), str(path))
    if origin != HUGGING_FACE:
        return _open_clip(path, content)
    colours = folder / HUGGING_FACE_COLOURS
    if colours.is_file():
        colours_content = entries(read_json(colours, str(colours)), str(colours))
        return _hugging_face(path, content, *_colours(colours, colours_content, "image_"))
    return _hugging_face(path, content, CLIP_MEAN, CLIP_STD)


def _open_clip(path: Path, content: dict[str, Any]) -> Config:
    model = entries(content.get("model_cfg", content), f"{path}, model_cfg",
                    quick_gelu=bool | None, vision_cfg=dict, text_cfg=dict)  # fmt: skip
    vision, text = model["vision_cfg"], model["text_cfg"]
    _refuse_foreign(f"{path}, model_cfg", model, MODEL)
    _refuse_foreign(f"{path}, vision_cfg", vision, SIDE)
    _refuse_foreign(f"{path}, text_cfg", text, SIDE)
    colours = entries(content.get("preprocess_cfg") or {}, f"{path}, preprocess_cfg")
    numbers = dict.fromkeys(("width", "layers", "heads", "head_width"), int | None)
    entries(vision, f"{path}, vision_cfg", **numbers)
    entries(text, f"{path}, text_cfg", **numbers)
    head_width = vision.get("head_width") or 64
    text_heads = _head_width(f"{path}, text_cfg", text.get("width") or 512, text.get("heads") or 8)
    sizes = _sizes(vision, text, "width", "layers")
    mean_std = _colours(path, colours, "")
    return Config(path, not model.get("quick_gelu"), head_width, text_heads, *mean_std, sizes)


def _hugging_face(path: Path, content: dict[str, Any], mean: Colours, std: Colours) -> Config:
    if content.get("model_type") != "clip":
        got = shown(content.get("model_type"))
        raise ValueError(f"{path}: expected model_type 'clip', got {got}")
    sides, acts, heads = [], set(), []
    for name, width, count in (("vision", 768, 12), ("text", 512, 8)):
        where = f"{path}, {name}_config"
        old = content.get(f"{name}_config_dict")  # goes before the other where there is one
        side = entries((content.get(f"{name}_config") if old is None else old) or {}, where,
                       hidden_size=int | None, num_attention_heads=int | None,
                       hidden_act=str | None, layer_norm_eps=float | None)  # fmt: skip
        if (side.get("layer_norm_eps") or 1e-5) != 1e-5:
            raise ValueError(
                f"{where}: expected layer_norm_eps 1e-05, got {side['layer_norm_eps']}"
            )
        heads.append(_head_width(where, side.get("hidden_size") or width,
                                 side.get("num_attention_heads") or count))  # fmt: skip
        acts.add(side.get("hidden_act") or "quick_gelu")
        sides.append(side)
    if acts not in ({"quick_gelu"}, {"gelu"}):
        got = " and ".join(map(shown, sorted(acts)))
        raise ValueError(f"{path}: expected one hidden_act, 'quick_gelu' or 'gelu', got {got}")
    if (eos := sides[1].get("eos_token_id")) not in EOT:
        raise ValueError(f"{path}: expected eos_token_id 49407 (or 2), got {shown(eos)}")
    sizes = _sizes(*sides, "hidden_size", "num_hidden_layers")
    return Config(path, acts == {"gelu"}, *heads, mean, std, sizes)


def _refuse_foreign(where: str, settings: Mapping[str, Any], known: set[str]) -> None:
    """ValueError for the first setting that is neither known, nor usual, nor off."""
    for name, value in entries(settings, where).items():
        if name in known or value is None or value is False or value in ({}, 0, ""):
            continue
        if value not in USUAL.get(name, ()):
            raise ValueError(f"{where}: {name} {shown(value)} is a part that minidpt does not have")


def _head_width(where: str, width: int, heads: int) -> int:
    if not 1 <= heads <= width or width % heads:
        raise ValueError(f"{where}: expected heads that share the width {width}, got {heads}")
    return width // heads


def _sizes(vision: Mapping, text: Mapping, width: str, layers: str) -> dict[str, int]:
    named = {
        "vision width": vision.get(width),
        "vision layers": vision.get(layers),
        "patch": vision.get("patch_size"),
        "image size": vision.get("image_size"),
        "text width": text.get(width),
        "text layers": text.get(layers),
    }
    for name in ("patch", "image size"):
        size = named[name]
        if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
            named[name] = size[0]
    return {name: size for name, size in named.items() if size is not None}


def _colours(path: Path, settings: Mapping[str, Any], prefix: str) -> tuple[Colours, Colours]:
    """Mean and std; ValueError for what is none, and for another way to resize than ours."""
    for name, usual in RESIZING.items():
        if (value := settings.get(name, usual)) != usual:
            expected = f"expected {shown(usual)}: minidpt has no other"
            raise ValueError(f"{path}: {name} {shown(value)}, {expected}")
    found = []
    for name, usual, least in (("mean", CLIP_MEAN, -100), ("std", CLIP_STD, 1e-3)):
        values = settings.get(prefix + name, usual)
        three = isinstance(values, (list, tuple)) and len(values) == 3
        if not three or not all(type(v) in (int, float) and least <= v <= 100 for v in values):
            raise ValueError(f"{path}: expected three numbers {prefix}{name}, got {shown(values)}")
        found.append(tuple(map(float, values)))
    return tuple(found)
