"""Install `minidpt`; `weights/` becomes `minidpt/weights/`, so that `load("tiny")` finds it."""

from pathlib import Path

from setuptools import setup

setup(
    name="minidpt",
    version="0.1.0",
    description="Few-shot prompt tuning of CLIP: CoOp, VPT and DPT in plain PyTorch",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.10",
    install_requires=["torch>=2.4", "numpy>=1.24", "pillow>=10.1", "regex", "ftfy>=6.0"],
    extras_require={"test": ["pytest>=7"]},
    packages=["minidpt", "minidpt.weights"],
    package_dir={"minidpt": "minidpt", "minidpt.weights": "weights"},
    package_data={"minidpt": ["*.xz"], "minidpt.weights": ["tiny.pt"]},
    include_package_data=False,
)
