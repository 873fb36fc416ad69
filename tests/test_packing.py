"""Packed prompts: where each token lies, and that packing changes no result."""

from __future__ import annotations

import random

import pytest
import reference
import torch
from golden_cases import assert_close
from tiny_models import WIDE, clip_state, double
from torch import Tensor

import minidpt
from minidpt.packing import (
    PackedPrompts,
    pack,
    packed_attention,
    packed_attention_of_ends,
    split,
)

SOT, EOT = 1, 9
HAND_MADE = [[SOT, 2, 3, EOT], [SOT, 2, EOT], [SOT, 2, 4, 5, 3, EOT], [SOT, 2, 5, EOT]]


def prompt_of(layout: PackedPrompts, index: int) -> tuple[list[int], list[int]]:
    """Tokens and positions of the index-th given prompt, read off its layout."""
    place = layout.places[index].item()
    lengths = [length for count, length in layout.buckets for _ in range(count)]
    end = layout.ends[place].item() + 1
    rows = [*range(layout.prefix), *range(end - lengths[place], end)]
    return layout.tokens[rows].tolist(), layout.positions[rows].tolist()


def random_prompts(seed: int) -> list[list[int]]:
    """Prompts of a small vocabulary, so that some begin alike and some are the same."""
    rng = random.Random(seed)
    prefix = [SOT] + [2] * rng.randrange(4)
    own = [[rng.choice((3, 4)) for _ in range(rng.randrange(4))] for _ in range(rng.randint(1, 11))]
    return [[*prefix, *tokens, EOT] for tokens in own]


def test_a_layout_worked_out_by_hand():
    layout = pack(HAND_MADE)
    assert layout.prefix == 2
    assert layout.buckets == ((1, 1), (2, 2), (1, 4))
    #                                 SOT 2 | the second | the first | the last | the third
    assert layout.tokens.tolist() == [SOT, 2, EOT, 3, EOT, 5, EOT, 4, 5, 3, EOT]
    assert layout.positions.tolist() == [0, 1, 2, 2, 3, 2, 3, 2, 3, 4, 5]
    assert layout.ends.tolist() == [2, 4, 6, 10]
    assert layout.places.tolist() == [1, 0, 3, 2]


@pytest.mark.parametrize("seed", range(20))
def test_every_prompt_can_be_read_off_the_layout_and_nothing_else_is_there(seed):
    prompts = random_prompts(seed)
    layout = pack(prompts)
    for index, prompt in enumerate(prompts):
        assert prompt_of(layout, index) == (prompt, list(range(len(prompt))))
        assert layout.tokens[layout.ends[layout.places[index]]] == EOT
    own = sum(len(prompt) - layout.prefix for prompt in prompts)
    assert len(layout.tokens) == len(layout.positions) == layout.prefix + own
    lengths = [length for _, length in layout.buckets]
    assert lengths == sorted(set(lengths))
    assert sum(count for count, _ in layout.buckets) == len(prompts)


@pytest.mark.parametrize(
    ("prompts", "prefix"),
    [
        ([[SOT, 2, 3, EOT]], 3),  # one prompt: all but its EOT
        ([[SOT, 2, EOT]] * 3, 2),  # the same three times: each has an EOT of its own
        ([[SOT, EOT], [SOT, 2, EOT]], 1),  # the shortest is nothing but SOT and EOT
        ([[SOT, EOT, 3, EOT], [SOT, EOT]], 1),  # EOT of one is within what begins the other
        ([[SOT, 2, EOT], [SOT, 3, EOT]], 1),
        ([[2, EOT], [3, EOT]], 0),
        ([[EOT]], 0),
    ],
)
def test_the_shared_prefix_is_what_begins_every_prompt_and_never_a_last_token(prompts, prefix):
    layout = pack(prompts)
    assert layout.prefix == prefix
    assert len(set(layout.ends.tolist())) == len(prompts)
    for index, prompt in enumerate(prompts):
        assert prompt_of(layout, index)[0] == prompt


@pytest.mark.parametrize("prompts", [[], [[]], [[SOT, EOT], []]])
def test_no_prompts_and_empty_ones_are_refused(prompts):
    with pytest.raises(ValueError, match="non-empty"):
        pack(prompts)


def test_a_layout_moves_to_a_device_whole():
    layout = pack(HAND_MADE).to(torch.device("meta"))
    assert (layout.prefix, layout.buckets) == (2, ((1, 1), (2, 2), (1, 4)))
    for indices in (layout.tokens, layout.positions, layout.ends, layout.places):
        assert indices.device.type == "meta"


