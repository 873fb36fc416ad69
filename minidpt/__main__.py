"""`python -m minidpt`: what is installed here; and the commands minidpt-train and minidpt-eval."""

import importlib.util
import platform
import sys
from functools import partial
from pathlib import Path

import torch

from . import __version__
from .checkpoints.pretrained import NAMES, find_file, folders
from .support.files import to_single_line


def main() -> None:
    """Print the version, torch's, the devices, and where which CLIP was found."""
    package = Path(__file__).parent
    print(f"minidpt {__version__} in {to_single_line(package)}")
    print(f"torch {torch.__version__}, Python {platform.python_version()}")
    print(f"cpu threads: {torch.get_num_threads()}")
    for number in range(torch.cuda.device_count()):
        print(f"cuda:{number}: {torch.cuda.get_device_name(number)}")
    try:
        for name in NAMES:
            print(f"CLIP {name}: {to_single_line(find_file(name) or 'not on this machine')}")
        print(f"searched: {', '.join(map(to_single_line, folders()))}")
    except FileNotFoundError as error:  # of MINIDPT_WEIGHTS
        sys.exit(f"minidpt: error: {to_single_line(error)}")


def run_script(name: str) -> None:
    """Run a script as Python does: in an installed package's folder, or beside a checkout's."""
    package = Path(__file__).resolve().parent
    path = next(filter(Path.is_file, (package / name, package.parent / name)))
    spec = importlib.util.spec_from_file_location("__main__", path)
    module = sys.modules["__main__"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


train, evaluate = partial(run_script, "train.py"), partial(run_script, "eval.py")  # the commands

if __name__ == "__main__":
    main()
