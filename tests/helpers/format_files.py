"""Write the files of one version that all later versions must read, with what they hold.

    python tests/helpers/format_files.py tests/formats/1.0      # once for a version

The folder gets `images/`, a data set; `sweep/` of finished runs, one of them also tested on other
classes; `csc/`, a finished run with a context for each class; `interrupted/`, a run after two of
its four epochs; and `expected.json`. The CLIP they were learned on is `make_clip`'s: integers of a
generator that NumPy keeps as it is, so that its fingerprint is the same for ever.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import minidpt  # noqa: E402
from helpers.run_command import run_command  # noqa: E402
from helpers.tiny_models import Sizes, clip_state  # noqa: E402
from minidpt.runs.folders import TrainingState  # noqa: E402

SIZES = Sizes(embedding=32, vision_width=64, vision_layers=2, text_width=64, text_layers=2)
COLORS = {"Owl": (70, 80, 150), "gnu": (90, 120, 80), "red_fox": (170, 80, 70),
          "yak": (120, 100, 110)}  # fmt: skip
RUN = ["--shots", 3, "--epochs", 4, "--batch-size", 4, "--n-ctx", 2, "--n-visual", 2, "--top-k", 2,
       "--visual-lr", 0.1, "--text-lr", 0.1, "--no-report"]  # fmt: skip
SWEEP = ["--method", "zeroshot", "coop", "vpt", "vlp", "dpt", "--seed", 1, 2]
CSC = ["--csc", "--class-token-position", "middle", "--class-aware-from", 1]


def make_clip(path: Path) -> Path:
    """Write a CLIP's state dict of integers between -127 and 127, scaled by powers of 2."""
    random = np.random.RandomState(2208)
    tensors = {}
    for name, like in clip_state(SIZES).items():
        shape, is_norm = like.shape, ".ln_" in name or name.startswith("ln_")
        inputs = np.prod(shape[1:], dtype=int)
        scale = 2.0 ** -(6 + round(np.log2(inputs) / 2)) if len(shape) > 1 else 2.0**-9
        values = random.randint(-127, 128, size=shape) * scale
        tensors[name] = torch.tensor(values + (is_norm and name.endswith("weight"))).half()
    torch.save(tensors | {"logit_scale": torch.tensor(2.0)}, path)
    return path


def draw_images(folder: Path) -> None:
    """Draw eight noisy images of each class, a color each."""
    random = np.random.RandomState(1)
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.clip(color + random.randint(-70, 71, size=(21, 21, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")


def run(script: str, *arguments: object) -> None:
    """Run a command. Raises RuntimeError if it fails."""
    result = run_command(script, *arguments)
    if result.status:
        raise RuntimeError(result.err)


def interrupt_after(epoch: int) -> None:
    """Let the next training stop behind this epoch, as a kill just then would."""
    save = TrainingState.save

    def save_and_stop(state: TrainingState, run_folder: object) -> None:
        save(state, run_folder)
        if state.epoch == epoch:
            raise KeyboardInterrupt

    TrainingState.save = save_and_stop


def predict(models: list[Path], images: list[Path], clip: minidpt.CLIP) -> dict:
    """Return model → image → probability of each class."""
    return {
        model.parent.as_posix(): {
            image.as_posix(): {
                each.classname: round(each.probability, 6)
                for each in minidpt.load_model(model, clip).predict([image], top=4)[0]
            }
            for image in images
        }
        for model in models
    }


def main() -> None:
    """Make the files in a temporary folder, whose path they hold, and move them to FOLDER."""
    target = Path(sys.argv[1]).absolute()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        clip = make_clip(Path("clip.pt"))
        draw_images(Path("images"))
        command = ["train.py", "--data", "images", "--model", clip, *RUN]
        run(*command, *SWEEP, "--out", "sweep")
        run("eval.py", "test", "sweep/images-dpt-3shots-seed2", "--classes", "new")
        run(*command, *CSC, "--out", "csc")
        run(*command, "--seed", 3, "--out", "uninterrupted")
        interrupt_after(2)
        if run_command(*command, "--seed", 3, "--out", "interrupted").status != 130:
            raise RuntimeError("the training went on")
        uninterrupted = Path("uninterrupted")
        models = [*sorted(Path("sweep").glob("*/model.pt")), Path("csc/model.pt")]
        images = sorted(Path("images").glob("*/0.png"))
        expected = {
            "version": minidpt.__version__,
            "probabilities": predict(models, images, minidpt.load(clip)[0]),
            "resumed": {
                "losses": [
                    json.loads(line)["loss"] for line in open(uninterrupted / "metrics.jsonl")
                ],
                "accuracy": json.loads((uninterrupted / "summary.json").read_text())["accuracy"],
            },
        }
        Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")
        target.mkdir(parents=True)
        for name in ("images", "sweep", "csc", "interrupted", "expected.json"):
            shutil.move(name, target / name)


if __name__ == "__main__":
    main()
