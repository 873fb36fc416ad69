"""The modules that hold prompts, on their own; `test_methods` has them at work inside CLIP."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.reference_pair import TEMPLATE, UNEQUAL_NAMES
from helpers.tiny_models import DEEP, WIDE, clip_state
from torch import Tensor

import minidpt
from minidpt.clip.tokenizer import EOT_TOKEN, SOT_TOKEN, encode
from minidpt.prompts import ClassAwarePrompts, TextPrompts, nearest_words, prompt_tokens
from minidpt.support.distributed import SINGLE

NAMES = ["ox", "boeing 747-400", "red fox"]


def text_prompts(clip: minidpt.CLIP, names: list[str] = NAMES, **options) -> TextPrompts:
    return TextPrompts(clip, names, minidpt.PromptConfig(**options), SINGLE)


@pytest.fixture(scope="module")
def clip() -> minidpt.CLIP:
    return minidpt.build_clip(clip_state(WIDE))


def test_the_name_stands_at_the_end_middle_or_front():
    red, fox, stop = encode("red fox.")
    context_ids = [90001, 90002, 90003]  # half of 3 is 1
    expected = {
        "end": [90001, 90002, 90003, red, fox, stop],
        "middle": [90001, red, fox, 90002, 90003, stop],
        "front": [red, fox, 90001, 90002, 90003, stop],
    }
    for position, body in expected.items():
        assert prompt_tokens("red fox", context_ids, position) == [SOT_TOKEN, *body, EOT_TOKEN]


@pytest.mark.parametrize(
    ("csc", "position", "prefix"),
    [(False, "end", 6), (False, "middle", 3), (False, "front", 1), (True, "end", 1)],
)
def test_only_what_begins_every_class_is_stored_once(clip, csc, position, prefix):
    prompts = text_prompts(clip, n_ctx=5, csc=csc, class_token_position=position)
    assert prompts.layout.prefix == prefix
    lengths = [len(encode(name)) + 8 for name in NAMES]  # SOS, 5, stop, EOT
    used = prefix + sum(length - prefix for length in lengths)
    left_over = 1.05 * used  # the rows at the ends of bins
    assert used <= len(prompts()) == len(prompts.layout.tokens) <= left_over
    assert prompts.ctx.shape == ((3, 5, 64) if csc else (5, 64))


@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_every_row_is_a_token_or_a_context_vector_plus_its_position(clip, csc, position):
    options = {"n_ctx": 4, "csc": csc, "class_token_position": position}
    prompts, state = text_prompts(clip, **options), clip_state(WIDE)
    rows, layout = prompts(), prompts.layout
    end = 0
    for c, name in enumerate(NAMES):
        first = 90000 + (4 * c if csc else 0)
        tokens = prompt_tokens(name, list(range(first, first + 4)), position)
        end = layout.ends[layout.inverse_order[c]].item()
        name_tokens = range(end + 1 - (len(tokens) - layout.prefix), end + 1)
        for i, row in enumerate([*range(layout.prefix), *name_tokens]):
            token = tokens[i]
            if token < 90000:
                vector = state["token_embedding.weight"][token]
            else:
                vector = prompts.ctx.flatten(0, -2)[token - 90000]
            expected = vector + state["positional_embedding"][i]
            torch.testing.assert_close(rows[row], expected, rtol=0, atol=1e-6)


def test_a_phrase_sets_the_number_of_context_vectors_and_may_have_underscores(clip):
    prompts = text_prompts(clip, n_ctx=16, ctx_init="a_photo of")
    expected = clip_state(WIDE)["token_embedding.weight"][encode("a photo of")]
    assert torch.equal(prompts.ctx, expected)
    csc = text_prompts(clip, n_ctx=16, ctx_init="a photo of", csc=True)
    assert torch.equal(csc.ctx, expected.expand(3, -1, -1))
    with torch.no_grad():
        csc.ctx[0, 0, 0] += 1  # each class has its own copy
    assert torch.equal(csc.ctx[1], expected)
    assert torch.equal(clip.token_embedding.weight, clip_state(WIDE)["token_embedding.weight"])


def test_a_phrase_of_rare_words_gives_a_vector_each_word(clip):
    tokens = encode("a photomicrograph of")
    assert len(tokens) > 3
    prompts = text_prompts(clip, ctx_init="a  photomicrograph_of ")
    expected = clip_state(WIDE)["token_embedding.weight"][tokens[:3]]
    assert torch.equal(prompts.ctx, expected)


@pytest.mark.parametrize("phrase", ["", "  "])
def test_a_phrase_without_a_word_is_refused(clip, phrase):
    with pytest.raises(ValueError, match="ctx_init"):
        minidpt.build_model(
            clip, NAMES, "a {}.", minidpt.PromptConfig(method="coop", ctx_init=phrase)
        )


def test_a_prompt_that_is_too_long_is_refused_with_its_class(clip):
    text_prompts(clip, ["ox", "x " * 10], n_ctx=64)  # 77: just fits
    with pytest.raises(ValueError, match=r"65 context vectors and class 'x x.* 78 tokens.* 77"):
        text_prompts(clip, ["ox", "x " * 10], n_ctx=65)


def test_text_prompts_are_in_fp32_also_for_a_clip_in_lower_precision():
    clip = minidpt.build_clip(clip_state(WIDE)).cast(torch.bfloat16)
    for phrase in (None, "a photo of"):
        prompts = text_prompts(clip, ctx_init=phrase)
        assert prompts.ctx.dtype == prompts().dtype == torch.float32


def test_distances_of_words_do_not_overflow(clip):
    ((_, nearest), *_) = nearest_words(torch.full((1, 64), 3e38), clip)[0]
    assert nearest == pytest.approx(8 * 3e38, rel=1e-6)


def test_nothing_but_the_context_is_stored(clip):
    assert text_prompts(clip).state_dict().keys() == {"ctx"}


def class_aware(x: Tensor) -> tuple[ClassAwarePrompts, Tensor]:
    torch.manual_seed(0)
    generator = ClassAwarePrompts(embed_dim=3, width=x.shape[-1], classes=7)
    return generator, torch.randn(len(x), 2, 3, requires_grad=True)


def test_class_aware_prompts_send_gradient_to_class_features_not_the_image():
    x = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(1), requires_grad=True)
    generator, features = class_aware(x)
    out = generator(x, features)
    assert out.prompts.shape == (2, 2, 11) and out.class_logits.shape == (2, 2, 7)
    (out.prompts.square().sum() + out.prompts[..., 0].sum() + out.class_logits.sum()).backward()
    assert x.grad is None
    assert features.grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in generator.parameters())


def test_class_aware_prompts_are_computed_in_fp32_in_any_precision():
    x = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(1)).bfloat16()
    generator, features = class_aware(x)
    low, exact = generator(x, features), generator(x.float(), features)
    assert low.prompts.dtype == torch.float32
    assert torch.equal(low.prompts, exact.prompts)


def test_fresh_prompts_are_drawn_as_the_paper_says():
    torch.manual_seed(0)
    config = minidpt.PromptConfig(method="dpt", class_aware_from=4, n_ctx=32, n_visual=30)
    clip = minidpt.build_clip(clip_state(DEEP))
    published = minidpt.build_model(clip, UNEQUAL_NAMES, TEMPLATE, config).published()
    for name, value in published.items():
        value = value.detach()
        if name.endswith(".ctx"):  # N(0, 0.02²): 1280 values or more, so within 6 %
            assert value.std().item() == pytest.approx(0.02, rel=0.06), name
            assert value.abs().max() > 0.05, name
        elif ".lns" in name:
            assert (value == float(name.endswith("weight"))).all(), name
        else:  # torch's default for Linear: uniform within 1/√inputs
            inputs = DEEP.embedding if ".meta_nets." in name else DEEP.vision_width
            bound = 1 / math.sqrt(inputs)
            assert 0.9 * bound < value.abs().max() <= bound, name
            assert value.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15), name


def test_class_aware_prompts_are_fp32_whatever_the_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        generator = ClassAwarePrompts(embed_dim=7, width=64, classes=3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {value.dtype for value in generator.parameters()} == {torch.float32}
