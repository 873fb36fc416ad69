"""A program that `minidpt.export` wrote, run where this package is not."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.tiny_models import Sizes, clip_state, learned_shapes, learned_tensors, random_images

import minidpt
from minidpt import exporting
from minidpt.images.decode import WhiteLevel
from minidpt.images.transforms import CLIP_MEAN, CLIP_STD

SMALL = Sizes(vision_layers=2, text_layers=1)
NAMES = ["ox", "red fox", "owl", "gnu", "cat"]
OF_METHOD = {  # with every part that the method has; DPT also where all classes are selected
    "zeroshot": {"method": "zeroshot"},
    "coop": {"method": "coop", "n_ctx": 3},
    "vpt": {"method": "vpt", "n_visual": 3},
    "vlp": {"method": "vlp", "n_ctx": 3, "n_visual": 2},
    "dpt": {"method": "dpt", "n_ctx": 3, "n_visual": 2, "top_k": 3, "class_aware_from": 2},
    "dpt with all classes": {"method": "dpt", "n_ctx": 3, "class_aware_from": 1},
}
ABOUT = {
    "classnames": NAMES,
    "image_size": SMALL.patch * SMALL.grid,
    "mean": list(CLIP_MEAN),
    "std": list(CLIP_STD),
    "white_level": {"integer": 4095},
}
READER = """
import json, sys, warnings
warnings.simplefilter("ignore")  # torch 2.4 warns of its own torch.load
import torch
images, extra = torch.load("images", weights_only=True), {"minidpt.json": ""}
program = torch.export.load("a.pt2", extra_files=extra).module()
results = [program(images[:count]) for count in (1, 2, 7)]
assert not any(result.requires_grad for result in results)
results = [result.tolist() for result in results]
assert not any(name.split(".")[0] in ("minidpt", "PIL", "ftfy") for name in sys.modules)
print(json.dumps([results, json.loads(extra["minidpt.json"])]))
"""


def model_of(config: dict, dtype: torch.dtype = torch.float32) -> minidpt.PromptedCLIP:
    """A model whose logits differ much from class to class."""
    clip = minidpt.build_clip(clip_state(SMALL)).cast(dtype)
    model = minidpt.build_model(clip, NAMES, "a {}.", minidpt.PromptConfig(**config))
    model.load_published(learned_tensors(learned_shapes(SMALL, len(NAMES), config)))
    model.white_level = WhiteLevel(integer=4095)
    return model.eval()


def probabilities(model: minidpt.PromptedCLIP, images: torch.Tensor) -> torch.Tensor:
    """What `predict` finds, in the order of the classes."""
    predicted = [dict(row) for row in model.predict(images, top=len(NAMES))]
    return torch.tensor([[row[name] for name in NAMES] for row in predicted])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", OF_METHOD)
def test_what_is_exported_holds_no_text_encoder_and_predicts_as_the_model(method, dtype):
    model, images = model_of(OF_METHOD[method], dtype), random_images(SMALL, 3)
    classifier = exporting.ImageClassifier(model)
    assert torch.equal(classifier(images), probabilities(model, images))
    text_side = ("clip.transformer.", "clip.token_embedding.", "clip.text_projection", "text_")
    assert not any(name.startswith(text_side) for name in classifier.state_dict())


def test_torch_alone_predicts_as_the_model_for_any_number_of_images(tmp_path):
    """DPT has every part that a method can have; `benchmarks/exporting.py` tries all of them."""
    model, images = model_of(OF_METHOD["dpt"]), random_images(SMALL, 7)
    torch.save(images, tmp_path / "images")
    model.clip.visual.ln_post.requires_grad_(True)  # by a user who trains it
    with torch.autocast("cpu", torch.bfloat16):  # is not the program's
        minidpt.export(model, tmp_path / "a.pt2")
    learned = model.learned_parameters()
    assert all(value.requires_grad for value in learned)  # of the model, still
    assert model.clip.visual.ln_post.weight.requires_grad
    model.clip.visual.ln_post.requires_grad_(False)
    command = [sys.executable, "-I", "-c", READER]
    results, about = json.loads(subprocess.check_output(command, cwd=tmp_path))
    expected = probabilities(model, images)
    assert expected.std() > 0.01
    for count, got in zip((1, 2, 7), results, strict=True):
        assert_near(torch.tensor(got), expected[:count], 1e-5)
    assert about == ABOUT
    assert sorted(os.listdir(tmp_path)) == ["a.pt2", "images"]


def assert_near(got: torch.Tensor, expected: torch.Tensor, most: float) -> None:
    assert got.shape == expected.shape and (got - expected).abs().max() < most


@pytest.mark.parametrize("method", ["coop", "dpt"])
def test_an_onnx_runtime_predicts_as_the_model_for_any_number_of_images(method, tmp_path):
    for package in exporting.ONNX_PACKAGES:
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    model, images = model_of(OF_METHOD[method]), random_images(SMALL, 7)
    expected = probabilities(model, images)
    minidpt.export(model, tmp_path / "a.onnx")
    session = runtime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 2, 7):
        (got,) = session.run(["probabilities"], {"images": images[:count].numpy()})
        assert_near(torch.from_numpy(got), expected[:count], 1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["minidpt.json"]) == ABOUT


def test_a_model_whose_logits_are_not_finite_is_not_exported(tmp_path):
    model = model_of(OF_METHOD["vpt"])
    model.visual_prompts.prompts.data.fill_(3e38)
    model.save(tmp_path / "model.pt")
    (tmp_path / "a.pt2").write_bytes(earlier := b"earlier minidpt.json")
    with pytest.raises(ValueError, match=f"^{tmp_path}/model.pt: expected finite logits, got NaN"):
        minidpt.export(model, tmp_path / "a.pt2", overwrite=True)
    assert (tmp_path / "a.pt2").read_bytes() == earlier
    assert sorted(os.listdir(tmp_path)) == ["a.pt2", "model.pt"]


def test_a_program_that_cannot_be_written_whole_leaves_nothing(tmp_path, monkeypatch):
    def fill_disk(path, content):
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_disk)
    with pytest.raises(OSError, match="a.pt2: expected free space"):
        minidpt.export(model_of(OF_METHOD["zeroshot"]), tmp_path / "a.pt2")
    assert not os.listdir(tmp_path)


def test_an_unwritable_target_is_refused_in_one_line_beforehand(tmp_path, monkeypatch):
    model = model_of(OF_METHOD["zeroshot"])
    with pytest.raises(ValueError, match="a.txt: expected a name that ends in .pt2 or .onnx"):
        minidpt.export(model, tmp_path / "a.txt")
    (tmp_path / "a.pt2").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="a.pt2: expected a new file"):
        minidpt.export(model, tmp_path / "a.pt2")
    (tmp_path / "link.pt2").symlink_to(tmp_path / "gone")
    with pytest.raises(FileExistsError, match="link.pt2: expected a new file"):
        minidpt.export(model, tmp_path / "link.pt2")
    (tmp_path / "link.pt2").unlink()
    with pytest.raises(FileNotFoundError, match="expected a file in a folder that exists"):
        minidpt.export(model, tmp_path / "none" / "a.pt2")
    (tmp_path / "b.pt2").mkdir()
    (tmp_path / "link.pt2").symlink_to("a.pt2")
    for name in ("a.pt2", "b.pt2", "link.pt2"):
        with pytest.raises(FileExistsError, match=f"{name}: expected a new file"):
            minidpt.export(model, tmp_path / name, overwrite=True)
    (tmp_path / "link.pt2").unlink()
    (tmp_path / "b.pt2").rmdir()
    monkeypatch.setattr(exporting, "ONNX_PACKAGES", ("no_such_package",))
    with pytest.raises(ValueError, match="a.onnx: packages are missing .* install no_such_package"):
        minidpt.export(model, tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="expected a CLIP in fp32, got torch.bfloat16"):
        minidpt.export(model_of(OF_METHOD["zeroshot"], torch.bfloat16), tmp_path / "a.onnx")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]
