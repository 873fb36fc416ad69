"""The model of any method: its options, passes and gradients, and what evaluation keeps."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.golden_cases import assert_close
from helpers.reference_pair import (
    SMALL_CONFIGS,
    TEMPLATE,
    ReferencePair,
    assert_relative,
    every_learning_method,
    every_method,
    make_labels,
)
from helpers.tiny_models import WIDE, clip_state

import minidpt

pytestmark = pytest.mark.usefixtures("clips_stay_as_they_are")


# Options and classes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "cocoop"}, "cocoop.*zeroshot, coop, vpt, vlp, dpt"),
        ({"class_token_position": "start"}, "start.*end, middle, front"),
        ({"class_aware_from": 4}, "1 to 3"),
        ({"method": "vpt", "visual_layers": 4}, "visual_layers: expected 1 to 3 .* got 4"),
        ({"class_aware_from": 0}, "class_aware_from.*0"),
        ({"n_ctx": 0}, "n_ctx.*0"),
        ({"top_k": 0}, "top_k.*0"),
        ({"alpha": -0.1}, "alpha.*-0.1"),
        ({"alpha": float("nan")}, "alpha.*nan"),
        ({"alpha": 10**40}, "alpha: expected at most 1e.30, got 1e.40"),
        ({"n_ctx": 10**11}, "n_ctx: expected at most 1,000, got 100000000000"),
        ({"n_ctx": 78}, "78 context vectors and class 'ox' make a prompt of 82 tokens"),
        ({"n_visual": 10**11}, "n_visual.*at most 1,000"),
        ({"top_k": np.int64(10**11)}, "top_k.*at most 1,000,000, got 100000000000"),
        ({"csc": 1}, "csc: expected true or false, got 1"),
        ({"ctx_init": 5}, "ctx_init: expected a text, got 5"),
        ({"method": [["dpt"]]}, "method: expected a text, got a list"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_what_is_expected(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ReferencePair(SMALL_CONFIGS["dpt"] | options)


@pytest.mark.parametrize(
    "option",
    [{"n_ctx": True}, {"n_ctx": "16"}, {"n_ctx": None}, {"n_visual": 2.0}, {"top_k": "5"},
     {"class_aware_from": "2"}, {"visual_layers": False}, {"alpha": "0.3"}, {"alpha": True}],
)  # fmt: skip
def test_an_option_that_is_no_number_is_refused_by_name(option):
    (name,) = option
    with pytest.raises(TypeError, match=f"^{name}: expected a (whole )?number, got "):
        minidpt.PromptConfig(**option)


def test_an_underscore_in_a_class_name_is_read_as_a_space():
    pair = ReferencePair({**SMALL_CONFIGS["coop"], "csc": True}, classnames=["red_fox", "ox"])
    other = pair.model.for_classes([" red fox", "ox_"])
    assert (pair.model.classnames[0], other.classnames) == ("red_fox", [" red fox", "ox_"])
    assert torch.equal(other.text_features(), pair.model.text_features())
    assert torch.equal(other.template_features, pair.model.template_features)
    with pytest.raises(ValueError, match="csc: expected this model's classes, got 'gnu'"):
        pair.model.for_classes(["ox", "gnu"])


def test_classes_are_encoded_in_chunks_where_all_would_take_too_much_memory(monkeypatch):
    config = SMALL_CONFIGS["vlp"]
    clip = minidpt.build_clip(clip_state(WIDE))
    names = [f"ox {n}" for n in range(200)]

    def chunk(memory: int, dtype: torch.dtype = torch.float32) -> int | None:
        monkeypatch.setattr(minidpt.model, "TEXT_MEMORY", memory)
        options = minidpt.PromptConfig(**config)
        return minidpt.build_model(clip.cast(dtype), names, TEMPLATE, options).class_chunk

    assert chunk(10**9) is None
    small, large = chunk(1_000_000), chunk(2_000_000)
    assert 1 < small < large < 200 and large == pytest.approx(2 * small, abs=1)
    assert chunk(1) == 1
    monkeypatch.setattr(minidpt.model, "TEXT_MEMORY", 7680 * 195)  # a width of 64, 3 layers, fp32
    for rows, expected in ((195, None), (196, 98)):
        layout = SimpleNamespace(tokens=range(rows), ends=range(99))
        fits = minidpt.model.classes_that_fit(clip, SimpleNamespace(layout=layout))
        assert fits == expected
    half = chunk(1_000_000, torch.bfloat16)
    assert half == pytest.approx(2 * small, abs=1)


# Passes and gradients


@every_learning_method
def test_without_the_branches_the_rest_is_the_same_bit_for_bit(method):
    pair = ReferencePair(SMALL_CONFIGS[method])
    images, labels = pair.images(), make_labels(pair, 4)
    results = []
    for branches in (True, False):
        output = pair.model(images, branches=branches)
        pair.model.zero_grad()
        pair.model.loss(output, labels).backward()
        results.append((output, pair.model.published(grad=True)))
    (all_of_it, gradients), (output, same_gradients) = results
    assert output.text_branch_logits is None and output.image_branch_logits is None
    for field in ("logits", "top_classes", "class_aware_logits"):
        value, expected = getattr(output, field), getattr(all_of_it, field)
        assert value is expected is None or torch.equal(value, expected), field
    for name, value in gradients.items():
        assert torch.equal(value, same_gradients[name]), name


def test_without_the_branches_vlp_makes_no_frozen_pass(monkeypatch):
    pair = ReferencePair(SMALL_CONFIGS["vlp"])
    passes = []
    encode = pair.clip.visual.encode
    monkeypatch.setattr(pair.clip.visual, "encode", lambda x: passes.append(x) or encode(x))
    pair.model(pair.images(), branches=False)
    assert not passes
    pair.model(pair.images())
    assert len(passes) == 1


@pytest.mark.parametrize("method", ["vlp", "dpt"])
def test_guidance_without_the_branches_is_refused(method):
    pair = ReferencePair(SMALL_CONFIGS[method])
    output = pair.model(pair.images(), branches=False)
    with pytest.raises(ValueError, match="branches=True"):
        pair.model.loss(output, make_labels(pair, 4), guidance=True)


@every_method
def test_nothing_of_clip_gets_a_gradient_and_every_learned_tensor_does(method):
    pair = ReferencePair(SMALL_CONFIGS[method])
    images = pair.images().requires_grad_()
    loss = pair.model.loss(pair.model(images), make_labels(pair, 4), guidance=True)
    assert loss.requires_grad == (method != "zeroshot")
    if method != "zeroshot":
        loss.backward()
    assert all(value.grad is None for value in [images, *pair.clip.parameters()])
    assert not any(value.requires_grad for value in pair.clip.parameters())
    names = {f"clip.{name}" for name in pair.clip.state_dict()}
    assert pair.model.state_dict().keys() == names | pair.model.prompt_state_dict().keys()
    trained = [value for value in pair.model.parameters() if value.requires_grad]
    assert all(value.grad is not None and value.grad.any() for value in trained)
    assert sum(v.numel() for v in trained) == sum(v.numel() for v in pair.learned.values())
    assert all(value.dtype == torch.float32 for value in trained)


def test_outputs_are_fp32_inside_autocast():
    pair = ReferencePair(SMALL_CONFIGS["dpt"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = pair.model(pair.images())
    values = [value for value in outputs if value is not None and value.is_floating_point()]
    assert len(values) == 5  # logits and features
    assert all(value.dtype == torch.float32 for value in values)


def test_classes_are_selected_in_fp32_inside_autocast():
    pair = ReferencePair(SMALL_CONFIGS["dpt"])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # so close that half precision would not tell classes apart
        pair.model.template_features[:] = pair.model.template_features[:1]
        pair.model.template_features += 1e-4 * torch.randn(
            pair.model.template_features.shape, generator=generator
        )
    frozen = pair.model.template_features[[0, 1, 1, 2]]
    expected = pair.model(pair.images(), frozen).top_classes
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pair.model(pair.images(), frozen).top_classes, expected)


# What evaluation keeps


# Neither counts as a change in autograd's books (`_version`).


def change_by_optimizer(pair: ReferencePair) -> None:
    groups = minidpt.parameter_groups(pair.model, visual_lr=0.5, text_lr=0.5)
    optimizer = torch.optim.SGD(groups, fused=True)
    outputs = pair.model.train()(pair.images())
    pair.model.loss(outputs, make_labels(pair, 4)).backward()
    optimizer.step()


def change_in_place(pair: ReferencePair) -> None:
    for parameter in pair.model.learned_parameters():
        parameter.data.mul_(-1)


@pytest.mark.parametrize("change", [change_by_optimizer, change_in_place])
@every_learning_method
def test_evaluation_follows_a_change_of_the_learned_tensors(method, change):
    pair = ReferencePair(SMALL_CONFIGS[method])
    images = pair.images()
    with torch.no_grad():
        before = pair.model.eval()(images).logits
        assert torch.equal(pair.model(images).logits, before)
    change(pair)
    learned = {name: value.double() for name, value in pair.model.published().items()}
    with torch.no_grad():
        after = pair.model.eval()(images).logits
    assert_close(after, pair.reference(images, learned).logits, "logits after the change")
    assert (after - before).abs().max() > 1e-3


@every_learning_method
def test_evaluation_mode_gives_gradients_where_they_are_asked_for(method):
    pair = ReferencePair(SMALL_CONFIGS[method])
    pair.model.eval()
    with torch.inference_mode():  # what this keeps must not stop the gradients below
        pair.model(pair.images())
    labels = make_labels(pair, 4)
    pair.model.loss(pair.model(pair.images()), labels, guidance=True).backward()
    in_evaluation = {name: value.clone() for name, value in pair.model.published(grad=True).items()}
    pair.model.zero_grad()
    pair.model.train()
    pair.model.loss(pair.model(pair.images()), labels, guidance=True).backward()
    expected = {name: value.double() for name, value in pair.model.published(grad=True).items()}
    assert_relative(in_evaluation, expected)


def test_evaluation_keeps_no_text_features_of_another_precision():
    model = ReferencePair(SMALL_CONFIGS["coop"]).model.eval()
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model.text_features()
        exact = model.text_features()
        assert not torch.equal(rounded, exact)
    assert torch.equal(exact, model.text_features().detach())
