"""Install `minidpt`, with `weights/tiny.pt` inside it, where `load("tiny")` looks for it."""

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
ROOMS = ("checkpoints", "clip", "data", "runs")
WEIGHTS = "weights/tiny.pt"
(VERSION,) = re.findall('__version__ = "(.*)"', (HERE / "minidpt/__init__.py").read_text())


class BuildWithWeights(build_py):
    """The weights alone are copied: the folder, with the script that made them, is no package."""

    def run(self):
        super().run()
        if not self.editable_mode:
            self.mkpath(f"{self.build_lib}/minidpt/weights")
            self.copy_file(WEIGHTS, f"{self.build_lib}/minidpt/{WEIGHTS}")

    def get_source_files(self):
        return [*super().get_source_files(), WEIGHTS]


setup(
    name="minidpt",
    version=VERSION,
    description="Few-shot prompt tuning of CLIP: CoOp, VPT, VLP and DPT in plain PyTorch",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.10",
    install_requires=["torch>=2.4", "numpy>=1.24", "pillow>=10.1", "regex", "ftfy>=6.0"],
    extras_require={
        "test": ["pytest>=7"],
        "peers": ["open_clip_torch>=2.24", "transformers>=4.40", "safetensors"],  # tests, optional
    },
    packages=["minidpt", *(f"minidpt.{room}" for room in ROOMS)],
    # Said outright, an editable install is this folder's path: with a finder in its place, Python
    # run in the folder around a checkout called minidpt would import that, empty, before it asks.
    package_dir={"": "."},
    cmdclass={"build_py": BuildWithWeights},
    package_data={"minidpt": ["py.typed"], "minidpt.clip": ["*.xz"], "minidpt.data": ["*.txt"]},
    include_package_data=False,
)
