"""Test a run of train.py again, or classify images with it.

python eval.py --run RUN
python eval.py --run RUN --image a.jpg b.jpg      # or a folder
"""

from __future__ import annotations

import sys
from pathlib import Path

from minidpt.data import IMAGE_SUFFIXES, read_split
from minidpt.model import load_model
from minidpt.pretrained import load
from minidpt.runs import (
    CONFIG,
    MODEL,
    PRECISIONS,
    SPLIT,
    Parser,
    Run,
    choose_device,
    place,
    run_command,
)
from minidpt.training import TestImages, accuracy
from minidpt.transforms import open_image


def parse_arguments():
    """The command line."""
    parser = Parser(description="Test a run of train.py, or classify images with it.")
    add = parser.add_argument
    add("--run", required=True, metavar="DIR", help="run folder of train.py")
    add("--image", nargs="+", metavar="FILE", help="images, or folders of images, to classify")
    add("--top", type=int, default=5, help="classes to print for an image")
    add("--data", metavar="DIR", help="image folder, if it is no longer where train.py found it")
    add("--model", help="CLIP's name or path, if it is no longer where train.py found it")
    add("--device", help="cpu, cuda or cuda:N; without it the run's")
    add("--precision", choices=list(PRECISIONS), help="of the frozen CLIP; without it the run's")
    add("--workers", type=int, default=2, help="threads that read images")
    args = parser.parse_args()
    if args.top < 1:
        parser.error("--top: expected at least 1")
    return args


def main() -> int:
    """Test or classify."""
    args = parse_arguments()
    run = Run.open(args.run)
    settings = run.read_json(CONFIG, "model", "device", "precision", "exact_gelu")
    try:
        device = choose_device(args.device or settings["device"])
    except ValueError:
        device = choose_device(args.device)  # the run's device is not here
    precision = args.precision or settings["precision"]
    clip, preprocess = load(args.model or settings["model"], quick_gelu=not settings["exact_gelu"])
    clip = place(clip, device, precision)
    model = load_model(run.path(MODEL), clip)
    if args.image:
        return classify(model, args.image, args.top)

    dataset = read_split(run.path(SPLIT), args.data)
    test = TestImages(dataset.test, preprocess.resolution, workers=args.workers)
    zero_shot = accuracy(model.zero_shot_logits, test, device)
    result = accuracy(lambda images: model(images).logits, test, device)
    print(f"{model.config.method} accuracy {result:.2f} %, zero-shot {zero_shot:.2f} % "
          f"on {len(test)} test images ({clip.name} on {device} in {precision})")  # fmt: skip
    return 0


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
