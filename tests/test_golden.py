"""The published implementations' numbers, from the naive reference and from the package.

`golden_cases` says how the inputs are made and what the tolerances are.
"""

from __future__ import annotations

import functools

import pytest
import torch
from helpers import golden_cases, reference
from helpers.golden_cases import METHOD_CASES, assert_close, assert_tensors_equal, load_case
from numpy.random import RandomState
from torch import Tensor

import minidpt

BASE_LR = {"visual": 0.01, "text": 0.002}
SIDES = {"coop": ["text"], "vpt": ["visual"], "vlp": ["visual", "text"], "dpt": ["visual", "text"]}

every_case = pytest.mark.parametrize("name", METHOD_CASES)
every_implementation = pytest.mark.parametrize("implementation", ["reference", "package"])


class Naive:
    """`reference` behind the names that a model of the package has."""

    def __init__(self, case: golden_cases.Case):
        self.case, self.clip = case, case.clip_weights()
        self.learned = {name: value.requires_grad_() for name, value in case.learned().items()}

    def __call__(self, images: Tensor) -> reference.Outputs:
        options = self.case.config
        return reference.forward(
            self.clip,
            self.learned,
            images,
            self.case.spec["classnames"],
            self.case.template,
            minidpt.tokenize,
            method=self.case.method,
            position=options.get("class_token_position", "end"),
            top_k=options.get("top_k", 10),
        )

    def loss(self, outputs: reference.Outputs, labels: Tensor, guidance: bool) -> Tensor:
        alpha = self.case.spec["alpha"]
        return reference.losses(
            outputs, labels, method=self.case.method, guidance=guidance, alpha=alpha
        ).total

    def published(self, grad: bool = False) -> dict[str, Tensor]:
        return {name: value.grad if grad else value for name, value in self.learned.items()}

    def parameter_groups(self) -> list[dict]:
        """One for each side that learns, image side first."""
        sides = {"text": [], "visual": []}
        for name, value in self.learned.items():
            sides["text" if name == reference.CONTEXT else "visual"].append(value)
        return [{"params": sides[side], "lr": BASE_LR[side]} for side in SIDES[self.case.method]]


@functools.lru_cache(maxsize=1)
def package_clip(seed: int) -> torch.nn.Module:
    return minidpt.build_clip(load_case("clip_forward").clip_weights())


def build(implementation: str, case: golden_cases.Case):
    if implementation == "reference":
        return Naive(case)
    assert case.spec["clip"] == load_case("clip_forward").spec["clip"]
    model = minidpt.build_model(
        package_clip(case.spec["clip"]["seed"]),
        case.spec["classnames"],
        case.template,
        minidpt.PromptConfig(**case.config),
    )
    model.load_published(case.learned())
    return model


def test_tokens_are_the_published_ones():
    case = load_case("clip_forward")
    tokens = minidpt.tokenize(case.spec["texts"])
    assert torch.equal(tokens.long(), torch.from_numpy(case.stored["tokens"]))


@every_implementation
def test_clip_features_and_logits_are_the_published_ones(implementation):
    case = load_case("clip_forward")
    weights, size = case.clip_weights(), case.spec["clip"]["res"]
    images = RandomState(case.spec["image_seed"]).standard_normal((4, 3, size, size))
    images, tokens = torch.from_numpy(images).float(), torch.from_numpy(case.stored["tokens"])
    if implementation == "reference":
        image_features = reference.encode_image(weights, images)
        text_features = reference.encode_text(weights, tokens)
        similarity = reference.normalize(image_features) @ reference.normalize(text_features).t()
        logits = weights["logit_scale"].exp() * similarity
    else:
        clip = package_clip(case.spec["clip"]["seed"])
        with torch.no_grad():
            image_features, text_features = clip.encode_image(images), clip.encode_text(tokens)
            logits, transposed = clip(images, tokens)
        assert_close(transposed, case.stored["logits_per_image"].T, "logits per text")
    assert_close(image_features, case.stored["image_features"], "image features")
    assert_close(text_features, case.stored["text_features"], "text features")
    assert_close(logits, case.stored["logits_per_image"], "logits per image")


