"""Where in a checkpoint a CLIP lies, and its tensors under OpenAI's names.

Trainers wrap what they save ("state_dict", "module.", "model.", one inside another): the place is
found by CLIP's own tensors, not by a list of wrappers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from ..clip.state_dict import NOT_WEIGHTS, listed
from ..support.files import to_single_line

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
        weights = translated(weights)
    scale = weights.get("logit_scale")
    if isinstance(scale, Tensor) and scale.shape == (1,):
        weights["logit_scale"] = scale[0]
    return weights, origin


def translated(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename Hugging Face's tensors to OpenAI's names; what has no translation keeps its own."""
    ours: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.endswith(".position_ids"):  # 0, 1, 2, …, in files of earlier versions
            continue
        for theirs, openais in TRANSLATION.items():
            name = name.replace(theirs, openais)
        ours[name] = value.t() if name in TRANSPOSED and value.ndim == 2 else value
    for query in [name for name in ours if ".attn.q_proj." in name]:
        names = [query.replace("q_proj", f"{part}_proj") for part in "qkv"]
        parts = [ours[name] for name in names if name in ours]
        alike = {(part.shape, part.dtype) for part in parts}
        if len(parts) == 3 and len(alike) == 1 and parts[0].ndim:
            ours[query.replace("q_proj.", "in_proj_")] = torch.cat(parts)
            for name in names:
                del ours[name]
    return ours
