"""Options of runs, each declared once: parsers, config.json, --resume, tables derive from it.

`PromptConfig` has the options of the method; all others are here. What a run finds out later, such
as fingerprints, is a `RunRecord`.
"""

from __future__ import annotations

import math
import platform
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from itertools import product
from typing import Any

import numpy as np
import PIL
import torch

from .. import __version__
from ..checkpoints.pretrained import NAMES
from ..clip.network import MAX_RESOLUTION
from ..config import COMMON, METHOD, Option, PromptConfig, check_option, option
from ..data.layouts import LAYOUTS
from ..data.samples import ReadOptions
from ..images.decode import MAX_PIXELS
from ..support.files import check_fields, short_repr
from ..training import default_epochs

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AUTO = "auto"
DATA, OPTIMISATION, OUTPUT = "data", "optimisation", "output"
MAX_FLOAT = float(torch.finfo(torch.float32).max)
MAX_RUNS = 10_000  # of a sweep
SHORT = 50  # epochs: the fewest published; with fewer warm-up and guidance are shorter, too
MIN_STEPS = 10  # a note on fewer; the shortest published schedule has 49 (CoOp, 1 shot)
GROUPS = (COMMON, DATA, METHOD, OPTIMISATION, OUTPUT)  # in the order of --help
TESTS = ("test", "published")  # subcommands of eval.py
ON_A_DEVICE = (*TESTS, "predict", "report", "export")


