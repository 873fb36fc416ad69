"""Compare a model of the package with the naive reference, on the same learned tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import minidpt
from helpers import reference
from helpers.golden_cases import RELATIVE, assert_close
from helpers.tiny_models import (
    WIDE,
    Sizes,
    clip_state_in_double,
    learned_shapes,
    learned_tensors,
    random_images,
    shared_clip,
    to_double,
)

TEMPLATE = "a photo of a {}."
UNEQUAL_NAMES = [  # names of 1 to 15 tokens, in no order of length
    "ox",
    "red fox",
    "boeing_747-400",
    "gnu",
    "a quite rare, long-named species of deep-sea anglerfish",
    "U.S. mail co.",  # its stop and the prompt's become one token
    "owl",
]
EQUAL_NAMES = ["ox", "owl", "dog", "cat", "fly"]  # one token each
METHODS = ["zeroshot", "coop", "vpt", "vlp", "dpt"]
SMALL_CONFIGS = {  # small settings of each, with every part that the method has
    "zeroshot": {"method": "zeroshot"},
    "coop": {"method": "coop", "n_ctx": 3},
    "vpt": {"method": "vpt", "n_visual": 3},
    "vlp": {"method": "vlp", "n_ctx": 3, "n_visual": 2},
    "dpt": {"method": "dpt", "n_ctx": 3, "n_visual": 2, "top_k": 3, "class_aware_from": 2},
}
LEARNING = METHODS[1:]
every_method = pytest.mark.parametrize("method", METHODS)
every_learning_method = pytest.mark.parametrize("method", LEARNING)


class ReferencePair:
    """A model of the package and the same learned tensors for the reference."""

    def __init__(
        self,
        config: dict,
        sizes: Sizes = WIDE,
        classnames: list[str] = UNEQUAL_NAMES,
        template: str | list[str] = TEMPLATE,
    ):
        self.config, self.sizes, self.template = config, sizes, template
        self.classnames = classnames
        self.clip = shared_clip(sizes)
        self.model = minidpt.build_model(
            self.clip, classnames, template, minidpt.PromptConfig(**config), allow_duplicates=True
        )
        self.learned = learned_tensors(learned_shapes(sizes, len(classnames), config))
        self.model.load_published(self.learned)

    def images(self, count: int = 4) -> Tensor:
        """Return random images (count, 3, R, R)."""
        return random_images(self.sizes, count)

    def reference(self, images: Tensor, learned: dict[str, Tensor] | None = None, **options):
        """Compute the reference's outputs, from `learned` or from the loaded tensors."""
        return reference.forward(
            clip_state_in_double(self.sizes),
            to_double(self.learned) if learned is None else learned,
            images.double(),
            self.classnames,
            self.template,
            minidpt.tokenize,
            method=self.config["method"],
            position=self.config.get("class_token_position", "end"),
            top_k=self.config.get("top_k", 10),
            **options,
        )

    def assert_agree(self, images: Tensor, labels: Tensor) -> None:
        """Assert equal outputs in training and evaluation; losses and gradients in both stages."""
        learned = to_double(self.learned, requires_grad=True)
        expected = self.reference(images, learned)
        self.model.eval()
        with torch.no_grad():
            assert_outputs_close(self.model(images), expected)
        self.model.train()
        outputs = self.model(images)
        assert_outputs_close(outputs, expected)
        for guidance in (False, True):
            loss = self.model.loss(outputs, labels, guidance=guidance)
            expected_loss = reference.losses(
                expected, labels, method=self.config["method"], guidance=guidance,
                alpha=self.config.get("alpha", 0.3),
            ).total  # fmt: skip
            assert_close(loss, expected_loss, f"loss with guidance={guidance}")
            if learned:
                self.model.zero_grad()
                loss.backward(retain_graph=True)
                gradients = torch.autograd.grad(
                    expected_loss, list(learned.values()), retain_graph=True, allow_unused=True
                )
                assert_relative(self.model.published(grad=True), dict(zip(learned, gradients)))


def assert_outputs_close(outputs, expected: reference.Outputs) -> None:
    """Assert that all logits agree, and that the same classes were selected."""
    for field in ("logits", "text_branch_logits", "image_branch_logits", "class_aware_logits"):
        if (value := getattr(expected, field)) is None:
            assert getattr(outputs, field) is None, field
        else:
            assert_close(getattr(outputs, field), value, field)
    if expected.top_classes is None:
        assert outputs.top_classes is None
    else:
        assert torch.equal(outputs.top_classes, expected.top_classes)


def assert_relative(actual: dict[str, Tensor], expected: dict[str, Tensor | None]) -> None:
    """Assert every tensor within 1e-4 of its norm; None stands for exact zeros."""
    actual = {name: value for name, value in actual.items() if value.numel()}
    assert set(actual) == set(expected)
    for name, value in expected.items():
        if value is None:
            assert not actual[name].any(), f"{name}: not 0"
            continue
        assert actual[name].shape == value.shape, name
        difference, norm = (actual[name].double() - value).norm().item(), value.norm().item()
        assert difference <= RELATIVE * norm, f"{name}: differs by {difference:.1e} of {norm:.1e}"


def make_labels(pair: ReferencePair, count: int) -> Tensor:
    """Return labels (count,) of different classes."""
    return torch.arange(count) * 2 % len(pair.classnames)


def compute_logits(config: dict) -> Tensor:
    """Compute logits (4, C) in evaluation, with the pair's own tensors."""
    model = ReferencePair(config).model.eval()
    with torch.no_grad():
        return model(random_images(WIDE, 4)).logits
