"""Load tensors that the published implementations computed (`tests/golden`), and their inputs.

Each case is NAME.npz, the outputs, and NAME.json, what they were computed from. The inputs are
random numbers of numpy's legacy generator, whose stream is the same in every version. All were
computed in fp32 on a CPU with tiny random models: numbers, no trained weights.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"
METHOD_CASES = ("coop_end", "vpt_deep", "vlp", "dpt_last_layer", "dpt_top3_csc_middle")
METHODS = {"CoOp": "coop", "VPT": "vpt", "VLP": "vlp", "DPT": "dpt"}
TEMPLATES = {
    "Caltech101": "a photo of a {}.",
    "OxfordPets": "a photo of a {}, a type of pet.",
    "DescribableTextures": "{} texture.",
}
GUIDANCE_EPOCHS, WARMUP_EPOCHS = 3, {"visual": 2, "text": 1}  # of the stored trajectories

TOLERANCE = 2e-5  # absolute, of features, logits and losses: fp32 sums in another order
RELATIVE = 1e-4  # norm of the difference by the norm, of gradients and trained values
NORMS = tuple(f"ln_{name}.weight" for name in ("1", "2", "pre", "post", "final"))
FINGERPRINTED = 4096  # tensors of more elements are stored as a fingerprint


class Case(NamedTuple):
    spec: dict[str, Any]  # the JSON file
    stored: dict[str, np.ndarray]  # the npz file

    @property
    def method(self) -> str:
        return METHODS[self.spec["method"]]

    @property
    def template(self) -> str:
        return TEMPLATES[self.spec["dataset"]]

    @property
    def config(self) -> dict[str, Any]:
        """Return the options as keyword arguments of `minidpt.PromptConfig`."""
        names = {
            "n_ctx": "n_ctx",
            "vpt": "n_visual",
            "bottom": "class_aware_from",
            "cpn": "top_k",
            "csc": "csc",
            "pos": "class_token_position",
            "ctx_init": "ctx_init",
        }
        options = {names[key]: value for key, value in self.spec["options"].items()}
        return {"method": self.method, "alpha": self.spec["alpha"], **options}

    def learned(self) -> dict[str, Tensor]:
        """Make the learned tensors at the start, under the published names."""
        tensors = {}
        for i, (name, shape) in enumerate(sorted(self.spec["learnables"].items())):
            value = _normal(self.spec["seed"], i, shape) * self.spec["learnable_std"]
            if ".lns" in name and name.endswith("weight"):
                value = value + 1
            tensors[name] = torch.from_numpy(np.asarray(value, np.float32))
        return tensors

    def batches(self) -> tuple[Tensor, Tensor]:
        """Make images (steps, B, 3, R, R) and labels (steps, B); the first is the main batch."""
        steps, batch, size = self.spec["steps"], self.spec["batch"], self.spec["clip"]["res"]
        state = RandomState(self.spec["seed"] + 1)
        images = state.standard_normal((steps, batch, 3, size, size)).astype(np.float32)
        labels = state.randint(0, len(self.spec["classnames"]), (steps, batch))
        return torch.from_numpy(images), torch.from_numpy(labels)

    def clip_weights(self) -> dict[str, Tensor]:
        return dict(_clip_weights(self.spec["clip"]["seed"], json.dumps(self.spec["clip_keys"])))


def load_case(name: str) -> Case:
    """Read one case of `tests/golden`."""
    spec = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    with np.load(GOLDEN / f"{name}.npz") as stored:
        return Case(spec, dict(stored))


def _normal(seed: int, i: int, shape: list[int]) -> np.ndarray:
    return RandomState(seed * 100003 + i).standard_normal(shape)


@functools.lru_cache(maxsize=1)
def _clip_weights(seed: int, keys: str) -> dict[str, Tensor]:
    tensors = {}
    for i, (name, shape) in enumerate(sorted(json.loads(keys).items())):
        value = _normal(seed, i, shape) * (0.05 if len(shape) > 1 else 0.02)
        if name.endswith(NORMS):
            value = value + 1
        if name == "logit_scale":
            value = math.log(1 / 0.07)
        tensors[name] = torch.from_numpy(np.asarray(value, np.float32))
    return tensors


def fingerprint(tensor: Tensor) -> Tensor:
    """Return norm, sum, dot product with fixed random numbers, and the first 64 values (67,)."""
    values = tensor.detach().double().flatten()
    direction = torch.from_numpy(RandomState(0).standard_normal(values.numel()))
    summary = torch.stack([values.norm(), values.sum(), values @ direction])
    return torch.cat([summary, values[:64]])


def assert_close(actual: Tensor, expected: np.ndarray | Tensor, name: str = "") -> None:
    """Assert features, logits or losses of equal shape, within `TOLERANCE`."""
    expected = torch.as_tensor(expected)
    assert actual.shape == expected.shape, f"{name}: {actual.shape}, not {expected.shape}"
    difference = (actual.detach().double() - expected.double()).abs().max().item()
    assert difference <= TOLERANCE, f"{name}: differs by {difference:.1e}"


def assert_tensors_equal(
    actual: dict[str, Tensor], stored: dict[str, np.ndarray], prefix: str
) -> None:
    """Assert gradients or trained values by published name: all those stored under `prefix`.

    A fingerprint's three sums are compared on their own: each within `RELATIVE` of the tensor's
    norm times the norm of what the sum weighs it with.
    """
    expected = {
        name.removeprefix(prefix): torch.as_tensor(value)
        for name, value in stored.items()
        if name.startswith(prefix)
    }
    assert set(actual) == {name.removesuffix("#fingerprint") for name in expected}
    for name, value in expected.items():
        tensor = actual[name.removesuffix("#fingerprint")].detach().double()
        if name.endswith("#fingerprint"):
            assert (size := tensor.numel()) > FINGERPRINTED
            tensor = fingerprint(tensor)
            scale = value[0] * torch.tensor([1, math.sqrt(size), math.sqrt(size)])
            difference = (tensor[:3] - value[:3]).abs() / scale
            assert difference.max() <= RELATIVE, f"{prefix}{name}: sums differ by {difference}"
            tensor, value = tensor[3:], value[3:]
        assert tensor.shape == value.shape, f"{prefix}{name}: {tensor.shape}, not {value.shape}"
        difference = ((tensor - value.double()).norm() / value.double().norm()).item()
        assert difference <= RELATIVE, f"{prefix}{name}: differs by {difference:.1e} of its norm"
