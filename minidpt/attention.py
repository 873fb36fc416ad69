"""Scaled dot-product attention: the fused path that runs, and the explicit one that defines it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """softmax(q·kᵀ / √d)·v by torch's `scaled_dot_product_attention`, one fused kernel.

    Args:
        q: queries (..., Q, d).
        k: keys (..., K, d).
        v: values (..., K, d_v).
        causal: the queries are the last Q of the K tokens, and none looks at a later token.

    Returns: (..., Q, d_v).
    """
    if q.ndim == 3:  # CUDA's fused kernels take four dimensions only
        return attention(q[None], k[None], v[None], causal)[0]
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.half):
        # The processor's kernel is faster in fp32, its backward pass three times.
        with torch.autocast("cpu", enabled=False):
            return attention(q.float(), k.float(), v.float(), causal).to(q.dtype)
    queries, keys = q.shape[-2], k.shape[-2]
    if not causal or queries == 1:
        return F.scaled_dot_product_attention(q, k, v)
    if queries == keys:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=causal_mask(queries, keys, q.device))


def explicit_attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """What `attention` computes, spelled out. Arguments as there.

    Returns: the result (..., Q, d_v) and the weights (..., Q, K), whose rows sum to 1.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (..., Q, K)
    if causal:
        visible = causal_mask(q.shape[-2], k.shape[-2], q.device)
        scores = scores.masked_fill(~visible, -math.inf)
    weights = scores.softmax(dim=-1)
    return weights @ v, weights


def causal_mask(queries: int, keys: int, device: torch.device | None = None) -> Tensor:
    """(Q, K) booleans, True where a query may look; the last query sees every key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


class MultiheadAttention(nn.Module):
    """The weights of multi-head self attention under CLIP's names, and their projections.

    Who attends to whom is the caller's business: blocks of the image transformer add prompts to the
    keys and values, those of the text transformer share a prefix.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def project(self, x: Tensor, parts: str = "qkv") -> tuple[Tensor, ...]:
        """Those of queries, keys and values that `parts` names: "qkv", "q" or "kv".

        (..., T, W) → (..., H, T, d) each.
        """
        width = x.shape[-1]
        first, last = "qkv".index(parts[0]), "qkv".index(parts[-1]) + 1
        rows = slice(first * width, last * width)
        projected = F.linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])
        heads = projected.unflatten(-1, (len(parts), self.heads, -1))  # (..., T, parts, H, d)
        return tuple(part.transpose(-3, -2) for part in heads.unbind(dim=-3))

    def attend_once(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Attention of one token of each image, query (B, W), over tokens (B, T, W) → (B, W).

        No token becomes a key or a value, which is exact: q·(Wk·x + bk) = (Wkᵀ·q)·x + q·bk, where
        q·bk is the same for every token and softmax drops it, and as the weights a sum to 1,
        Σ a·(Wv·x + bv) = Wv·(Σ a·x) + bv. So the products are of a query's size, not of T tokens'.
        """
        (q,) = self.project(query, "q")  # (H, B, d)
        _, key_weight, value_weight = self.in_proj_weight.unflatten(0, (3, self.heads, -1))
        value_bias = self.in_proj_bias.unflatten(0, (3, self.heads, -1))[2]  # (H, d)
        asked = (q @ key_weight).transpose(0, 1) / math.sqrt(q.shape[-1])  # (B, H, W)
        weights = (asked @ tokens.mT).softmax(dim=-1)  # (B, H, T)
        seen = (weights @ tokens).transpose(0, 1)  # (H, B, W)
        return self.merge(seen @ value_weight.mT + value_bias.unsqueeze(1))

    def merge(self, attended: Tensor) -> Tensor:
        """The output projection of all heads together: (..., H, T, d) → (..., T, W)."""
        return self.out_proj(attended.transpose(-3, -2).flatten(-2))
