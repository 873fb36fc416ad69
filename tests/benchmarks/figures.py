"""Measure the figures of the READMEs anew, keep them in figures.json, and fill them in.

    python tests/benchmarks/figures.py                 # list them, with commit and processor
    python tests/benchmarks/figures.py demo steps      # measure these: minutes to hours
    python tests/benchmarks/figures.py --fill          # only write them into the READMEs again

A figure is what its commands print, between `<!-- figures.py: NAME -->` and `<!-- end -->` of one
README. Commands run in the checkout, and leave their runs in `runs/`, where they go on if they were
stopped; `PHOTOS` is the folder of `--photos`. Speeds are true of a quiet machine only.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[2]
KEPT = Path(__file__).with_name("figures.json")
MARKERS = re.compile(r"(<!-- figures\.py: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
METHODS = "--method zeroshot coop vpt vlp dpt --seed 1 2 3 --no-report"


class Figure(NamedTuple):
    """The README that shows a figure, and commands, of which the last prints it."""

    readme: str
    commands: tuple[str, ...]


MAIN, BENCHMARKS = "README.md", "tests/benchmarks/README.md"
DEMO = f"train.py {METHODS} --out runs/methods"
PHOTOS = f"train.py --data PHOTOS --shots 8 --model tiny {METHODS} --out runs/photos"
ABLATIONS = "sh tests/benchmarks/ablations.sh"
CONCENTRATION = "tests/benchmarks/concentration.py"
FIGURES = {
    "demo": Figure(MAIN, (DEMO, "eval.py table runs/methods")),
    "surroundings": Figure(MAIN, (ABLATIONS, f"{CONCENTRATION} runs/ablations/published")),
    "surroundings12": Figure(BENCHMARKS, (DEMO, f"{CONCENTRATION} runs/methods")),
    "photos": Figure(BENCHMARKS, (PHOTOS, "eval.py table runs/photos")),
    "ablations": Figure(BENCHMARKS, (ABLATIONS, "eval.py table runs/ablations")),
    "steps": Figure(BENCHMARKS, ("tests/benchmarks/steps.py --classes 100 397 1000 --runs 1",)),
    "encoders": Figure(
        BENCHMARKS, ("tests/benchmarks/steps.py --part text image --classes 100 --runs 1",)
    ),
    "floor": Figure(BENCHMARKS, ("tests/benchmarks/floor.py --classes 100",)),
    "launches": Figure(BENCHMARKS, ("tests/benchmarks/launches.py --classes 10 100",)),
    "predicting": Figure(BENCHMARKS, ("tests/benchmarks/predicting.py --runs 1",)),
    "loading": Figure(BENCHMARKS, ("tests/benchmarks/loading.py --part pictures",)),
    "listing": Figure(BENCHMARKS, ("tests/benchmarks/listing.py",)),
    "commands": Figure(BENCHMARKS, ("tests/benchmarks/commands.py --epochs 5",)),
    "peers": Figure(BENCHMARKS, ("tests/benchmarks/peers.py --fp32-only --batch 32 --runs 5",)),
    "fuzz": Figure(
        BENCHMARKS,
        ("tests/benchmarks/fuzz.py --checkpoints 60000 --texts 100000 --images 40000",),
    ),
    "kills": Figure(BENCHMARKS, ("tests/benchmarks/kills.py --kills 200",)),
    "ranks": Figure(BENCHMARKS, ("tests/benchmarks/ranks.py --runs 1",)),
}


def measure(name: str, photos: str | None) -> dict[str, object]:
    """Run a figure's commands; return its text, and by what it was measured."""
    commands = FIGURES[name].commands
    for command in commands:
        words = [photos if word == "PHOTOS" else word for word in shlex.split(command)]
        program = [] if words[0] == "sh" else [sys.executable]
        result = subprocess.run(
            [*program, *words], cwd=ROOT, text=True, check=True, stdout=subprocess.PIPE
        )
    return {
        "text": as_markdown(result.stdout), "commands": list(commands), "commit": commit(),
        "processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "python": platform.python_version(),
    }  # fmt: skip


def as_markdown(output: str) -> str:
    """Return what a command has printed: Markdown if there is a table in it, else a code block."""
    lines = [line.rstrip() for line in output.strip().splitlines()]
    if not any(line.startswith("|") for line in lines):
        lines = ["```", *lines, "```"]
    return "\n".join(lines)


def commit() -> str:
    """Return the commit of the checkout; with a + if a file of Python differs from it."""
    git = ["git", "-C", str(ROOT)]
    name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], check=True, text=True,
                          stdout=subprocess.PIPE).stdout.strip()  # fmt: skip
    differs = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "*.py"]).returncode
    return f"{name}+" if differs else name


def processor() -> str:
    """Return the processor's name and, of its vector instructions, the widest."""
    try:
        about = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    name = re.search(r"model name\s*: (.*)", about)
    flags = next((flag for flag in ("avx512f", "avx2") if flag in about), "")
    return f"{name[1] if name else platform.machine()} {flags}".strip()


def fill(text: str, figures: dict[str, dict]) -> str:
    """Return a README with the figures between their markers, and how each was measured."""

    def replace(match: re.Match) -> str:
        about = figures[match[2]]
        threads = f"{about['threads']} thread{'' if about['threads'] == 1 else 's'}"
        source = (
            f"<sub>`{about['commands'][-1]}`, commit {about['commit']}, {about['processor']}, "
            f"{threads}, torch {about['torch']}</sub>"
        )
        return f"{match[1]}{about['text']}\n\n{source}\n{match[4]}"

    return MARKERS.sub(replace, text)


def main() -> None:
    """Measure what is named; without names list the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FIGURES))
    parser.add_argument("--photos", help="folder of the 294 pictures, see the benchmarks' README")
    parser.add_argument("--fill", action="store_true", help="only fill the READMEs")
    args = parser.parse_args()
    if unknown := set(args.names) - FIGURES.keys():
        parser.error(f"{', '.join(unknown)}: expected names of {', '.join(FIGURES)}")
    if "photos" in args.names and not args.photos:
        parser.error("photos: expected --photos DIR")
    figures = json.loads(KEPT.read_text(encoding="utf-8"))
    for name in args.names:
        figures[name] = measure(name, args.photos)
        KEPT.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for readme in {figure.readme for figure in FIGURES.values()}:
        path = ROOT / readme
        path.write_text(fill(path.read_text(encoding="utf-8"), figures), encoding="utf-8")
    if not args.names and not args.fill:
        for name, about in figures.items():
            print(f"{name}: {about['commit']}, {about['processor']}, torch {about['torch']}")


if __name__ == "__main__":
    main()
