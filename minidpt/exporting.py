"""Export a model as one program of torch alone, or of ONNX: preprocessed images → probabilities.

The text side is not in it, only its features, as constants.
"""

import copy
import importlib.util
import io
import json
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from .model import PromptedCLIP, PromptFeatures
from .support.files import atomic_write

ABOUT = "minidpt.json"  # the JSON text in a program, see `export`
MAX_ONNX = 2**31 - 2**24  # bytes of weights: protobuf's 2 GiB, and room for the graph
ONNX_PACKAGES = ("onnx", "onnxscript")  # that torch's exporter needs


class ImageClassifier(PromptedCLIP):
    """The image side of a model and its present text features, for `torch.export`."""

    def __init__(self, model: PromptedCLIP):
        nn.Module.__init__(self)  # its parts are the model's: nothing is made, no text encoded
        self.clip = nn.Module()
        self.clip.visual, self.clip.logit_scale = model.clip.visual, model.clip.logit_scale
        self.classnames, self.config = model.classnames, model.config
        self.visual_prompts, self.class_aware = model.visual_prompts, model.class_aware
        features = model.prompt_features()
        self.register_buffer("template_features", model.template_features)
        self.register_buffer("features", features.text_features)
        self.register_buffer("normalized_features", features.normalized_text_features)
        self.prompt_kv = nn.ParameterList(features.prompt_kv)

    def prompt_features(self) -> PromptFeatures:
        """Return constants."""
        return PromptFeatures(self.features, self.normalized_features, list(self.prompt_kv))

    def forward(self, images: Tensor) -> Tensor:
        """Map preprocessed images (B, 3, R, R) to probabilities (B, C) in fp32."""
        return super().forward(images, branches=False).logits.softmax(dim=-1)


@torch.no_grad()
def export(model: PromptedCLIP, path: str | os.PathLike, overwrite: bool = False) -> None:
    """Write a file with a program that predicts as the model does, without this package.

    Preprocessed images (B, 3, R, R) in fp32 → probabilities (B, C), for any B, on the model's
    device and in its precision. A `.pt2` file is for `torch.export.load`, an `.onnx` file for ONNX
    runtimes; both hold a JSON text "minidpt.json", as extra file or as metadata: "classnames",
    "image_size" R, "mean" and "std" of pixels between 0 and 1, and "white_level", what is white in
    images of more than 8 bits by their kind ("integer", "float").

    Raises as `check_target`, and ValueError for ONNX of a model that is not in fp32, or if logits
    are not finite.
    """
    path, clip, size = Path(path), model.clip, model.clip.visual.resolution
    is_onnx = path.suffix == ".onnx"
    if is_onnx and clip.dtype != torch.float32:
        raise ValueError(f"{path}: expected a CLIP in fp32, got {clip.dtype}: use --precision fp32")
    check_target(path, overwrite)
    weights = 4 * sum(weight.numel() for weight in clip.visual.parameters())
    if is_onnx and weights > MAX_ONNX:
        raise ValueError(f"{path}: expected at most {MAX_ONNX:,} bytes, got {weights:,}: use .pt2")
    about = json.dumps({
        "classnames": model.classnames, "image_size": size, "mean": clip.mean, "std": clip.std,
        "white_level": model.white_level,
    }, allow_nan=False)  # fmt: skip
    images = torch.zeros(2, 3, size, size, device=clip.device)  # 1 would be taken for fixed
    batch = {0: torch.export.Dim("batch")}
    with torch.autocast(clip.device.type, enabled=False):
        model.predict(images)  # raises where the program could not
        # A copy, of which nothing learns: what is exported has no gradient.
        classifier = copy.deepcopy(ImageClassifier(model)).requires_grad_(False)
        program = torch.export.export(classifier, (images,), dynamic_shapes=(batch,), strict=False)
        content = io.BytesIO()
        if is_onnx:
            names = dict(input_names=["images"], output_names=["probabilities"])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of torch's own code
                onnx = torch.onnx.export(program, dynamo=True, verbose=False, **names)
            onnx.model.metadata_props[ABOUT] = about
            content.write(onnx.model_proto.SerializeToString())
        else:
            torch.export.save(program, content, extra_files={ABOUT: about})
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(content.getbuffer())


def check_target(path: str | os.PathLike, overwrite: bool = False) -> None:
    """Check that `export` can write this file, before anything is loaded.

    Raises FileExistsError if it exists (with `overwrite`, if `export` has not made it),
    FileNotFoundError if its folder does not, and ValueError if its suffix is neither .pt2 nor
    .onnx, or a package is missing for that.
    """
    path = Path(path)
    replaces = overwrite and path.is_file() and not path.is_symlink()
    if os.path.lexists(path) and not (replaces and ABOUT.encode() in path.read_bytes()):
        fix = "pass another, or overwrite=True (--overwrite) to replace an earlier export"
        raise FileExistsError(f"{path}: expected a new file, got one that is there: {fix}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: expected a file in a folder that exists")
    if path.suffix not in (".pt2", ".onnx"):
        raise ValueError(f"{path}: expected a name that ends in .pt2 or .onnx")
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    missing += ["'torch>=2.5'"] if torch.__version__ < (2, 5) else []
    if path.suffix == ".onnx" and missing:
        fix = f"pip install {' '.join(missing)}, or export a .pt2"
        raise ValueError(f"{path}: packages are missing for ONNX: {fix}")
