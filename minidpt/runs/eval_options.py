"""The options of eval.py, and which of them go together."""

from __future__ import annotations

import os
from argparse import Namespace

from ..config import CLASS_TOKEN_POSITIONS, PromptConfig
from ..images.decode import MAX_PIXELS
from ..images.threads import default_workers
from .parser import Parser, flag, path_option
from .precision import AUTO, PRECISIONS

TASKS = ("table", "report", "published", "image", "export", "run")  # the first that is given
GOES_WITH = {  # option: what it goes with; those that are not here go with everything
    **dict.fromkeys(("data", "dataset", "classes", "classnames", "template", "per_class"),
                    ("run", "published")),
    **dict.fromkeys(("exact_gelu", "head_width", "image_size", "top_k", "class_token_position"),
                    ("published",)),
    **dict.fromkeys(("model", "device", "precision"),
                    ("run", "image", "export", "published", "report")),
    "image": ("run", "image"),
    "export": ("run", "export"),
    "root": ("run", "report"),
    "csv": ("image", "per_class"),
    "json": ("image",),
    "explain": ("image",),
}  # fmt: skip


def parse_arguments(text: str) -> Namespace:
    """The command line. text: the docstring of eval.py, for --help."""
    parser = Parser(text)
    # fmt: off
    add = parser.add_argument_group("what most people need, the first of these or the next")
    task = add.add_mutually_exclusive_group(required=True)
    task.add_argument("--run", nargs="+", type=path_option, metavar="DIR",
        help="run folders of train.py, all with one CLIP")
    task.add_argument("--report", nargs="+", type=path_option, metavar="DIR",
        help="write report.html of a run, or of all runs in a folder, from their files")
    task.add_argument("--table", type=path_option, metavar="DIR",
        help="print and write the table of all runs in a folder")
    task.add_argument("--published", type=path_option, metavar="DIR",
        help="output folder of the published code of CoOp or DPT, tested on --data")
    add = add.add_argument
    add("--image", nargs="+", type=path_option, metavar="FILE",
        help="images, or folders of images, to classify; '-': paths from standard input, one a "
        "line, each answered as it comes")
    add("--per-class", action="store_true",
        help="print the accuracy of each class, too, and what it is mistaken for")
    add("--data", type=path_option, metavar="DIR",
        help="other data to test on, whatever train.py takes")
    add("--root", type=path_option, metavar="DIR",
        help="the run's image folder, if it has moved since the training")
    add("--model", type=path_option, help="CLIP's name or path, if it has moved; of --published, "
        "without it ViT-B/32")
    add("--device", help="cpu, cuda, cuda:N, xpu, mps; without it the run's")

    add = parser.add_argument_group("data").add_argument
    add("--dataset", nargs="+", metavar="NAME", help="which of the known data sets lies there")
    add("--classnames", type=path_option, metavar="FILE",
        help="renames classes: a line 'folder name' for each")
    add("--classes", choices=("all", "base", "new"), help="part of the classes to test on")
    add("--template", help="zero-shot prompt of the other data; without it the data set's")
    add("--workers", type=int, default=default_workers(),
        help="threads that read images; without it one for each processor")
    add("--max-pixels", type=int, default=MAX_PIXELS, help="of an image that is read")

    add = parser.add_argument_group("method").add_argument
    add("--precision", choices=[*PRECISIONS, AUTO],
        help="of the frozen CLIP; without it the run's; auto: measured, as train.py does")
    add("--top-k", type=int, help="of --published: classes that make class-aware prompts; without "
        f"it {PromptConfig.top_k}")
    add("--class-token-position", choices=CLASS_TOKEN_POSITIONS, metavar="WHERE",
        help="of --published: where the class name stands; without it the end")
    add("--exact-gelu", action="store_true", default=None, help="of --published, as for train.py")
    add("--head-width", type=int, help="of --published, as for train.py")
    add("--image-size", type=int, metavar="PIXELS", help="of --published, as for train.py")

    add = parser.add_argument_group("output").add_argument
    add("--top", type=int, default=5, help="classes to print for an image")
    add("--csv", type=path_option, metavar="FILE",
        help="new file for them, image,class,probability, or for --per-class")
    add("--json", type=path_option, metavar="FILE",
        help="new file for them, a line of JSON for each image as it comes; '-': standard output, "
        "and nothing else goes there")
    add("--explain", type=path_option, metavar="DIR",
        help="new folder for a PNG of each image: where the model looks, before and after tuning")
    add("--export", type=path_option, metavar="FILE",
        help="new file .pt2 for torch.export.load, or .onnx: a program that classifies images")
    # fmt: on
    args = parser.parse_args()
    task = next(name for name in TASKS if getattr(args, name))
    for name in sorted(parser.given & GOES_WITH.keys()):
        if not {task, *["per_class"] * args.per_class} & {*GOES_WITH[name]}:
            others = [flag(other) for other in GOES_WITH[name] if other != name]
            if args.run and "run" in GOES_WITH[name] or len(others) > 2:
                parser.error(f"{flag(name)}: expected without {flag(task)}")
            parser.error(f"{flag(name)}: expected with {' or '.join(others)}, got {flag(task)}")
    if task in ("image", "export") and len(args.run or []) != 1:
        parser.error(f"--{task}: expected one --run to classify with")
    if args.image and "-" in args.image[:-1] + args.image[1:]:
        parser.error("--image: expected '-' alone, got it beside other images")
    if args.published and not args.data:
        parser.error("--published: expected --data, the data set it is tested on")
    if args.csv and len(args.run or []) + len(args.dataset or [1]) > 2:
        parser.error("--csv: expected one --run and one --dataset, got more")
    for option, path in new_files(args).items():
        if os.path.exists(path):
            parser.error(f"{option}: expected a new file, got {path}, which exists")
        if not os.path.isdir(os.path.dirname(path) or "."):
            parser.error(f"{option}: expected a file in a folder that exists, got {path}")
    files = [os.path.realpath(f"{path}{part}") for path in new_files(args).values()
             for part in ("", ".part")]  # fmt: skip
    if len(set(files)) < len(files):
        parser.error(f"--json: expected another file than --csv, got {args.json} for both")
    if args.root and is_elsewhere(args):
        parser.error("--root: expected for the run's own test alone; elsewhere pass --data")
    for name in ("classnames", "template"):
        if name in parser.given and args.run and not is_elsewhere(args):
            parser.error(f"--{name}: expected with --data, --dataset or --classes: the run's own "
                         "test has the run's")  # fmt: skip
    return args


def new_files(args: Namespace) -> dict[str, str]:
    """Option → the file that is written for it."""
    given = {"--csv": args.csv, "--json": None if args.json == "-" else args.json,
             "--export": args.export}  # fmt: skip
    return {option: path for option, path in given.items() if path is not None}


def is_elsewhere(args: Namespace) -> bool:
    """Whether the test is another than the one that train.py ends with."""
    return args.data is not None or args.dataset is not None or args.classes is not None
