# SPDX-License-Identifier: Apache-2.0
"""Conversion of weights beside a plain copy of the same bytes: throughput and peak memory of every direction.

``python benchmarks/convert.py [--size_gb 4] [--folder DIR] [--directions hf:ckpt ...] [--quick] [--json out.jsonl]``

A model of 7B's shape (fp16, hidden 4096, feed-forward 11008, vocabulary 32000), with as many layers as give the size
on disk, is written with random bits as a Hugging Face folder in shards. Each direction is the real command in a process
of its own; what it reads was written by the direction it depends on. Peak memory is the largest resident size of that
process, less that of the same process after its imports (``imports_mb``); ``limit_mb`` is what it may be: the largest
tensor and 1.5 GB. The copy is a plain one of the source in pieces of 4 MB, flushed to the disk, measured right before
each direction; ``ratio`` is bytes written a second over those of the copy (1: as fast as copying). The source is
dropped from the page cache before both, so that the disk is read. Needs about three times the size; all is deleted.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import REPO, emit
from mindformers.checkpoint.foreign.arrays import Raw
from mindformers.checkpoint.foreign.table import expected_shapes
from mindformers.models.llama.conversion import Checked, write_hf
from mindformers.models.llama.llama_config import LlamaConfig

HIDDEN, FFN, HEADS, VOCAB = 4096, 11008, 32, 32000
ALLOWED_MB = 1500
# name -> (the direction whose result it reads; words of the command: {i} in, {o} out)
DIRECTIONS: dict[str, tuple[str, list[str]]] = {
    "hf:ckpt": ("", ["--torch_ckpt_dir", "{i}", "--mindspore_ckpt_path", "{o}.ckpt"]),
    "hf:safetensors": ("", ["--torch_ckpt_dir", "{i}", "--mindspore_ckpt_path", "{o}.safetensors"]),
    "hf:meta": ("", ["--torch_ckpt_dir", "{i}", "--to_meta", "{o}", "--shards", "2"]),
    "meta:ckpt": ("hf:meta", ["--torch_ckpt_dir", "{i}", "--mindspore_ckpt_path", "{o}.ckpt"]),
    "ckpt:hf": ("hf:ckpt", ["--mindspore_ckpt_path", "{i}.ckpt", "--to_hf", "{o}"]),
    "ckpt:meta": ("hf:ckpt", ["--mindspore_ckpt_path", "{i}.ckpt", "--to_meta", "{o}"]),
    "safetensors:hf": ("hf:safetensors", ["--mindspore_ckpt_path", "{i}.safetensors", "--to_hf", "{o}"]),
}
# What a direction runs in: the command, then its peak resident size as the last line.
RUNNER = """
import json, resource, sys
from mindformers.models.llama import convert_weight
if "TORCH" in sys.argv[1]:
    import torch
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
code = convert_weight.main(sys.argv[2:])
print(json.dumps({"imports_mb": before, "peak_mb": peak()}))
sys.exit(code)
"""


class RandomWeights:
    """fp16 weights of small random numbers, made when they are asked for."""

    path, kind, tied = Path("random"), "random", False

    def __init__(self, config: LlamaConfig) -> None:
        self._shapes = expected_shapes(config)
        self._random = np.random.default_rng(0)

    def __iter__(self):
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


def files_of(path: Path) -> list[Path]:
    """The files of weights at a path."""
    if path.is_file():
        return [path]
    return [p for p in sorted(path.iterdir()) if p.suffix in (".safetensors", ".pth")]


def forget(path: Path) -> None:
    """Drop files from the page cache, so that the next reader gets them from the disk."""
    for file in files_of(path):
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def copy_rate(source: Path, folder: Path) -> float:
    """Bytes a second of a plain copy, until it is on the disk."""
    forget(source)
    begin, total, target = time.perf_counter(), 0, folder / "copy"
    for file in files_of(source):
        with open(file, "rb", buffering=0) as one, open(target, "wb", buffering=0) as other:
            while piece := one.read(4 << 20):
                total += other.write(piece)
            os.fsync(other.fileno())
    seconds = time.perf_counter() - begin
    target.unlink()
    return total / seconds


def measure(name: str, source: Path, target: Path) -> dict[str, float]:
    """Run one direction in a process of its own."""
    _, words = DIRECTIONS[name]
    words = [word.format(i=source.with_suffix(""), o=target) for word in words]
    torch = "TORCH" if "meta" in name else "-"
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    forget(source)
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, torch, *words], env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(f"{name}: exit code {done.returncode}\n{done.stderr}")
    rates = [line for line in done.stdout.splitlines() if line.endswith("MB/s")]
    return json.loads(done.stdout.splitlines()[-1]) | {"MB_per_s": float(rates[0].split()[-2]), "command_s": seconds}


def result_of(name: str, folder: Path) -> Path:
    """Where a direction's result lies."""
    suffix = {"ckpt": ".ckpt", "safetensors": ".safetensors"}.get(name.split(":")[1], "")
    return folder / (name.replace(":", "_") + suffix)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size_gb", type=float, default=4.0, help="size of the source on the disk")
    parser.add_argument("--folder", type=Path, help="where the files go while it runs (default: the temporary folder)")
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=list(DIRECTIONS))
    parser.add_argument("--quick", action="store_true", help="one layer")
    parser.add_argument("--json", help="append the records to this file")
    args = parser.parse_args()
    config = model_config(0.0 if args.quick else args.size_gb)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        write_hf(Checked(RandomWeights(config), config, None), folder / "hf", 2 * 10**9)
        largest = VOCAB * HIDDEN * 2 / 1e6
        for direction in args.directions:
            needs = DIRECTIONS[direction][0]
            source = result_of(needs, folder) if needs else folder / "hf"
            if needs and not source.exists():
                measure(needs, folder / "hf", source.with_suffix(""))
            copied = copy_rate(source, folder) / 1e6
            target = result_of(direction, folder)
            record = measure(direction, source, target.with_suffix(""))
            extra = record["peak_mb"] - record["imports_mb"]
            size = sum(file.stat().st_size for file in files_of(source)) / 1e6
            emit(
                {
                    "bench": "convert", "direction": direction, "source_mb": size, "layers": config.num_layers,
                    **record, "extra_mb": extra, "limit_mb": largest + ALLOWED_MB, "copy_MB_per_s": copied,
                    "ratio": record["MB_per_s"] / copied,
                },
                args.json,
            )  # fmt: skip
            wanted = {DIRECTIONS[later][0] for later in args.directions[args.directions.index(direction) :]}
            if direction not in wanted:
                for path in (target, target.with_name(target.name + ".json")):
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
