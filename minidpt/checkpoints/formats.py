"""CLIPs as OpenAI, open_clip and Hugging Face save them: a file or folder, names, configuration.

Trainers wrap what they save ("state_dict", "module.", "model.", one inside another): a CLIP is
found by its own tensors, not by a list of wrappers. A configuration says what no tensor does: the
activation, the width of heads, the colours; what it names that minidpt lacks is refused by name.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..clip.network import HEAD_WIDTH, VisionTransformer
from ..clip.state_dict import NOT_WEIGHTS, listed
from ..images.transforms import CLIP_MEAN, CLIP_STD, Colours
from ..support.files import check_fields, read_json, short_repr, to_single_line
from .reader import read_state_dict

OPENAI, HUGGING_FACE = "OpenAI", "Hugging Face"  # who named the tensors; open_clip: as OpenAI
ANCHORS = {
    "visual.conv1.weight": OPENAI,
    "vision_model.embeddings.patch_embedding.weight": HUGGING_FACE,
}
PARTS = {  # what the names of a model's tensors begin with, up to the first dot
    OPENAI: {"visual", "transformer", "token_embedding", "positional_embedding", "ln_final",
             "text_projection", "logit_scale", "logit_bias", "text", "cls_emb", "text_decoder"},
    HUGGING_FACE: {"vision_model", "text_model", "visual_projection", "text_projection",
                   "logit_scale", "logit_bias"},
}  # fmt: skip
TRANSLATION = {  # pieces of Hugging Face's names → OpenAI's
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.",
    "text_model.encoder.layers.": "transformer.resblocks.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".self_attn.": ".attn.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
}
TRANSPOSED = ("visual.proj", "text_projection")  # weights of linear layers there
INDEX = ".index.json"  # of weights in several files
WEIGHTS = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
for _name in ("model.safetensors", "pytorch_model.bin"):
    WEIGHTS += [_name, _name + INDEX]

# open_clip's settings that make the model we have, or nothing that a loaded model does. Any other
# is a part that we do not have, unless it is usual or off.
KNOWN = """embed_dim quick_gelu vision_cfg text_cfg custom_text init_logit_scale
    nonscalar_logit_scale width layers head_width heads image_size patch_size mlp_ratio
    context_length vocab_size patch_dropout pad_id eos_id attn_pooler_queries
    attn_pooler_heads""".split()
OFF = (None, False, {}, "")  # 0 is False
USUAL = {"pool_type": ("tok", "argmax"), "pos_embed_type": ("learnable",), "proj_type": ("linear",),
         "block_type": ("default",), "timm_pool": ("avg",), "timm_proj": ("linear",),
         "hf_proj_type": ("mlp",), "hf_pooler_type": ("mean_pooler",),
         "hf_model_pretrained": (True,)}  # fmt: skip
HUGGING_FACE_SIDE = {"layer_norm_eps": (1e-5,),
                     "eos_token_id": (49407, 2)}  # 2: before 2023, the largest  # fmt: skip
# How images are preprocessed; 3 is Pillow's number of bicubic. Other "do_…" must be off.
PREPROCESSING = {
    "interpolation": ("bicubic",), "resize_mode": ("shortest",), "resample": (3,),
    **dict.fromkeys("do_resize do_center_crop do_rescale do_normalize do_convert_rgb".split(),
                    (True,)),
    "rescale_factor": (1 / 255,), "default_to_square": (False,), "use_square_size": (False,),
    "image_processor_type": ("CLIPImageProcessor", "CLIPImageProcessorFast"),
}  # fmt: skip
logger = logging.getLogger("minidpt")


def find_clip(named: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Find the one CLIP among a file's tensors, by their names as `read_state_dict` joins them.

    Left out is only what is beside it: what is a part of the model goes along, known or not.

    Returns: its tensors under OpenAI's names, and who named them, `OPENAI` or `HUGGING_FACE`.
    Raises ValueError if there is none, saying what there is, or if there are two, saying where.
    """
    # torch.compile puts a module around another one, anywhere in a name
    tensors = {name.replace("_orig_mod.", ""): value for name, value in named.items()}
    if len(tensors) < len(named):
        raise ValueError("expected each tensor once, got some with and without '_orig_mod.'")
    places = {
        name.removesuffix(anchor): origin
        for name in tensors
        for anchor, origin in ANCHORS.items()
        if f".{name}".endswith(f".{anchor}")
    }
    if len(places) > 1:
        raise ValueError(f"expected one CLIP, got several, under {listed(list(places))}: save one")
    if not places:
        expected = "the tensors of a CLIP, as OpenAI, open_clip or Hugging Face name them"
        raise ValueError(f"expected {expected}, got {listed(list(tensors))}")
    ((prefix, origin),) = places.items()
    inside = {name[len(prefix) :]: tensors[name] for name in tensors if name.startswith(prefix)}
    if "text.token_embedding.weight" in inside:  # open_clip's models of two towers
        inside = {name.removeprefix("text."): value for name, value in inside.items()}
    weights = {n: value for n, value in inside.items() if n.partition(".")[0] in PARTS[origin]}
    beside = [name for name in inside if name not in weights and name not in NOT_WEIGHTS]
    beside += [name for name in tensors if not name.startswith(prefix)]
    if prefix:
        logger.info(to_single_line(f"CLIP's tensors are those under '{prefix}'"))
    if beside:
        logger.info(to_single_line(f"tensors beside CLIP's were left out: {listed(beside)}"))
    if origin == HUGGING_FACE:
        weights = translate(weights)
    if "logit_scale" in weights:  # of one dimension in some
        weights["logit_scale"] = weights["logit_scale"].squeeze()
    return weights, origin


