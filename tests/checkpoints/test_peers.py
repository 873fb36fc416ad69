"""Checkpoints that open_clip and transformers write themselves, and their features of them.

Optional development dependencies (`pip install -e '.[peers]'`); without them these are skipped.
"""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from PIL import Image
from torch import Tensor

import minidpt

TEXTS = ["an ox", "a photo of a red fox."]
TOLERANCE = 1e-5  # of features' length: fp32 sums of another order


@pytest.fixture(scope="module")
def open_clip():
    with warnings.catch_warnings():  # of packages that it imports
        warnings.simplefilter("ignore")
        return pytest.importorskip("open_clip", reason="open_clip is not installed")


@pytest.fixture(scope="module")
def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("transformers", reason="transformers is not installed")


def assert_same_features(clip: minidpt.CLIP, images: Tensor, image: Tensor, text: Tensor) -> None:
    got = clip.encode_image(images), clip.encode_text(minidpt.tokenize(TEXTS))
    for ours, theirs in zip(got, (image, text), strict=True):
        assert (ours - theirs).norm() <= TOLERANCE * theirs.norm()


def lively(model: torch.nn.Module) -> torch.nn.Module:
    """Random numbers large enough that features of different inputs differ much."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim and "logit_scale" not in name:
                std = value.shape[-1] ** -0.5 if value.ndim == 2 else 0.2
                value.copy_(torch.randn(value.shape, generator=generator) * std)
                if value.ndim == 1 and name.endswith("weight"):
                    value += 1
    return model.eval()


def open_clip_config(**changes) -> dict:
    vision = {"image_size": 28, "layers": 2, "width": 80, "head_width": 40, "patch_size": 7,
              "mlp_ratio": 4.9231}  # fmt: skip
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    return {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, **changes}


@pytest.mark.parametrize(
    "changes", [{}, {"quick_gelu": True}, {"custom_text": True}, {"nonscalar_logit_scale": True}]
)
@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_open_clip_computes_the_same_features(open_clip, changes, file, tmp_path):
    config = open_clip_config(**changes)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    model = lively(kind(**config))
    if file.endswith("safetensors"):
        from safetensors.torch import save_file

        save_file(model.state_dict(), tmp_path / file)
    else:
        torch.save(model.state_dict(), tmp_path / file)
    colours = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic"}
    written = {"model_cfg": open_clip_config(**changes), "preprocess_cfg": colours}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(written))
    clip, preprocess = minidpt.load(tmp_path)
    image = Image.effect_noise((50, 37), 80).convert("RGB")
    transform = open_clip.image_transform(28, is_train=False, mean=(0.5, 0.4, 0.3),
                                          std=(0.2, 0.3, 0.4), interpolation="bicubic")  # fmt: skip
    images = torch.stack([transform(image), -transform(image)])
    assert torch.equal(preprocess(image), images[0])
    with torch.no_grad():
        text = model.encode_text(open_clip.tokenize(TEXTS))
        assert_same_features(clip, images, model.encode_image(images), text)


@pytest.mark.parametrize("image_size", [14, 49])
def test_open_clip_interpolates_positional_embeddings_alike(open_clip, image_size, tmp_path):
    state = lively(open_clip.CLIP(**open_clip_config())).state_dict()
    torch.save(state, tmp_path / "a.pt")
    clip, _ = minidpt.load(
        tmp_path / "a.pt", head_width=40, quick_gelu=False, image_size=image_size
    )
    config = open_clip_config()
    config["vision_cfg"]["image_size"] = image_size
    open_clip.model.resize_pos_embed(state, open_clip.CLIP(**config))
    expected = state["visual.positional_embedding"]
    torch.testing.assert_close(clip.visual.positional_embedding.data, expected, rtol=0, atol=1e-6)


FOREIGN = ["ViT-B-16-SigLIP", "coca_ViT-B-32", "ViT-H-14-CLIPA", "convnext_base", "EVA02-B-16",
           "roberta-ViT-B-32"]  # fmt: skip
PLAIN = ["ViT-B-32", "ViT-H-14", "ViT-bigG-14", "ViT-L-14-336-quickgelu"]


@pytest.mark.parametrize("name", FOREIGN + PLAIN)
def test_configurations_of_open_clips_other_models_are_refused_by_name(open_clip, name, tmp_path):
    torch.save(lively(open_clip.CLIP(**open_clip_config())).state_dict(), tmp_path / "a.pt")
    config = {"model_cfg": open_clip.get_model_config(name)}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    of_sizes = "beside these weights|a divisor of"
    with pytest.raises(ValueError, match=of_sizes if name in PLAIN else "_cfg: expected"):
        minidpt.load(tmp_path / "a.pt")


def hugging_face_model(transformers, act: str = "gelu", eos: int = 49407) -> torch.nn.Module:
    text = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                hidden_act=act, eos_token_id=eos)  # fmt: skip
    vision = dict(hidden_size=80, intermediate_size=200, num_hidden_layers=2, image_size=28,
                  num_attention_heads=2, patch_size=7, hidden_act=act)  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    return lively(transformers.CLIPModel(config))


def theirs(model: torch.nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        tokens = minidpt.tokenize(TEXTS)
        pooled = model.vision_model(pixel_values=images).pooler_output
        text = model.text_model(input_ids=tokens).pooler_output
        return model.visual_projection(pooled), model.text_projection(text)


@pytest.mark.parametrize(("act", "eos"), [("gelu", 49407), ("quick_gelu", 2)])
@pytest.mark.parametrize("file", ["model.safetensors", "model.safetensors.index.json",
                                  "pytorch_model.bin"])  # fmt: skip
def test_transformers_computes_the_same_features(transformers, act, eos, file, tmp_path):
    model = hugging_face_model(transformers, act, eos)
    model.save_pretrained(tmp_path / "a", max_shard_size="100KB" if "index" in file else "5GB")
    if file.endswith("bin"):
        (tmp_path / "a/model.safetensors").unlink()
        torch.save({"model": model.state_dict()}, tmp_path / "a" / file)
    assert (tmp_path / "a" / file).exists()
    clip, _ = minidpt.load(tmp_path / "a")
    images = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    assert_same_features(clip, images, *theirs(model, images))
    assert clip.name == "a" and clip.quick_gelu == (act == "quick_gelu")


def test_siglip_of_transformers_is_refused_by_name(transformers, tmp_path):
    sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    config = transformers.SiglipConfig(text_config=sizes, vision_config=sizes)
    transformers.SiglipModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected model_type .clip., got .siglip."):
        minidpt.load(tmp_path)


@pytest.mark.parametrize("is_nested", [True, False])
@pytest.mark.parametrize(
    ("changes", "is_taken"),
    [
        ({}, True),
        ({"do_pad": None, "do_flip_channel_order": False, "default_to_square": False}, True),
        ({"size": 28, "crop_size": 28}, True),
        ({"size": {"height": 28, "width": 28}}, False),
        ({"size": 35}, False),
        ({"do_center_crop": False, "size": {"height": 28, "width": 28}}, False),
        ({"do_rescale": False}, False),
        ({"rescale_factor": 1 / 127.5}, False),
        ({"resample": 2}, False),
        ({"do_normalize": False}, False),
    ],
)
def test_images_are_as_transformers_preprocesses_them_or_refused(
    transformers, changes, is_taken, is_nested, tmp_path
):
    hugging_face_model(transformers).save_pretrained(tmp_path)
    made = transformers.CLIPImageProcessor(size=28, crop_size=28, image_mean=[0.5, 0.4, 0.3])
    settings = json.loads(made.to_json_string()) | changes
    if is_nested:
        (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
        settings = {"image_mean": [0, 0, 0], "size": 28}  # of an earlier version
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    image = Image.effect_noise((60, 40), 80).convert("RGB")
    read = transformers.CLIPImageProcessor.from_pretrained(tmp_path)
    expected = torch.as_tensor(read(images=image, return_tensors="pt")["pixel_values"][0])
    if is_taken:
        difference = minidpt.load(tmp_path)[1](image) - expected
        assert difference.abs().max() < 0.02  # a step of 8 bits, as torchvision may round others
    else:
        ours = minidpt.images.transforms.Preprocess(28, (0.5, 0.4, 0.3))(image)
        assert ours.shape != expected.shape or (ours - expected).abs().max() > 0.02
        with pytest.raises(ValueError, match="processor_config.json"):
            minidpt.load(tmp_path)
