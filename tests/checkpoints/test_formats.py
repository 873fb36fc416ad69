"""Whatever wraps, names or writes a CLIP's tensors, the same model comes of them."""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import logging
import os
import pathlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.foreign_checkpoints import (
    HUGGING_FACE_CONFIG,
    hugging_face_state,
    write_hugging_face_folder,
    write_safetensors,
)
from helpers.tiny_models import WIDE, clip_state, random_images
from torch import Tensor

import minidpt
from minidpt.checkpoints.reader import AttributeBag, read_checkpoint

OPEN_CLIP_CONFIG = {
    "model_cfg": {
        "embed_dim": 37,
        "vision_cfg": {"image_size": 21, "layers": 3, "width": 128, "head_width": 32,
                       "patch_size": 7},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2,
                     "layers": 3},
    },
    "preprocess_cfg": {"mean": [0.5, 0.25, 0.125], "std": [0.5, 1, 0.25],
                       "interpolation": "bicubic", "resize_mode": "shortest"},
}  # fmt: skip
STATE = {name: value.half() for name, value in clip_state(WIDE).items()}


def features(clip: minidpt.CLIP) -> Tensor:
    tokens = minidpt.tokenize(["an ox", "a red fox"])
    return torch.cat([clip.encode_image(random_images(WIDE, 2)), clip.encode_text(tokens)])


def plain(**options) -> minidpt.CLIP:
    return minidpt.build_clip(STATE, **options)


def load(content: object, folder: Path, **options) -> minidpt.CLIP:
    torch.save(content, folder / "my.pt")
    return minidpt.load(folder / "my.pt", **options)[0]


def prefixed(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


@pytest.fixture
def infos(caplog) -> Callable[[], list[str]]:
    """What the package's logger has said below warnings."""
    caplog.set_level(logging.INFO, "minidpt")
    return lambda: [r.getMessage() for r in caplog.records if r.levelname == "INFO"]


# ---- wrapped and prefixed


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (lambda state: {"epoch": 3, "state_dict": state}, "state_dict."),
        (lambda state: {"net": {"model_state_dict": state}}, "net.model_state_dict."),
        (lambda state: prefixed("module.", state), "module."),
        (lambda state: {"any": prefixed("_orig_mod.clip_model.", state)}, "any.clip_model."),
        (lambda state: prefixed("clip.visual.", state), "clip.visual."),
    ],
)
@pytest.mark.parametrize("names", ["OpenAI", "Hugging Face"])
def test_a_clip_is_found_where_it_lies_and_the_place_is_said(wrap, prefix, names, tmp_path, infos):
    state = STATE if names == "OpenAI" else hugging_face_state(STATE)
    clip = load(wrap(state), tmp_path)
    assert torch.equal(features(clip), features(plain()))
    assert infos() == [f"CLIP's tensors are those under '{prefix}'"]
    assert clip.fingerprint() == plain().fingerprint()


@pytest.mark.parametrize(
    ("piece", "prefix"), [("visual.", ""), ("visual.conv1.", ""), ("transformer.", "module.")]
)
def test_names_of_modules_that_were_compiled_are_understood(piece, prefix, tmp_path):
    """As torch.compile names the tensors of a part of a model."""
    state = {f"{prefix}{name}".replace(piece, f"{piece}_orig_mod."): v for name, v in STATE.items()}
    assert any("._orig_mod." in name for name in state)
    clip = load(prefixed("_orig_mod.", state), tmp_path)
    assert clip.fingerprint() == plain().fingerprint()
    with pytest.raises(ValueError, match="got some with and without '_orig_mod.'"):
        load(state | {name: v.clone() for name, v in prefixed(prefix).items()}, tmp_path)


def test_a_head_beside_is_left_out_and_said(tmp_path, infos):
    content = {"state_dict": prefixed("clip.") | {"clip.head.weight": torch.ones(3)},
               "classifier.bias": torch.ones(2)}  # fmt: skip
    clip = load(content, tmp_path)
    assert torch.equal(features(clip), features(plain()))
    assert infos()[1] == "tensors beside CLIP's were left out: head.weight, classifier.bias"


