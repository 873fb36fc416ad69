"""CLIP (Radford et al., 2021, arXiv 2103.00020): image and text transformer, under OpenAI's names.

Modules and tensors are called what OpenAI's checkpoints call them, so a state dict loads strictly,
without a table of renames. Everything is batch first. Two places go beyond the plain model, both
needed by prompt tuning and both exact: a block can attend to further tokens (prompts) that it does
not carry on, and can compute only the outputs that are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..images.transforms import CLIP_MEAN, CLIP_STD, normalize
from ..progress import Tell, job
from .attention import MultiheadAttention, attention
from .packing import PackedPrompts, pack, packed_attention, split

HEAD_WIDTH = 64  # of CLIP's text sides, and of its ViTs up to L
MAX_RESOLUTION = 4096


class TransformerSizes(NamedTuple):
    """Width W and number of layers, heads of W / heads each, and the inner width of the MLPs."""

    width: int
    layers: int
    heads: int
    inner: int


class LayerNorm(nn.LayerNorm):
    """Layer norm in fp32, whatever the precision around it."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) → (..., W), in the dtype of `x`."""
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class MLP(nn.Module):
    """c_proj(gelu(c_fc(x))), the gelu being x·σ(1.702x) where OpenAI trained with it."""

    def __init__(self, width: int, inner: int, exact_gelu: bool):
        super().__init__()
        self.exact_gelu = exact_gelu
        self.c_fc = nn.Linear(width, inner)
        self.c_proj = nn.Linear(inner, width)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + c_proj(gelu(c_fc(x))): both (..., W) → (..., W).

        x·σ(1.702x) = silu(1.702x)/1.702, so c_proj(gelu(h)) = (silu(1.702h) @ Wᵀ)/1.702 + b. The
        products take the factors along: the silu alone passes over the wide layer between them.
        """
        flat, bias, out = x.flatten(0, -2), self.c_proj.bias, self.c_proj.weight.t()  # x: (T, W)
        if self.exact_gelu:
            result = torch.addmm(bias, F.gelu(self.c_fc(flat)), out)
        else:
            factor = 1.702
            inner = self.c_fc.weight.t()
            inner = torch.addmm(self.c_fc.bias, flat, inner, beta=factor, alpha=factor)
            result = torch.addmm(bias, F.silu(inner), out, alpha=1 / factor)
        # Last: in bf16, where it is the largest, each sum with it rounds away the most.
        return result.view(x.shape).add_(residual)


class ResidualAttentionBlock(nn.Module):
    """Pre-norm transformer block: x + attention(ln_1(x)), then x + mlp(ln_2(x))."""

    def __init__(self, width: int, heads: int, inner: int, exact_gelu: bool):
        super().__init__()
        self.attn = MultiheadAttention(width, heads)
        self.ln_1 = LayerNorm(width)
        self.mlp = MLP(width, inner, exact_gelu)
        self.ln_2 = LayerNorm(width)

    def forward(self, x: Tensor, prompt_kv: Tensor | None = None) -> Tensor:
        """One layer over image tokens, (B, N, D) → (B, N, D), that also see prompts.

        prompt_kv: of `project_prompts`, (P, 2, H, d) for all images or (B, P, 2, H, d).
        """
        q, kv = self.attn.project(self.ln_1(x)).split([1, 2], dim=2)  # (B, N, 1 and 2, H, d)
        if prompt_kv is not None:
            kv = append(kv, prompt_kv)  # (B, N+P, 2, H, d)
        k, v = kv.transpose(1, 3).unbind(2)  # (B, H, N+P, d)
        attended = attention(q.squeeze(2).transpose(1, 2), k, v)  # (B, H, N, d)
        x = x + self.attn.merge(attended.transpose(1, 2))
        return self.mlp(self.ln_2(x), x)

    def project_prompts(self, prompts: Tensor) -> Tensor:
        """What the layer makes of visual prompts (..., P, D): keys and values (..., P, 2, H, d).

        A prompt's own output would be dropped after the layer, so it never asks, and it does not
        depend on the image's tokens.
        """
        return self.attn.project(self.ln_1(prompts.to(self.attn.in_proj_weight.dtype)), "kv")

    def forward_cls(self, x: Tensor, prompts: Tensor | None = None) -> Tensor:
        """The last layer, of which only the class token is read: (B, N, D) → (B, D).

        prompts: (P, D) for all images or (B, P, D).
        """
        tokens = self._seen(x, prompts)
        x = x[:, 0] + self.attn.attend_once(tokens[:, 0], tokens)
        return self.mlp(self.ln_2(x), x)

    def weights_cls(self, x: Tensor, prompts: Tensor | None = None) -> Tensor:
        """How `forward_cls` shares out the class token's attention: (B, H, N+P), rows sum to 1."""
        tokens = self._seen(x, prompts)
        return self.attn.weights_once(tokens[:, 0], tokens)

    def _seen(self, x: Tensor, prompts: Tensor | None) -> Tensor:
        """What the layer attends to, normed: the image's tokens, then the prompts (B, N+P, D)."""
        return self.ln_1(x if prompts is None else append(x, prompts.to(x.dtype)))

    def forward_packed(self, x: Tensor, layout: PackedPrompts, ends: bool = False) -> Tensor:
        """One layer over packed prompts, (S, W) → (S, W); with `ends` only their EOTs, (n, W)."""
        normed = self.ln_1(x)
        # Apart: of one joint product q would be a view, and all of it kept for the backward pass.
        q, kv = self.attn.project(normed, "q"), self.attn.project(normed, "kv")
        attended = packed_attention(q.squeeze(1), kv, layout)  # (S, H, d)
        if ends:
            x, attended = x[layout.ends], attended[layout.ends]
        x = x + self.attn.merge(attended)
        return self.mlp(self.ln_2(x), x)


