"""Prompts of unequal length in one matrix of rows, each token stored and computed once.

Two facts about CLIP's text transformer make this exact (its causal mask does both):

- it is causal, so tokens after EOT never matter and are left out;
- a token sees only what stands before it, so the tokens that begin every prompt (SOT and a context
  shared by all classes) have the same hidden states in each, and one copy serves all.

The rows are cut into bins of one size. The first begins with the shared prefix, and whole prompts
fill the rest, the longest first. "dog.", "sea horse." and "cat." behind SOT and two context vectors
X are two bins of seven rows, · being a row that is left over:

    SOT X X sea horse . EOT | dog . EOT cat . EOT ·

Linear layers, norms and MLPs see one matrix. Attention takes all bins in one call: a row sees the
prefix, and of its own bin what its prompt has up to it. So a layer is as many operations for a
thousand classes as for ten, which a GPU needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

MAX_BIN = 64  # rows, where no prompt is longer: in a bin every row is compared with every row


@dataclass(frozen=True)
class PackedPrompts:
    """Where n prompts lie in a matrix of S rows, cut into b bins of T rows each; S = b·T.

    tokens: (S,) the token at each row; 0 where nothing is.
    positions: (S,) each row's place in its prompt, from 0.
    ends: (n,) the row of each prompt's last token, in packed order.
    inverse_order: (n,) where in packed order the i-th given prompt stands.
    mask: (b, 1, T, p + T), fp32 from `pack`; added to the scores of a bin's rows over the
        p rows of the prefix and the bin's own: 0 where a row sees another, else -inf.
    prompts_per_bin: how many prompts each bin holds.
    """

    tokens: Tensor
    positions: Tensor
    ends: Tensor
    inverse_order: Tensor
    mask: Tensor
    prompts_per_bin: tuple[int, ...]

    @property
    def prefix(self) -> int:
        """Return the number of tokens p that begin every prompt."""
        return self.mask.shape[3] - self.mask.shape[2]

    def to(self, device: torch.device) -> PackedPrompts:
        """Move the layout to a device."""
        return replace(self, **{name: value.to(device) for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


def pack(prompts: Sequence[Sequence[int]]) -> PackedPrompts:
    """Lay out one or more token sequences, each of which ends in its EOT."""
    limit, first, last = min(map(len, prompts)) - 1, min(prompts), max(prompts)
    # By order of tokens: a prefix of min and max is one of all. Each keeps its last token.
    prefix = next((i for i in range(limit) if first[i] != last[i]), limit)
    waiting: dict[int, list[int]] = {}  # number of tokens behind the prefix → prompts
    for index, prompt in enumerate(prompts):
        waiting.setdefault(len(prompt) - prefix, []).append(index)
    lengths = {length: len(indices) for length, indices in waiting.items()}
    size = best_bin_size(lengths, prefix)
    bins = first_fit_decreasing(lengths, prefix, size)

    rows = len(bins) * size
    tokens, positions, order, ends = [0] * rows, [0] * rows, [], []
    owner = [-1] * rows  # the prompt of each row; -1: nobody's, -2: the prefix
    tokens[:prefix], positions[:prefix] = prompts[0][:prefix], range(prefix)
    owner[:prefix] = [-2] * prefix
    for number, bin_lengths in enumerate(bins):
        first = number * size or prefix
        for length in bin_lengths:
            index, last = waiting[length].pop(), first + length
            tokens[first:last] = prompts[index][prefix:]
            positions[first:last] = range(prefix, prefix + length)
            owner[first:last] = [index] * length
            order.append(index)
            ends.append(last - 1)
            first = last

    owners = torch.tensor(owner).view(-1, size, 1)  # (b, T, 1)
    sees_prefix = (owners != -2).expand(-1, -1, prefix)
    sees_own = (owners == owners.mT).tril()  # (b, T, T)
    visible = torch.cat([sees_prefix, sees_own], dim=-1).unsqueeze(1)
    inverse_order = sorted(range(len(order)), key=order.__getitem__)
    return PackedPrompts(
        *map(torch.tensor, (tokens, positions, ends, inverse_order)),
        mask=torch.zeros(visible.shape).masked_fill(~visible, -math.inf),
        prompts_per_bin=tuple(map(len, bins)),
    )


def best_bin_size(lengths: dict[int, int], prefix: int) -> int:
    """Find the size of bins that costs the least: rows + keys / 10."""

    def cost(size: int) -> float:
        bins = len(first_fit_decreasing(lengths, prefix, size))
        return bins * size + bins * (prefix + size) / 10

    least = max(prefix, *lengths)
    return min(range(least, max(least, MAX_BIN) + 1), key=cost)


def first_fit_decreasing(lengths: dict[int, int], prefix: int, size: int) -> list[list[int]]:
    """Put lengths, each so many times, in bins of `size`; the first has `prefix` rows less."""
    left, bins = dict(sorted(lengths.items(), reverse=True)), []
    while left:
        room = size if bins else size - prefix
        bins.append([])
        for length, count in left.items():
            fitting = min(count, room // length)
            bins[-1] += [length] * fitting
            room -= fitting * length
            left[length] -= fitting
        left = {length: count for length, count in left.items() if count}
    return bins


def iter_chunks(layout: PackedPrompts, most: int) -> Iterator[tuple[Tensor, PackedPrompts]]:
    """Yield chunks of at most `most` prompts, or one bin, each behind a copy of the first bin.

    Of each the rows (S',) and the layout; its prompts follow in packed order.
    """
    size, device = layout.mask.shape[2], layout.tokens.device
    counts = layout.prompts_per_bin
    start = prompts = 0
    while start < len(counts):
        stop, count = start + 1, counts[start]
        while stop < len(counts) and count + counts[stop] <= most:
            count, stop = count + counts[stop], stop + 1
        second = max(start, 1)  # the first bin, in which the prefix is, comes anyway
        spans = ((0, size), (second * size, stop * size))
        rows = torch.cat([torch.arange(*span, device=device) for span in spans])
        chunk = PackedPrompts(
            tokens=layout.tokens[rows],
            positions=layout.positions[rows],
            ends=layout.ends[prompts : prompts + count] - max(start - 1, 0) * size,
            inverse_order=torch.arange(count, device=device),
            mask=torch.cat([layout.mask[:1], layout.mask[second:stop]]),
            prompts_per_bin=counts[:1] + counts[second:stop],
        )
        yield rows, chunk
        start, prompts = stop, prompts + count
