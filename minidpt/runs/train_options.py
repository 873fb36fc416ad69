"""The options of train.py, and the settings of the runs that they describe.

What config.json notes are these options again: --resume and --config take them from there.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

from ..checkpoints.pretrained import NAMES
from ..config import CLASS_TOKEN_POSITIONS, METHODS, PromptConfig
from ..data.items import Dataset
from ..data.layouts import LAYOUTS
from ..files import entries, read_json
from ..images.decode import MAX_PIXELS
from ..images.threads import default_workers
from ..training import default_epochs
from .folders import CONFIG, FINGERPRINTS, SWEEP, Sweep, versions
from .parser import Parser, finite, flag, path_option
from .precision import AUTO, PRECISIONS

LEARNING = {  # options that zero-shot CLIP has no use for
    "epochs", "batch_size", "n_ctx", "ctx_init", "csc", "class_token_position", "n_visual",
    "visual_layers", "class_aware_from", "top_k", "alpha", "guidance_epochs", "visual_lr",
    "text_lr", "warmup_epochs",
}  # fmt: skip
OF_THE_COMMAND = {"out", "resume", "config", "no_report"}  # options that are no settings
NO_OPTIONS = {"name", "versions", "white", "prompts", *FINGERPRINTS}  # what else is noted, or was
MOVABLE = {  # beside --resume
    "resume", "data", "model", "device", "workers", "class_chunk", "no_report",
}  # fmt: skip


def parse_arguments(text: str) -> Namespace:
    """The command line. text: the docstring of train.py, for --help."""
    defaults = PromptConfig()
    parser = Parser(text)
    # fmt: off
    add = parser.add_argument_group("what most people need").add_argument
    add("--data", type=path_option, metavar="DIR", help="Caltech101, any folder of class folders, "
        "train/ val/ test/ of them, a CSV of path,label[,split], a run's split.json, or a folder "
        "of known data sets; without it the demo's own pictures")
    add("--method", nargs="+", choices=METHODS, default=[defaults.method], help="what is learned")
    add("--shots", nargs="+", type=int, default=[16], help="training images per class")
    add("--seed", nargs="+", type=int, default=[1], help="of the few-shot draw and the training")
    add("--model", type=path_option, help=f"CLIP: {', '.join(NAMES)}, or the path of a checkpoint; "
        "without it ViT-B/32, and tiny for the demo")
    add("--epochs", type=int, help="without it the published number: CoOp 50 (1 shot), 100 (2-4) "
        "or 200, others 60 (1 shot) or 100; with few, lower --warmup-epochs and --guidance-epochs")
    add("--out", type=path_option, metavar="DIR",
        help="new run folder, or folder of a sweep; without it in runs/")
    add("--resume", type=path_option, metavar="DIR",
        help="go on with the interrupted run or sweep in this folder, by its own settings")
    add("--config", type=path_option, metavar="FILE",
        help="settings of an earlier run, its config.json; options beside it go before")
    add("--template", help="zero-shot prompt, {} is the class; without it the data set's")
    add("--device", help="cpu, cuda, cuda:N, xpu, mps; without it an accelerator if there is one")

    add = parser.add_argument_group("data").add_argument
    add("--dataset", nargs="+", metavar="NAME", help="which of the known data sets lies there: "
        + ", ".join(layout.name for layout in LAYOUTS))
    add("--classes", choices=("all", "base", "new"), default="all",
        help="base: train on the first half of the classes, test on both halves")
    add("--classnames", type=path_option, metavar="FILE",
        help="renames classes: a line 'folder name' for each")
    add("--workers", type=int, default=default_workers(),
        help="threads that read images; without it one for each processor")
    add("--max-pixels", type=int, default=MAX_PIXELS, help="of an image that is read")

    add = parser.add_argument_group("method").add_argument
    add("--n-ctx", type=int, default=defaults.n_ctx, help="text context vectors")
    add("--ctx-init", metavar="PHRASE", help="start the context from a phrase; the number of its "
        "words replaces --n-ctx")
    add("--csc", action="store_true", help="a context for each class")
    add("--class-token-position", choices=CLASS_TOKEN_POSITIONS, default="end", metavar="WHERE",
        help="where the class name stands")
    add("--n-visual", type=int, default=defaults.n_visual, help="visual prompts per layer")
    add("--visual-layers", type=int,
        help="visual prompts in the first N layers only; 1 = shallow")
    add("--class-aware-from", type=int,
        help="first layer, from 1, with class-aware prompts; without it the last")
    add("--top-k", type=int, default=defaults.top_k, help="classes that make class-aware prompts")
    add("--exact-gelu", action="store_true",
        help="the checkpoint needs the exact GELU; OpenAI's need the quick one")
    add("--head-width", type=int, metavar="N", help="of attention heads on the image side, for a "
        "checkpoint without a configuration where they are not 64 wide")
    add("--image-size", type=int, metavar="N", help="pixels a side, a multiple of the patch's: "
        "positional embeddings are interpolated; without it the checkpoint's")

    add = parser.add_argument_group("optimisation").add_argument
    add("--batch-size", type=int, default=32, help="images per training step")
    add("--alpha", type=finite, default=defaults.alpha, help="weight of the auxiliary loss")
    add("--guidance-epochs", type=int, default=30,
        help="length of the guidance stage (VLP, DPT)")
    add("--visual-lr", type=finite, default=0.01, help="learning rate of the image side")
    add("--text-lr", type=finite, default=0.002, help="learning rate of the text context")
    add("--warmup-epochs", type=int,
        help="of the image side, without it 10 (ImageNet: 1); the text side has 1")
    add("--precision", choices=[*PRECISIONS, AUTO], help="of the frozen CLIP; without it fp32 on a "
        "CPU; auto: there bf16, if it computes 1.5 times as fast in it, which is measured")
    add("--class-chunk", type=int, help="encode N classes at a time, and again in the "
        "backward pass; without it only where all would take more than 3 GB; 0: all at once")
    add("--compile", action="store_true", help="torch.compile: a slow start, then faster steps; "
        "for long runs; on a CPU it needs a C++ compiler")

    add = parser.add_argument_group("output").add_argument
    add("--no-report", action="store_true", help="leave report.html out")
    # fmt: on
    args = parser.parse_args()
    if args.resume or args.config:
        args = with_earlier_settings(parser, args)
    if args.dataset and args.data is None:
        parser.error("--dataset: expected --data, the folder it lies in")
    if args.csc and args.classes == "base":
        parser.error("--csc: expected contexts that new classes can share, got one for each class")
    if args.model and args.model not in NAMES:
        path = Path(args.model).expanduser()
        if path.exists():
            args.model = str(path.resolve())  # eval.py may be called from elsewhere
    if args.classnames:
        args.classnames = str(Path(args.classnames).expanduser().resolve())
    return args


def with_earlier_settings(parser: Parser, args: Namespace) -> Namespace:
    """The settings of --resume or --config, and what the command line says beside them.

    Exits with an error if --resume has options that make another run.
    """
    path = Path(args.config or args.resume).expanduser()
    if args.resume and args.config:
        parser.error("--config: expected another run's without --resume, which has its own")
    if args.resume:
        args.resume = str(path)
        path /= SWEEP if Sweep.is_in(path) else CONFIG
        if not path.is_file():
            parser.error(f"--resume: expected a run folder, with {CONFIG}, got {args.resume}")
    noted = parser.command_line(noted_options(path), str(path))
    given, earlier = parser.given, parser.parse_args(noted)
    merged = parser.parse_args([*noted, *sys.argv[1:]])
    if args.resume:
        others = given - MOVABLE
        changed = [name for name in others if vars(merged)[name] != vars(earlier)[name]]
        if changed:
            options = ", ".join(map(flag, sorted(changed)))
            parser.error(f"{options}: expected the run's own settings with --resume: leave them "
                         "out, or begin another run with --config")  # fmt: skip
        merged.out = merged.resume = args.resume
    return merged


def noted_options(path: Path) -> dict[str, Any]:
    """The options that a config.json or sweep.json states, also one of an earlier version."""
    noted = entries(read_json(path, str(path)), str(path))
    dropped = OF_THE_COMMAND | NO_OPTIONS
    if noted.get("method") == "zeroshot":  # which has neither, and notes 0
        dropped = dropped | {"shots", "seed"}
    options = {name: value for name, value in noted.items() if name not in dropped}
    if not options:
        raise ValueError(f"{path}: expected the settings of a run, got none: pass its {CONFIG}")
    return options


def runs_on(dataset: Dataset, args: Namespace) -> list[Namespace]:
    """The settings of every run on a data set. Zero-shot CLIP has no shots, no seed: it is one."""
    runs = {}
    for method, shots, seed in product(args.method, args.shots, args.seed):
        name = f"{dataset.name}-{method}-{shots}shots-seed{seed}"
        if method == "zeroshot":
            name, shots, seed = f"{dataset.name}-{method}", 0, 0
        one = Namespace(**vars(args))
        one.name = name if args.classes == "all" else f"{name}-{args.classes}"
        one.method, one.shots, one.seed = method, shots, seed
        if args.epochs is None or method == "zeroshot":
            one.epochs = default_epochs(method, shots, dataset.name)
        if args.warmup_epochs is None:
            one.warmup_epochs = 1 if dataset.name == "ImageNet" else 10
        one.template = dataset.template
        prompts_of(one)  # what cannot be is an error now
        runs[one.name] = one
    return list(runs.values())


def prompts_of(settings: Namespace) -> PromptConfig:
    """The options of the method."""
    return PromptConfig(
        **{field.name: vars(settings)[field.name] for field in fields(PromptConfig)}
    )


def config_of(settings: Namespace) -> dict:
    """What config.json says: all settings that the result depends on, and versions."""
    dropped = OF_THE_COMMAND | (LEARNING if settings.method == "zeroshot" else set())
    config = {name: value for name, value in vars(settings).items() if name not in dropped}
    return {**config, "versions": versions()}
