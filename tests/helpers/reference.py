"""Compute the methods as naively as possible: the fast code of the package must equal this.

Everything is a plain function on two dicts of tensors: `clip`, a state dict under OpenAI's names,
and `learned`, the learned tensors under the names of the published implementation (see
`learned_shapes`). Nothing is shared, skipped, cached or packed: all 77 tokens of every class go
through every layer of the text transformer, and every prompt is a full token of its layer. It runs
in the dtype of its tensors (float32, float64) and autograd passes through all of it.

Letters: B images, C classes, N = 1 + patches tokens, D vision width, W text width, E joint
embedding, L vision layers, M text context tokens, P visual prompts of a layer, K selected classes;
T, Q any number of tokens, d of channels. W0: frozen text features of the template, g: learned text
features, f: image features, all (…, E); v: class-aware prompts, z: their class logits. Layers are
counted from 1, as in the paper: "Dual Modality Prompt Tuning for Vision-Language Pre-Trained
Model", Xing et al., IEEE TMM 2023, arXiv 2208.08340.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Tokenize = Callable[[list[str]], Tensor]

CONTEXT = "prompt_learner.ctx"  # (M, W), with class-specific contexts (C, M, W)
VISUAL = "image_encoder.transformer.ctx_learner.ctx"  # (layers, P, D)
GENERATOR = "image_encoder.transformer.extractor"

ATTENTION_WIDTH = 32  # of the generator's queries and keys (Wq, Wk)
GENERATOR_TOKENS = 10  # learned tokens beside the image's own (Cᵢ)
HEAD_WIDTH = 64  # of CLIP's attention heads


# CLIP


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x·weightᵀ + bias, with weight (outputs, inputs) as in torch."""
    y = x @ weight.t()
    return y if bias is None else y + bias


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    variance = (x - mean).square().mean(dim=-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def normalize(x: Tensor) -> Tensor:
    """Return n(x): rows of length 1."""
    return x / x.norm(dim=-1, keepdim=True)


def attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
    """Return softmax(q·kᵀ / √d)·v: q (…, Q, d), k (…, T, d), v (…, T, d_v), visible (Q, T) bool."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (…, Q, K)
    if visible is not None:
        scores = scores.masked_fill(~visible, -math.inf)
    return torch.softmax(scores, dim=-1) @ v


def self_attention(clip: Tensors, name: str, x: Tensor, visible: Tensor | None) -> Tensor:
    """Apply multi-head self attention to x (B, T, D), whose heads are consecutive features."""
    heads = x.shape[-1] // HEAD_WIDTH
    projected = linear(x, clip[f"{name}.in_proj_weight"], clip[f"{name}.in_proj_bias"])
    q, k, v = (
        projection.unflatten(-1, (heads, HEAD_WIDTH)).transpose(1, 2)  # (B, heads, T, 64)
        for projection in projected.chunk(3, dim=-1)
    )
    merged = attention(q, k, v, visible).transpose(1, 2).flatten(2)  # (B, T, D)
    return linear(merged, clip[f"{name}.out_proj.weight"], clip[f"{name}.out_proj.bias"])


def block(clip: Tensors, name: str, x: Tensor, visible: Tensor | None = None) -> Tensor:
    """Apply a layer of either transformer to x (B, T, D): attention and MLP, normed before each."""
    normed = layer_norm(x, clip[f"{name}.ln_1.weight"], clip[f"{name}.ln_1.bias"])
    x = x + self_attention(clip, f"{name}.attn", normed, visible)
    normed = layer_norm(x, clip[f"{name}.ln_2.weight"], clip[f"{name}.ln_2.bias"])
    hidden = linear(normed, clip[f"{name}.mlp.c_fc.weight"], clip[f"{name}.mlp.c_fc.bias"])
    hidden = quick_gelu(hidden)
    return x + linear(hidden, clip[f"{name}.mlp.c_proj.weight"], clip[f"{name}.mlp.c_proj.bias"])


def layer_count(clip: Tensors, tower: str) -> int:
    """Count the layers of "transformer" (text) or "visual.transformer"."""
    blocks = (name for name in clip if name.startswith(f"{tower}.resblocks."))
    return sum(name.endswith("ln_1.weight") for name in blocks)


def embed_image(clip: Tensors, images: Tensor) -> Tensor:
    """Embed images (B, 3, R, R) as the tokens (B, N, D) that enter layer 1, CLS first."""
    weight = clip["visual.conv1.weight"]
    patches = torch.nn.functional.conv2d(images, weight, stride=weight.shape[-1])  # (B, D, ·, ·)
    patches = patches.flatten(2).transpose(1, 2)
    cls = clip["visual.class_embedding"].expand(len(images), 1, -1)
    x = torch.cat([cls, patches], dim=1) + clip["visual.positional_embedding"]
    return layer_norm(x, clip["visual.ln_pre.weight"], clip["visual.ln_pre.bias"])


def image_feature(clip: Tensors, x: Tensor) -> Tensor:
    """Project the last layer's tokens (B, N, D) to image features (B, E), not normalised."""
    cls = layer_norm(x[:, 0], clip["visual.ln_post.weight"], clip["visual.ln_post.bias"])
    return cls @ clip["visual.proj"]


def encode_image(clip: Tensors, images: Tensor) -> Tensor:
    """Encode images (B, 3, R, R) by CLIP without any prompt → (B, E), not normalised."""
    x = embed_image(clip, images)
    for layer in range(1, layer_count(clip, "visual.transformer") + 1):
        x = block(clip, f"visual.transformer.resblocks.{layer - 1}", x)
    return image_feature(clip, x)


def encode_embedded_text(clip: Tensors, x: Tensor, eot: Tensor) -> Tensor:
    """Encode token embeddings (C, 77, W) with EOT at `eot` (C,) → (C, E), not normalised."""
    x = x + clip["positional_embedding"]
    length = x.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
    for layer in range(1, layer_count(clip, "transformer") + 1):
        x = block(clip, f"transformer.resblocks.{layer - 1}", x, causal)
    x = layer_norm(x, clip["ln_final.weight"], clip["ln_final.bias"])
    return x[torch.arange(len(x)), eot] @ clip["text_projection"]


def end_of_text(tokens: Tensor) -> Tensor:
    """Find the position of each row's EOT, the largest id of the vocabulary: (C, 77) → (C,)."""
    return tokens.argmax(dim=-1)


def encode_text(clip: Tensors, tokens: Tensor) -> Tensor:
    """Encode tokens (C, 77) by CLIP without any prompt → (C, E), not normalised."""
    return encode_embedded_text(clip, clip["token_embedding.weight"][tokens], end_of_text(tokens))


def zero_shot_classifier(
    clip: Tensors, classnames: Sequence[str], template: str | Sequence[str], tokenize: Tokenize
) -> Tensor:
    """Return W0 (C, E), normalised; of several templates from the mean of their features."""
    features = []
    for text in [template] if isinstance(template, str) else template:
        texts = [text.format(name.replace("_", " ")) for name in classnames]
        features.append(normalize(encode_text(clip, tokenize(texts))))
    return features[0] if len(features) == 1 else normalize(torch.stack(features).mean(dim=0))


# The prompts


def initial_context(clip: Tensors, phrase: str, tokenize: Tokenize) -> Tensor:
    """Return the context (M, W) that starts from a phrase: the embeddings of its words."""
    words = len(phrase.split())
    return clip["token_embedding.weight"][tokenize([phrase])[0, 1 : 1 + words]].clone()


def learned_text_features(
    clip: Tensors, ctx: Tensor, classnames: Sequence[str], position: str, tokenize: Tokenize
) -> Tensor:
    """Return g (C, E), not normalised: CoOp's, from `ctx` (M, W), or (C, M, W) for each class."""
    context_length = ctx.shape[-2]
    names = [name.replace("_", " ") for name in classnames]
    tokens = tokenize([" ".join(["X"] * context_length) + f" {name}." for name in names])
    name_lengths = (end_of_text(tokenize(names)) - 1).tolist()  # SOS is not part of the name

    rows = []
    for c, length in enumerate(name_lengths):
        embedded = clip["token_embedding.weight"][tokens[c]]  # (77, W)
        start = embedded[:1]
        after = embedded[1 + context_length :]  # past the placeholders
        name, rest = after[:length], after[length:]  # rest: the stop, EOT, padding
        context = ctx[c] if ctx.ndim == 3 else ctx
        half = context_length // 2
        parts = {
            "end": [start, context, name, rest],
            "middle": [start, context[:half], name, context[half:], rest],
            "front": [start, name, context, rest],
        }[position]
        rows.append(torch.cat(parts))
    return encode_embedded_text(clip, torch.stack(rows), end_of_text(tokens))


def class_aware_prompts(
    learned: Tensors, index: int, x: Tensor, selected: Tensor
) -> tuple[Tensor, Tensor]:
    """Apply the index-th generator (from 0): returns v (B, K, D) and z (B, K, C).

    Args:
        x: the tokens (B, N, D) that enter the layer; no gradient goes back to them.
        selected: g[idx] (B, K, E), learned text features, not normalised, with gradient.
    """

    def tensor(name: str) -> Tensor:
        return learned[f"{GENERATOR}.{name}"]

    q = linear(selected, tensor(f"meta_nets.{index}.weight"), tensor(f"meta_nets.{index}.bias"))
    generator_tokens = tensor("ctx")[index].expand(len(x), -1, -1)  # Cᵢ (B, 10, D)
    kv = torch.cat([x.detach(), generator_tokens], dim=1)  # (B, N+10, D)
    o = attention(
        linear(q, tensor(f"attns.{index}.qmlp.weight")),
        linear(kv, tensor(f"attns.{index}.kmlp.weight")),
        kv,  # the values are the tokens themselves
    )
    o = linear(o, tensor(f"attns.{index}.vmlp.weight"))  # (B, K, D)
    normed = layer_norm(o, tensor(f"lns.{index}.weight"), tensor(f"lns.{index}.bias"))
    z = linear(normed, tensor(f"classfiers.{index}.weight"))
    v = layer_norm(o + q, tensor(f"lns2.{index}.weight"), tensor(f"lns2.{index}.bias"))
    return v, z


def prompted_image_feature(
    clip: Tensors, learned: Tensors, images: Tensor, selected: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return f (B, E), not normalised, and z of all generators (B, layers, K, C), or None.

    The last layers have a generator each, as many as were learned; layers below them have the
    plain prompts of their row of `VISUAL`, if any.
    """
    layers = layer_count(clip, "visual.transformer")
    generators = len(learned[f"{GENERATOR}.ctx"]) if f"{GENERATOR}.ctx" in learned else 0
    class_aware_from = layers - generators + 1
    visual = learned.get(VISUAL, ())

    class_logits = []
    x = embed_image(clip, images)
    tokens = x.shape[1]
    for layer in range(1, layers + 1):
        if layer >= class_aware_from:
            v, z = class_aware_prompts(learned, layer - class_aware_from, x, selected)
            class_logits.append(z)
            x = torch.cat([x, v], dim=1)  # (B, N+K, D)
        elif layer <= len(visual):
            x = torch.cat([x, visual[layer - 1].expand(len(x), -1, -1)], dim=1)  # (B, N+P, D)
        x = block(clip, f"visual.transformer.resblocks.{layer - 1}", x)
        x = x[:, :tokens]  # the prompts' outputs are dropped
    return image_feature(clip, x), torch.stack(class_logits, dim=1) if class_logits else None


# The methods


class Outputs(NamedTuple):
    logits: Tensor  # (B, C)
    text_branch_logits: Tensor | None = None  # (B, C), VLP and DPT
    image_branch_logits: Tensor | None = None  # (B, C), VLP and DPT
    top_classes: Tensor | None = None  # (B, K), DPT
    class_aware_logits: Tensor | None = None  # (B, layers, K, C), DPT


class Losses(NamedTuple):
    total: Tensor
    base: Tensor
    auxiliary: Tensor


def forward(
    clip: Tensors,
    learned: Tensors,
    images: Tensor,
    classnames: Sequence[str],
    template: str | Sequence[str],
    tokenize: Tokenize,
    *,
    method: str,
    position: str = "end",
    top_k: int = 10,
    top_classes: Tensor | None = None,
) -> Outputs:
    """Compute "zeroshot", "coop", "vpt", "vlp" or "dpt" on images (B, 3, R, R).

    `top_classes` (B, K) takes the place of the selector's choice, for tests.
    """
    scale = clip["logit_scale"].exp()
    w0 = zero_shot_classifier(clip, classnames, template, tokenize)  # (C, E)
    f0 = normalize(encode_image(clip, images))  # (B, E)

    if method in ("coop", "vlp", "dpt"):
        g = learned_text_features(clip, learned[CONTEXT], classnames, position, tokenize)
        classifier = normalize(g)
    else:
        classifier = w0

    if method == "dpt":
        if top_classes is None:
            top_classes = (f0 @ w0.t()).topk(min(top_k, len(classnames)), dim=-1).indices
        f, class_logits = prompted_image_feature(clip, learned, images, g[top_classes])
    elif method in ("vpt", "vlp"):
        f, class_logits = prompted_image_feature(clip, learned, images)
    else:
        f, class_logits = f0, None
    f = normalize(f)

    logits = scale * f @ classifier.t()
    if method not in ("vlp", "dpt"):
        return Outputs(logits)
    text_branch, image_branch = scale * f0 @ classifier.t(), scale * f @ w0.t()
    return Outputs(logits, text_branch, image_branch, top_classes, class_logits)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over the rows of logits (B, C) of −log softmax at the label (B,)."""
    log_probability = logits - logits.logsumexp(dim=-1, keepdim=True)
    return -log_probability[torch.arange(len(labels)), labels].mean()


def auxiliary_loss(class_logits: Tensor, top_classes: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of z over the slots whose class is the image's label.

    0 where no image has its label among its K (the published code divides 0 by 0 there).
    """
    terms = []
    images, layers, slots, _ = class_logits.shape
    for b in range(images):
        for layer in range(layers):
            for k in range(slots):
                if top_classes[b, k] == labels[b]:
                    z = class_logits[b, layer, k]
                    terms.append(z.logsumexp(dim=-1) - z[labels[b]])
    return torch.stack(terms).mean() if terms else class_logits.new_zeros(())


def losses(
    outputs: Outputs, labels: Tensor, *, method: str, guidance: bool, alpha: float = 0.3
) -> Losses:
    """Return what training minimises, and its two parts.

    CE(logits), in the guidance stage (the first epochs) of VLP and DPT CE(text branch) +
    CE(image branch) + 0.1·CE(logits); DPT adds α·auxiliary.
    """
    base = cross_entropy(outputs.logits, labels)
    if guidance and method in ("vlp", "dpt"):
        text = cross_entropy(outputs.text_branch_logits, labels)
        image = cross_entropy(outputs.image_branch_logits, labels)
        base = text + image + 0.1 * base
    if method != "dpt":
        return Losses(base, base, torch.zeros_like(base))
    auxiliary = auxiliary_loss(outputs.class_aware_logits, outputs.top_classes, labels)
    return Losses(base + alpha * auxiliary, base, auxiliary)


def learning_rate(epoch: int, base_lr: float, epochs: int, warmup_epochs: int) -> float:
    """Return the rate of an epoch, from 0: 1e-5 in the warm-up, then a cosine, above 0."""
    if epoch < warmup_epochs:
        return 1e-5
    return base_lr / 2 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / epochs))


def learned_shapes(
    clip: Tensors,
    classes: int,
    *,
    method: str,
    n_ctx: int = 16,
    csc: bool = False,
    n_visual: int = 10,
    visual_layers: int | None = None,
    class_aware_from: int | None = None,
) -> dict[str, tuple[int, ...]]:
    """Return what a method learns, published name → shape, without tensors of no elements.

    `visual_layers`: plain prompts act in the layers up to this one (None: all, 1: shallow).
    """
    layers, width = layer_count(clip, "visual.transformer"), len(clip["visual.ln_post.weight"])
    text_width, embedding = clip["text_projection"].shape
    first = layers + 1
    shapes: dict[str, tuple[int, ...]] = {}
    if method in ("coop", "vlp", "dpt"):
        shapes[CONTEXT] = (classes, n_ctx, text_width) if csc else (n_ctx, text_width)
    if method == "dpt":
        first = class_aware_from or layers
        shapes[f"{GENERATOR}.ctx"] = (layers - first + 1, GENERATOR_TOKENS, width)
        for i in range(layers - first + 1):
            shapes |= {
                f"{GENERATOR}.meta_nets.{i}.weight": (width, embedding),
                f"{GENERATOR}.meta_nets.{i}.bias": (width,),
                f"{GENERATOR}.attns.{i}.qmlp.weight": (ATTENTION_WIDTH, width),
                f"{GENERATOR}.attns.{i}.kmlp.weight": (ATTENTION_WIDTH, width),
                f"{GENERATOR}.attns.{i}.vmlp.weight": (width, width),
                f"{GENERATOR}.lns.{i}.weight": (width,),
                f"{GENERATOR}.lns.{i}.bias": (width,),
                f"{GENERATOR}.classfiers.{i}.weight": (classes, width),
                f"{GENERATOR}.lns2.{i}.weight": (width,),
                f"{GENERATOR}.lns2.{i}.bias": (width,),
            }
    prompted = min(visual_layers or layers, first - 1)
    if method in ("vpt", "vlp", "dpt") and n_visual and prompted:
        shapes[VISUAL] = (prompted, n_visual, width)
    return shapes