def random_rows(layout: PackedPrompts) -> list[Tensor]:
    """Queries, keys and values of two heads for every row, (2, S, 5)."""
    generator = torch.Generator().manual_seed(3)
    shape = (2, len(layout.tokens), 5)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]


def rows_of(layout: PackedPrompts, index: int) -> list[int]:
    """The rows of the index-th given prompt."""
    start, place = layout.prefix, layout.places[index].item()
    for count, length in layout.buckets:
        if place < count:
            start += place * length
            return [*range(layout.prefix), *range(start, start + length)]
        start, place = start + count * length, place - count
    raise AssertionError("no such prompt")


@pytest.mark.parametrize(
    "prompts", [HAND_MADE, [[SOT, 2, EOT]], [[SOT, 2, EOT]] * 2, [[2, EOT], [3, EOT], [EOT]]]
)
def test_packed_attention_is_causal_attention_within_each_prompt(prompts):
    layout = pack(prompts)
    q, k, v = random_rows(layout)
    result = packed_attention(q, k, v, layout)
    ends = packed_attention_of_ends(q[:, layout.ends], k, v, layout)
    assert result.shape == q.shape and ends.shape == (2, len(prompts), 5)
    for index, prompt in enumerate(prompts):
        rows = rows_of(layout, index)
        visible = torch.ones(len(prompt), len(prompt), dtype=torch.bool).tril()
        alone = reference.attention(q[:, rows], k[:, rows], v[:, rows], visible)
        torch.testing.assert_close(result[:, rows], alone, rtol=0, atol=1e-13)
        end = ends[:, layout.places[index]]
        torch.testing.assert_close(end, alone[:, -1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half])
def test_scores_of_half_precision_are_in_fp32(dtype):
    layout = pack(HAND_MADE)
    q, k, v = (x.to(dtype) for x in random_rows(layout))
    exact = packed_attention(*(x.float() for x in (4 * q, k, v)), layout).to(dtype)
    result = packed_attention(4 * q, k, v, layout)
    assert result.dtype == dtype and torch.equal(result, exact)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(packed_attention(4 * q, k, v, layout), exact)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_pieces_of_a_layout_hold_all_prompts_in_packed_order(size):
    prompts = [[1, 2, 3, 9], [1, 2, 9], [1, 2, 4, 5, 3, 9], [1, 2, 5, 9], [1, 2, 6, 9]]
    layout, found = pack(prompts), []
    for rows, piece in split(layout, size):
        assert piece.prefix == layout.prefix == 2
        assert len(piece.ends) == sum(count for count, _ in piece.buckets) <= size
        assert torch.equal(piece.tokens, layout.tokens[rows])
        assert torch.equal(piece.positions, layout.positions[rows])
        found += [piece.tokens[rows_of(piece, i)].tolist() for i in range(len(piece.ends))]
    assert [found[place] for place in layout.places.tolist()] == prompts


TEXTS = ["a photo of an ox.", "a photo of a red fox.", "owl", "", "a photo of a gnu.", "owl"]


@pytest.fixture(scope="module")
def clip() -> minidpt.CLIP:
    return minidpt.build_clip(clip_state(WIDE))


def test_a_texts_feature_does_not_depend_on_the_order_of_the_texts(clip):
    tokens, order = minidpt.tokenize(TEXTS), [5, 2, 0, 4, 3, 1]
    assert_close(clip.encode_text(tokens[order]), clip.encode_text(tokens)[order])


def test_a_texts_feature_does_not_depend_on_the_texts_beside_it(clip):
    tokens = minidpt.tokenize(TEXTS)
    together = clip.encode_text(tokens)
    for chosen in ([0], [3], [2, 5], [0, 1], [0, 4, 1], [3, 1]):  # prefixes of 1 to 6 tokens
        assert_close(clip.encode_text(tokens[chosen]), together[chosen], f"texts {chosen}")


def test_packed_text_features_are_those_of_all_77_tokens_one_text_after_the_other(clip):
    texts = [*TEXTS, "ox " * 75, "U.S. mail co."]  # one fills all places
    tokens, state = minidpt.tokenize(texts), double(clip_state(WIDE))
    expected = torch.cat([reference.encode_text(state, row[None]) for row in tokens])
    assert_close(clip.encode_text(tokens), expected)


def test_what_stands_behind_eot_does_not_matter(clip):
    tokens = minidpt.tokenize(TEXTS)
    noisy, ends = tokens.clone(), tokens.argmax(dim=-1)
    for row, end in zip(noisy, ends.tolist(), strict=True):
        row[end + 1 :] = torch.arange(1, 77 - end)
    assert torch.equal(clip.encode_text(noisy), clip.encode_text(tokens))
