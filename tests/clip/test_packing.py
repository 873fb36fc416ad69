"""Packed prompts: where each token lies, and that packing changes no result."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from helpers import reference
from helpers.golden_cases import assert_close
from helpers.tiny_models import WIDE, clip_state, to_double
from torch import Tensor

import minidpt
from minidpt.clip.attention import packed_attention
from minidpt.clip.packing import (
    MAX_BIN,
    PackedPrompts,
    best_bin_size,
    first_fit_decreasing,
    iter_chunks,
    pack,
)

SOT, EOT = 1, 9
HAND_MADE = [[SOT, 2, 3, EOT], [SOT, 2, EOT], [SOT, 2, 4, 5, 3, EOT], [SOT, 2, 5, EOT]]


def rows_of(layout: PackedPrompts, index: int) -> list[int]:
    """The rows of the index-th given prompt: those that its last row sees."""
    end = layout.ends[layout.inverse_order[index]].item()
    size = layout.mask.shape[2]
    bin_, column = divmod(end, size)
    keys = torch.tensor([*range(layout.prefix), *range(bin_ * size, (bin_ + 1) * size)])
    return keys[layout.mask[bin_, 0, column] == 0].tolist()


def prompt_of(layout: PackedPrompts, index: int) -> tuple[list[int], list[int]]:
    """Tokens and positions of the index-th given prompt, read off its layout."""
    rows = rows_of(layout, index)
    return layout.tokens[rows].tolist(), layout.positions[rows].tolist()


def random_prompts(seed: int) -> list[list[int]]:
    """Prompts of a small vocabulary, so that some begin alike and some are the same."""
    rng = random.Random(seed)
    prefix = [SOT] + [2] * rng.randrange(4)
    count = rng.randint(1, 11)
    ends = [[rng.choice((3, 4)) for _ in range(rng.randrange(4))] for _ in range(count)]
    return [[*prefix, *end, EOT] for end in ends]


def test_a_layout_worked_out_by_hand():
    layout = pack(HAND_MADE)
    assert layout.prefix == 2
    #                                 SOT 2 | the third  | the last | the first | the second
    assert layout.tokens.tolist() == [SOT, 2, 4, 5, 3, EOT, 5, EOT, 3, EOT, EOT]
    assert layout.positions.tolist() == [0, 1, 2, 3, 4, 5, 2, 3, 2, 3, 2]
    assert layout.ends.tolist() == [5, 7, 9, 10]
    assert layout.inverse_order.tolist() == [2, 3, 0, 1]
    assert layout.prompts_per_bin == (4,)
    o, x = 0, 1
    sees = [  # the prefix | and of the bin
        [o, o, x, o, o, o, o, o, o, o, o, o, o],
        [o, o, x, x, o, o, o, o, o, o, o, o, o],
        [x, x, o, o, x, o, o, o, o, o, o, o, o],
        [x, x, o, o, x, x, o, o, o, o, o, o, o],
        [x, x, o, o, x, x, x, o, o, o, o, o, o],
        [x, x, o, o, x, x, x, x, o, o, o, o, o],
        [x, x, o, o, o, o, o, o, x, o, o, o, o],
        [x, x, o, o, o, o, o, o, x, x, o, o, o],
        [x, x, o, o, o, o, o, o, o, o, x, o, o],
        [x, x, o, o, o, o, o, o, o, o, x, x, o],
        [x, x, o, o, o, o, o, o, o, o, o, o, x],
    ]
    assert (layout.mask[0, 0] == 0).int().tolist() == sees
    assert layout.mask[layout.mask != 0].unique().tolist() == [-math.inf]


def test_bins_are_filled_with_the_longest_first_and_no_prompt_is_cut():
    assert first_fit_decreasing({3: 2, 4: 1}, 3, 7) == [[4], [3, 3]]
    assert first_fit_decreasing({1: 3, 5: 1}, 4, 5) == [[1], [5], [1, 1]]
    assert first_fit_decreasing({2: 1}, 0, 2) == [[2]]


@pytest.mark.parametrize("seed, many", [(0, 200), (1, 200), (2, 200), (3, 20_000)])
def test_few_rows_are_left_over_also_of_very_many_prompts(seed, many):
    """For names as classes have them: 3 to 15 tokens, most of them short."""
    rng = random.Random(seed)
    lengths = Counter(min(15, 3 + int(rng.expovariate(0.5))) for _ in range(many))
    size = best_bin_size(lengths, 17)
    used = 17 + sum(length * count for length, count in lengths.items())
    bins = {each: len(first_fit_decreasing(lengths, 17, each)) for each in range(17, 65)}
    cost = {each: count * each + count * (17 + each) / 10 for each, count in bins.items()}
    assert size == min(cost, key=cost.get)
    assert used <= size * len(first_fit_decreasing(lengths, 17, size)) <= 1.05 * used


def test_a_bin_has_64_rows_at_most_unless_a_prompt_is_longer():
    assert best_bin_size({13: 99}, 13) == 52 == MAX_BIN - 12  # of the sizes 13, 26, 39, 52
    assert best_bin_size({70: 99}, 13) == 70
    # Where it decides that a key costs a tenth of a row, neither a ninth nor an eleventh.
    assert best_bin_size({15: 4}, 17) == 17 and best_bin_size({14: 6}, 9) == 51


@pytest.mark.parametrize("seed", range(20))
def test_the_layout_has_every_prompt_and_nothing_else(seed):
    prompts = random_prompts(seed)
    layout = pack(prompts)
    for index, prompt in enumerate(prompts):
        assert prompt_of(layout, index) == (prompt, list(range(len(prompt))))
        assert layout.tokens[layout.ends[layout.inverse_order[index]]] == EOT
    packed_tokens = sum(len(prompt) - layout.prefix for prompt in prompts)
    assert (layout.tokens != 0).sum() == layout.prefix + packed_tokens
    assert (layout.mask == 0).any(-1).all()  # a row that sees nothing would be NaN


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
def test_the_shared_prefix_begins_every_prompt_without_a_last_token(prompts, prefix):
    layout = pack(prompts)
    assert layout.prefix == prefix
    assert len(set(layout.ends.tolist())) == len(prompts)
    for index, prompt in enumerate(prompts):
        assert prompt_of(layout, index)[0] == prompt


def test_a_layout_moves_to_a_device_whole():
    layout = pack(HAND_MADE).to(torch.device("meta"))
    assert layout.prefix == 2
    tensors = [value for value in vars(layout).values() if isinstance(value, Tensor)]
    assert [value.device.type for value in tensors] == 5 * ["meta"]


def random_rows(layout: PackedPrompts) -> list[Tensor]:
    """Queries, keys and values of two heads for every row, (S, 2, 5)."""
    generator = torch.Generator().manual_seed(3)
    shape = (len(layout.tokens), 2, 5)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]


def in_precision(layout: PackedPrompts, dtype: torch.dtype) -> PackedPrompts:
    return replace(layout, mask=layout.mask.to(dtype))


@pytest.mark.parametrize(
    "prompts",
    [HAND_MADE, [[SOT, 2, EOT]], [[SOT, 2, EOT]] * 2, [[2, EOT], [3, EOT], [EOT]], HAND_MADE * 20],
)
def test_packed_attention_is_causal_attention_within_each_prompt(prompts):
    layout = in_precision(pack(prompts), torch.float64)
    q, k, v = random_rows(layout)
    result = packed_attention(q, torch.stack([k, v], dim=1), layout)
    assert result.shape == q.shape
    for index, prompt in enumerate(prompts):
        rows = rows_of(layout, index)
        visible = torch.ones(len(prompt), len(prompt), dtype=torch.bool).tril()
        heads = (x[rows].transpose(0, 1) for x in (q, k, v))
        alone = reference.attention(*heads, visible).transpose(0, 1)
        torch.testing.assert_close(result[rows], alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half])
def test_scores_of_half_precision_are_in_fp32(dtype):
    layout = pack(HAND_MADE)
    q, k, v = (x.to(dtype) for x in random_rows(layout))
    kv = torch.stack([k, v], dim=1)
    exact = packed_attention(4 * q.float(), kv.float(), layout).to(dtype)
    result = packed_attention(4 * q, kv, in_precision(layout, dtype))
    assert result.dtype == dtype and torch.equal(result, exact)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(packed_attention(4 * q, kv, layout), exact)


@pytest.mark.parametrize("size", [1, 2, 8, 30, 1000])  # 8: two bins of 4
def test_pieces_of_a_layout_hold_all_prompts_in_packed_order(size):
    prompts = [[SOT, 2, *[3] * n, 10 + n, EOT] for n in (7, 3, 15, 1, 12, 2)] * 20
    layout, decoded = pack(prompts), []
    pieces = list(iter_chunks(layout, size))
    for (_, piece), (_, after) in zip(pieces, pieces[1:]):  # one more bin would not fit
        assert len(piece.ends) + after.prompts_per_bin[1] > size
    for rows, piece in pieces:
        assert piece.prefix == layout.prefix
        assert len(piece.ends) <= max(size, *layout.prompts_per_bin)  # a bin is the least
        assert len(piece.ends) == sum(piece.prompts_per_bin)
        assert len(piece.tokens) == len(piece.prompts_per_bin) * layout.mask.shape[2]
        assert torch.equal(piece.tokens, layout.tokens[rows])
        assert torch.equal(piece.positions, layout.positions[rows])
        decoded += [piece.tokens[rows_of(piece, i)].tolist() for i in range(len(piece.ends))]
    assert [decoded[position] for position in layout.inverse_order.tolist()] == prompts


def test_in_half_precision_the_gradient_of_the_prefix_is_rounded_once():
    """Not once for each bin: its copies' gradients are added up in fp32."""
    layout = pack([[SOT, 2, 3, *[5] * (n % 4), 6 + n, EOT] for n in range(400)])
    q, k, v = (x.bfloat16() for x in random_rows(layout))
    gradients = []
    for dtype in (torch.bfloat16, torch.float32):
        kv = torch.stack([k, v], dim=1).to(dtype).requires_grad_()
        packed_attention(q.to(dtype), kv, in_precision(layout, dtype)).sum().backward()
        gradients.append(kv.grad[: layout.prefix].float())
    error = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert layout.mask.shape[0] > 20 and error < 0.01, error


TEXTS = ["a photo of an ox.", "a photo of a red fox.", "owl", "", "a photo of a gnu.", "owl"]


@pytest.fixture(scope="module")
def clip() -> minidpt.CLIP:
    return minidpt.build_clip(clip_state(WIDE))


def test_packed_text_features_are_those_of_each_text_s_77_tokens(clip):
    texts = [*TEXTS, "ox " * 75, "U.S. mail co."]  # one fills all places
    tokens, state = minidpt.tokenize(texts), to_double(clip_state(WIDE))
    expected = torch.cat([reference.encode_text(state, row[None]) for row in tokens])
    for rows in ([*range(len(texts))], [0], [2, 5], [0, 4, 1], [3, 1]):  # prefixes of 1 to 6 tokens
        assert_close(clip.encode_text(tokens[rows]), expected[rows], f"texts {rows}")


def test_what_stands_behind_eot_does_not_matter(clip):
    tokens = minidpt.tokenize(TEXTS)
    noisy, ends = tokens.clone(), tokens.argmax(dim=-1)
    for row, end in zip(noisy, ends.tolist(), strict=True):
        row[end + 1 :] = torch.arange(1, 77 - end)
    assert torch.equal(clip.encode_text(noisy), clip.encode_text(tokens))
