"""How a folder of Hugging Face says that images are preprocessed: as we do, or it is refused."""

from __future__ import annotations

import logging

import pytest
import torch
from helpers.foreign_checkpoints import write_hugging_face_folder
from helpers.tiny_models import WIDE, clip_state
from PIL import Image

import minidpt
from minidpt.images.transforms import CLIP_MEAN, CLIP_STD

STATE = {name: value.half() for name, value in clip_state(WIDE).items()}
PROCESSOR = {
    "crop_size": {"height": 21, "width": 21}, "do_center_crop": True, "do_convert_rgb": True,
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5, 0.25, 0.125],
    "image_processor_type": "CLIPImageProcessor", "image_std": [0.5, 1, 0.25], "resample": 3,
    "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 21},
}  # fmt: skip
MEAN = (0.5, 0.25, 0.125)


@pytest.mark.parametrize(
    ("files", "mean"),
    [
        ({"processor_config": {"image_processor": PROCESSOR, "processor_class": "x"}}, MEAN),
        ({"processor_config": PROCESSOR}, MEAN),
        ({"processor_config": {"image_processor": PROCESSOR},
          "preprocessor_config": {"image_mean": [9, 9, 9], "size": 5}}, MEAN),
        ({"processor_config": {"image_processor": None, "image_mean": [9, 9, 9]},
          "preprocessor_config": PROCESSOR}, MEAN),
        ({"processor_config": {"image_processor": {}}, "preprocessor_config": PROCESSOR},
         CLIP_MEAN),
    ],
)  # fmt: skip
def test_preprocessing_is_found_where_transformers_looks(files, mean, tmp_path, caplog):
    caplog.set_level(logging.INFO, "minidpt")
    folder = write_hugging_face_folder(tmp_path / "a", STATE, **files)
    for path in (folder, folder / "model.safetensors"):
        assert minidpt.load(path)[1].mean == minidpt.load(path, image_size=35)[0].mean == mean
    assert f"{folder}: quick_gelu False, mean {mean}" in caplog.text
    (folder / "config.json").unlink()
    assert minidpt.load(folder)[0].mean == mean


@pytest.mark.parametrize(
    "changes",
    [
        dict.fromkeys(PROCESSOR),
        {"size": 21, "crop_size": 21},
        {"size": {"shortest_edge": 21, "longest_edge": None}, "do_pad": None, "do_reduce": False},
        {"use_square_size": False, "do_resize": 1},
    ],
)
def test_preprocessing_that_equals_ours_is_taken_and_null_is_absent(changes, tmp_path):
    settings = {"image_processor": PROCESSOR | changes}
    clip, preprocess = minidpt.load(
        write_hugging_face_folder(tmp_path / "a", STATE, processor_config=settings)
    )
    is_ours = "image_mean" in changes  # null
    mean, std = (CLIP_MEAN, CLIP_STD) if is_ours else (MEAN, (0.5, 1.0, 0.25))
    assert (clip.mean, clip.std) == (preprocess.mean, preprocess.std) == (mean, std)
    pixels = torch.tensor([255, 0, 51], dtype=torch.uint8).view(3, 1, 1).expand(3, 21, 21)
    expected = (torch.tensor([1, 0, 0.2]) - torch.tensor(mean)) / torch.tensor(std)
    for images in (preprocess(Image.new("RGB", (30, 25), (255, 0, 51))), clip.normalize(pixels)):
        torch.testing.assert_close(images, expected.view(3, 1, 1).expand(3, 21, 21))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("size", {"height": 21, "width": 21}, "{'shortest_edge': 21}"),
        ("size", {"shortest_edge": 24}, "{'shortest_edge': 21}"),
        ("size", {"shortest_edge": 21, "longest_edge": 99}, "{'shortest_edge': 21}"),
        ("size", 24, "{'shortest_edge': 21}"),
        ("size", [21, 21], "{'shortest_edge': 21}"),
        ("crop_size", {"height": 21, "width": 14}, "{'height': 21, 'width': 21}"),
        ("crop_size", 14, "{'height': 21, 'width': 21}"),
        ("do_resize", False, "True"),
        ("do_center_crop", False, "True"),
        ("do_convert_rgb", "no", "True"),
        ("do_pad", True, "False"),
        ("default_to_square", True, "False"),
        ("rescale_factor", 1, "0.0039"),
        ("rescale_factor", "x", "0.0039"),
        ("resample", 0.5, "3"),
        ("image_processor_type", "ViTImageProcessor", "'CLIPImageProcessor'"),
        ("image_mean", 0.5, "three numbers"),
    ],
)
def test_preprocessing_that_is_not_ours_is_refused_by_name(name, value, expected, tmp_path):
    settings = PROCESSOR | {name: value}
    nested = write_hugging_face_folder(
        tmp_path / "a", STATE, processor_config={"image_processor": settings}
    )
    flat = write_hugging_face_folder(tmp_path / "b", STATE, preprocessor_config=settings)
    for folder, options in ((nested, {}), (flat, {"image_size": 14})):
        with pytest.raises(ValueError) as error:
            minidpt.load(folder, **options)
        assert "processor_config.json" in str(error.value) and f"got {value!r}" in str(error.value)
        assert name in str(error.value) and f" {expected}" in str(error.value)
