# SPDX-License-Identifier: Apache-2.0
"""One conversion of text to MindRecord files: what is asked for, and what it reports."""

import glob
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mindformers.errors import DataError
from mindformers.tools.dataset_preprocess.llama.token_stream import TokenizerFile

__all__ = ["Job", "byte_progress", "file_names", "input_files"]


@dataclass
class Job:
    """One conversion, all of it checked."""

    dataset_type: str
    inputs: list[str]
    output_file: str
    tokenizer: TokenizerFile
    seq_length: int
    repeat: int = 1
    file_partition: int = 1
    num_workers: int = 1
    show_progress: bool | None = None  # None: when stderr is a terminal
    template: str = "vicuna_v1.1"  # qa
    pack: bool = False  # qa

    @property
    def record_length(self) -> int:
        """Tokens per record: the model predicts each token but the first."""
        return self.seq_length + 1

    @property
    def megabytes(self) -> float:
        """Size of all inputs."""
        return sum(os.path.getsize(path) for path in self.inputs) / 1e6


@contextmanager
def byte_progress(inputs: list[str], what: str, show: bool | None) -> Iterator[Callable[[int], Any]]:
    """A progress bar over the bytes of files; gives the function that moves it."""
    from tqdm import tqdm

    total = sum(os.path.getsize(path) for path in inputs)
    with tqdm(total=total, unit="B", unit_scale=True, desc=what, disable=None if show is None else not show) as bar:
        yield bar.update


def input_files(patterns: list[str]) -> list[str]:
    """The files that names and glob patterns (``**`` too) stand for, each once.

    Raises:
        DataError: a pattern matches no file.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        names = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        files = [name for name in names if os.path.isfile(name)]
        if not files:
            what = "is a folder; give its files, for instance" if os.path.isdir(pattern) else "matches no file"
            example = f" '{os.path.join(pattern, '*.txt')}'" if os.path.isdir(pattern) else ""
            raise DataError(f"--input_glob {pattern} {what}{example} (current folder: {os.getcwd()})")
        found.update(dict.fromkeys(files))
    return list(found)


def file_names(paths: list[str]) -> str:
    """The first five of some paths, for a message."""
    return ", ".join(paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
