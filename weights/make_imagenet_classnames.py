"""Make `minidpt/data/imagenet_classnames.txt`: "n01440764 tench", a line for each ImageNet class.

The names, curated for CLIP, are part of the package open_clip_torch (MIT licence), the WordNet ids
in the same order part of timm (Apache 2.0):

    pip download --no-deps open_clip_torch==3.3.0 timm==1.0.31
    python weights/make_imagenet_classnames.py open_clip_torch-3.3.0-py3-none-any.whl \\
        timm-1.0.31-py3-none-any.whl
"""

import argparse
import ast
import zipfile
from pathlib import Path

OUTPUT = Path(__file__).parent.parent / "minidpt/data/imagenet_classnames.txt"


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("open_clip", type=Path, help="wheel of open_clip_torch")
    parser.add_argument("timm", type=Path, help="wheel of timm")
    args = parser.parse_args()
    with zipfile.ZipFile(args.timm) as wheel:
        ids = wheel.read("timm/data/_info/imagenet_synsets.txt").decode().split()
    with zipfile.ZipFile(args.open_clip) as wheel:
        module = ast.parse(wheel.read("open_clip/zero_shot_metadata.py"))  # read, not run
    names = next(
        ast.literal_eval(node.value)
        for node in module.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "IMAGENET_CLASSNAMES"
    )
    lines = [f"{id} {name}\n" for id, name in zip(ids, names, strict=True)]
    OUTPUT.write_text("".join(lines), encoding="utf-8")
    print(f"{OUTPUT}: {len(lines)} names")


if __name__ == "__main__":
    main()
