"""Install `minidpt`; `weights/` becomes `minidpt/weights/`, so that `load("tiny")` finds it."""

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
(VERSION,) = re.findall('__version__ = "(.*)"', (HERE / "minidpt/__init__.py").read_text())


class BuildWithWeights(build_py):
    """`minidpt.weights` is a folder of data: the script that made it stays out of the wheel."""

    def find_package_modules(self, package, package_dir):
        if package == "minidpt.weights":
            return []
        return super().find_package_modules(package, package_dir)


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
    extras_require={"test": ["pytest>=7"]},
    packages=["minidpt", "minidpt.weights"],
    package_dir={"minidpt": "minidpt", "minidpt.weights": "weights"},
    cmdclass={"build_py": BuildWithWeights},
    package_data={"minidpt": ["*.xz", "*.txt"], "minidpt.weights": ["tiny.pt"]},
    include_package_data=False,
)
