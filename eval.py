"""Test runs of train.py, classify images with one, or print a table of many.

python eval.py --run RUN                            # its own test images again
python eval.py --run RUN --data OTHER               # other data: classifier rebuilt
python eval.py --run RUN --classes new              # base-to-new
python eval.py --run RUN --image a.jpg b.jpg        # or a folder
python eval.py --table DIR                          # all runs in a folder
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from minidpt.data import IMAGE_SUFFIXES, Dataset, read_split, select_classes
from minidpt.datasets import open_dataset
from minidpt.evaluation import TestSet, accuracy, zero_shot_accuracy
from minidpt.model import PromptedCLIP, load_model
from minidpt.pretrained import load
from minidpt.results import tested_on, write_tables
from minidpt.runs import (
    CONFIG,
    MODEL,
    PRECISIONS,
    SPLIT,
    TRANSFER,
    Parser,
    Run,
    choose_device,
    place,
    run_command,
)
from minidpt.transforms import open_image


def parse_arguments():
    """The command line."""
    parser = Parser(description="Test runs of train.py, or classify images with one.")
    task = parser.add_mutually_exclusive_group(required=True)
    add = task.add_argument
    add("--run", nargs="+", metavar="DIR", help="run folders of train.py, all with one CLIP")
    add("--table", metavar="DIR", help="print and write the table of all runs in a folder")
    add = parser.add_argument
    add("--image", nargs="+", metavar="FILE", help="images, or folders of images, to classify")
    add("--top", type=int, default=5, help="classes to print for an image")
    add("--data", metavar="DIR", help="other data to test on, whatever train.py takes")
    add("--dataset", nargs="+", metavar="NAME", help="which of the known data sets lies there")
    add("--classnames", metavar="FILE", help="renames classes: a line 'folder name' for each")
    add("--classes", choices=("all", "base", "new"), help="part of the classes to test on")
    add("--template", help="zero-shot prompt of the other data; without it the data set's")
    add("--root", metavar="DIR", help="the run's image folder, if train.py found it elsewhere")
    add("--model", help="CLIP's name or path, if train.py found it elsewhere")
    add("--device", help="cpu, cuda or cuda:N; without it the run's")
    add("--precision", choices=list(PRECISIONS), help="of the frozen CLIP; without it the run's")
    add("--workers", type=int, default=2, help="threads that read images")
    args = parser.parse_args()
    if args.top < 1:
        parser.error("--top: expected at least 1")
    if args.workers < 0:
        parser.error("--workers: expected at least 0")
    if args.image and len(args.run or []) != 1:
        parser.error("--image: expected one --run to classify with")
    return args


def main() -> int:
    """Test, classify or print a table."""
    args = parse_arguments()
    if args.table:
        print(write_tables(args.table), end="")
        return 0

    # One CLIP for all runs.
    runs = [Run.open(folder) for folder in args.run]
    needed = ("model", "device", "precision", "exact_gelu")
    configs = [run.read_json(CONFIG, *needed, "data", "classes") for run in runs]
    if len({tuple(config[key] for key in needed) for config in configs}) > 1:
        raise ValueError("--run: expected runs with one CLIP, got several: test them one by one")
    config = configs[0]
    try:
        device = choose_device(args.device or config["device"])
    except ValueError:
        device = choose_device(args.device)  # the run's device is not here
    precision = args.precision or config["precision"]
    clip, _ = load(args.model or config["model"], quick_gelu=not config["exact_gelu"])
    clip = place(clip, device, precision)
    models = [load_model(run.path(MODEL), clip) for run in runs]
    if args.image:
        return classify(models[0], args.image, args.top)

    where = f"({clip.name} on {device} in {precision})"
    if args.data or args.dataset or args.classes:
        for dataset in other_data(args, config):
            test = TestSet(dataset.test, clip, workers=args.workers)
            for run, model in zip(runs, models, strict=True):
                model = model.for_classes(dataset.classnames, dataset.template)
                name = f"{run.folder} on {dataset.name}: "
                zero_shot, result = report(model, test, where, name)
                note_transfer(run, dataset.name, zero_shot, result, len(test))
        return 0

    test = None
    for run, model in zip(runs, models, strict=True):
        items = read_split(run.path(SPLIT), args.root).test
        if test is None or test.items != items:
            test = TestSet(items, clip, workers=args.workers)
        report(model, test, where, f"{run.folder}: " if len(runs) > 1 else "")
    return 0


def other_data(args, config: dict) -> list[Dataset]:
    """The data sets, or parts of one, that are not what the run was tested on."""
    names = args.dataset or [None if args.data else config.get("dataset")]
    classnames = args.classnames or (None if args.data else config.get("classnames"))
    datasets = []
    for name in names:
        dataset = open_dataset(
            args.data or config["data"], name, classnames=classnames, template=args.template
        )
        part = args.classes or "all"
        dataset = select_classes(dataset, part)
        print(dataset.source)
        datasets.append(replace(dataset, name=tested_on(dataset.name, part)))
    return datasets


def report(model: PromptedCLIP, test: TestSet, where: str, begin: str) -> tuple[float, float]:
    """Print and return zero-shot accuracy and the model's."""
    zero_shot, result = zero_shot_accuracy(model, test), accuracy(model, test)
    print(
        f"{begin}{model.config.method} accuracy {result:.2f} %, zero-shot {zero_shot:.2f} % "
        f"on {len(test)} test images {where}"
    )
    return zero_shot, result


def note_transfer(run: Run, tested: str, zero_shot: float, result: float, images: int) -> None:
    """Keep a result on other data beside the run's own, for tables."""
    there = run.read_json(TRANSFER) if run.path(TRANSFER).is_file() else {}
    there[tested] = {"zero_shot_accuracy": zero_shot, "accuracy": result, "test_images": images}
    run.write_json(TRANSFER, there)


def classify(model, paths: list[str], top: int) -> int:
    """Print the likeliest classes of each image; 2 if one could not be read, after the others."""
    status = 0
    for path in image_files(paths):
        try:
            image = open_image(path)
        except (ValueError, OSError) as error:
            print(f"eval.py: error: {error}", file=sys.stderr)
            status = 2
            continue
        (predictions,) = model.predict(image, top)
        guesses = ", ".join(
            f"{name} {100 * probability:.1f} %" for name, probability in predictions
        )
        print(f"{path}: {guesses}")
    return status


def image_files(paths: list[str]) -> list[Path]:
    """The files themselves, and of each folder the images in it and below."""
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(f for f in path.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise FileNotFoundError(f"folder {path}: expected images in it, got none")
            files += found
        else:
            files.append(path)
    return files


if __name__ == "__main__":
    run_command(main)
