"""Scaled dot-product attention in two versions: fused for CLIP's layers, and step by step.

The second also returns the weights, which attention maps need (`maps.py`). Class-aware prompts use
it, too: their values are wider than their keys.

Letters of shapes: B images; H heads of width d, together W wide; Q queries; A tokens that they
attend to, which give keys and values. Those of packed prompts, S, b, T and p, are `packing.py`'s.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .packing import PackedPrompts


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Compute softmax(scale·q·kᵀ + mask)·v in one fused kernel: (B, H, Q, d_v).

    q, k, v: queries (B, H, Q, d), keys (B, H, A, d) and values (B, H, A, d_v); CUDA's fused kernels
        take four dimensions only.
    mask: (..., Q, A), 0 where a query may attend and -inf where not, in q's precision.
    scale: None for 1/√d.
    """
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.half):
        # The processor's kernel is faster in fp32, its backward pass three times.
        with torch.autocast("cpu", enabled=False):
            mask = None if mask is None else mask.float()
            return attention(q.float(), k.float(), v.float(), mask, scale).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def attention_with_weights(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Compute softmax(q·kᵀ / √d)·v step by step, and its weights.

    q, k, v: (..., Q, d), (..., A, d) and (..., A, d_v).
    Returns: the result (..., Q, d_v) and the weights (..., Q, A), whose rows sum to 1.
    """
    weights = ((1 / math.sqrt(q.shape[-1])) * q @ k.transpose(-2, -1)).softmax(dim=-1)
    return weights @ v, weights


def packed_attention(q: Tensor, kv: Tensor, layout: PackedPrompts) -> Tensor:
    """Compute causal attention of packed prompts: q (S, H, d) and kv (S, 2, H, d) → (S, H, d).

    Equals `attention(q, k, v, causal_mask)` of each prompt's tokens, prefix and all.
    """
    bins = layout.mask.shape[0]
    prefix = kv[: layout.prefix].expand(bins, -1, -1, -1, -1)  # (b, p, 2, H, d)
    kv = torch.cat([prefix, kv.unflatten(0, (bins, -1))], dim=1)  # (b, p+T, 2, H, d)
    k, v = kv.transpose(1, 3).unbind(2)  # (b, H, p+T, d)
    q = q.unflatten(0, (bins, -1)).transpose(1, 2)  # (b, H, T, d)
    return attention(q, k, v, layout.mask).transpose(1, 2).flatten(0, 1)


class MultiheadAttention(nn.Module):
    """Weights of multi-head self attention under CLIP's names, and projections by them."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def project(self, tokens: Tensor, parts: str = "qkv") -> Tensor:
        """Project tokens (..., W) to "qkv", "q" or "kv": (..., len(parts), H, d)."""
        width = tokens.shape[-1]
        rows = slice("qkv".index(parts[0]) * width, ("qkv".index(parts[-1]) + 1) * width)
        projected = F.linear(tokens, self.in_proj_weight[rows], self.in_proj_bias[rows])
        return projected.unflatten(-1, (len(parts), self.heads, -1))

    def single_query_attention(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Attend from one token of each image, query (B, W), to tokens x (B, A, W) → (B, W).

        Equals, in each head, with vectors as columns,

            q = Wq·query + bq;  k = Wk·x + bk;  v = Wv·x + bv
            softmax(q·kᵀ / √d)·v

        without forming k and v. q·(Wk·x + bk) = (Wkᵀ·q)·x + q·bk, and softmax drops q·bk, which is
        the same for every token. Σ a·(Wv·x + bv) = Wv·(Σ a·x) + bv, as the weights a sum to 1. So
        each head attends to the tokens themselves, and projects one query and one mean of tokens.
        """
        by_head = (3, self.heads, -1)
        query_weight, key_weight, value_weight = self.in_proj_weight.unflatten(0, by_head)
        query_bias, _, value_bias = self.in_proj_bias.unflatten(0, by_head).unsqueeze(2)  # (H,1,d)
        query = query.expand(self.heads, -1, -1)
        q = torch.baddbmm(query_bias, query, query_weight.mT)  # (H, B, d)
        token_queries = (q @ key_weight).transpose(0, 1).unsqueeze(1)  # Wkᵀ·q: (B, 1, H, W)
        scale, x = 1 / math.sqrt(q.shape[-1]), tokens.unsqueeze(1)  # (B, 1, A, W)
        token_means = attention(token_queries, x, x, scale=scale).squeeze(1)  # Σ a·x: (B, H, W)
        values = torch.baddbmm(value_bias, token_means.transpose(0, 1), value_weight.mT)
        return self.project_out(values.transpose(0, 1))

    def project_out(self, attended: Tensor) -> Tensor:
        """Project the output of all heads together: (..., H, d) → (..., W)."""
        return self.out_proj(attended.flatten(-2))
