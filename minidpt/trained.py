"""The model that users hold: build it, predict, save and load, give it other classes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .checkpoints.pretrained import NAMES, load
from .checkpoints.prompt_file import SavedModel, read_model, write_model
from .checkpoints.published import from_published, to_published
from .clip.network import CLIP
from .clip.state_dict import check_tensors
from .config import PromptConfig
from .files import MAX_CLASSES, good_name, one_line_errors, shown
from .model import PromptedModel
from .prompts import image_prompts, words_of
from .ranks import ALONE, Ranks

PREDICT_BATCH = 100
MAX_TEXT = 1000  # characters of a template; CLIP takes 77 tokens


class Prediction(NamedTuple):
    """A class name and its probability, 0–1."""

    classname: str
    probability: float


class PromptedCLIP(PromptedModel):
    """A frozen CLIP and the learned prompts of one method. Made by `build_model`."""

    @torch.no_grad()
    def predict(
        self, images: Tensor | ImageSource | Sequence[ImageSource], top: int = 5
    ) -> list[list[Prediction]]:
        """For each image the `top` likeliest classes, best first.

        Args:
            images: a tensor (B, 3, R, R) from `preprocess`, or one or several pictures: Pillow
                images, paths, or binary file objects (of bytes, `io.BytesIO`).

        Pictures of more than 8 bits are shown by the model's `white_level`, which `preprocess` does
        not know. Raises FileNotFoundError or ValueError, naming the file, for one that cannot be
        read, and ValueError for what is none of these and for `top` below 1.
        """
        if top < 1:
            raise ValueError(f"top: expected at least 1, got {top}")
        resolution = self.clip.visual.resolution
        if not isinstance(images, Tensor):
            one = isinstance(images, (str, bytes, np.ndarray)) or hasattr(images, "read")
            pictures = list(images) if isinstance(images, Iterable) and not one else [images]
            paths = all(isinstance(picture, (str, os.PathLike)) for picture in pictures)
            predictions = []
            # Pillow images may share an open file, so that only paths are read by several threads.
            with closing(self.predict_each(pictures, top, None if paths else 0)) as results:
                for _, result in results:
                    if isinstance(result, Exception):
                        raise result
                    predictions.append(result)
            return predictions
        if images.shape[1:] != (3, resolution, resolution) or not images.is_floating_point():
            raise ValueError(
                f"images: expected floats (B, 3, {resolution}, {resolution}) from preprocess, got "
                f"{images.dtype} {tuple(images.shape)}"
            )
        logits = self(images.to(self.clip.device), branches=False).logits
        probabilities = logits.softmax(dim=-1)
        values, classes = probabilities.topk(min(top, len(self.classnames)))
        return [
            [Prediction(self.classnames[c], p) for c, p in zip(row, ps, strict=True)]
            for row, ps in zip(classes.tolist(), values.tolist(), strict=True)
        ]

    def predict_each(
        self, pictures: Iterable[ImageSource], top: int = 5, workers: int | None = None
    ) -> Iterator[tuple[ImageSource, list[Prediction] | ValueError | OSError]]:
        """Each picture and what `predict` gives for it, or the error of one that cannot be read.

        For any number of pictures in little memory: they are read ahead by threads (`workers` as in
        `map_ordered`) while a batch of up to PREDICT_BATCH is computed, and given out after each.
        """

        def read(picture: ImageSource) -> tuple[ImageSource, np.ndarray | ValueError | OSError]:
            try:
                return picture, eval_pixels(picture, self.clip.visual.resolution, self.white_level)
            except (ValueError, OSError) as error:
                return picture, error

        with closing(map_ordered(read, pictures, workers, ahead=2 * PREDICT_BATCH)) as views:
            while batch := list(islice(views, PREDICT_BATCH)):
                yield from self._results(batch, top)

    def _results(self, batch: list[tuple], top: int) -> list[tuple]:
        """Pictures with their predictions in place of their pixels; errors stay."""
        pixels = [seen for _, seen in batch if isinstance(seen, np.ndarray)]
        predictions = iter(())
        if pixels:
            images = torch.from_numpy(np.stack(pixels)).to(self.clip.device)
            predictions = iter(self.predict(self.clip.normalize(images), top))
        return [
            (picture, next(predictions) if isinstance(seen, np.ndarray) else seen)
            for picture, seen in batch
        ]

    @torch.no_grad()
    def save(self, path: str | os.PathLike) -> None:
        """Write learned tensors, class names, template, config, CLIP's name and fingerprint.

        CLIP itself is not in it: 34 KB for CoOp, about 5 MB for DPT on ViT-B/32 and 100 classes.
        An existing file is replaced whole.
        """
        learned = {name: value.detach().cpu() for name, value in self.learned().items()}
        texts = (self.classnames, self.template)
        about = {
            "name": self.clip.name,
            "quick_gelu": self.clip.quick_gelu,
            "fingerprint": self.clip.fingerprint(),
            "image_size": self.clip.image_size,
        }
        config = asdict(self.config)
        write_model(path, SavedModel(learned, *texts, config, dict(self.white_level), about))

    def for_classes(self, classnames: Sequence[str], template: str | None = None) -> PromptedCLIP:
        """The learned prompts with other classes, ready to predict; CLIP is shared.

        For base-to-new and cross-data-set tests. The auxiliary classifier of class-aware prompts,
        which only training needs, starts anew. `template` None is this model's. Raises ValueError
        if contexts were learned class by class.
        """
        same = list(classnames) == self.classnames
        if self.config.csc and self.config.learns_text and not same:
            raise ValueError(
                "contexts of this model belong to its classes (csc): expected a shared context for "
                "other classes: train without csc"
            )
        with torch.random.fork_rng(devices=[]):  # the initial prompts are not used
            template = template or self.template
            model = build_model(self.clip, classnames, template, self.config, self.ranks)
        kept = self.learned()
        if not same:
            kept = {n: value for n, value in kept.items() if not n.endswith("classifier.weight")}
        model.set_learned(kept)
        model.white_level = WhiteLevel(self.white_level)
        return model.eval()

    @one_line_errors
    def load_published(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over prompts learned with the published implementations of CoOp and DPT.

        Args:
            tensors: by their published names, from `minidpt.read_published` for instance.

        Raises ValueError if names or shapes do not fit this model; it is unchanged then.
        """
        where = f"published prompts do not fit {self.config}"
        self.set_learned(from_published(tensors, self.learned(), where))

    def published(self, grad: bool = False) -> dict[str, Tensor]:
        """The learned tensors (or their gradients) under the published names."""
        learned = self.learned()
        if grad:
            zeros = {name: torch.zeros_like(value) for name, value in learned.items()}
            learned = {n: zeros[n] if p.grad is None else p.grad for n, p in learned.items()}
        return to_published(learned)