def test_names_from_a_file_cannot_draw_on_the_terminal(tmp_path, infos):
    load(STATE | {"\n\x1b[2J": torch.ones(1)}, tmp_path)
    assert infos() == ["tensors beside CLIP's were left out: \\x1b[2J"]


def test_a_temperature_in_a_list_of_one_is_the_number(tmp_path):
    clip = load(STATE | {"logit_scale": STATE["logit_scale"].view(1)}, tmp_path)
    assert clip.logit_scale.shape == () and clip.fingerprint() == plain().fingerprint()


@pytest.mark.parametrize(
    "name",
    [
        "visual.transformer.resblocks.0.attn.lora_A",
        "transformer.adapter.weight",
        "token_embedding.lora.weight",
        "visual.extra",
        "visual.attn_pool.query",  # of other architectures, from here
        "visual.transformer.resblocks.0.ls_1.gamma",
        "logit_bias",
        "text_decoder.resblocks.0.ln_1.weight",
        "text.cls_emb",
    ],
)
def test_a_tensor_that_no_plain_vit_has_is_refused_by_name(name, tmp_path):
    with pytest.raises(ValueError, match=f"my.pt: .*unknown {name}"):
        load({"model": prefixed("module.", STATE | {name: torch.ones(2)})}, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": STATE, "ema": {"m": clip_state(WIDE)}}, "got several, under model., ema.m.:"),
        ({"bert": {"a": torch.ones(1), "b": torch.ones(1)}}, r"of a CLIP.*, got bert\.a, bert\.b$"),
    ],
)
def test_a_file_of_no_clip_or_two_is_refused_by_its_names(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load(content, tmp_path)


# ---- beside the weights


@pytest.mark.parametrize("options", [{}, {"pickle_protocol": 4}])
def test_what_a_trainer_keeps_beside_the_weights_is_inert(options, tmp_path):
    beside = {
        "args": argparse.Namespace(lr=0.1, out=Path("runs")),
        "counts": collections.Counter("aab"),
        "array": np.arange(6.0).reshape(2, 3),
        "numbers": np.array([1, 2], dtype=np.int32),
        "scalar": np.float32(0.5),
        "path": pathlib.PurePosixPath("a/b"),
        "set": {1, 2},
        "frozen": frozenset({"a"}),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "when": datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc),
        "took": datetime.timedelta(seconds=3),
    }
    torch.save({"state_dict": STATE, **beside}, tmp_path / "my.pt", **options)
    got = read_checkpoint(tmp_path / "my.pt")
    assert got["args"]["lr"] == 0.1 and type(got["args"]) is AttributeBag
    for name in beside.keys() - {"args"}:
        assert got[name] in (AttributeBag, {}), name
    assert minidpt.load(tmp_path / "my.pt")[0].fingerprint() == plain().fingerprint()


# ---- Hugging Face


def test_a_folder_of_hugging_face_is_read_as_its_configuration_says(tmp_path, caplog, infos):
    folder = write_hugging_face_folder(tmp_path / "clip-vit-tiny", STATE)
    for path in (folder, folder / "model.safetensors"):
        clip, preprocess = minidpt.load(path)
        assert torch.equal(features(clip), features(plain(quick_gelu=False)))
        assert clip.name == "clip-vit-tiny" and preprocess.resolution == 21
        assert f"{folder}: quick_gelu False, mean" in infos()[-1]
    assert len(caplog.records) == 2  # no warning: nothing was guessed


def test_a_file_of_hugging_face_alone_has_openais_activation_and_says_so(tmp_path, caplog):
    clip, _ = minidpt.load(write_safetensors(tmp_path / "a.safetensors", hugging_face_state(STATE)))
    assert clip.fingerprint() == plain().fingerprint()
    assert "the quick GELU is used" in caplog.text


