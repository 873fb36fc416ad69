"""CLIP (Radford et al., 2021, arXiv 2103.00020): image and text transformer, under OpenAI's names.

Modules and tensors are called what OpenAI's checkpoints call them, so a state dict loads strictly.
Everything is batch first. Two things are for prompt tuning, and neither changes the result: a block
can attend to extra tokens (prompts) without computing their outputs, and the last block can compute
only the outputs that are read.

Letters of shapes as in `model.py`; in modules that both transformers use, W is the width of either;
n and S as in `packing.py`.
"""

from __future__ import annotations

import hashlib
import logging
import numbers
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..images.transforms import CLIP_MEAN, CLIP_STD, normalize
from ..support.files import short_repr
from ..support.progress import track
from .attention import MultiheadAttention, attention, attention_with_weights, packed_attention
from .packing import PackedPrompts, iter_chunks, pack

HEAD_WIDTH = 64  # of CLIP's text sides, and of its ViTs up to L
MAX_RESOLUTION = 4096
logger = logging.getLogger("minidpt")


def is_integer(value: object) -> bool:
    """Return whether a value is an integer of Python or NumPy, but no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


class TransformerSizes(NamedTuple):
    """Width W and number of layers, heads of W / heads each, and the MLPs' hidden width."""

    width: int
    layers: int
    heads: int
    mlp_width: int


