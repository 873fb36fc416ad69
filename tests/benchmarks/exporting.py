"""Exported programs: equal to the model for every method, their size and their time to start.

    python tests/benchmarks/exporting.py --model tiny
    python tests/benchmarks/exporting.py --model PATH --classes 1000 --method dpt

Each is written, then loaded in a fresh process that knows torch alone (for .onnx: ONNX Runtime
alone), which times its import, reading the file, the first picture and the best of five later ones,
and classifies 1, 2 and 7 pictures. .onnx is left out where its packages are not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import minidpt  # noqa: E402
from minidpt.data.naming import imagenet_classnames  # noqa: E402

READERS = {
    ".pt2": "import torch",
    ".onnx": "import numpy, onnxruntime",
}
LOADERS = {
    ".pt2": "program = torch.export.load(path).module(); given = torch.tensor(images)",
    ".onnx": """
session = onnxruntime.InferenceSession(path)
given = numpy.array(images, dtype="float32")
program = lambda images: session.run(None, {"images": images})[0]""",
}
PROGRAM = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
path, images = sys.argv[1], json.load(sys.stdin)
times = [time.perf_counter()]
{imports}
times.append(time.perf_counter())
{load}
times.append(time.perf_counter())
program(given[:1])
times.append(time.perf_counter())
later = []
for _ in range(5):
    started = time.perf_counter()
    program(given[:1])
    later.append(time.perf_counter() - started)
seconds = [b - a for a, b in zip(times, times[1:])] + [min(later)]
print(json.dumps([seconds, [program(given[:count]).tolist() for count in (1, 2, 7)]]))
"""


def measure(model: minidpt.PromptedCLIP, suffix: str, images: torch.Tensor) -> None:
    """Print a row of the table."""
    with torch.no_grad():
        expected = model(images, branches=False).logits.softmax(dim=-1)
    program = PROGRAM.format(imports=READERS[suffix], load=LOADERS[suffix])
    with tempfile.TemporaryDirectory() as folder:
        path, started = Path(folder) / f"a{suffix}", time.perf_counter()
        minidpt.export(model, path)
        written = time.perf_counter() - started
        command = [sys.executable, "-I", "-c", program, str(path)]
        given = json.dumps(images.tolist())
        done = subprocess.run(command, input=given, stdout=subprocess.PIPE, text=True, check=True)
        size = path.stat().st_size / 1e6
    seconds, by_count = json.loads(done.stdout)
    worst = max((torch.tensor(got) - expected[: len(got)]).abs().max() for got in by_count)
    cells = [f"{value:.2f}" for value in [written, *seconds]]
    method = model.config.method
    print(f"| {method} | {suffix} | {size:.1f} | {' | '.join(cells)} | {worst:.0e} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--method", nargs="+", choices=minidpt.METHODS, default=minidpt.METHODS)
    args = parser.parse_args()
    clip, _ = minidpt.load(args.model)
    side = clip.visual.resolution
    images = torch.randn(7, 3, side, side, generator=torch.Generator().manual_seed(0))
    names = list(dict.fromkeys(imagenet_classnames().values()))[: args.classes]
    onnx = importlib.util.find_spec("onnxscript") and importlib.util.find_spec("onnxruntime")
    print(f"{clip.name}, {len(names)} classes, torch {torch.__version__}, seconds\n")
    print("| method | file | MB | written in | import | read | first | later | difference |")
    print("|---|---|---|---|---|---|---|---|---|")
    for method in args.method:
        torch.manual_seed(0)
        config = minidpt.PromptConfig(method=method)
        model = minidpt.build_model(clip, names, "a photo of a {}.", config).eval()
        for suffix in (".pt2", ".onnx") if onnx else (".pt2",):
            measure(model, suffix, images)


if __name__ == "__main__":
    main()
