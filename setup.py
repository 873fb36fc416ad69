"""Install `minidpt`, with what lies beside it in a checkout: `weights/tiny.pt` and the scripts.

They are copied into the package's folder, where `load("tiny")` and the commands minidpt-train and
minidpt-eval look for them first. The same files give the same wheel and the same archive of
sources, to the byte (with one version of setuptools and one umask).
"""

import gzip
import os
import re
import tarfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).parent
BESIDE = ("weights/tiny.pt", "train.py", "eval.py")
(VERSION,) = re.findall('__version__ = "(.*)"', (HERE / "minidpt/__init__.py").read_text())
os.environ.setdefault("SOURCE_DATE_EPOCH", "315532800")  # 1980, the earliest that a wheel can say


class BuildWithFilesBeside(build_py):
    """Single files are copied: weights/, with the scripts that made what ships, is no package."""

    def run(self):
        super().run()
        if not self.editable_mode:
            self.mkpath(f"{self.build_lib}/minidpt/weights")
            for file in BESIDE:
                self.copy_file(file, f"{self.build_lib}/minidpt/{file}")

    def get_source_files(self):
        return [*super().get_source_files(), *BESIDE]


class SourcesWithoutTheirTimes(sdist):
    """An archive that does not tell the times, owners and order of files on this machine."""

    def make_archive(self, base_name, format, root_dir=None, base_dir=None, **_):
        seconds = int(os.environ["SOURCE_DATE_EPOCH"])

        def plain(entry):
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = seconds, 0, 0, "", ""
            return entry

        with (
            gzip.GzipFile(f"{base_name}.tar.gz", "wb", mtime=seconds) as file,
            tarfile.open(fileobj=file, mode="w") as archive,
        ):
            for path in sorted(Path(base_dir).rglob("*")):
                archive.add(path, recursive=False, filter=plain)
        return f"{base_name}.tar.gz"


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
        "test": ["pytest>=7", "pytest-xdist>=3"],
        "peers": ["open_clip_torch>=2.24", "transformers>=4.40", "safetensors"],  # tests, optional
    },
    packages=find_packages(include=["minidpt", "minidpt.*"]),
    # Said outright, an editable install is this folder's path: with a finder in its place, Python
    # run in the folder around a checkout called minidpt would import that, empty, before it asks.
    package_dir={"": "."},
    entry_points={
        "console_scripts": [
            "minidpt-train = minidpt.__main__:train",
            "minidpt-eval = minidpt.__main__:evaluate",
        ]
    },
    cmdclass={"build_py": BuildWithFilesBeside, "sdist": SourcesWithoutTheirTimes},
    package_data={
        "minidpt": ["py.typed"],
        "minidpt.clip": ["*.xz"],
        "minidpt.data": ["*.txt"],
        "minidpt.runs": ["*.css"],
    },
    include_package_data=False,
)