def test_position_ids_of_earlier_versions_are_no_weights(tmp_path):
    ids = {f"{side}_model.embeddings.position_ids": torch.arange(5)[None]
           for side in ("vision", "text")}  # fmt: skip
    assert load(hugging_face_state(STATE) | ids, tmp_path).fingerprint() == plain().fingerprint()


@pytest.mark.parametrize("pieces", ["model.safetensors", "pytorch_model.bin"])
def test_weights_in_several_files_are_read_by_their_index(pieces, tmp_path):
    state = hugging_face_state(STATE)
    names, where = sorted(state), {}
    for number, shard_names in enumerate((names[::2], names[1::2])):
        file = pieces.replace(".", f"-{number}.")
        write = (
            write_safetensors if pieces.endswith("safetensors") else (lambda p, t: torch.save(t, p))
        )
        write(tmp_path / file, {name: state[name] for name in shard_names})
        where |= dict.fromkeys(shard_names, file)
    index = tmp_path / f"{pieces}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert minidpt.load(tmp_path)[0].fingerprint() == plain().fingerprint()
    assert minidpt.load(index)[0].fingerprint() == plain().fingerprint()
    index.write_text(json.dumps({"weight_map": where | {"x": file}}))
    with pytest.raises(ValueError, match=f"{pieces}.index.json and its files differ in x"):
        minidpt.load(tmp_path)


@pytest.mark.parametrize("shard", ["../a.bin", "/etc/passwd", "a/b", "..", "", "a\\b", "c:a", 5])
def test_the_names_in_an_index_are_those_of_files_beside_it(shard, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    error = (ValueError, FileNotFoundError)
    with pytest.raises(error, match="Invalid name|expected a file|empty name"):
        minidpt.load(tmp_path)


def changed(config: dict, where: str, value: object) -> dict:
    """A copy with an entry of another value, named by its dotted path; None is JSON's null."""
    bag = config = json.loads(json.dumps(config))
    *path, last = where.split(".")
    for name in path:
        bag = bag[name]
    bag[last] = value
    return config


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("model_type", "siglip", "expected model_type 'clip', got 'siglip'"),
        ("vision_config.hidden_act", "gelu_new", "expected hidden_act 'gelu', got 'gelu_new'"),
        ("text_config.hidden_act", "quick_gelu", "hidden_act 'quick_gelu', got 'gelu'"),
        ("text_config.eos_token_id", 5, "expected eos_token_id 49407, got 5"),
        ("text_config.eos_token_id", [1], r"expected eos_token_id 49407, got \[1\]"),
        ("vision_config.layer_norm_eps", 1e-6, "layer_norm_eps"),
        ("vision_config.num_attention_heads", 3, "heads that share the width 128, got 3"),
        ("vision_config.num_attention_heads", -1, "heads that share the width 128, got -1"),
        ("vision_config.hidden_size", "x", "hidden_size"),
        ("vision_config.hidden_size", 256, "weights: expected hidden_size 128, got 256"),
        ("vision_config.num_hidden_layers", 9, "weights: expected num_hidden_layers 3, got 9"),
        ("vision_config.image_size", [21, 14], r"expected image_size 21, got \[21, 14\]"),
        ("vision_config.image_size", [], r"expected image_size 21, got \[\]"),
        ("text_config", 5, "named entries, got 5"),
    ],
)
def test_a_configuration_of_another_model_is_refused(where, value, message, tmp_path):
    folder = write_hugging_face_folder(
        tmp_path / "a", STATE, config=changed(HUGGING_FACE_CONFIG, where, value)
    )
    with pytest.raises(ValueError, match=message):
        minidpt.load(folder)