def append(tokens: Tensor, prompts: Tensor) -> Tensor:
    """(B, N, …) and (P, …) for all images, or (B, P, …) → (B, N+P, …)."""
    if prompts.ndim < tokens.ndim:
        prompts = prompts.expand(tokens.shape[0], *prompts.shape)
    return torch.cat([tokens, prompts], dim=1)


class Transformer(nn.Module):
    """A stack of blocks; image and text encoder walk through `resblocks` in their own ways."""

    def __init__(self, sizes: TransformerSizes, exact_gelu: bool):
        super().__init__()
        width, layers, heads, inner = sizes
        self.resblocks = nn.ModuleList(
            ResidualAttentionBlock(width, heads, inner, exact_gelu) for _ in range(layers)
        )


class VisionTransformer(nn.Module):
    """CLIP's image encoder."""

    def __init__(
        self, resolution: int, patch: int, sizes: TransformerSizes, embed_dim: int, exact_gelu: bool
    ):
        super().__init__()
        self.resolution, width = resolution, sizes.width
        tokens = 1 + (resolution // patch) ** 2
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(tokens, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(sizes, exact_gelu)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, embed_dim))

    def embed(self, images: Tensor) -> Tensor:
        """The tokens that enter the first layer, class token first: (B, 3, R, R) → (B, N, D).

        Raises ValueError if the images have another size than the model's, or are no floats.
        """
        shape = (3, self.resolution, self.resolution)
        if images.shape[1:] != shape or not images.is_floating_point():
            expected = f"(B, 3, {self.resolution}, {self.resolution})"
            raise ValueError(
                f"expected floating-point images of shape {expected}, "
                f"got {images.dtype} of shape {tuple(images.shape)}: "
                "use the preprocess function that came with the model"
            )
        patches = self.conv1(images.to(self.conv1.weight.dtype))  # (B, D, R/patch, R/patch)
        patches = patches.flatten(2).transpose(1, 2)  # (B, N-1, D)
        cls = self.class_embedding.expand(images.shape[0], 1, -1)
        return self.ln_pre(torch.cat([cls, patches], dim=1) + self.positional_embedding)

    def encode(self, x: Tensor) -> Tensor:
        """Tokens that enter the first layer (B, N, D) → image features (B, E), not normalised."""
        return self.features_of(self.transformer.resblocks[-1].forward_cls(self.before_last(x)))

    def before_last(self, x: Tensor) -> Tensor:
        """Tokens that enter the first layer → those that enter the last one, both (B, N, D)."""
        *blocks, _ = self.transformer.resblocks  # a slice torch.export of 2.4 could not trace
        for block in blocks:
            x = block(x)
        return x

    def features_of(self, x: Tensor) -> Tensor:
        """The class token after the last layer (B, D) → image features (B, E).

        In fp32, whatever the network's precision; inside autocast in its own.
        """
        return self.ln_post(x.float()) @ self.proj.float()

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, R, R) → (B, E), not normalised."""
        return self.encode(self.embed(images))


class CLIP(nn.Module):
    """Image and text encoder into one space, and the learned temperature `logit_scale`.

    Parameters are frozen (`requires_grad` False) and uninitialised; `build_clip` fills them.

    name, notes: what it is called, and what was chosen in loading it, a line each.
    mean, std: of the colours of its pictures, on the scale 0..1.
    image_size: what `interpolate` has made of its resolution; None: it is as stored.
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
        exact_gelu: bool = False,
    ):
        super().__init__()
        self.name = "custom"
        self.notes: tuple[str, ...] = ()
        self.mean, self.std = CLIP_MEAN, CLIP_STD
        self.image_size: int | None = None
        self.exact_gelu = exact_gelu
        self.visual = VisionTransformer(resolution, patch, vision, embed_dim, exact_gelu)
        self.transformer = Transformer(text, exact_gelu)
        # nn.Embedding would draw numbers, for which torch imports for a second on the meta device
        self.token_embedding = nn.Embedding.from_pretrained(torch.empty(vocab_size, text.width))
        self.positional_embedding = nn.Parameter(torch.empty(context_length, text.width))
        self.ln_final = LayerNorm(text.width)
        self.text_projection = nn.Parameter(torch.empty(text.width, embed_dim))
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        """The precision the frozen network computes in."""
        return self.visual.conv1.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.logit_scale.device

    @property
    def context_length(self) -> int:
        """Tokens of a text, 77 in every published model."""
        return self.positional_embedding.shape[0]

    def normalize(self, pixels: Tensor) -> Tensor:
        """8-bit pixels (..., 3, R, R) as it takes them, see `transforms.normalize`."""
        return normalize(pixels, self.mean, self.std)

    def encode_image(self, images: Tensor) -> Tensor:
        """Images (B, 3, R, R), preprocessed → features (B, E), not normalised."""
        return self.visual(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Token ids (n, 77) from `tokenize` → features (n, E), not normalised.

        A text ends at its EOT, the largest id; what follows is not computed (`packing.py`).
        """
        ends = tokens.argmax(dim=-1).tolist()
        prompts = [row[: end + 1] for row, end in zip(tokens.tolist(), ends, strict=True)]
        layout = pack(prompts).to(self.device)
        return self.encode_prompts(self.embed_prompts(layout), layout)

    def embed_prompts(self, layout: PackedPrompts) -> Tensor:
        """Token plus positional embeddings (S, W) of packed prompts."""
        positions = self.positional_embedding[layout.positions]
        return self.token_embedding(layout.tokens) + positions

    def encode_prompts(self, x: Tensor, layout: PackedPrompts, chunk: int | None = None) -> Tensor:
        """Embedded packed prompts (S, W) → text features (n, E), not normalised.

        With `chunk`, that many prompts are encoded at a time. What a chunk needs for gradients is
        not kept but computed again when its turn comes in the backward pass: equal gradients in
        the memory of one chunk, for half as much time again.
        """
        count = len(layout.ends)
        # In training this is a part of each step, of which its own line tells.
        untold = torch.is_grad_enabled() or torch.compiler.is_compiling()
        with nullcontext() if untold else job("texts encoded", count) as tell:
            if chunk is None or chunk >= count:
                return self._encode_prompts(x, layout, tell)[layout.places]

            from torch.utils.checkpoint import checkpoint  # here, as torch 2.4 takes 0.4 s for it

            features, done = [], 0
            for rows, piece in split(layout, chunk):
                own = checkpoint(self._encode_prompts, x[rows], piece, use_reentrant=False)
                features.append(own)
                done += len(own)
                if tell:
                    tell(done)
            return torch.cat(features)[layout.places]

    def _encode_prompts(self, x: Tensor, layout: PackedPrompts, tell: Tell | None = None) -> Tensor:
        *blocks, last = self.transformer.resblocks
        x, layout = x.to(self.dtype), layout.masked_in(self.dtype)
        for number, block in enumerate(blocks, start=1):
            x = block.forward_packed(x, layout)
            if tell:  # all are as far as this layer
                tell(len(layout.ends) * number // (len(blocks) + 1))
        x = last.forward_packed(x, layout, ends=True)
        return self.ln_final(x.float()) @ self.text_projection.float()

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits per image (B, n) and per text (n, B): cosines times exp(logit_scale)."""
        image_features = F.normalize(self.encode_image(images).float(), dim=-1)
        text_features = F.normalize(self.encode_text(tokens).float(), dim=-1)
        logits_per_image = self.logit_scale.exp() * image_features @ text_features.t()
        return logits_per_image, logits_per_image.t()

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> CLIP:
        """What `.to`, `.half` and the like call: the fingerprint is that of what was loaded."""
        if function(self.logit_scale.detach()).dtype != self.logit_scale.dtype:
            self.fingerprint()
        return super()._apply(function, recurse)

    def cast(self, dtype: torch.dtype) -> CLIP:
        """Store the network in `dtype` and compute in it.

        Norms, `logit_scale` and the two projections stay fp32, so features are not rounded.
        """
        self.fingerprint()  # of the weights as loaded, before any of them is rounded
        for module in self.modules():
            if not isinstance(module, LayerNorm):
                for name, parameter in module.named_parameters(recurse=False):
                    if name not in ("logit_scale", "proj", "text_projection"):
                        parameter.data = parameter.data.to(dtype)
        return self

    @torch.no_grad()
    def interpolate(self, image_size: int) -> CLIP:
        """Take images of another size: positional embeddings of patches bicubic, antialiased.

        As open_clip does. The fingerprint stays that of the weights as loaded. Raises ValueError
        if `image_size` is no multiple of a patch's side, or if this was done before.
        """
        visual = self.visual
        patch = visual.conv1.kernel_size[0]
        if image_size % patch or not patch <= image_size <= MAX_RESOLUTION:
            expected = f"a multiple of {patch} (the side of a patch) up to {MAX_RESOLUTION}"
            raise ValueError(f"image size: expected {expected}, got {image_size}")
        if self.image_size is not None:
            raise ValueError("image size: expected a CLIP as stored, got an interpolated one")
        if image_size != visual.resolution:
            self.fingerprint()
            stored, side = visual.positional_embedding, visual.resolution // patch
            grid = stored[1:].float().unflatten(0, (side, side)).permute(2, 0, 1)  # (D, side, side)
            size = (image_size // patch,) * 2
            grid = F.interpolate(grid[None], size, mode="bicubic", antialias=True)[0]
            tokens = torch.cat([stored[:1], grid.flatten(1).t().to(stored.dtype)])
            visual.positional_embedding = nn.Parameter(tokens, requires_grad=False)
            visual.resolution = self.image_size = image_size
        return self

    def fingerprint(self) -> str:
        """SHA-256 of the weights, as fp16 (what OpenAI publishes), in the order of their names.

        What makes another model of the same weights makes another fingerprint: the exact GELU,
        heads that are not 64 wide, other colours' mean and std. Computed once: the weights are
        frozen, and that somebody changes them later is not noticed.
        """
        if not hasattr(self, "_fingerprint"):
            about = "exact GELU" if self.exact_gelu else ""
            sides = (self.visual.transformer, self.transformer)
            widths = [side.resblocks[0].attn.head_width for side in sides]
            about += f"heads {widths}" if widths != [HEAD_WIDTH] * 2 else ""
            colours = (self.mean, self.std)
            about += f"colours {colours}" if colours != (CLIP_MEAN, CLIP_STD) else ""
            digest = hashlib.sha256(about.encode())
            for name, tensor in sorted(self.state_dict().items()):
                digest.update(f"{name}{tuple(tensor.shape)}".encode())
                digest.update(tensor.half().cpu().contiguous().numpy().data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def numerics(dtype: torch.dtype) -> str:
    """How a network in `dtype` computes features: by this, features that were kept are told apart.

    Before 0.2.0 those in bf16 and fp16 were rounded to it.
    """
    return str(dtype) if dtype == torch.float32 else f"{dtype}, features in fp32"
