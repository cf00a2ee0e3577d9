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
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bulk import LARGEST_MB, RandomWeights, copy_rate, model_config, run_command
from benchmarks.common import emit
from mindformers.models.llama.conversion import Checked, write_hf

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


def files_of(path: Path) -> list[Path]:
    """The files of weights at a path."""
    if path.is_file():
        return [path]
    return [p for p in sorted(path.iterdir()) if p.suffix in (".safetensors", ".pth")]


def measure(name: str, source: Path, target: Path) -> dict[str, float]:
    """Run one direction in a process of its own."""
    _, words = DIRECTIONS[name]
    words = [word.format(i=source.with_suffix(""), o=target) for word in words]
    modules = "mindformers.models.llama.convert_weight" + (",torch" if "meta" in name else "")
    return run_command(modules, words, files_of(source))


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
        for direction in args.directions:
            needs = DIRECTIONS[direction][0]
            source = result_of(needs, folder) if needs else folder / "hf"
            if needs and not source.exists():
                measure(needs, folder / "hf", source.with_suffix(""))
            copied = copy_rate(files_of(source), folder / "copy")
            target = result_of(direction, folder)
            record = measure(direction, source, target.with_suffix(""))
            extra = record["peak_mb"] - record["imports_mb"]
            size = sum(file.stat().st_size for file in files_of(source)) / 1e6
            emit(
                {
                    "bench": "convert", "direction": direction, "source_mb": size, "layers": config.num_layers,
                    **record, "extra_mb": extra, "limit_mb": LARGEST_MB + ALLOWED_MB, "copy_MB_per_s": copied,
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