@dataclass(frozen=True)
class RunConfig:
    """The settings of one run. Raises as `check_option`.

    data: None for the demo's images, until they are drawn.
    epochs, warmup_epochs, guidance_epochs, template, model: None for the usual ones, until
    `resolve`.
    """

    # fmt: off
    data: str | None = option(
        None, "a folder of class folders or of train/ val/ test/ with these, a CSV of path,label"
        "[,split], a split.json, or a folder of known data sets (default: the demo)", COMMON,
        metavar="PATH", is_path=True, decides_result=False, resume_may_change=True, is_grid=True,
        eval_commands=TESTS)
    prompts: PromptConfig = PromptConfig()
    shots: int = option(
        16, "training images per class", COMMON, bounds=(1, 10**6), read_by="training",
        is_grid=True)
    seed: int = option(
        1, "seed of the few-shot draw and training", COMMON, bounds=(0, 2**63 - 1),
        read_by="training", is_grid=True)
    model: str | None = option(
        None, f"{', '.join(NAMES)}, or a checkpoint (default: ViT-B/32, demo: tiny)", COMMON,
        is_path=True, decides_result=False, resume_may_change=True, eval_commands=ON_A_DEVICE)
    epochs: int | None = option(
        None, "training epochs (default: CoOp 50 with 1 shot, 100 with 2 to 4, else 200; others 60 "
        "with 1 shot, else 100)", COMMON,
        bounds=(0, 10**6), read_by="training")
    template: str | tuple[str, ...] | None = option(
        None, "zero-shot prompt, with {} for the class (default: the data set's); of several, or a "
        "file of them, one a line, features are averaged", COMMON,
        metavar="TEXT", eval_commands=TESTS)
    device: str | None = option(
        None, "cpu, cuda, cuda:N, xpu or mps (default: an accelerator if there is one)", COMMON,
        decides_result=False, resume_may_change=True, eval_commands=ON_A_DEVICE)
    dataset: str | None = option(
        None, "known data sets to read in --data: "
        + ", ".join(layout.name for layout in LAYOUTS), DATA,
        metavar="NAME", is_grid=True, eval_commands=TESTS)
    classes: str = option(
        "all", "classes to learn; base: the first half, tested on both; new: the second", DATA,
        choices=("all", "base", "new"), eval_commands=("test",))
    classnames: str | None = option(
        None, "file with a line 'folder name' for each renamed class", DATA,
        metavar="FILE", is_path=True, eval_commands=TESTS)
    folders_are_classes: bool = option(
        False, "class folders may hold folders of the same names (else taken for variants)", DATA,
        decides_result=False, eval_commands=TESTS)
    columns: str | None = option(
        None, "columns of a CSV: image=NAME,label=NAME,split=NAME", DATA,
        decides_result=False, eval_commands=TESTS)
    image_root: str | None = option(
        None, "folder the paths in a CSV or split.json start at", DATA,
        metavar="DIR", is_path=True, decides_result=False, resume_may_change=True,
        eval_commands=TESTS)
    workers: int | None = option(
        None, "threads that read images (default: one per processor)", DATA,
        bounds=(0, 1000), decides_result=False, resume_may_change=True,
        eval_commands=(*TESTS, "predict"))
    max_pixels: int = option(
        MAX_PIXELS, "largest image allowed, in pixels", DATA,
        bounds=(1, 10**12), decides_result=False, eval_commands=(*TESTS, "predict"))
    quick_gelu: bool | None = option(
        None, "checkpoint's activation, if it does not say: quick GELU (OpenAI's) or exact", METHOD,
        decides_result=False, eval_commands=("published",))
    head_width: int | None = option(
        None, "width of the image side's attention heads, if no file says it (default: 64)", METHOD,
        bounds=(1, 10**4), decides_result=False, eval_commands=("published",))
    image_size: int | None = option(
        None, "side of the images in pixels, a multiple of the patch size (default: the "
        "checkpoint's)", METHOD,
        bounds=(1, MAX_RESOLUTION), eval_commands=("published",))
    batch_size: int = option(
        32, "images per training step", OPTIMISATION, bounds=(1, 10**5), read_by="training")
    guidance_epochs: int | None = option(
        None, "first epochs, where each side learns beside the other's frozen features (VLP, DPT; "
        f"default: 30, with fewer than {SHORT} epochs 3/10 of them)", OPTIMISATION,
        bounds=(0, 10**6), read_by="guidance")
    visual_lr: float = option(
        0.01, "learning rate of the image side", OPTIMISATION,
        bounds=(0, MAX_FLOAT), read_by="image")
    text_lr: float = option(
        0.002, "learning rate of the text context", OPTIMISATION,
        bounds=(0, MAX_FLOAT), read_by="text")
    warmup_epochs: int | None = option(
        None, "warm-up epochs of the image side (default: 10, with fewer than "
        f"{SHORT} epochs 1/10 of them, for ImageNet 1; text side: 1)", OPTIMISATION,
        bounds=(0, 10**6), read_by="image")
    precision: str | None = option(
        None, "precision of the frozen CLIP (default: fp32 on a CPU, bf16 or fp16 on a GPU); auto: "
        "bf16 on a CPU that supports it", OPTIMISATION,
        choices=(*PRECISIONS, AUTO), decides_result=False, eval_commands=ON_A_DEVICE)
    class_chunk: int | None = option(
        None, "encode N classes at a time, twice per step, to save memory (default: only if all "
        "need over 3 GB; 0: all at once)", OPTIMISATION,
        bounds=(0, 10**6), decides_result=False, resume_may_change=True)
    no_report: bool = option(
        False, "do not write report.html", OUTPUT, decides_result=False, resume_may_change=True)
    # fmt: on

    def __post_init__(self):
        for each in fields(self):
            if each.name != "prompts":
                object.__setattr__(self, each.name, check_option(each, getattr(self, each.name)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "options") -> RunConfig:
        """Return the config with these values, by the names of options, and defaults.

        Raises ValueError, which `where` begins, for an unknown name or a value that is not allowed.
        """
        if unknown := [name for name in values if name not in OPTIONS]:
            got = f"{short_repr(unknown[0])}: pass a run's config.json, or remove it"
            raise ValueError(f"{where}: expected options of train.py, got {got}")
        names = {each.name for each in fields(PromptConfig)}
        prompts = {name: value for name, value in values.items() if name in names}
        others = {name: value for name, value in values.items() if name not in names}
        try:
            return cls(prompts=PromptConfig(**prompts), **others)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return all options by name; of zero-shot CLIP those that it reads."""
        values = {**vars(self), **vars(self.prompts)}
        skip_unread = self.prompts.method == "zeroshot"
        return {
            name: values[name]
            for name, about in OPTIONS.items()
            if not skip_unread or self.prompts.reads(about)
        }

    def result_settings(self) -> dict[str, Any]:
        """Return the options that decide the result of this run, by name."""
        return {
            name: value
            for name, value in self.to_dict().items()
            if OPTIONS[name].decides_result and self.prompts.reads(OPTIONS[name])
        }

    def resolve(self, dataset: str, template: str | tuple[str, ...] | None) -> RunConfig:
        """Return the config with this template, and the usual epochs in place of None.

        They are the published ones; of a short run warm-up and guidance take their shares.
        """
        epochs, warmup, guidance = self.epochs, self.warmup_epochs, self.guidance_epochs
        if epochs is None:
            epochs = default_epochs(self.prompts.method, self.shots, dataset)
        if warmup is None:
            share = 10 if epochs >= SHORT else max(epochs // 10, 1)
            warmup = min(1 if dataset == "ImageNet" else share, max(epochs - 1, 0))
        if guidance is None:
            guidance = 30 if epochs >= SHORT else max(3 * epochs // 10, 1)
        return replace(
            self, epochs=epochs, warmup_epochs=warmup, guidance_epochs=guidance, template=template
        )

    @property
    def text_warmup_epochs(self) -> int:
        """The warm-up epochs of the text side: the published 1, none in a single epoch."""
        return 0 if self.epochs == 1 else 1

    def run_name(self, dataset: str) -> str:
        """Return the name of the run's folder, which tells it from others of a sweep."""
        name = f"{dataset}-{self.prompts.method}"
        if self.prompts.method != "zeroshot":
            name += f"-{self.shots}shots-seed{self.seed}"
        return name if self.classes == "all" else f"{name}-{self.classes}"


FIELDS: dict[str, Field] = {  # of all options; the method's stand where `prompts` stands
    each.name: each
    for outer in fields(RunConfig)
    for each in (fields(PromptConfig) if outer.name == "prompts" else (outer,))
}
OPTIONS: dict[str, Option] = {name: each.metadata["option"] for name, each in FIELDS.items()}


def merge_read_options(*settings: RunConfig | Namespace) -> ReadOptions:
    """Return how a run, or a command line, reads a user's own data; later settings override."""
    names = [each.name for each in fields(ReadOptions)]
    values = [(name, getattr(each, name, None)) for each in settings for name in names]
    return ReadOptions(**{name: value for name, value in values if value is not None})


def published_settings(
    method: str, shots: int, dataset: str, epochs: int | None = None
) -> dict[str, Any]:
    """Return the published values of the options that the training of a method reads.

    epochs: for the defaults beside another number of epochs than the published one.
    """
    usual = RunConfig(prompts=PromptConfig(method), shots=shots or 1, epochs=epochs)
    usual = usual.resolve(dataset, None)
    values = usual.to_dict()
    return {
        name: values[name]
        for name, about in OPTIONS.items()
        if about.read_by and not about.is_grid and usual.prompts.reads(about)
    }


def training_notes(config: RunConfig, dataset: str, train_images: int) -> list[str]:
    """Return notes on a schedule that is not as published, or leaves too little training."""
    prompts, epochs = config.prompts, config.epochs
    if not epochs or prompts.method == "zeroshot":
        return []
    usual = published_settings(prompts.method, config.shots, dataset)
    stages = [
        f"{flag(name)} {getattr(config, name)} (published: {usual[name]})"
        for name in ("warmup_epochs", "guidance_epochs")
        if name in usual and getattr(config, name) != usual[name]
    ]
    if epochs == 1 and prompts.learns_text:
        stages.append("no warm-up of the text side")
    notes = [f"--epochs {epochs} with {', '.join(stages)}"] if stages else []
    warmup = config.warmup_epochs if prompts.learns_image else config.text_warmup_epochs
    steps = max(epochs - warmup, 0) * max(train_images // config.batch_size, 1)
    if steps < MIN_STEPS:
        fewer = " or lower --warmup-epochs" if prompts.learns_image and warmup else ""
        notes.append(
            f"training steps after warm-up: {steps}; with fewer than {MIN_STEPS}, accuracy says "
            f"little about the method or the number of shots: raise --epochs{fewer}"
        )
    return notes


def flag(name: str) -> str:
    """Return an option as it is typed."""
    return f"--{name.replace('_', '-')}"


def expand_grid(options: Mapping[str, Any], where: str = "options") -> list[RunConfig]:
    """Return a config for each combination of values; raises as `RunConfig.from_dict`."""
    grid = {name for name, about in OPTIONS.items() if about.is_grid}
    lists = {
        name: value for name, value in options.items() if name in grid and isinstance(value, list)
    }
    if empty := [name for name, values in lists.items() if not values]:
        raise ValueError(f"{where}: {empty[0]}: expected at least one value, got none")
    count = math.prod(map(len, lists.values()))
    if count > MAX_RUNS:
        raise ValueError(f"{where}: expected at most {MAX_RUNS:,} runs, got {count:,}")
    return [
        RunConfig.from_dict({**options, **dict(zip(lists, values))}, where)
        for values in product(*lists.values())
    ]


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    return {
        "minidpt": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }


@dataclass(frozen=True)
class RunRecord:
    """Facts that a run finds out beyond its settings, kept with them in config.json."""

    clip_fingerprint: str  # of CLIP's weights
    data_fingerprint: str  # of the lists of images and classes
    device: str
    precision: str  # that the frozen CLIP has
    quick_gelu: bool  # CLIP's activation, from its files or guessed
    white_level: dict[str, float] | None = None  # of images of more than 8 bits, by kind
    versions: dict[str, str] = field(default_factory=versions)

    @classmethod
    def from_dict(cls, values: object, where: str) -> RunRecord:
        """Return the record that a config.json holds. Raises ValueError for anything else."""
        kinds = dict.fromkeys((each.name for each in fields(cls)), str)
        kinds |= {"quick_gelu": bool, "white_level": dict | None, "versions": dict}
        record = cls(**{name: check_fields(values, where, **kinds).get(name) for name in kinds})
        if record.precision not in PRECISIONS:
            got = f"got precision {short_repr(record.precision)}"
            raise ValueError(f"{where}: expected one of {', '.join(PRECISIONS)}, {got}")
        return record

    def result_settings(self) -> dict[str, Any]:
        """Return what of it decides the result, by name."""
        names = ("clip_fingerprint", "data_fingerprint", "precision")
        return {name: getattr(self, name) for name in names}
