"""CLIP with learned prompts: the forward pass and the loss of the five methods (`config.py`).

Letters of shapes, here and in `prompts.py`:

    B  images of R × R pixels            L  layers of the image transformer
    N  tokens: class token, patches      D  its width, of H heads of width d
    C  classes                           W  width of the text transformer
    K  of them selected for an image     E  width of image and text features
    P  visual prompts of a layer         M  context vectors of a prompt
    J  layers with class-aware prompts

Layers are counted from 1, as in the paper and in `PromptConfig`. DPT's image side, j being
`class_aware_from` (in VPT and VLP the layers 1 to `visual_layers` attend to learned prompts):

    layers 1 … j−1    x (B, N, D) ──▶ x (B, N, D)            attend to x and P learned prompts
    layers j … L−1    x (B, N, D) ──▶ x (B, N, D)            attend to x and K class-aware prompts,
    layer  L          x (B, N, D) ──▶ class token (B, D)         which are made from x and g
    ln_post, proj     class token ──▶ f (B, E)

The last layer takes raw prompts, all others keys and values of prompts (`prompt_kv`): the last
computes one query only, and `single_query_attention` never forms keys and values.

The loss (DPT, arXiv 2208.08340, section III). g: text features of the learned context, (C, E); W0:
those of the template, normalised (`template_features`); f: image features with prompts, (B, E); f0:
without any (`frozen_features` are n(f0)); n(x) = x / |x|; s = exp(logit_scale); CE: cross-entropy.
CoOp and zero-shot use f0 as f; VPT and zero-shot use W0 as n(g).

    logits       = s·n(f)·n(g)ᵀ
    text branch  = s·n(f0)·n(g)ᵀ
    image branch = s·n(f)·W0ᵀ

    loss = CE(text branch) + CE(image branch) + 0.1·CE(logits)    VLP, DPT: the guidance epochs
           CE(logits)                                             else
           + α·auxiliary_loss                                     DPT: in all epochs
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoints import prompt_file
from .clip.network import CLIP
from .clip.packing import pack
from .clip.state_dict import check_tensors
from .clip.tokenizer import EOT_TOKEN, SOT_TOKEN, encode
from .config import PromptConfig
from .images.decode import ImageSource, WhiteLevel
from .inference import Prediction, Result, classify_batch, classify_each, find_clip, predict_all
from .losses import auxiliary_loss, cross_entropy, global_counts
from .prompts import TextPrompts, build_visual_prompts, check_length, initial_context
from .support.distributed import SINGLE, World
from .support.files import (
    MAX_CLASSES,
    canonical_classname,
    check_template,
    short_repr,
    single_line_errors,
)
from .support.progress import track

TEXT_MEMORY = 3 * 1024**3  # bytes that the text side may keep for gradients, unless told otherwise
GUIDANCE_WEIGHT = 0.1  # of the plain loss beside the two branches (DPT's published code)


class ModelOutput(NamedTuple):
    """Output of `PromptedCLIP`. Logits are cosines times exp(logit_scale), in fp32.

    logits: (B, C).
    text_branch_logits: (B, C), learned text features against the frozen image feature.
    image_branch_logits: (B, C), prompted image feature against the template features W0.
    top_classes: (B, K), the classes zero-shot CLIP finds likeliest, best first. If top_k >= C and
        f0 was not needed, the classes are 0 … C−1 in index order, not by likelihood.
    class_aware_logits: (B, J, K, C), auxiliary logits of the layers j to L, not scaled.
    image_features: (B, E), f, not normalised; None if f is f0 and n(f0) was an input.
    """

    logits: Tensor
    text_branch_logits: Tensor | None = None  # VLP, DPT
    image_branch_logits: Tensor | None = None  # VLP, DPT
    top_classes: Tensor | None = None  # DPT
    class_aware_logits: Tensor | None = None  # DPT
    image_features: Tensor | None = None


class PromptFeatures(NamedTuple):
    """Text features and projected visual prompts, which do not depend on the images.

    text_features: (C, E) in fp32: g, not normalised, or W0 where no context is learned.
    normalized_text_features: (C, E), n(g) or W0.
    prompt_kv: keys and values (P, 2, H, d) of each layer's learned prompts, but the last one's.
    """

    text_features: Tensor
    normalized_text_features: Tensor
    prompt_kv: list[Tensor]


class LastLayerInput(NamedTuple):
    """Inputs of the last layer of the image transformer.

    tokens: (B, N, D), of the image.
    prompts: (P, D) for all images, (B, K, D), or None: what it attends to besides.
    class_aware_logits: (B, J, K, C), see `ModelOutput`.
    class_aware_weights: (B, K, N+10), the attention that made `prompts` (`ClassAwareOutput`).
    """

    tokens: Tensor
    prompts: Tensor | None = None
    class_aware_logits: Tensor | None = None
    class_aware_weights: Tensor | None = None


class PromptedCLIP(nn.Module):
    """A frozen CLIP and the learned prompts of one method. Made by `build_model`.

    class_keys: names of the classes in the files of a data set, which the caller may set.
    class_chunk: number of classes to encode at a time, which the caller may change; None: all.
    """

    def __init__(
        self,
        clip: CLIP,
        classnames: Sequence[str],
        template: str | tuple[str, ...],
        config: PromptConfig,
        world: World = SINGLE,
    ):
        super().__init__()
        names = canonical_names(classnames)
        self.clip, self.world = clip, world
        self.classnames = [str(name) for name in classnames]  # of a NumPy array, say
        self.class_keys: list[str] | None = None
        self.allow_duplicates = False  # of class names
        self.template = template
        self.config = config
        self.white_level = WhiteLevel()  # of images of more than 8 bits, as in training
        self.path = "model.pt"  # of the file of its prompts, which errors name
        self.text_prompts = TextPrompts(clip, names, config, world) if config.learns_text else None
        self.visual_prompts, self.class_aware = build_visual_prompts(clip, len(names), config)
        self.class_chunk = classes_that_fit(clip, self.text_prompts)
        template_features = encode_template(clip, names, template, world)  # W0
        self.register_buffer("template_features", template_features, persistent=False)
        self._cache: tuple[Any, list[Tensor], PromptFeatures] | None = None
        self.to(clip.device)

    def forward(
        self, images: Tensor | None, frozen_features: Tensor | None = None, branches: bool = True
    ) -> ModelOutput:
        """Compute the logits of preprocessed images (B, 3, R, R).

        Args:
            images: None for methods that learn nothing on the image side, given `frozen_features`.
                No gradient flows back to them.
            frozen_features: n(f0) of these images (B, E), if they are known: one pass less.
            branches: also compute the logits of the two branches, which `loss` needs with
                guidance. Without, VLP skips the frozen pass; so does DPT if top_k >= C.
        """
        config, visual = self.config, self.clip.visual
        text_features, normalized_text_features, prompt_kv = self.prompt_features()
        branches = branches and config.guided
        # CoOp and zero-shot classify f0, the text branch reads it, DPT selects classes by it.
        selects = config.method == "dpt" and config.top_k < len(self.classnames)
        needs_frozen = not config.learns_image or branches or selects
        image_features = None
        with torch.no_grad():
            if config.learns_image or frozen_features is None:
                tokens = visual.embed(images)  # (B, N, D), shared by both passes
            if needs_frozen and frozen_features is None:
                image_features = visual.encode(tokens).float()
                frozen_features = F.normalize(image_features, dim=-1)
        if not config.learns_image:
            logits = self.scaled_cosines(frozen_features, normalized_text_features)
            return ModelOutput(logits, image_features=image_features)

        top_classes = class_features = None
        if config.method == "dpt":
            batch = tokens.shape[0]
            top_classes, class_features = self.select(frozen_features, text_features, batch)
        last = self.forward_to_last_layer(tokens, prompt_kv, class_features)
        x = visual.transformer.resblocks[-1].forward_cls(last.tokens, last.prompts)  # (B, D)
        image_features = visual.project_cls(x).float()  # (B, E)
        features = F.normalize(image_features, dim=-1)
        logits = self.scaled_cosines(features, normalized_text_features)
        text_branch = image_branch = None
        if branches:
            text_branch = self.scaled_cosines(frozen_features, normalized_text_features)
            image_branch = self.scaled_cosines(features, self.template_features)
        return ModelOutput(logits, text_branch, image_branch, top_classes, last.class_aware_logits,
                           image_features)  # fmt: skip

    def loss(self, output: ModelOutput, labels: Tensor, guidance: bool = False) -> Tensor:
        """Compute the training loss of a batch, in fp32; with several ranks, a share of it.

        Args:
            output: of `forward`.
            labels: (B,) class indices; `NO_LABEL` where an image does not count.
            guidance: the first stage of training (VLP, DPT): the two branches carry the loss, so
                each side is trained against the other side's frozen CLIP features.

        Raises ValueError for guidance with an output of `forward` without branches.
        """
        counts = global_counts(labels, output.top_classes, self.world)
        loss = cross_entropy(output.logits, labels, counts)
        if guidance and self.config.guided:
            if output.text_branch_logits is None:
                fix = "call the model with branches=True"
                raise ValueError(f"guidance: expected the logits of both branches, got none: {fix}")
            text_branch = cross_entropy(output.text_branch_logits, labels, counts)
            image_branch = cross_entropy(output.image_branch_logits, labels, counts)
            loss = text_branch + image_branch + GUIDANCE_WEIGHT * loss
        if output.class_aware_logits is not None:
            loss = loss + self.config.alpha * auxiliary_loss(
                output.class_aware_logits, output.top_classes, labels, counts
            )
        return loss

    def select(
        self, frozen_features: Tensor | None, text_features: Tensor, batch: int
    ) -> tuple[Tensor, Tensor]:
        """Select the K classes that zero-shot CLIP finds likeliest, best first, and their features.

        n(f0) (B, E) and text_features (C, E) → (B, K) and (B, K, E). Without frozen features: all
        classes in their order, for a `batch` of B images.
        """
        if frozen_features is None:
            top_classes = torch.arange(len(text_features), device=text_features.device)
            return top_classes.expand(batch, -1), text_features.expand(batch, -1, -1)
        zero_shot = self.scaled_cosines(frozen_features, self.template_features)
        top_classes = zero_shot.topk(min(self.config.top_k, len(text_features))).indices
        # Indexing's backward adds in no fixed order, so runs would not repeat; F.embedding's does.
        return top_classes, F.embedding(top_classes, text_features)

    def scaled_cosines(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Compute logits (B, C) of normalised (B, E) and (C, E), in fp32 also inside autocast."""
        with torch.autocast(image_features.device.type, enabled=False):
            return self.clip.logit_scale.exp() * image_features @ text_features.t()

    def forward_to_last_layer(
        self, x: Tensor, prompt_kv: Sequence[Tensor], class_features: Tensor | None = None
    ) -> LastLayerInput:
        """Pass through the layers 1 to L − 1 and make the prompts of layer L.

        Args:
            x: tokens that enter the first layer, (B, N, D), from `clip.visual.embed`.
            prompt_kv: see `PromptFeatures`.
            class_features: (B, K, E), see `ClassAwarePrompts`; needed for DPT only.
        """
        *blocks, _ = self.clip.visual.transformer.resblocks  # as in `forward_before_last`
        first_class_aware = len(blocks) + 2 - len(self.class_aware)
        auxiliary = []  # (B, K, C) of each class-aware layer
        for layer, block in enumerate(blocks, start=1):
            layer_kv = prompt_kv[layer - 1] if layer <= len(prompt_kv) else None
            if layer >= first_class_aware:
                generator = self.class_aware[layer - first_class_aware]
                prompts, class_logits, _ = generator(x, class_features)
                layer_kv = block.project_prompts(prompts)
                auxiliary.append(class_logits)
            x = block(x, layer_kv)

        prompts = weights = class_aware_logits = None
        if self.class_aware:
            prompts, class_logits, weights = self.class_aware[-1](x, class_features)
            class_aware_logits = torch.stack([*auxiliary, class_logits], dim=1).float()
        elif self.visual_prompts is not None:
            prompts = self.visual_prompts(len(blocks) + 1)
        return LastLayerInput(x, prompts, class_aware_logits, weights)

    def text_features(self, normalize: bool = False) -> Tensor:
        """Return text features (C, E) in fp32: g, or W0 (normalised) for a fixed template."""
        features = self.prompt_features()
        return features.normalized_text_features if normalize else features.text_features

    def image_features(self, images: Tensor, normalize: bool = False) -> Tensor:
        """Compute image features (B, E) in fp32, with the learned prompts: f.

        images: (B, 3, R, R), from `preprocess`.
        """
        features = self(images.to(self.clip.device), branches=False).image_features
        return F.normalize(features, dim=-1) if normalize else features

    def predict(
        self, images: Tensor | ImageSource | Sequence[ImageSource], top: int = 5
    ) -> list[list[Prediction]]:
        """Predict for each image the `top` likeliest classes, best first.

        Args:
            images: a tensor (B, 3, R, R) from `preprocess`, or one or several images: Pillow's,
                paths, or binary file objects (of bytes, `io.BytesIO`). Those of more than 8 bits
                are scaled by the model's `white_level`, which `preprocess` does not know.

        Raises FileNotFoundError or ValueError, naming the file, for an image that cannot be read,
        and ValueError for anything else, for `top` below 1, and for logits that are not finite.
        """
        if not isinstance(images, Tensor):
            return predict_all(self, images, top)
        if top < 1:
            raise ValueError(f"top: expected at least 1, got {top}")
        results = classify_batch(self, images, top)
        return [result.predictions(self.classnames) for result in results]

    def predict_each(
        self, images: Iterable[ImageSource], top: int = 5, workers: int | None = None
    ) -> Iterator[tuple[ImageSource, Result]]:
        """Predict any number of images in little memory, see `inference.classify_each`."""
        with closing(classify_each(self, images, top, workers)) as results:
            for image, result in results:
                is_error = isinstance(result, Exception)
                yield image, result if is_error else result.predictions(self.classnames)

    def prompt_state_dict(self) -> dict[str, Tensor]:
        """Return the learned parameters by name, all but CLIP's: themselves, not copies."""
        named = self.named_parameters()
        return {name: value for name, value in named if not name.startswith("clip.")}

    def learned_parameters(self) -> list[Tensor]:
        """Return the learned parameters, in the order of `prompt_state_dict`."""
        return list(self.prompt_state_dict().values())

    def load_prompt_state_dict(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into learned parameters, by their names; the others stay."""
        parameters = self.prompt_state_dict()
        with torch.no_grad():
            for name, value in values.items():
                parameters[name].copy_(value)

    def load_published(self, tensors: Mapping[str, Tensor]) -> None:
        """Load prompts learned with the published implementations of CoOp and DPT.

        tensors: by their published names, from `minidpt.read_published` for instance.

        Raises ValueError if names or shapes do not fit this model; it is unchanged then.
        """
        where = f"published prompts do not fit {self.config}"
        learned = prompt_file.from_published(tensors, self.prompt_state_dict(), where)
        self.load_prompt_state_dict(learned)

    def published(self, grad: bool = False) -> dict[str, Tensor]:
        """Return the learned tensors, or with `grad` their gradients, under the published names."""
        values = self.prompt_state_dict()
        if grad:
            for name, value in values.items():
                values[name] = torch.zeros_like(value) if value.grad is None else value.grad
        return prompt_file.to_published(values)

    def save(self, path: str | os.PathLike) -> None:
        """Save learned tensors, class names, template, config, CLIP's name and fingerprint.

        CLIP itself is not in it: 34 KB for CoOp, about 5 MB for DPT on ViT-B/32 and 100 classes.
        An existing file is replaced.
        """
        learned = {name: value.detach().cpu() for name, value in self.prompt_state_dict().items()}
        about_clip = {
            "name": self.clip.name,
            "quick_gelu": self.clip.quick_gelu,
            "fingerprint": self.clip.fingerprint(),
            "image_size": self.clip.image_size,
        }
        prompt_file.write_model(path, prompt_file.SavedModel(
            learned, self.classnames, self.template, asdict(self.config), dict(self.white_level),
            about_clip, self.class_keys, self.allow_duplicates,
        ))  # fmt: skip
        self.path = os.fspath(path)

    def for_classes(
        self,
        classnames: Sequence[str],
        template: str | Sequence[str] | None = None,
        allow_duplicates: bool | None = None,
    ) -> PromptedCLIP:
        """Return a model of the learned prompts for other classes, ready to predict.

        For base-to-new and cross-data-set tests. CLIP is shared. The auxiliary classifier of
        class-aware prompts, which only training needs, starts anew. `template` and
        `allow_duplicates` None are this model's. Contexts that were learned class by class (csc)
        serve their own classes, or some of them; else that is a ValueError.
        """
        names, known = canonical_names(classnames), canonical_names(self.classnames)
        with torch.random.fork_rng(devices=[]):  # the initial prompts are not used
            model = build_model(
                self.clip, classnames, template or self.template, self.config, self.world,
                self.allow_duplicates if allow_duplicates is None else allow_duplicates,
            )  # fmt: skip
        learned = self.prompt_state_dict()
        if names != known:
            learned = {n: v for n, v in learned.items() if not n.endswith("classifier.weight")}
            if self.config.csc and self.config.learns_text:
                if others := [name for name in names if name not in known]:
                    got = f"'{others[0]}': train without csc"
                    raise ValueError(f"csc: expected this model's classes, got {got}")
                numbers = [known.index(name) for name in names]
                learned["text_prompts.ctx"] = self.text_prompts.ctx[numbers]
        model.load_prompt_state_dict(learned)
        model.white_level, model.path = WhiteLevel(self.white_level), self.path
        return model.eval()

    def compute_prompt_features(self) -> PromptFeatures:
        """Compute the prompt features, with gradient where that is enabled."""
        text_features = normalized_text_features = self.template_features
        if self.text_prompts is not None:
            rows, layout = self.text_prompts(), self.text_prompts.layout
            encoded = self.clip.encode_packed(rows, layout, self.class_chunk).float()
            text_features = self.world.all_gather(encoded, len(self.classnames))
            normalized_text_features = F.normalize(text_features, dim=-1)
        blocks = self.clip.visual.transformer.resblocks[:-1]
        layer_prompts = () if self.visual_prompts is None else self.visual_prompts.prompts
        # zip stops at the shorter: layers without prompts get none.
        prompt_kv = [block.project_prompts(each) for block, each in zip(blocks, layer_prompts)]
        return PromptFeatures(text_features, normalized_text_features, prompt_kv)

    def prompt_features(self) -> PromptFeatures:
        """Return `compute_prompt_features()`; under `no_grad` it is cached.

        The cache is used while learned values, device and precision equal those it came from.
        Values are compared, not `_version`, which fused optimizers do not bump. Changes of CLIP's
        weights are not noticed.
        """
        if torch.is_grad_enabled():
            return self.compute_prompt_features()
        sources = [self.template_features]
        for prompts in (self.text_prompts, self.visual_prompts):
            sources += [] if prompts is None else prompts.parameters()
        dtype, device = self.clip.dtype, self.clip.device
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        key, copies, features = self._cache or (None, [], None)
        if key != (device, dtype) or not all(map(torch.equal, copies, sources)):
            features, copies = self.compute_prompt_features(), [value.clone() for value in sources]
            self._cache = (device, dtype), copies, features
        return features


def canonical_names(classnames: Sequence[str]) -> list[str]:
    """Return class names as prompts have them; raises as `canonical_classname`."""
    return [canonical_classname(name, "class names") for name in classnames]


def check_distinct(classnames: Sequence[str]) -> None:
    """Raise ValueError if CLIP reads two class names as one."""
    numbers: dict[tuple[int, ...], int] = {}  # token ids -> class
    for number, name in enumerate(canonical_names(classnames)):
        other = numbers.setdefault(tuple(encode(name)), number)
        if other != number:
            got = f"'{classnames[other]}' and '{classnames[number]}' (classes {other} and {number})"
            fix = "rename or merge them (allow_duplicates=True takes them)"
            raise ValueError(f"class names: expected different ones, got {got}: {fix}")


@torch.no_grad()
def encode_template(
    clip: CLIP, names: Sequence[str], template: str | tuple[str, ...], world: World
) -> Tensor:
    """Compute W0, the normalised text features (C, E) of the template with canonical names.

    Of several templates their mean, normalised again (CLIP, arXiv 2103.00020, section 3.1.4).
    """
    texts, total = ((template,) if isinstance(template, str) else template), None
    for text in track(texts, "templates encoded", len(texts)) if len(texts) > 1 else texts:
        prompts = [[SOT_TOKEN, *encode(text.replace("{}", name)), EOT_TOKEN] for name in names]
        for name, prompt in zip(names, prompts):
            check_length(prompt, f"template '{text}' and class '{name}'", clip)
        layout = pack(world.shard(prompts) or prompts[:1]).to(clip.device)
        features = clip.encode_packed(clip.embed_packed(layout), layout).float()
        features = F.normalize(features, dim=-1)
        total = features if total is None else total + features
    total = total if len(texts) == 1 else F.normalize(total, dim=-1)
    return world.all_gather(total, len(names))


def classes_that_fit(clip: CLIP, text_prompts: TextPrompts | None) -> int | None:
    """Compute how many classes at a time fit into TEXT_MEMORY; None if all do.

    A token keeps about 10 numbers for each of a layer's width: what enters the two norms, queries,
    keys, values, and the inner layer of the MLP.
    """
    if text_prompts is None:
        return None
    layout, width = text_prompts.layout, clip.positional_embedding.shape[1]
    numbers = 10 * width * len(clip.transformer.resblocks)
    itemsize = torch.finfo(clip.dtype).bits // 8
    share = TEXT_MEMORY / (len(layout.tokens) * numbers * itemsize)
    return None if share >= 1 else max(1, int(share * len(layout.ends)))


def build_model(
    clip: CLIP,
    classnames: Sequence[str],
    template: str | Sequence[str],
    config: PromptConfig | None = None,
    world: World = SINGLE,
    allow_duplicates: bool = False,
) -> PromptedCLIP:
    """Build a model to train, its prompts at their initial values, on CLIP's device.

    Args:
        clip: frozen; it is used, not copied.
        classnames: C names; `_` is read as a space.
        template: with `{}` where the name goes, such as "a photo of a {}."; or several, of which
            the normalised text features are averaged and normalised again.
        config: None for DPT as in the paper.
        world: the processes that share it, see `support/distributed.py`; all of them build it
            with the same seed, and call it at the same time, each with its images.
        allow_duplicates: take classes of one name, as ImageNet has; they get the same logits.

    Raises ValueError if there are fewer than two classes, or two of one name as CLIP reads it,
    `{}` is missing, a name is empty or too long, or the config does not fit this CLIP.
    """
    if isinstance(classnames, str) or not isinstance(classnames, Sequence | np.ndarray):
        raise ValueError(f"classnames: expected a list of names, got {short_repr(classnames)}")
    if not 2 <= len(classnames) <= MAX_CLASSES:
        raise ValueError(f"expected 2 to {MAX_CLASSES:,} class names, got {len(classnames):,}")
    template = check_template(template)
    if not allow_duplicates:
        check_distinct(classnames)
    model = PromptedCLIP(clip, classnames, template, config or PromptConfig(), world)
    model.allow_duplicates = allow_duplicates
    return model


@single_line_errors
def load_model(path: str | os.PathLike, clip: CLIP | None = None) -> PromptedCLIP:
    """Load a model that `PromptedCLIP.save` wrote, ready to predict.

    clip: the CLIP it was trained on; None: found by its name, as `load` does.

    Raises FileNotFoundError if the file is missing; ValueError if it is not such a file, CLIP's
    weights are others than those the prompts were learned with, or the prompts are not finite.
    """
    saved = prompt_file.read_model(path)
    try:
        config, clip = PromptConfig(**saved.config), find_clip(saved, clip)
        # Before any is made: what a config asks for may be more than any memory.
        expected = parameters_on_meta(clip, len(saved.classnames), config)
        check_tensors(saved.learned, expected, "learned prompts")
        with torch.random.fork_rng(devices=[]):  # the initial prompts are not used
            model = build_model(
                clip, saved.classnames, saved.template, config,
                allow_duplicates=saved.allow_duplicates,
            )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise ValueError(f"model file {path}: {error}") from error
    model.load_prompt_state_dict(saved.learned)
    model.white_level, model.class_keys = saved.white, saved.class_keys
    model.path = os.fspath(path)
    return model.eval()


def parameters_on_meta(clip: CLIP, classes: int, config: PromptConfig) -> dict[str, Tensor]:
    """Make a model's `prompt_state_dict` on the meta device: shapes without numbers."""
    prompts = nn.Module()
    with torch.device("meta"):
        prompts.visual_prompts, prompts.class_aware = build_visual_prompts(clip, classes, config)
        if config.learns_text:
            ctx = initial_context(clip, classes, config)
            prompts.text_prompts = nn.ParameterDict({"ctx": ctx})
    return dict(prompts.named_parameters())