@every_case
@pytest.mark.parametrize("implementation", ["reference", "package", "package in training"])
def test_outputs_are_the_published_ones(name, implementation):
    case = load_case(name)
    model = build(implementation, case)
    if implementation != "reference":
        model.train(implementation == "package in training")
    with torch.no_grad():
        outputs = model(case.batches()[0][0])
    assert_close(outputs.logits, case.stored["logits"], "logits")

    if case.method in ("vlp", "dpt"):
        assert_close(outputs.text_branch_logits, case.stored["logits_text_branch"], "text branch")
        image_branch = outputs.image_branch_logits
        assert_close(image_branch, case.stored["logits_image_branch"], "image branch")
    else:
        assert outputs.text_branch_logits is None and outputs.image_branch_logits is None

    if case.method == "dpt":
        assert torch.equal(outputs.top_classes, torch.from_numpy(case.stored["indices"]))
        stored = case.stored["layer_logits"]  # (layer, slot, image, class)
        assert_close(outputs.class_aware_logits, stored.transpose(2, 0, 1, 3), "auxiliary logits")
    else:
        assert outputs.top_classes is None and outputs.class_aware_logits is None


@every_implementation
@every_case
@pytest.mark.parametrize("stage", ["main", "warm"])
def test_losses_and_gradients_are_the_published_ones(name, implementation, stage):
    case = load_case(name)
    model = build(implementation, case)
    images, labels = (batches[0] for batches in case.batches())
    guidance = stage == "warm"
    loss = model.loss(model(images), labels, guidance=guidance)
    if f"{stage}/loss" not in case.stored:  # CoOp and VPT have no guidance stage: nothing changes
        stage = "main"
    assert_close(loss, case.stored[f"{stage}/loss"], "loss")
    loss.backward()
    assert_tensors_equal(model.published(grad=True), case.stored, f"{stage}/grad/")


@every_implementation
@pytest.mark.parametrize("name", ["dpt_last_layer", "dpt_top3_csc_middle"])
@pytest.mark.parametrize("stage", ["main", "warm"])
def test_auxiliary_loss_is_the_published_one(name, implementation, stage):
    case = load_case(name)
    images, labels = (batches[0] for batches in case.batches())

    def loss_with(alpha: float) -> Tensor:
        case.spec["alpha"] = alpha
        model = build(implementation, case)
        with torch.no_grad():
            return model.loss(model(images), labels, guidance=stage == "warm")

    base, doubled = loss_with(0.0), loss_with(2.0)
    assert_close(base, case.stored[f"{stage}/base"], "base")
    assert_close((doubled - base) / 2, case.stored[f"{stage}/aux"], "auxiliary")


@every_implementation
@every_case
def test_five_epochs_of_training_end_where_the_published_ones_do(name, implementation):
    case = load_case(name)
    model = build(implementation, case)
    if implementation == "package":
        rates = {f"{side}_lr": rate for side, rate in BASE_LR.items()}
        groups, schedule = minidpt.parameter_groups(model, **rates), minidpt.learning_rate
    else:
        groups, schedule = model.parameter_groups(), reference.learning_rate
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=5e-4)
    sides, epochs = SIDES[case.method], case.spec["steps"]
    assert [group["lr"] for group in optimizer.param_groups] == [BASE_LR[side] for side in sides]

    for epoch, (images, labels) in enumerate(zip(*case.batches())):
        for group, side in zip(optimizer.param_groups, sides, strict=True):
            warmup = golden_cases.WARMUP_EPOCHS[side]
            group["lr"] = schedule(epoch, BASE_LR[side], epochs, warmup)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx(case.stored["traj/lr"][epoch].tolist(), rel=1e-12)

        guidance = epoch < golden_cases.GUIDANCE_EPOCHS
        loss = model.loss(model(images), labels, guidance=guidance)
        assert_close(loss, case.stored[f"traj/loss/{epoch}"], f"loss of epoch {epoch}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_tensors_equal(model.published(), case.stored, "traj/final/")
