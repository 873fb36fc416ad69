"""CLIP with learned prompts: the forward pass and the loss of the five methods (`config.py`).

Layers are counted from 1, as in the paper and in `PromptConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .clip.network import CLIP
from .clip.packing import pack
from .clip.tokenizer import EOT_TOKEN, SOT_TOKEN, encode
from .config import PromptConfig
from .images.white_level import WhiteLevel
from .losses import auxiliary_loss, counts, cross_entropy
from .prompts import TextPrompts, check_length, image_prompts
from .ranks import ALONE, Ranks

TEXT_MEMORY = 3 * 1024**3  # bytes that the text side may keep for gradients, unless told otherwise
GUIDANCE_WEIGHT = 0.1  # of the plain loss beside the two branches (DPT's published code)


class ModelOutput(NamedTuple):
    """What `PromptedModel` returns; B images, C classes, K selected ones.

    Logits are cosines times exp(logit_scale), in fp32.

    logits: (B, C).
    text_branch_logits: (B, C), learned text features against the frozen image feature.
    image_branch_logits: (B, C), prompted image feature against the template classifier.
    top_classes: (B, K), the classes zero-shot CLIP finds likeliest, best first; all of them in
        their order where K >= C and nothing else needs the frozen feature.
    class_aware_logits: (B, layers, K, C), auxiliary logits, not scaled.
    """

    logits: Tensor
    text_branch_logits: Tensor | None = None  # VLP, DPT
    image_branch_logits: Tensor | None = None  # VLP, DPT
    top_classes: Tensor | None = None  # DPT
    class_aware_logits: Tensor | None = None  # DPT


class Prepared(NamedTuple):
    """What the learned prompts give that no image has a part in.

    text_features: (C, E) in fp32, learned and not normalised, or the template's.
    classifier: the same, normalised.
    prompt_kv: for each layer with visual prompts but the last one, (P, 2, H, d).
    """

    text_features: Tensor
    classifier: Tensor
    prompt_kv: list[Tensor]


class LastLayer(NamedTuple):
    """What the last layer of the image transformer works on.

    tokens: (B, N, D), the image's, that enter it.
    prompts: (P, D) for all images, (B, K, D), or None: what it attends to besides.
    class_aware_logits: (B, layers, K, C) of the class-aware prompts of all layers, DPT's.
    class_aware_weights: (B, K, N+10), the attention that its own were made by (`ClassAware`).
    """

    tokens: Tensor
    prompts: Tensor | None = None
    class_aware_logits: Tensor | None = None
    class_aware_weights: Tensor | None = None


class Kept(NamedTuple):
    """Something `Prepared`, from which learned values and in which precision.

    The values are kept, not their version: fused optimizers change them behind autograd.
    """

    learned: list[Tensor]
    dtype: torch.dtype
    prepared: Prepared


class PromptedModel(nn.Module):
    """Forward pass and losses of a frozen CLIP with one method's prompts.

    `PromptedCLIP` adds what is done with a model: predict, save, other classes.
    """

    def __init__(
        self,
        clip: CLIP,
        classnames: Sequence[str],
        template: str,
        config: PromptConfig,
        ranks: Ranks = ALONE,
        template_features: Tensor | None = None,
    ):
        """template_features: where they are known, what `_template_features` would compute."""
        super().__init__()
        self.ranks = ranks
        self.clip = clip
        self.classnames = [str(name) for name in classnames]  # of a NumPy array, say
        self.template = str(template)
        self.config = config
        self.white_level = WhiteLevel()  # of images of more than 8 bits, as in training
        self.text_prompts: TextPrompts | None = None
        self._kept: Kept | None = None
        self.notes: tuple[str, ...] = ()  # what was chosen in building it, a line each

        if config.learns_text:
            self.text_prompts = TextPrompts(
                clip,
                classnames,
                config.n_ctx,
                config.ctx_init,
                config.csc,
                config.class_token_position,
                ranks,
            )
        self.visual_prompts, self.class_aware = image_prompts(clip, len(classnames), config)
        layers = len(clip.visual.transformer.resblocks)
        self.first_class_aware = layers + 1 - len(self.class_aware)  # beyond the last: none
        # Classes encoded at a time; None: all at once.
        self.class_chunk = self._classes_that_fit()
        if template_features is None:
            template_features = self._template_features()
        self.register_buffer("template_features", template_features, persistent=False)
        self.to(clip.device)

    @torch.no_grad()
    def _template_features(self) -> Tensor:
        """The zero-shot classifier W0: normalised text features (C, E) of the filled template."""
        prompts = []
        for name in self.classnames:
            text = self.template.replace("{}", name.replace("_", " "))
            prompts.append([SOT_TOKEN, *encode(text), EOT_TOKEN])
            check_length(prompts[-1], f"template '{self.template}' and class '{name}'", self.clip)
        layout = pack(self.ranks.share(prompts) or prompts[:1]).to(self.clip.device)
        features = self.clip.encode_prompts(self.clip.embed_prompts(layout), layout).float()
        return self.ranks.gather(F.normalize(features, dim=-1), len(prompts))

    def _classes_that_fit(self) -> int | None:
        """How many classes keep TEXT_MEMORY: None if all do.

        A token keeps about 10 numbers for each of a layer's width: what enters the two norms,
        queries, keys, values, and the inner layer of the MLP.
        """
        if self.text_prompts is None:
            return None
        layout, blocks = self.text_prompts.layout, self.clip.transformer.resblocks
        itemsize = torch.finfo(self.clip.dtype).bits // 8
        numbers = 10 * self.clip.positional_embedding.shape[1] * len(blocks)
        share = TEXT_MEMORY / (len(layout.tokens) * numbers * itemsize)
        return None if share >= 1 else max(1, int(share * len(layout.ends)))

    def text_features(self) -> Tensor:
        """Features (C, E) of all classes in fp32: learned and not normalised, or the template's."""
        return self.prepared().text_features

    def prepared(self) -> Prepared:
        """What the prompts give without an image.

        Without gradient it is computed once and kept until what was learned or the precision is
        another. The CLIP is frozen: that its weights change is not noticed.
        """
        if torch.is_grad_enabled():
            return self._prepare()
        kept, dtype, learned = self._kept, computing_dtype(self.clip), self._prepared_from()
        if kept is None or kept.dtype != dtype or not all(map(same_tensor, kept.learned, learned)):
            kept = self._keep(self._prepare())
        return kept.prepared

    @torch.no_grad()
    def take_text_features(self, text_features: Tensor) -> None:
        """Keep features (C, E) that the learned context has given before: they are not computed."""
        self._keep(self._prepare(text_features))

    def _keep(self, prepared: Prepared) -> Kept:
        values = [value.clone() for value in self._prepared_from()]
        self._kept = Kept(values, computing_dtype(self.clip), prepared)
        return self._kept

    def _prepared_from(self) -> list[Tensor]:
        learned = [self.template_features]  # tells the device where nothing is learned
        learned += [] if self.text_prompts is None else [self.text_prompts.ctx]
        learned += [] if self.visual_prompts is None else [self.visual_prompts.prompts]
        return learned

    def _prepare(self, text_features: Tensor | None = None) -> Prepared:
        if self.text_prompts is None:
            return Prepared(self.template_features, self.template_features, self.visual_kv())
        if text_features is None:
            rows, layout = self.text_prompts(), self.text_prompts.layout
            own = self.clip.encode_prompts(rows, layout, self.class_chunk).float()
            text_features = self.ranks.gather(own, len(self.classnames))
        classifier = F.normalize(text_features, dim=-1)
        return Prepared(text_features, classifier, self.visual_kv())

    def visual_kv(self) -> list[Tensor]:
        """Keys and values (P, 2, H, d) of the visual prompts of each layer but the last."""
        *blocks, _ = self.clip.visual.transformer.resblocks
        prompts = () if self.visual_prompts is None else self.visual_prompts.prompts
        return [block.project_prompts(own) for block, own in zip(blocks, prompts)]

    def forward(
        self, images: Tensor | None, frozen: Tensor | None = None, branches: bool = True
    ) -> ModelOutput:
        """Logits of preprocessed images (B, 3, R, R).

        Args:
            images: methods that learn nothing on the image side need none, given `frozen`. No
                gradient flows back to them.
            frozen: (B, E), the frozen CLIP's normalised features of these images, if they are
                known: one pass less.
            branches: False leaves out the logits of the two branches, which only the loss in the
                guidance stage reads. VLP's frozen pass is for them alone, and goes with them; so
                does DPT's where K >= C, as all classes are selected.
        """
        config, prepared = self.config, self.prepared()
        text_features, classifier, _ = prepared  # (C, E) each
        select = config.method == "dpt" and config.top_k < len(self.classnames)
        with torch.no_grad():
            if config.learns_image or frozen is None:
                tokens = self.clip.visual.embed(images)  # (B, N, D), shared by both passes
            needed = select or not config.learns_image or (branches and config.guided)
            if frozen is None and needed:
                frozen = F.normalize(self.clip.visual.encode(tokens).float(), dim=-1)
        if not config.learns_image:
            return ModelOutput(self.scaled_cosines(frozen, classifier))

        top_classes = class_features = None
        if config.method == "dpt" and frozen is None:  # all classes are selected: in their order
            class_features = text_features.expand(tokens.shape[0], -1, -1)  # (B, C, E)
            top_classes = torch.arange(len(self.classnames), device=tokens.device)
            top_classes = top_classes.expand(tokens.shape[0], -1)
        elif config.method == "dpt":
            top_classes, class_features = self.select(frozen, text_features)
        features, class_aware_logits = self.encode_tokens(
            tokens, prepared.prompt_kv, class_features
        )
        features = F.normalize(features.float(), dim=-1)  # (B, E)
        logits = self.scaled_cosines(features, classifier)
        text_branch = image_branch = None
        if branches and config.guided:
            text_branch = self.scaled_cosines(frozen, classifier)
            image_branch = self.scaled_cosines(features, self.template_features)
        return ModelOutput(logits, text_branch, image_branch, top_classes, class_aware_logits)

    def select(self, frozen: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
        """The K classes that zero-shot CLIP finds likeliest, best first, and their features.

        frozen (B, E), normalised, and text_features (C, E) → (B, K) and (B, K, E).
        """
        zero_shot = self.scaled_cosines(frozen, self.template_features)
        top_classes = zero_shot.topk(min(self.config.top_k, len(self.classnames))).indices
        # not text_features[top_classes], whose gradient sums in an order left to the threads
        return top_classes, F.embedding(top_classes, text_features)

    def scaled_cosines(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Logits (B, C) of normalised features (B, E), (C, E), in fp32 also inside autocast."""
        with torch.autocast(image_features.device.type, enabled=False):
            return self.clip.logit_scale.exp() * image_features @ text_features.t()

    def encode_tokens(
        self, x: Tensor, prompt_kv: Sequence[Tensor], class_features: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The image transformer with its prompts.

        Args:
            x: tokens that enter the first layer, (B, N, D), from `clip.visual.embed`.
            prompt_kv: of `prepared`, the plain visual prompts of the first layers.
            class_features: (B, K, E), see `ClassAwarePrompts`; needed for DPT only.

        Returns: image features (B, E), not normalised, and the auxiliary logits (B, layers, K, C)
        of the layers with class-aware prompts, or None.
        """
        last = self.before_last(x, prompt_kv, class_features)
        x = self.clip.visual.transformer.resblocks[-1].forward_cls(last.tokens, last.prompts)
        return self.clip.visual.project_cls(x), last.class_aware_logits

    def before_last(
        self, x: Tensor, prompt_kv: Sequence[Tensor], class_features: Tensor | None = None
    ) -> LastLayer:
        """What enters the last layer; arguments as of `encode_tokens`."""
        blocks, auxiliary = self.clip.visual.transformer.resblocks, []
        for layer, block in enumerate(blocks, start=1):
            prompts = keys = weights = None
            if layer >= self.first_class_aware:
                generator = self.class_aware[layer - self.first_class_aware]
                prompts, class_logits, weights = generator(x, class_features)
                auxiliary.append(class_logits)  # (B, K, C)
            elif layer == len(blocks) and self.visual_prompts is not None:
                prompts = self.visual_prompts(layer)
            if layer < len(blocks):
                if prompts is not None:
                    keys = block.project_prompts(prompts)
                elif layer <= len(prompt_kv):
                    keys = prompt_kv[layer - 1]
                x = block(x, keys)
        class_aware_logits = torch.stack(auxiliary, dim=1).float() if auxiliary else None
        return LastLayer(x, prompts, class_aware_logits, weights)

    def loss(self, output: ModelOutput, labels: Tensor, guidance: bool = False) -> Tensor:
        """The training loss of a batch, a scalar in fp32.

        A model that several ranks share gives what their images add to it: the parts of all ranks
        sum to the loss of the whole batch.

        Args:
            output: of `forward`.
            labels: (B,) class indices, or `NO_LABEL`.
            guidance: the first stage of training (VLP, DPT): the two branches carry the loss, so
                that each side first learns beside the other's frozen knowledge.

        Raises ValueError if guidance is to use branches that `forward` was told to leave out.
        """
        whole = counts(labels, output.top_classes, self.ranks) if self.ranks.size > 1 else None
        loss = cross_entropy(output.logits, labels, whole)
        if guidance and self.config.guided:
            if output.text_branch_logits is None:
                raise ValueError(
                    "guidance: expected the logits of both branches, got an output without: "
                    "call the model with branches=True"
                )
            text_branch = cross_entropy(output.text_branch_logits, labels, whole)
            image_branch = cross_entropy(output.image_branch_logits, labels, whole)
            loss = text_branch + image_branch + GUIDANCE_WEIGHT * loss
        if output.class_aware_logits is not None:
            auxiliary = auxiliary_loss(output.class_aware_logits, output.top_classes, labels, whole)
            loss = loss + self.config.alpha * auxiliary
        return loss

    def learned(self) -> dict[str, Tensor]:
        """Name → learned parameter: all but CLIP's."""
        named = self.named_parameters()
        return {name: value for name, value in named if not name.startswith("clip.")}

    @torch.no_grad()
    def set_learned(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into learned parameters, by their names."""
        learned = self.learned()
        for name, value in values.items():
            learned[name].copy_(value)


def computing_dtype(clip: CLIP) -> torch.dtype:
    """The precision that CLIP computes in: its own, or autocast's around it."""
    device = clip.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else clip.dtype


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are on one device and hold the same numbers."""
    return a.device == b.device and torch.equal(a, b)
