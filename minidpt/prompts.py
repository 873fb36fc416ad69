"""The three kinds of learned prompts: text context, visual prompts, class-aware visual prompts.

These modules hold parameters and constants made from CLIP, never CLIP itself, which `model.py`
joins with them. Letters of shapes as in `model.py`; S: rows of all packed prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .clip.attention import attention_with_weights
from .clip.network import CLIP
from .clip.packing import pack
from .clip.tokenizer import EOT_TOKEN, SOT_TOKEN, decode, encode
from .config import PromptConfig
from .support.distributed import World

INIT_STD = 0.02  # of every learned prompt (CoOp, VPT and DPT alike)


def random_parameter(*shape: int) -> nn.Parameter:
    """Draw a parameter from N(0, 0.02²), in fp32 whatever `torch.get_default_dtype()`."""
    parameter = nn.Parameter(torch.empty(shape, dtype=torch.float32))
    # Skip it on the meta device, where it triggers a slow torch import.
    return parameter if parameter.is_meta else nn.init.normal_(parameter, std=INIT_STD)


class TextPrompts(nn.Module):
    """A learned context of M vectors for the prompt of every class (CoOp, arXiv 2109.01134).

    The prompt of a class is SOT, context, name, full stop, EOT; all but the context is frozen.
    Calling the module gives the embedded prompts of all classes, packed (`clip/packing.py`): with
    one context for all classes, SOT and the context before the name are stored and computed once.

    Args:
        classnames: C canonical names.
        config: M is its n_ctx. With ctx_init it is the number of that phrase's words instead, and
            the context begins as the phrase's first M tokens: all of them, where each word is one
            token. With csc every class has a context. By class_token_position the name stands at
            the "end", at the "front" of the context, or in the "middle", after its first M // 2
            vectors.
        world: its ranks share the classes: each embeds the prompts of its shard (of an empty one,
            the first class's); `ctx` is the same on all.

    Raises ValueError for a name that makes its prompt too long, or a phrase without a word.
    """

    def __init__(self, clip: CLIP, classnames: Sequence[str], config: PromptConfig, world: World):
        super().__init__()
        vocabulary = len(clip.token_embedding.weight)
        self.ctx = initial_context(clip, len(classnames), config)
        n_ctx = self.ctx.shape[-2]

        # Context vector m gets the fake token id vocabulary + m, so that `pack` can lay it out.
        prompts = []
        for index, name in enumerate(classnames):
            first = vocabulary + (index * n_ctx if config.csc else 0)
            context_ids = list(range(first, first + n_ctx))
            prompts.append(prompt_tokens(name, context_ids, config.class_token_position))
            check_length(prompts[-1], f"{n_ctx} context vectors and class '{name}'", clip)
        self.layout = layout = pack(world.shard(prompts) or prompts[:1]).to(clip.device)

        is_context = layout.tokens >= vocabulary
        without_context = replace(layout, tokens=layout.tokens.masked_fill(is_context, 0))
        rows = clip.embed_packed(without_context)
        positions = clip.positional_embedding[layout.positions]
        # Rows of context vectors hold their positions only: (S, W).
        rows = torch.where(is_context.unsqueeze(1), positions, rows).float()
        self.register_buffer("rows", rows, persistent=False)
        # Row and number of each context vector.
        self.register_buffer("context_rows", is_context.nonzero().squeeze(1), persistent=False)
        context_vectors = layout.tokens[is_context] - vocabulary
        self.register_buffer("context_vectors", context_vectors, persistent=False)

    def _apply(self, *args: Any, **options: Any) -> TextPrompts:
        """Convert, as `.to` does, with the layout."""
        super()._apply(*args, **options)
        self.layout = self.layout.to(self.rows.device)
        return self

    def forward(self) -> Tensor:
        """Embed all prompts, tokens plus positions: (S, W) in fp32, which `layout` describes."""
        vectors = self.ctx.flatten(0, -2)  # (M, W) or (C·M, W)
        # Indexing's backward adds in no fixed order, so runs would not repeat; F.embedding's does.
        return self.rows.index_add(0, self.context_rows, F.embedding(self.context_vectors, vectors))


def initial_context(clip: CLIP, classes: int, config: PromptConfig) -> nn.Parameter:
    """Make the context before training: (M, W) in fp32, or (C, M, W) with csc.

    Random values are drawn on the CPU, so that a seed means the same everywhere.
    """
    embeddings, classes = clip.token_embedding.weight, [classes] if config.csc else []
    if config.ctx_init is None:
        return random_parameter(*classes, config.n_ctx, embeddings.shape[1])
    words = config.ctx_init.replace("_", " ")[:1000].split()  # CLIP takes 77 tokens
    if not words:
        raise ValueError(f"ctx_init: expected a phrase, got {config.ctx_init[:60]!r}")
    vectors = embeddings[encode(" ".join(words))[: len(words)]]  # (M, W)
    shape = (*classes, *vectors.shape)
    return nn.Parameter(torch.empty(shape, dtype=torch.float32).copy_(vectors))


def prompt_tokens(name: str, context_ids: list[int], position: str) -> list[int]:
    """Compose the tokens of a class's prompt; `context_ids` stand for its context vectors.

    CLIP's vocabulary ends at 49407 (EOT): 49408 … are the M = 4 vectors of a shared context, and
    those of the second class with csc begin at 49412. "golden retriever" is the tokens 3878 28394:

        end     SOT 49408 49409 49410 49411 3878 28394 . EOT
        middle  SOT 49408 49409 3878 28394 49410 49411 . EOT
        front   SOT 3878 28394 49408 49409 49410 49411 . EOT
    """
    # Together, as in CoOp: a name's last punctuation mark and the full stop may be one token.
    tokens, length = encode(name + "."), len(encode(name))
    name_tokens, stop = tokens[:length], tokens[length:]
    half = len(context_ids) // 2
    body = {
        "end": context_ids + name_tokens + stop,
        "middle": context_ids[:half] + name_tokens + context_ids[half:] + stop,
        "front": name_tokens + context_ids + stop,
    }[position]
    return [SOT_TOKEN, *body, EOT_TOKEN]


def check_length(tokens: Sequence[int], texts: str, clip: CLIP) -> None:
    """Raise ValueError, naming its texts, if a prompt has more tokens than CLIP has positions."""
    if len(tokens) > (longest := len(clip.positional_embedding)):
        got = f"{texts} make a prompt of {len(tokens)} tokens, CLIP takes {longest}"
        raise ValueError(f"{got}: shorten the name, or the context or template around it")


def nearest_words(ctx: Tensor, clip: CLIP, count: int = 5) -> list[list[tuple[str, float]]]:
    """Find for each vector of a context (M, W) the nearest token embeddings, with distances.

    Euclidean, as in CoOp's Table 4. A token that ends within a word has a "-" behind it.
    """
    ctx, embeddings = (each.cpu().double() for each in (ctx, clip.token_embedding.weight))
    distances, tokens = torch.cdist(ctx, embeddings).topk(count, largest=False)

    def spell(token: int) -> str:
        text = decode([token])
        return text.strip() if text.endswith(" ") else f"{text}-"

    rows = zip(tokens.tolist(), distances.tolist())
    return [[(spell(token), distance) for token, distance in zip(*row)] for row in rows]


class VisualPrompts(nn.Module):
    """P learned tokens for each of the first layers of the image transformer (VPT, 2203.12119).

    A layer attends to its prompts beside the image's tokens; it computes no outputs for them.
    """

    def __init__(self, layers: int, n_prompts: int, width: int):
        super().__init__()
        self.prompts = random_parameter(layers, n_prompts, width)

    def forward(self, layer: int) -> Tensor | None:
        """Return the prompts (P, D) of a layer, counted from 1; None if it has none."""
        return self.prompts[layer - 1] if layer <= len(self.prompts) else None


class ClassAwareOutput(NamedTuple):
    """prompts (B, K, D) for a layer, and class_logits (B, K, C) for the auxiliary loss.

    weights: (B, K, N+10), the attention of each class over the image's tokens and the learned ones.
    """

    prompts: Tensor
    class_logits: Tensor
    weights: Tensor


class ClassAwarePrompts(nn.Module):
    """Make one layer's visual prompts for each image from its likeliest classes (CAVPT).

    Cross attention (DPT, section III-C) of one head, from the K classes to the image's tokens. x:
    the tokens that enter the layer, without gradient; g_K: the rows of g (`model.py`) of the K
    classes, with gradient, not normalised. On the right the names of the code:

        q  = Linear(g_K)                                (B, K, D)      meta_net
        kv = [x ; 10 learned tokens]                    (B, N+10, D)   tokens
        o  = (softmax((q·Wq)·(kv·Wk)ᵀ / √32)·kv)·Wv     (B, K, D)      query, key, value
        class_logits = LN(o)·Wcls                       (B, K, C)      ln_class, classifier
        prompts      = LN(o + q)                        (B, K, D)      ln_prompt

    Differs from the paper's figure, as the published code does: the layer's plain visual prompts
    take no part.
    """

    KEY_WIDTH = 32  # this and the next as in the published code
    LEARNED_TOKENS = 10

    def __init__(self, embed_dim: int, width: int, classes: int):
        super().__init__()
        self.meta_net = nn.Linear(embed_dim, width)
        self.query = nn.Linear(width, self.KEY_WIDTH, bias=False)
        self.key = nn.Linear(width, self.KEY_WIDTH, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.tokens = random_parameter(self.LEARNED_TOKENS, width)
        self.ln_class = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes, bias=False)
        self.ln_prompt = nn.LayerNorm(width)
        self.float()  # whatever `torch.get_default_dtype()`

    def forward(self, x: Tensor, class_features: Tensor) -> ClassAwareOutput:
        """Make the prompts for the layer that `x` enters.

        Args:
            x: image tokens (B, N, D). No gradient flows back into them.
            class_features: g_K (B, K, E), the text features of each image's classes.
        """
        queries = self.meta_net(class_features)  # (B, K, D)
        learned = self.tokens.expand(x.shape[0], -1, -1)
        tokens = torch.cat([x.detach().float(), learned], dim=1)  # (B, N+10, D)
        # Values (D) are wider than keys (32): no fused kernel applies.
        attended, weights = attention_with_weights(self.query(queries), self.key(tokens), tokens)
        attended = self.value(attended)  # (B, K, D): after averaging, of K rows instead of N+10
        class_logits = self.classifier(self.ln_class(attended))  # (B, K, C)
        return ClassAwareOutput(self.ln_prompt(attended + queries), class_logits, weights)


def build_visual_prompts(
    clip: CLIP, classes: int, config: PromptConfig
) -> tuple[VisualPrompts | None, nn.ModuleList]:
    """Make the learned prompts of the layers 1 to j − 1, and the generators of the layers j to L.

    Raises ValueError if the config has more layers than the CLIP.
    """
    if not config.learns_image:
        return None, nn.ModuleList()
    layers = len(clip.visual.transformer.resblocks)
    width, embed_dim = clip.visual.proj.shape
    for name in ("visual_layers", "class_aware_from"):
        if (layer := getattr(config, name) or layers) > layers:
            raise ValueError(f"{name}: expected 1 to {layers} of this CLIP, got {layer}")
    first_class_aware = layers + 1  # none
    if config.method == "dpt":
        first_class_aware = config.class_aware_from or layers
    prompted = min(config.visual_layers or layers, first_class_aware - 1)
    has_visual = prompted and config.n_visual
    visual = VisualPrompts(prompted, config.n_visual, width) if has_visual else None
    generators = range(first_class_aware, layers + 1)
    return visual, nn.ModuleList(ClassAwarePrompts(embed_dim, width, classes) for _ in generators)