def test_the_old_entries_of_a_configuration_go_before_the_others(tmp_path):
    """As transformers reads them; where they are null, as in OpenAI's own folders, they are not."""
    old = HUGGING_FACE_CONFIG | {"text_config": {}, "vision_config": {"hidden_act": "swish"}}
    old |= {f"{side}_config_dict": HUGGING_FACE_CONFIG[f"{side}_config"]
            for side in ("text", "vision")}  # fmt: skip
    null = HUGGING_FACE_CONFIG | {"text_config_dict": None, "vision_config_dict": None}
    for config in (old, null):
        folder = write_hugging_face_folder(tmp_path / "a", STATE, config=config)
        assert not minidpt.load(folder)[0].quick_gelu


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("gone", path)])
@pytest.mark.parametrize("name", ["config", "preprocessor_config", "processor_config", "open_clip"])
def test_a_configuration_that_cannot_be_read_is_not_passed_over(make, name, tmp_path):
    if name == "open_clip":
        folder, name = write_open_clip(tmp_path / "a"), "open_clip_config"
    else:
        folder = write_hugging_face_folder(tmp_path / "a", STATE)
    (folder / f"{name}.json").unlink(missing_ok=True)
    make(folder / f"{name}.json")
    with pytest.raises(FileNotFoundError, match=f"/{name}.json: expected a file, got a"):
        minidpt.load(folder)


def test_weights_behind_a_broken_link_are_not_passed_over_for_others(tmp_path):
    folder = write_open_clip(tmp_path / "a")
    (folder / "open_clip_model.safetensors").symlink_to("gone")
    with pytest.raises(FileNotFoundError, match="safetensors: expected a file, got a broken link"):
        minidpt.load(folder)


# ---- open_clip


def write_open_clip(folder: Path, config: dict = OPEN_CLIP_CONFIG, state=STATE) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_of_open_clip_has_its_activation_heads_and_colours(tmp_path):
    clip, preprocess = minidpt.load(write_open_clip(tmp_path / "a"))
    expected = plain(quick_gelu=False, head_width=32, text_head_width=32)
    assert torch.equal(features(clip), features(expected))
    assert preprocess.mean == (0.5, 0.25, 0.125) and preprocess.std == (0.5, 1.0, 0.25)
    assert clip.name == "a" and not clip.quick_gelu
    quick = changed(OPEN_CLIP_CONFIG, "model_cfg.quick_gelu", True)
    assert minidpt.load(write_open_clip(tmp_path / "a", quick))[0].quick_gelu


def test_a_model_of_two_towers_is_read(tmp_path):
    text = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_proj")
    towers = {f"text.{n}" if n.startswith(text) else n: value for n, value in STATE.items()}
    clip = load({"state_dict": prefixed("module.", towers)}, tmp_path)
    assert clip.fingerprint() == plain().fingerprint()


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("model_cfg.text_cfg.pool_type", "last", "text_cfg: expected pool_type 'tok', got 'last'"),
        (
            "model_cfg.vision_cfg.ls_init_value",
            0.1,
            "vision_cfg: expected ls_init_value None, got 0.1",
        ),
        ("model_cfg.text_cfg.no_causal_mask", True, "no_causal_mask None, got True"),
        ("model_cfg.init_logit_bias", -10, "model_cfg: expected init_logit_bias None, got -10"),
        ("model_cfg.multimodal_cfg", {"width": 5}, "multimodal_cfg None, got {'width': 5}"),
        ("model_cfg.vision_cfg.head_width", 48, "head_width: expected a divisor of 128, got 48"),
        ("model_cfg.vision_cfg.width", 256, "weights: expected width 128, got 256"),
        ("model_cfg.text_cfg.heads", 5, "heads that share the width 64, got 5"),
        ("model_cfg.text_cfg", 5, "text_cfg"),
        ("preprocess_cfg.interpolation", "bilinear", "interpolation 'bicubic', got 'bilinear'"),
        ("preprocess_cfg.resize_mode", "squash", "resize_mode 'shortest', got 'squash'"),
        ("preprocess_cfg.mean", [1, 2], "three numbers mean, got a list"),
        ("preprocess_cfg.std", [1, 2, 0], "three numbers std"),
    ],
)
def test_what_a_configuration_asks_for_beyond_a_plain_vit_is_refused(
    where, value, message, tmp_path
):
    folder = write_open_clip(tmp_path / "a", changed(OPEN_CLIP_CONFIG, where, value))
    with pytest.raises(ValueError, match=message):
        minidpt.load(folder)


