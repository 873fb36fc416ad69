"""Prompts of unequal length in one matrix of tokens, each token stored and computed once.

Two facts about CLIP's text transformer make this exact (its causal mask does both):

- it is causal, so tokens after EOT never matter and are left out;
- a token sees only what stands before it, so the tokens that begin every prompt (SOS and a context
  shared by all classes) have the same hidden states in each, and one copy serves all.

Rows of the matrix: first the shared prefix, then each prompt's own tokens up to its EOT, prompts
sorted by length. Linear layers, norms and MLPs see one matrix without any padding; only attention
needs to know where a prompt begins, and takes all prompts of one length together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import attention, causal_mask


@dataclass(frozen=True)
class PackedPrompts:
    """Where n prompts lie in a matrix of S rows.

    prefix: number of rows, at the top, that begin every prompt.
    buckets: (prompts, own tokens of each), shortest first.
    tokens: (S,) the token at each row.
    positions: (S,) each row's place in its prompt, from 0.
    ends: (n,) the row of each prompt's last token, in packed order.
    places: (n,) where in packed order the i-th given prompt stands.
    """

    prefix: int
    buckets: tuple[tuple[int, int], ...]
    tokens: Tensor
    positions: Tensor
    ends: Tensor
    places: Tensor

    def to(self, device: torch.device) -> PackedPrompts:
        """The same layout with its index tensors on `device`."""
        indices = (self.tokens, self.positions, self.ends, self.places)
        return PackedPrompts(self.prefix, self.buckets, *(index.to(device) for index in indices))


def pack(prompts: Sequence[Sequence[int]]) -> PackedPrompts:
    """Lay out token sequences, each of which ends in its EOT.

    Raises ValueError if there are none, or one is empty.
    """
    if not prompts or not all(prompts):
        raise ValueError(f"expected one or more non-empty prompts, got {len(prompts)} prompts")
    prefix = shared_prefix(prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    tokens, positions, ends = list(prompts[0][:prefix]), list(range(prefix)), []
    for index in order:
        tokens.extend(prompts[index][prefix:])
        positions.extend(range(prefix, len(prompts[index])))
        ends.append(len(tokens) - 1)
    lengths = Counter(len(prompts[index]) - prefix for index in order)  # keeps the packed order
    buckets = tuple((count, length) for length, count in lengths.items())
    places = sorted(range(len(order)), key=order.__getitem__)  # the inverse permutation
    indices = map(torch.tensor, (tokens, positions, ends, places))
    return PackedPrompts(prefix, buckets, *indices)


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens begin every prompt, leaving each at least its last one."""
    limit = min(map(len, prompts)) - 1
    first, last = min(prompts), max(prompts)  # what these two share, all between them share
    return next((i for i in range(limit) if first[i] != last[i]), limit)


def split(layout: PackedPrompts, size: int) -> list[tuple[Tensor, PackedPrompts]]:
    """The layout in pieces of at most `size` prompts, each behind a copy of the shared prefix.

    Returns the rows (S',) and the layout of each piece, whose prompts are in packed order.
    """
    lengths = [length for count, length in layout.buckets for _ in range(count)]
    device, pieces, start = layout.tokens.device, [], layout.prefix
    for first in range(0, len(lengths), size):
        own = lengths[first : first + size]
        stop = start + sum(own)
        spans = ((0, layout.prefix), (start, stop))
        rows = torch.cat([torch.arange(*span, device=device) for span in spans])
        piece = PackedPrompts(
            prefix=layout.prefix,
            buckets=tuple((count, length) for length, count in Counter(own).items()),
            tokens=layout.tokens[rows],
            positions=layout.positions[rows],
            ends=layout.ends[first : first + size] - (start - layout.prefix),
            places=torch.arange(len(own), device=device),
        )
        pieces.append((rows, piece))
        start = stop
    return pieces


def packed_attention(q: Tensor, k: Tensor, v: Tensor, layout: PackedPrompts) -> Tensor:
    """Causal attention within each prompt; q, k, v and the result are (H, S, d)."""
    prefix_q, prefix_k, prefix_v = (x[:, : layout.prefix] for x in (q, k, v))
    attended = [attention(prefix_q, prefix_k, prefix_v, causal=True)]
    for rows, count, length in bucket_rows(layout):
        own = (x[:, rows].unflatten(1, (count, length)) for x in (q, k, v))  # (H, n, T, d)
        attended.append(attention_behind_prefix(*own, prefix_k, prefix_v).flatten(1, 2))
    return torch.cat(attended, dim=1)


def packed_attention_of_ends(q: Tensor, k: Tensor, v: Tensor, layout: PackedPrompts) -> Tensor:
    """Attention of each prompt's last token over its prompt.

    q: (H, n, d), queries of the last tokens in packed order; k, v: (H, S, d). Returns (H, n, d).
    """
    prefix_k, prefix_v = (x[:, : layout.prefix] for x in (k, v))
    attended, first = [], 0
    for rows, count, length in bucket_rows(layout):
        ends = q[:, first : first + count].unsqueeze(2)  # (H, n, 1, d)
        own = (x[:, rows].unflatten(1, (count, length)) for x in (k, v))
        attended.append(attention_behind_prefix(ends, *own, prefix_k, prefix_v).squeeze(2))
        first += count
    return torch.cat(attended, dim=1)


def attention_behind_prefix(
    q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor
) -> Tensor:
    """Causal attention of n prompts' own tokens over a prefix that they share and over themselves.

    One softmax over both parts, so exactly what `attention` makes of the prefix and the own tokens
    in a row, but the prefix is not copied for each prompt: all queries meet it in one product.
    In fp32, as the fused kernels compute inside: half precision's scores would lose digits.

    Args:
        q: (H, n, Q, d), queries of the last Q of each prompt's T own tokens.
        k, v: (H, n, T, d). prefix_k, prefix_v: (H, p, d).

    Returns: (H, n, Q, d).
    """
    if q.dtype in (torch.bfloat16, torch.half):
        with torch.autocast(q.device.type, enabled=False):
            floats = (x.float() for x in (q, k, v, prefix_k, prefix_v))
            return attention_behind_prefix(*floats).to(q.dtype)
    prompts, queries, width = q.shape[1:]
    q = q * width**-0.5
    to_prefix = (q.flatten(1, 2) @ prefix_k.mT).unflatten(1, (prompts, queries))  # (H, n, Q, p)
    to_own = q @ k.mT  # (H, n, Q, T)
    if queries > 1:
        to_own = to_own.masked_fill(~causal_mask(queries, k.shape[2], q.device), -math.inf)
    weights = torch.cat([to_prefix, to_own], dim=-1).softmax(dim=-1)
    on_prefix, on_own = weights.split([prefix_k.shape[1], k.shape[2]], dim=-1)
    from_prefix = (on_prefix.flatten(1, 2) @ prefix_v).unflatten(1, (prompts, queries))
    return from_prefix + on_own @ v


def bucket_rows(layout: PackedPrompts) -> Iterator[tuple[slice, int, int]]:
    """For each bucket: its rows as a slice, number of prompts, tokens of each."""
    start = layout.prefix
    for count, length in layout.buckets:
        yield slice(start, start + count * length), count, length
        start += count * length