def build_model(
    clip: CLIP,
    classnames: Sequence[str],
    template: str,
    config: PromptConfig | None = None,
    ranks: Ranks = ALONE,
    template_features: Tensor | None = None,
) -> PromptedCLIP:
    """A model to train, its prompts at their initial values, on CLIP's device.

    Args:
        clip: frozen; it is used, not copied.
        classnames: C names; `_` is read as a space.
        template: with `{}` where the name goes, such as "a photo of a {}.".
        config: None for DPT as in the paper.
        ranks: processes that share it, see `ranks.py`; all of them make it, from one seed, and call
            it at the same time, each with its own images.
        template_features: (C, E), those of another model of these names, this template and CLIP;
            None: they are computed.

    Raises ValueError if there are fewer than two classes, `{}` is missing, a name is empty or too
    long, or the config does not fit this CLIP.
    """
    config = config or PromptConfig()
    check_texts(classnames, template)
    length = clip.context_length
    if config.learns_text and config.n_ctx > length and config.ctx_init is None:
        raise ValueError(f"n_ctx: {config.n_ctx} context vectors, but CLIP takes {length} tokens")
    return PromptedCLIP(clip, classnames, template, config, ranks, template_features)


def check_texts(classnames: Sequence[str], template: str) -> None:
    """ValueError unless names and template are those of a classifier."""
    if not isinstance(classnames, Sequence | np.ndarray):
        raise ValueError(f"classnames: expected a list of names, got {shown(classnames)}")
    if isinstance(classnames, str) or not 2 <= len(classnames) <= MAX_CLASSES:
        got = shown(classnames) if isinstance(classnames, str) else f"{len(classnames):,}"
        raise ValueError(f"expected at least two class names, at most {MAX_CLASSES:,}, got {got}")
    for name in classnames:
        good_name(name, "class names")
    if not isinstance(template, str) or len(template) > MAX_TEXT:
        expected = f"a template of at most {MAX_TEXT} characters"
        raise ValueError(f"expected {expected}, got {shown(template)}")
    if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
        raise ValueError(f"template '{template}': expected {{}} once, where the class name goes")


