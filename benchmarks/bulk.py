# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of large files share: random weights of 7B's shape, a plain copy, a command run apart."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import REPO
from mindformers.checkpoint.foreign.arrays import Raw
from mindformers.checkpoint.foreign.table import expected_shapes
from mindformers.models.llama.llama_config import LlamaConfig

HIDDEN, FFN, HEADS, VOCAB = 4096, 11008, 32, 32000
LARGEST_MB = VOCAB * HIDDEN * 2 / 1e6
# A command's module and its words; the peak before (after the imports) and at the end as the last line.
_RUNNER = """
import importlib, json, sys
from mindformers.tools.utils import peak_memory_bytes
command, *imports = [importlib.import_module(name) for name in sys.argv[1].split(",")]
before = peak_memory_bytes() / 1e6
code = command.main(sys.argv[2:])
print(json.dumps({"imports_mb": before, "peak_mb": peak_memory_bytes() / 1e6}))
sys.exit(code)
"""


class RandomWeights:
    """fp16 weights of small random numbers, made when they are asked for."""

    path, kind, tied = Path("random"), "random", False

    def __init__(self, config: LlamaConfig) -> None:
        self._shapes = expected_shapes(config)
        self._random = np.random.default_rng(0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        """Always fp16."""
        return "float16"

    def raw(self, name: str) -> Raw:
        """Random bits of numbers between 2^-7 and 2."""
        shape = self._shapes[name]
        bits = self._random.integers(0, 2**16, shape, np.uint16) & 0x9FFF | 0x2000
        return Raw(bits.view(np.float16), "float16")


def model_config(size_gb: float) -> LlamaConfig:
    """7B's shape with as many layers as give so many gigabytes of fp16, one at least."""
    layer = 2 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * FFN)
    layers = max(1, round((size_gb * 1e9 - 4 * VOCAB * HIDDEN) / layer))
    fields = {"hidden_size": HIDDEN, "num_heads": HEADS, "vocab_size": VOCAB, "intermediate_size": FFN}
    return LlamaConfig(**fields, num_layers=layers, seq_length=4096)


def forget(files: Sequence[Path]) -> None:
    """Drop files from the page cache, so that the next reader gets them from the disk."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def copy_rate(files: Sequence[Path], target: Path) -> float:
    """Megabytes a second of a plain copy in pieces of 4 MB, until it is on the disk."""
    forget(files)
    begin, total = time.perf_counter(), 0
    for file in files:
        with open(file, "rb", buffering=0) as one, open(target, "wb", buffering=0) as other:
            while piece := one.read(4 << 20):
                total += other.write(piece)
            os.fsync(other.fileno())
    seconds = time.perf_counter() - begin
    target.unlink()
    return total / seconds / 1e6


def run_command(modules: str, words: Sequence[str], sources: Sequence[Path]) -> dict[str, Any]:
    """Run a command in a process of its own.

    Args:
        modules: the command's module, which has ``main``, and what else it imports, with commas.
        words: its arguments.
        sources: files it reads, dropped from the page cache before.

    Returns:
        ``MB_per_s`` as the command says, ``command_s`` with its start, ``peak_mb``, and ``imports_mb``, that after the
        imports.
    """
    forget(sources)
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _RUNNER, modules, *words], env=os.environ | {"PYTHONPATH": str(REPO)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(f"{modules} {' '.join(words)}: exit code {done.returncode}\n{done.stderr}")
    lines = done.stdout.splitlines()
    rate = next(line for line in reversed(lines) if line.endswith("MB/s"))
    return json.loads(lines[-1]) | {"MB_per_s": float(rate.split()[-2]), "command_s": seconds}