def translate(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename Hugging Face's tensors to OpenAI's names; what has no translation keeps its own."""
    ours: dict[str, Tensor] = {}
    for name, value in weights.items():
        for theirs, openais in TRANSLATION.items():
            name = name.replace(theirs, openais)
        if not name.endswith(".position_ids"):  # 0, 1, 2, …, in files of earlier versions
            ours[name] = value.t() if name in TRANSPOSED and value.ndim == 2 else value
    for query in [name for name in ours if ".attn.q_proj." in name]:
        names = [query.replace("q_proj", f"{side}_proj") for side in "qkv"]
        parts = [ours[name] for name in names if name in ours]
        alike = {(each.shape, each.dtype) for each in parts}
        if len(parts) == 3 and len(alike) == 1 and parts[0].ndim:
            ours[query.replace("q_proj.", "in_proj_")] = torch.cat(parts)
            for name in names:
                del ours[name]
    return ours


class Config(NamedTuple):
    """What a configuration says of a CLIP beyond its tensors; None: it does not.

    sizes: by file, settings of the image side or of preprocessing, with sizes to compare.
    """

    path: Path | None = None
    quick_gelu: bool | None = None
    head_width: int | None = None
    text_head_width: int | None = None
    mean: Colours = CLIP_MEAN
    std: Colours = CLIP_STD
    sizes: Mapping[Path, Mapping[str, Any]] = {}

    def resolve(self, name: str, option: Any) -> Any:
        """Return a setting, `option` where it has none; ValueError if the two differ."""
        setting = getattr(self, name)
        if None not in (setting, option) and setting != option:
            raise ValueError(f"{self.path}: expected {name} {setting}, got {option}: leave it out")
        return option if setting is None else setting

    def check_sizes(self, visual: VisionTransformer) -> None:
        """Raise ValueError if a file is the configuration of another model."""
        patch, side = visual.conv1.kernel_size[0], visual.resolution
        sizes = {
            **dict.fromkeys(("width", "hidden_size"), (visual.proj.shape[0],)),
            **dict.fromkeys(("layers", "num_hidden_layers"), (len(visual.transformer.resblocks),)),
            "patch_size": (patch, [patch, patch]),
            "image_size": (side, [side, side]),
            "size": ({"shortest_edge": side}, side),
            "crop_size": ({"height": side, "width": side}, side),
        }
        for path, settings in self.sizes.items():
            _check_settings(f"{path}, beside these weights", settings, sizes)


def weights_in(folder: Path) -> Path:
    """Find the file of weights in a folder, or the index of several; FileNotFoundError if none."""
    for name in WEIGHTS:
        if os.path.lexists(folder / name):
            return folder / name
    got = listed(sorted(path.name for path in folder.iterdir()))
    raise FileNotFoundError(f"folder {folder}: expected {', '.join(WEIGHTS)} in it, got {got}")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file by their dotted names, or of the files that an index names.

    Raises as `read_state_dict`, and ValueError for an index that does not fit its files, or names
    others than those beside it.
    """
    if not path.name.endswith(INDEX):
        return read_state_dict(path)
    index = check_fields(read_json(path, str(path)), str(path), weight_map=dict)
    shard_of, tensors = check_fields(index["weight_map"], str(path)), {}
    for shard in dict.fromkeys(map(str, shard_of.values())):
        tensors |= read_state_dict(path.with_name(shard))
    if wrong := sorted(shard_of.keys() ^ tensors.keys()):
        raise ValueError(f"{path} and its files differ in {wrong[0]}: download them again")
    return tensors


def read_config(folder: Path, origin: str) -> Config:
    """Read the configuration in the folder of weights that `origin` named, if there is one.

    Raises ValueError if it is damaged, of another kind of model, or names a part that we do not
    have, FileNotFoundError if it is no file: a broken link or a folder, say.
    """
    config = (_hugging_face if origin == HUGGING_FACE else _open_clip)(folder)
    if any(config.sizes.values()):
        colours = f"mean {config.mean}, std {config.std}"
        logger.info(f"{folder}: quick_gelu {config.quick_gelu}, {colours}")
    return config


def _open_clip(folder: Path) -> Config:
    path = folder / "open_clip_config.json"
    if (content := _read_entries(path)) is None:
        return Config()
    model = check_fields(content.get("model_cfg", content), f"{path}, model_cfg",
                         quick_gelu=bool | None, vision_cfg=dict, text_cfg=dict)  # fmt: skip
    vision, text = model["vision_cfg"], model["text_cfg"]
    numbers = dict.fromkeys(("width", "layers", "heads", "head_width"), int | None)
    for name, settings in {"model_cfg": model, "vision_cfg": vision, "text_cfg": text}.items():
        check_fields(settings, f"{path}, {name}", **numbers)
        foreign = {each: USUAL.get(each, ()) + OFF for each in settings if each not in KNOWN}
        _check_settings(f"{path}, {name}", settings, foreign)
    width, heads = text.get("width", 512), text.get("heads", 8)
    text_head_width = _head_width(f"{path}, text_cfg", width, heads)
    colours = check_fields(content.get("preprocess_cfg", {}), f"{path}, preprocess_cfg")
    return Config(path, bool(model.get("quick_gelu")), vision.get("head_width", HEAD_WIDTH),
                  text_head_width, *_colours(path, colours, ""), {path: vision})  # fmt: skip


def _hugging_face(folder: Path) -> Config:
    processor, settings = _image_processor(folder)
    sizes, colours = {processor: settings}, _colours(processor, settings, "image_")
    path = folder / "config.json"
    if (content := _read_entries(path)) is None:
        return Config(None, None, None, None, *colours, sizes)
    _check_settings(path, {"model_type": None, **content}, {"model_type": ("clip",)})
    head_widths, acts = [], ("quick_gelu", "gelu")
    for name, width, heads in (("text", 512, 8), ("vision", 768, 12)):
        where, side = f"{path}, {name}_config", content.get(f"{name}_config", {})
        side = content.get(f"{name}_config_dict", side)  # the older goes first
        check_fields(side, where, hidden_size=int | None, num_attention_heads=int | None)
        usual = {"hidden_size": width, "num_attention_heads": heads, "hidden_act": "quick_gelu"}
        sizes[path] = side = usual | side  # in the end those of the image side
        _check_settings(where, side, {**HUGGING_FACE_SIDE, "hidden_act": acts})
        acts = (side["hidden_act"],)  # of both sides
        head_widths.append(_head_width(where, side["hidden_size"], side["num_attention_heads"]))
    return Config(path, acts == ("quick_gelu",), *reversed(head_widths), *colours, sizes)


def _read_entries(path: Path) -> dict[str, Any] | None:
    """Read the entries of a JSON file that are not null; None if nothing is there."""

    def without_null(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: without_null(each) for name, each in value.items() if each is not None}

    if not os.path.lexists(path):
        return None
    return without_null(check_fields(read_json(path, str(path)), str(path)))


def _image_processor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return what preprocesses images, and its file; of two the nested one, as transformers 5."""
    new, old = folder / "processor_config.json", folder / "preprocessor_config.json"
    processor, settings = _read_entries(new) or {}, _read_entries(old)
    if settings and "image_processor" not in processor:
        return old, settings
    return new, check_fields(processor.get("image_processor", processor), f"{new}, image_processor")


def _check_settings(where: object, settings: Mapping[str, Any], allowed: Mapping) -> None:
    """Raise ValueError at the first setting that is there and has none of its allowed values."""
    for name, values in allowed.items():
        if (value := settings.get(name, values[0])) not in values:
            got = to_single_line(repr(value), 80)
            raise ValueError(f"{where}: expected {name} {values[0]!r}, got {got}")


def _head_width(where: str, width: int, heads: int) -> int:
    if not 1 <= heads <= width or width % heads:
        raise ValueError(f"{where}: expected heads that share the width {width}, got {heads}")
    return width // heads


def _colours(path: Path, settings: Mapping[str, Any], prefix: str) -> tuple[Colours, Colours]:
    """Return mean and std; ValueError for what is none, and for other preprocessing than ours."""
    others = {name: (False,) for name in settings if name.startswith("do_")}
    _check_settings(path, settings, others | PREPROCESSING)
    mean_std = []
    for name, usual, least in (("mean", CLIP_MEAN, -100), ("std", CLIP_STD, 1e-3)):
        values = settings.get(prefix + name, usual)
        three = isinstance(values, (list, tuple)) and len(values) == 3
        if not three or not all(type(v) in (int, float) and least <= v <= 100 for v in values):
            got = short_repr(values)
            raise ValueError(f"{path}: expected three numbers {prefix}{name}, got {got}")
        mean_std.append(tuple(map(float, values)))
    return tuple(mean_std)