@one_line_errors
def load_model(path: str | os.PathLike, clip: CLIP | None = None) -> PromptedCLIP:
    """A model that `PromptedCLIP.save` wrote, ready to predict.

    Args:
        clip: the CLIP it was trained on; None: found by its name, as `load` does.

    Raises FileNotFoundError if the file is missing; ValueError if it is not such a file, CLIP's
    weights are others than those the prompts were learned with, or the prompts are not finite.
    """
    saved, where = read_model(path), f"model file {path}"
    try:
        config = PromptConfig(**saved.config)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error
    clip_name, fingerprint = saved.clip["name"][:60], saved.clip["fingerprint"]
    image_size = saved.clip.get("image_size")
    if clip is None:
        if clip_name not in NAMES:
            raise ValueError(
                f"{where}: its CLIP '{clip_name}' is none that is known by name: load it "
                "and pass it as clip="
            )
        quick_gelu = saved.clip["quick_gelu"]
        clip, _ = load(clip_name, quick_gelu=quick_gelu, image_size=image_size)
    if clip.fingerprint() != fingerprint:
        raise ValueError(
            f"{where}: its prompts were learned with the weights of {clip_name} "
            f"({fingerprint[:12]}…), got those of {clip.name} ({clip.fingerprint()[:12]}…): pass "
            "the CLIP it was trained on"
        )
    if clip.image_size != image_size:
        wanted, got = (size or "the checkpoint's" for size in (image_size, clip.image_size))
        raise ValueError(
            f"{where}: its prompts were learned at image size {wanted}, got a CLIP at {got}: "
            f"load it with image_size={image_size}"
        )
    try:  # the shapes first: what a config asks for may be more than any memory
        expected = learned_tensors(clip, len(saved.classnames), config)
        check_tensors(saved.learned, expected, "learned prompts")
        check_texts(saved.classnames, saved.template)
        with torch.random.fork_rng(devices=[]):  # the initial prompts are not used
            model = build_model(clip, saved.classnames, saved.template, config)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    model.set_learned(saved.learned)
    model.white_level = saved.white
    return model.eval()


def learned_tensors(clip: CLIP, classes: int, config: PromptConfig) -> dict[str, Tensor]:
    """What `PromptedCLIP.learned` will be, on the meta device: shapes without numbers."""
    with torch.device("meta"):
        image_side = nn.Module()
        some = max(1, classes)  # torch warns of none
        image_side.visual_prompts, image_side.class_aware = image_prompts(clip, some, config)
        expected = dict(image_side.named_parameters())
        if config.learns_text:
            n_ctx = config.n_ctx if config.ctx_init is None else len(words_of(config.ctx_init))
            shape = (n_ctx, clip.token_embedding.weight.shape[1])
            expected["text_prompts.ctx"] = torch.empty((classes, *shape) if config.csc else shape)
    return expected
