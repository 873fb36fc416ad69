"""Write checkpoints as other libraries do, by hand, from tensors under OpenAI's names."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
          torch.bool: "BOOL", torch.float64: "F64"}  # fmt: skip


HUGGING_FACE_CONFIG = {  # of `tiny_models.WIDE`, with the exact GELU
    "model_type": "clip",
    "vision_config": {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 3,
                      "image_size": 21, "patch_size": 7, "hidden_act": "gelu"},
    "text_config": {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 3,
                    "hidden_act": "gelu", "eos_token_id": 2},
}  # fmt: skip


def safetensors_bytes(tensors: Tensors, header: dict | None = None) -> bytes:
    """Return a safetensors file; `header` replaces entries of its header (None: removes)."""
    entries, numbers = {"__metadata__": {"format": "pt"}}, bytearray()
    for name, value in tensors.items():
        data = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        span = [len(numbers), len(numbers) + len(data)]
        entries[name] = {"dtype": DTYPES[value.dtype], "shape": list(value.shape),
                         "data_offsets": span}  # fmt: skip
        numbers += data
    entries |= header or {}
    text = json.dumps({name: entry for name, entry in entries.items() if entry is not None})
    text = text.encode().ljust(-(-len(text) // 8) * 8)
    return len(text).to_bytes(8, "little") + text + numbers


def write_safetensors(path: Path, tensors: Tensors) -> Path:
    """Write a safetensors file, and return its path."""
    path.write_bytes(safetensors_bytes(tensors))
    return path


def write_hugging_face_folder(folder: Path, state: Tensors, **configs: dict) -> Path:
    """Write a folder of weights, and configurations by their files' names."""
    folder.mkdir(exist_ok=True)
    write_safetensors(folder / "model.safetensors", hugging_face_state(state))
    for name, content in {"config": HUGGING_FACE_CONFIG, **configs}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def hugging_face_state(state: Tensors) -> Tensors:
    """Rename, split and transpose the tensors as Hugging Face's CLIPModel has them."""
    theirs = {
        "logit_scale": state["logit_scale"],
        "visual_projection.weight": state["visual.proj"].t(),
        "text_projection.weight": state["text_projection"].t(),
    }
    vision, text = "vision_model.embeddings", "text_model.embeddings"
    theirs[f"{vision}.class_embedding"] = state["visual.class_embedding"]
    theirs[f"{vision}.patch_embedding.weight"] = state["visual.conv1.weight"]
    theirs[f"{vision}.position_embedding.weight"] = state["visual.positional_embedding"]
    theirs[f"{text}.token_embedding.weight"] = state["token_embedding.weight"]
    theirs[f"{text}.position_embedding.weight"] = state["positional_embedding"]
    for kind in ("weight", "bias"):
        theirs[f"vision_model.pre_layrnorm.{kind}"] = state[f"visual.ln_pre.{kind}"]
        theirs[f"vision_model.post_layernorm.{kind}"] = state[f"visual.ln_post.{kind}"]
        theirs[f"text_model.final_layer_norm.{kind}"] = state[f"ln_final.{kind}"]
        for ours, side in (("visual.transformer", "vision_model"), ("transformer", "text_model")):
            for layer in range(100):
                block = f"{ours}.resblocks.{layer}"
                if f"{block}.ln_1.{kind}" not in state:
                    break
                there = f"{side}.encoder.layers.{layer}"
                joined = state[f"{block}.attn.in_proj_{kind}"]
                for letter, rows in zip("qkv", joined.chunk(3), strict=True):
                    theirs[f"{there}.self_attn.{letter}_proj.{kind}"] = rows
                theirs[f"{there}.self_attn.out_proj.{kind}"] = state[
                    f"{block}.attn.out_proj.{kind}"
                ]
                theirs[f"{there}.layer_norm1.{kind}"] = state[f"{block}.ln_1.{kind}"]
                theirs[f"{there}.layer_norm2.{kind}"] = state[f"{block}.ln_2.{kind}"]
                theirs[f"{there}.mlp.fc1.{kind}"] = state[f"{block}.mlp.c_fc.{kind}"]
                theirs[f"{there}.mlp.fc2.{kind}"] = state[f"{block}.mlp.c_proj.{kind}"]
    return {name: value.contiguous() for name, value in theirs.items()}
