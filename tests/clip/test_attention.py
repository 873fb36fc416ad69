"""The fused attention and the explicit one against a naive loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from minidpt.clip.attention import MultiheadAttention, attention, attention_with_weights

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}  # a few roundings of values about 1

SHAPES = {  # queries, keys, key width, value width, causal
    "plain": (7, 7, 5, 5, False),
    "causal": (7, 7, 5, 5, True),
    "causal, the queries are the last tokens": (3, 11, 5, 5, True),
    "cross, more keys": (3, 11, 5, 5, False),
    "cross, more queries": (11, 3, 5, 5, False),
    "cross, wide values": (3, 11, 5, 13, False),
    "causal, wide values": (3, 11, 5, 13, True),
    "one query": (1, 7, 5, 5, False),
    "one query, causal": (1, 7, 5, 5, True),
    "one token": (1, 1, 5, 5, True),
}
every_shape = pytest.mark.parametrize(
    ("queries", "keys", "width", "value_width", "causal"), SHAPES.values(), ids=SHAPES.keys()
)


def random_inputs(
    queries: int, keys: int, width: int, value_width: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Queries, keys and values of 2 × 3 heads, their scores large enough to matter."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, queries, width), (2, 3, keys, width), (2, 3, keys, value_width))
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    inputs[0] *= 2
    return [value.to(dtype).requires_grad_() for value in inputs]


def mask_of(q: Tensor, k: Tensor, causal: bool) -> Tensor | None:
    """What `attention` adds to the scores: the queries are the last of the tokens."""
    if not causal:
        return None
    later = torch.ones(q.shape[-2], k.shape[-2]).triu(1 + k.shape[-2] - q.shape[-2]).bool()
    return torch.zeros(later.shape, dtype=q.dtype).masked_fill(later, -math.inf)


def naive_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """One query after the other, over the keys that it may see, in fp64."""
    q, k, v = q.double(), k.double(), v.double()
    rows = []
    for i in range(q.shape[-2]):
        seen = k.shape[-2] - q.shape[-2] + i + 1 if causal else k.shape[-2]
        scores = [(q[..., i, :] * k[..., j, :]).sum(-1) for j in range(seen)]
        exponentials = [(score / math.sqrt(q.shape[-1])).exp() for score in scores]
        weighted = [e[..., None] * v[..., j, :] for j, e in enumerate(exponentials)]
        rows.append(sum(weighted) / sum(exponentials)[..., None])
    return torch.stack(rows, dim=-2)


@every_shape
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_fused_attention_is_a_loop_in_value_and_gradient(
    queries, keys, width, value_width, causal, dtype
):
    inputs = random_inputs(queries, keys, width, value_width, dtype)
    fused = attention(*inputs, mask_of(*inputs[:2], causal))
    expected = naive_attention(*inputs, causal)
    assert fused.shape == expected.shape == (2, 3, queries, value_width)
    torch.testing.assert_close(fused.double(), expected, rtol=0, atol=TOLERANCE[dtype])

    weights = torch.linspace(-1, 1, fused.numel(), dtype=dtype).view_as(fused)
    of_fused = torch.autograd.grad((fused * weights).sum(), inputs)
    of_naive = torch.autograd.grad((expected * weights).sum(), inputs)
    for ours, theirs in zip(of_fused, of_naive, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2 * TOLERANCE[dtype])


@every_shape
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half], ids=str)
def test_in_lower_precision_the_processor_rounds_only_the_result(
    queries, keys, width, value_width, causal, dtype
):
    inputs = random_inputs(queries, keys, width, value_width, dtype)
    result = attention(*inputs, mask_of(*inputs[:2], causal))
    exact = [value.float() for value in inputs]
    expected = attention(*exact, mask_of(*exact[:2], causal))
    assert result.dtype == dtype and torch.equal(result, expected.to(dtype))


@pytest.mark.parametrize("shape", [shape[:4] for shape in SHAPES.values() if not shape[4]])
def test_explicit_attention_is_a_loop_and_its_weights_are_shares(shape):
    q, k, v = random_inputs(*shape, torch.float64)
    result, weights = attention_with_weights(q, k, v)
    torch.testing.assert_close(result, naive_attention(q, k, v, False), rtol=0, atol=1e-14)
    assert weights.shape == (2, 3, *shape[:2]) and (weights > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    torch.testing.assert_close(weights @ v, result, rtol=0, atol=1e-14)


def test_a_scale_takes_the_place_of_the_root_of_the_width():
    q, k, v = random_inputs(3, 11, 5, 5)
    expected = attention(q * 0.7 * math.sqrt(5), k, v)
    torch.testing.assert_close(attention(q, k, v, scale=0.7), expected, rtol=0, atol=1e-5)


def random_multihead(width: int, heads: int) -> tuple[MultiheadAttention, Tensor]:
    """Random weights, and tokens (2, 7, width)."""
    generator = torch.Generator().manual_seed(1)
    multihead = MultiheadAttention(width, heads).requires_grad_(False)
    for parameter in multihead.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return multihead, torch.randn(2, 7, width, generator=generator)


@pytest.mark.parametrize("parts", ["qkv", "q", "kv"])
def test_projections_are_those_rows_of_in_proj_split_into_heads(parts):
    multihead, x = random_multihead(width=15, heads=5)
    every = x @ multihead.in_proj_weight.t() + multihead.in_proj_bias  # (2, 7, 45)
    by_name = dict(zip("qkv", every.split(15, dim=-1), strict=True))
    projected = multihead.project(x, parts)
    assert projected.shape == (2, 7, len(parts), 5, 3)
    for actual, name in zip(projected.unbind(2), parts, strict=True):
        for head in range(5):
            expected = by_name[name][..., 3 * head : 3 * head + 3]
            torch.testing.assert_close(actual[:, :, head], expected, rtol=0, atol=1e-5)


def test_self_attention_and_that_of_one_token_are_torchs_own():
    ours, x = random_multihead(width=15, heads=5)
    theirs = torch.nn.MultiheadAttention(15, 5, batch_first=True)
    theirs.load_state_dict(ours.state_dict())  # the same names
    expected, _ = theirs(x, x, x, need_weights=False)
    q, k, v = ours.project(x).transpose(1, 3).unbind(2)
    merged = ours.project_out(attention(q, k, v).transpose(1, 2))
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    once = ours.single_query_attention(x[:, 0], x)
    torch.testing.assert_close(once, expected[:, 0], rtol=1e-4, atol=1e-4)