def test_settings_that_are_off_or_usual_are_none(tmp_path):
    off = changed(OPEN_CLIP_CONFIG, "model_cfg.text_cfg.pool_type", "argmax")
    off_values = {"ls_init_value": None, "attentional_pool": False, "norm_kwargs": {}}
    off["model_cfg"]["vision_cfg"] |= off_values
    assert not minidpt.load(write_open_clip(tmp_path / "a", off))[0].quick_gelu


@pytest.mark.parametrize("option", [{"quick_gelu": True}, {"head_width": 64}])
def test_an_argument_that_contradicts_the_configuration_is_refused(option, tmp_path):
    folder = write_open_clip(tmp_path / "a")
    assert not minidpt.load(folder, quick_gelu=False, head_width=32)[0].quick_gelu
    message = "config.json: expected (quick_gelu False, got True|head_width 32, got 64): leave it"
    for path in (folder, folder / "open_clip_pytorch_model.bin"):
        with pytest.raises(ValueError, match=message):
            minidpt.load(path, **option)


# ---- image size


def test_another_image_size_is_said_and_kept_in_a_saved_model(tmp_path, infos):
    clip, preprocess = minidpt.load(write_open_clip(tmp_path / "a"), image_size=35)
    assert preprocess.resolution == clip.visual.resolution == 35
    assert infos()[-1] == "positional embeddings were resized from 21 to 35 pixels"
    config = minidpt.PromptConfig(method="vpt", n_visual=2)
    model = minidpt.build_model(clip, ["ox", "fox"], "a {}.", config)
    model.save(tmp_path / "model.pt")
    again = minidpt.load_model(tmp_path / "model.pt", clip)
    assert torch.equal(again.visual_prompts.prompts, model.visual_prompts.prompts)
    stored, _ = minidpt.load(tmp_path / "a", image_size=21)
    assert stored.fingerprint() == clip.fingerprint() and stored.image_size is None
    with pytest.raises(ValueError, match="at another image size .*: load it with image_size=35"):
        minidpt.load_model(tmp_path / "model.pt", stored)


def test_a_saved_model_loads_its_clip_at_its_image_size(tmp_path, monkeypatch):
    torch.save(STATE, tmp_path / "ViT-B-16.pt")
    monkeypatch.setenv("MINIDPT_WEIGHTS", str(tmp_path))
    clip, _ = minidpt.load("ViT-B/16", image_size=14)
    model = minidpt.build_model(clip, ["ox", "fox"], "a {}.", minidpt.PromptConfig("vpt"))
    model.save(tmp_path / "model.pt")
    assert minidpt.load_model(tmp_path / "model.pt").clip.visual.resolution == 14


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        *(("image_size", value, f"a multiple of 7 .*got {value!r}$")
          for value in ("64", 28.0, 0, -7, 30, True, 14**9)),
        *(("head_width", value, f"a divisor of 128, got {value!r}$")
          for value in ("x", 64.0, 0, -64, True)),
        *(("quick_gelu", value, f"True or False, got {value!r}$") for value in ("no", 1, 0.0)),
    ],
)  # fmt: skip
def test_an_option_of_another_kind_is_named_with_what_it_is(option, value, message, tmp_path):
    with pytest.raises(ValueError, match=f"my.pt: {option}: expected .*{message}"):
        load(STATE, tmp_path, **{option: value})


def test_options_of_numpy_are_pythons(tmp_path):
    options = {"image_size": np.int64(14), "head_width": np.uint8(32), "quick_gelu": np.False_}
    clip = load(STATE, tmp_path, **options)
    expected = load(STATE, tmp_path, image_size=14, head_width=32, quick_gelu=False)
    assert clip.fingerprint() == expected.fingerprint() and type(clip.image_size) is int
    assert clip.quick_gelu is False