class LayerNorm(nn.LayerNorm):
    """Layer norm in fp32, whatever the precision around it."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (..., W) → (..., W), in the dtype of `x`."""
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class MLP(nn.Module):
    """c_proj(gelu(c_fc(x))), where quick_gelu(h) = h·σ(1.702h), as in OpenAI's models."""

    def __init__(self, width: int, mlp_width: int, quick_gelu: bool):
        super().__init__()
        self.quick_gelu = quick_gelu
        self.c_fc = nn.Linear(width, mlp_width)
        self.c_proj = nn.Linear(mlp_width, width)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Compute residual + c_proj(gelu(c_fc(x))), both (..., W) → (..., W).

        With the quick GELU this equals

            h = c_fc(x)
            residual + c_proj(h·σ(1.702h))

        As h·σ(1.702h) = silu(1.702h) / 1.702, the factor 1.702 is folded into the two matmuls, and
        only the silu passes over the wide h.
        """
        flat, bias, out = x.flatten(0, -2), self.c_proj.bias, self.c_proj.weight.t()  # (rows, W)
        if self.quick_gelu:
            weight, factor = self.c_fc.weight.t(), 1.702
            hidden = torch.addmm(self.c_fc.bias, flat, weight, beta=factor, alpha=factor)
            result = torch.addmm(bias, F.silu(hidden), out, alpha=1 / factor)
        else:
            result = torch.addmm(bias, F.gelu(self.c_fc(flat)), out)
        # The residual is added last: it is the largest term, and in bf16 each sum with it rounds.
        return result.view(x.shape).add_(residual)


class ResidualAttentionBlock(nn.Module):
    """Pre-norm transformer block: x + attention(ln_1(x)), then mlp(ln_2(x), x), which adds x."""

    def __init__(self, sizes: TransformerSizes, quick_gelu: bool):
        super().__init__()
        self.attn = MultiheadAttention(sizes.width, sizes.heads)
        self.ln_1 = LayerNorm(sizes.width)
        self.mlp = MLP(sizes.width, sizes.mlp_width, quick_gelu)
        self.ln_2 = LayerNorm(sizes.width)

    def forward(self, x: Tensor, prompt_kv: Tensor | None = None) -> Tensor:
        """Compute a layer over image tokens (B, N, D) → (B, N, D), which attend to prompts, too.

        prompt_kv: of `project_prompts`, (P, 2, H, d) for all images or (B, P, 2, H, d).
        """
        q, kv = self.attn.project(self.ln_1(x)).split([1, 2], dim=2)  # (B, N, 1 and 2, H, d)
        kv = append(kv, prompt_kv)  # (B, N+P, 2, H, d)
        k, v = kv.transpose(1, 3).unbind(2)  # (B, H, N+P, d)
        attended = attention(q.squeeze(2).transpose(1, 2), k, v)  # (B, H, N, d)
        x = x + self.attn.project_out(attended.transpose(1, 2))
        return self.mlp(self.ln_2(x), x)

    def project_prompts(self, prompts: Tensor) -> Tensor:
        """Project visual prompts (..., P, D) to keys and values (..., P, 2, H, d) of this layer.

        They have no queries: a prompt's output would be dropped after the layer.
        """
        return self.attn.project(self.ln_1(prompts.to(self.attn.in_proj_weight.dtype)), "kv")

    def forward_cls(self, x: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Compute the last layer, of which only the class token is read: (B, N, D) → (B, D).

        prompts: (P, D) for all images or (B, P, D).
        """
        normed = self.ln_1(append(x, prompts))  # (B, N+P, D)
        x = x[:, 0] + self.attn.single_query_attention(normed[:, 0], normed)
        return self.mlp(self.ln_2(x), x)

    def cls_attention_weights(self, x: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Compute the class token's attention in `forward_cls` (B, H, N+P), rows summing to 1."""
        qkv = self.attn.project(self.ln_1(append(x, prompts))).float()  # (B, N+P, 3, H, d)
        q, k, v = qkv.transpose(1, 3).unbind(2)  # (B, H, N+P, d)
        return attention_with_weights(q[:, :, :1], k, v)[1].squeeze(2)

    def forward_packed(self, x: Tensor, layout: PackedPrompts, ends_only: bool = False) -> Tensor:
        """Compute a layer over packed prompts (S, W) → (S, W), or (n, W): their EOTs only."""
        normed = self.ln_1(x)
        # Two matmuls: a slice of one joint qkv would keep the whole qkv alive until backward.
        q, kv = self.attn.project(normed, "q"), self.attn.project(normed, "kv")
        attended = packed_attention(q.squeeze(1), kv, layout)  # (S, H, d)
        if ends_only:
            x, attended = x[layout.ends], attended[layout.ends]
        x = x + self.attn.project_out(attended)
        return self.mlp(self.ln_2(x), x)


def append(tokens: Tensor, prompts: Tensor | None) -> Tensor:
    """Append prompts, (P, …) for all images or (B, P, …), to tokens (B, N, …) → (B, N+P, …)."""
    if prompts is None:
        return tokens
    if prompts.ndim < tokens.ndim:
        prompts = prompts.expand(tokens.shape[0], *prompts.shape)
    return torch.cat([tokens, prompts.to(tokens.dtype)], dim=1)


class Transformer(nn.Module):
    """A stack of blocks. The encoders call `resblocks` themselves, each in its way."""

    def __init__(self, sizes: TransformerSizes, quick_gelu: bool):
        super().__init__()
        blocks = [ResidualAttentionBlock(sizes, quick_gelu) for _ in range(sizes.layers)]
        self.resblocks = nn.ModuleList(blocks)


class VisionTransformer(nn.Module):
    """CLIP's image encoder."""

    def __init__(
        self, resolution: int, patch: int, sizes: TransformerSizes, embed_dim: int, quick_gelu: bool
    ):
        super().__init__()
        self.resolution, width = resolution, sizes.width
        tokens = 1 + (resolution // patch) ** 2
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(tokens, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(sizes, quick_gelu)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, embed_dim))

    def embed(self, images: Tensor) -> Tensor:
        """Embed images (B, 3, R, R) to the tokens of the first layer, class token first: (B, N, D).

        Raises ValueError if the images have another size than the model's, or are no floats.
        """
        side = self.resolution
        if images.shape[1:] != (3, side, side) or not images.is_floating_point():
            got = f"{images.dtype} {tuple(images.shape)}: use the model's preprocess function"
            raise ValueError(f"expected floating-point images (B, 3, {side}, {side}), got {got}")
        patches = self.conv1(images.to(self.conv1.weight.dtype))  # (B, D, R/patch, R/patch)
        patches = patches.flatten(2).transpose(1, 2)  # (B, N-1, D)
        cls = self.class_embedding.expand(images.shape[0], 1, -1)
        return self.ln_pre(torch.cat([cls, patches], dim=1) + self.positional_embedding)

    def encode(self, x: Tensor) -> Tensor:
        """Encode tokens that enter the first layer (B, N, D) → (B, E), not normalised."""
        last = self.transformer.resblocks[-1]
        return self.project_cls(last.forward_cls(self.forward_before_last(x)))

    def forward_before_last(self, x: Tensor) -> Tensor:
        """Compute the layers before the last one: (B, N, D) → (B, N, D)."""
        *blocks, _ = self.transformer.resblocks  # a slice torch.export of 2.4 could not trace
        for block in blocks:
            x = block(x)
        return x

    def project_cls(self, x: Tensor) -> Tensor:
        """Project the class token after the last layer (B, D) to image features (B, E).

        In fp32, whatever the network's precision; under autocast, in autocast's dtype.
        """
        return self.ln_post(x.float()) @ self.proj.float()


class CLIP(nn.Module):
    """Image and text encoder into one space, and the learned temperature `logit_scale`.

    Parameters are frozen (`requires_grad` False) and uninitialised; `build_clip` fills them.

    mean, std: of the colours of its images, on the scale 0..1.
    image_size: of its images after `resize_positional_embedding`; None: as stored.
    """

    def __init__(
        self,
        embed_dim: int,
        resolution: int,
        patch: int,
        vision: TransformerSizes,
        text: TransformerSizes,
        context_length: int,
        vocab_size: int,
        quick_gelu: bool = True,
    ):
        super().__init__()
        self.name = "custom"
        self.mean, self.std = CLIP_MEAN, CLIP_STD
        self.image_size: int | None = None
        self.quick_gelu = quick_gelu
        self.visual = VisionTransformer(resolution, patch, vision, embed_dim, quick_gelu)
        self.transformer = Transformer(text, quick_gelu)
        # nn.Embedding(…) would draw numbers, which on meta triggers a slow torch import.
        self.token_embedding = nn.Embedding.from_pretrained(torch.empty(vocab_size, text.width))
        self.positional_embedding = nn.Parameter(torch.empty(context_length, text.width))
        self.ln_final = LayerNorm(text.width)
        self.text_projection = nn.Parameter(torch.empty(text.width, embed_dim))
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        """Return the precision the frozen network computes in."""
        return self.visual.conv1.weight.dtype

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return self.logit_scale.device

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalize 8-bit pixels (..., 3, R, R) by its mean and std, see `transforms.normalize`."""
        return normalize(pixels, self.mean, self.std)

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode preprocessed images (B, 3, R, R) → features (B, E), not normalised."""
        return self.visual.encode(self.visual.embed(images))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode token ids (n, 77) from `tokenize` → features (n, E), not normalised.

        A text ends at its EOT, the largest id; what follows is not computed (`packing.py`).
        """
        ends = tokens.argmax(dim=-1).tolist()
        prompts = [row[: end + 1] for row, end in zip(tokens.tolist(), ends, strict=True)]
        layout = pack(prompts).to(self.device)
        return self.encode_packed(self.embed_packed(layout), layout)

    def embed_packed(self, layout: PackedPrompts) -> Tensor:
        """Embed packed prompts: token plus positional embeddings (S, W)."""
        return self.token_embedding(layout.tokens) + self.positional_embedding[layout.positions]

    def encode_packed(self, x: Tensor, layout: PackedPrompts, chunk: int | None = None) -> Tensor:
        """Encode embedded packed prompts (S, W) → text features (n, E), not normalised.

        chunk: encode that many at a time with gradient checkpointing, which computes each again in
            the backward pass: same gradients, memory of one chunk, 1.5 times the time.
        """
        if chunk is None or chunk >= len(layout.ends):
            return self._encode_in_packed_order(x, layout)[layout.inverse_order]

        from torch.utils.checkpoint import checkpoint  # here, as torch 2.4 takes 0.4 s for it

        features = [
            checkpoint(self._encode_in_packed_order, x[rows], chunk_layout, use_reentrant=False)
            for rows, chunk_layout in iter_chunks(layout, chunk)
        ]
        return torch.cat(features)[layout.inverse_order]

    def _encode_in_packed_order(self, x: Tensor, layout: PackedPrompts) -> Tensor:
        """Encode embedded packed prompts (S, W) → features (n, E) in packed order."""
        *blocks, last = self.transformer.resblocks
        x, layout = x.to(self.dtype), replace(layout, mask=layout.mask.to(self.dtype))
        # Show progress only outside training steps.
        if not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            blocks = track(blocks, "layers of the text encoder", len(blocks))
        for block in blocks:
            x = block.forward_packed(x, layout)
        x = last.forward_packed(x, layout, ends_only=True)
        return self.ln_final(x.float()) @ self.text_projection.float()

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits per image (B, n) and text (n, B): cosines times exp(logit_scale)."""
        image_features = F.normalize(self.encode_image(images).float(), dim=-1)
        text_features = F.normalize(self.encode_text(tokens).float(), dim=-1)
        logits_per_image = self.logit_scale.exp() * image_features @ text_features.t()
        return logits_per_image, logits_per_image.t()

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> CLIP:
        """Convert, as `.to` and `.half` do; the fingerprint stays that of what was loaded."""
        if function(self.logit_scale.detach()).dtype != self.logit_scale.dtype:
            self.fingerprint()
        return super()._apply(function, recurse)

    def cast(self, dtype: torch.dtype) -> CLIP:
        """Store the network in `dtype` and compute in it.

        Norms, `logit_scale` and the two projections stay fp32, so features are not rounded.
        """
        self.fingerprint()  # before any weight is rounded
        exact = ("logit_scale", "visual.proj", "text_projection")
        for name, parameter in self.named_parameters():
            if name not in exact and ".ln_" not in f".{name}":
                parameter.data = parameter.data.to(dtype)
        return self

    @torch.no_grad()
    def resize_positional_embedding(self, image_size: int) -> CLIP:
        """Take images of another size: positional embeddings of patches bicubic, antialiased.

        As open_clip does. The fingerprint stays that of the weights as loaded. Raises ValueError
        if `image_size` is no multiple of a patch's side, or if this was done before.
        """
        visual = self.visual
        patch, stored = visual.conv1.kernel_size[0], visual.resolution
        fits = is_integer(image_size) and patch <= image_size <= MAX_RESOLUTION
        if not fits or image_size % patch:
            expected = f"a multiple of {patch} (the side of a patch) up to {MAX_RESOLUTION}"
            raise ValueError(f"image_size: expected {expected}, got {short_repr(image_size)}")
        if self.image_size is not None:
            raise ValueError("image_size: expected a CLIP as stored, got one that was resized")
        image_size = int(image_size)
        if image_size != stored:
            self.fingerprint()
            cls, patches = visual.positional_embedding.split([1, (stored // patch) ** 2])
            grid = patches.float().t().unflatten(1, (stored // patch, -1))  # (D, side, side)
            side = image_size // patch
            grid = F.interpolate(grid[None], side, mode="bicubic", antialias=True)[0]
            tokens = torch.cat([cls, grid.flatten(1).t().to(cls.dtype)])
            visual.positional_embedding = nn.Parameter(tokens, requires_grad=False)
            visual.resolution = self.image_size = image_size
            logger.info(f"positional embeddings were resized from {stored} to {image_size} pixels")
        return self

    def fingerprint(self) -> str:
        """Return the SHA-256 of the weights, as fp16 (as OpenAI publishes them), sorted by name.

        With what makes another model of the same weights: the GELU, heads, mean and std.
        Computed once: that somebody changes frozen weights later is not noticed.
        """
        if not hasattr(self, "_fingerprint"):
            sides = (self.visual.transformer, self.transformer)
            heads = [side.resblocks[0].attn.heads for side in sides]
            settings = (bool(self.quick_gelu), heads, self.mean, self.std)
            digest = hashlib.sha256(repr(settings).encode())
            for name, tensor in sorted(self.state_dict().items()):
                digest.update(f"{name}{tuple(tensor.shape)}".encode())
                digest.update(tensor.half().cpu().contiguous().numpy().data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint
