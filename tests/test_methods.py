"""Every method and option of the package against the naive reference, and what must hold of them.

The package runs in fp32; the reference in fp64, so that only the package's rounding is measured.
Logits may differ by 2e-5 (their scale is 14), gradients by 1e-4 of their norm.
"""

from __future__ import annotations

import pytest
import torch
from helpers import reference
from helpers.golden_cases import assert_close
from helpers.reference_pair import (
    EQUAL_NAMES,
    SMALL_CONFIGS,
    UNEQUAL_NAMES,
    ReferencePair,
    compute_logits,
    every_method,
    make_labels,
)
from helpers.tiny_models import DEEP, WIDE, Sizes

pytestmark = pytest.mark.usefixtures("clips_stay_as_they_are")


# Every option of every method


def check(
    config: dict, sizes: Sizes = WIDE, classnames: list[str] = UNEQUAL_NAMES, batch: int = 4, **kw
):
    pair = ReferencePair(config, sizes, classnames, **kw)
    pair.assert_agree(pair.images(batch), make_labels(pair, batch))


@pytest.mark.parametrize("sizes", [WIDE, DEEP], ids=["wide", "deep"])
@pytest.mark.parametrize(
    "classnames", [UNEQUAL_NAMES, EQUAL_NAMES], ids=["unequal names", "equal names"]
)
@every_method
def test_methods_agree_with_the_reference(method, classnames, sizes):
    check(SMALL_CONFIGS[method], sizes, classnames)


@pytest.mark.parametrize("csc", [False, True], ids=["generic", "csc"])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("n_ctx", [1, 2, 5, 16])
def test_text_contexts_agree_with_the_reference(n_ctx, position, csc):
    check({"method": "coop", "n_ctx": n_ctx, "class_token_position": position, "csc": csc})


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("phrase", ["a photo of a", "picture", "one of the many photos"])
def test_contexts_from_a_phrase_agree_with_the_reference(phrase, position):
    config = {"method": "coop", "ctx_init": phrase, "class_token_position": position}
    pair = ReferencePair(config)
    pair.assert_agree(pair.images(), make_labels(pair, 4))


@pytest.mark.parametrize(
    "template", ["{} texture.", "itap of many {}, a type of pet.", ["{}", "a bad {}.", "{} art"]]
)
@every_method
def test_templates_agree_with_the_reference(method, template):
    check(SMALL_CONFIGS[method], template=template)


@pytest.mark.parametrize("n_visual", [0, 1, 10])
@pytest.mark.parametrize("method", ["vpt", "vlp", "dpt"])
def test_numbers_of_visual_prompts_agree_with_the_reference(method, n_visual):
    check({**SMALL_CONFIGS[method], "n_visual": n_visual})


@pytest.mark.parametrize("visual_layers", [1, 2, 5])
@pytest.mark.parametrize("method", ["vpt", "vlp", "dpt"])
def test_shallow_visual_prompts_agree_with_the_reference(method, visual_layers):
    config = {**SMALL_CONFIGS[method], "visual_layers": visual_layers}
    check(config | {"class_aware_from": 3} if method == "dpt" else config, DEEP)


@pytest.mark.parametrize("class_aware_from", [None, 1, 2, 3, 4, 5])
def test_first_class_aware_layers_agree_with_the_reference(class_aware_from):
    check({**SMALL_CONFIGS["dpt"], "class_aware_from": class_aware_from}, DEEP)


@pytest.mark.parametrize("top_k", [1, 2, len(UNEQUAL_NAMES), 20])
def test_numbers_of_selected_classes_agree_with_the_reference(top_k):
    check({**SMALL_CONFIGS["dpt"], "top_k": top_k})


@pytest.mark.parametrize("alpha", [0.0, 0.3, 2.0])
def test_weights_of_the_auxiliary_loss_agree_with_the_reference(alpha):
    check({**SMALL_CONFIGS["dpt"], "alpha": alpha})


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("csc", [False, True], ids=["generic", "csc"])
@pytest.mark.parametrize("method", ["vlp", "dpt"])
def test_both_sides_together_agree_with_the_reference(method, csc, position):
    config = {**SMALL_CONFIGS[method], "csc": csc, "class_token_position": position, "n_ctx": 5}
    check({**config, "top_k": 20, "class_aware_from": 1} if method == "dpt" else config)


@pytest.mark.parametrize("chunk", [1, 2, 3])
@pytest.mark.parametrize("csc", [False, True])
def test_classes_in_chunks_agree_with_the_reference(csc, chunk):
    pair = ReferencePair({**SMALL_CONFIGS["dpt"], "csc": csc})
    pair.model.class_chunk = chunk
    pair.assert_agree(pair.images(), make_labels(pair, 4))


def test_the_defaults_agree_with_the_reference():
    check({"method": "dpt"}, DEEP)


@pytest.mark.parametrize("batch", [1, 11])
@every_method
def test_batches_of_any_size_agree_with_the_reference(method, batch):
    check(SMALL_CONFIGS[method], batch=batch)


@every_method
def test_two_classes_one_of_whom_begins_the_other_agree_with_the_reference(method):
    check(SMALL_CONFIGS[method], classnames=["ox", "ox and a very red fox"], batch=3)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_classes_of_one_name_agree_with_the_reference(position):
    config = {**SMALL_CONFIGS["vlp"], "class_token_position": position}
    check(config, classnames=["crane", "gnu", "crane"])
    check({**config, "csc": True}, classnames=["crane", "crane"])
    check({"method": "zeroshot"}, classnames=["crane", "crane"])


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_a_prompt_that_fills_all_77_places_agrees_with_the_reference(position):
    longest = " ".join(["ox"] * (77 - 3 - 5))  # SOS, stop, EOT; the context
    config = {"method": "coop", "n_ctx": 5, "class_token_position": position}
    check(config, classnames=["gnu", longest, "red fox"])
    with pytest.raises(ValueError, match="78 tokens"):
        ReferencePair(config, classnames=["gnu", longest + " ox", "red fox"])


@pytest.mark.parametrize("guidance", [False, True])
def test_no_label_among_the_selected_classes_adds_nothing_to_the_loss(guidance):
    pair = ReferencePair({**SMALL_CONFIGS["dpt"], "top_k": 2})
    images = pair.images(3)
    outputs = pair.model(images)
    labels = torch.tensor([min(set(range(7)) - set(row.tolist())) for row in outputs.top_classes])
    loss = pair.model.loss(outputs, labels, guidance=guidance)
    without = reference.losses(
        pair.reference(images), labels, method="vlp", guidance=guidance
    ).total
    assert_close(loss, without, "loss")
    pair.assert_agree(images, labels)
    assert all(gradient.isfinite().all() for gradient in pair.model.published(grad=True).values())


# Equalities that need no reference


def test_selected_classes_are_zero_shots_best_first_and_no_prompt_changes_them():
    pair = ReferencePair({**SMALL_CONFIGS["dpt"], "top_k": 4})
    zero_shot = compute_logits({"method": "zeroshot"})
    best_first = zero_shot.argsort(dim=-1, descending=True)[:, :4]
    with torch.no_grad():
        assert torch.equal(pair.model(pair.images()).top_classes, best_first)
        for value in pair.model.parameters():
            if value.requires_grad:
                value.neg_()
        assert torch.equal(pair.model(pair.images()).top_classes, best_first)
    assert len(best_first.unique(dim=0)) > 1  # the images differ in their best classes
