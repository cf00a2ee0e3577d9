# SPDX-License-Identifier: Apache-2.0
"""Cutting and joining checkpoints beside a plain copy of the same bytes: throughput and peak memory.

``python benchmarks/reshard.py [--size_gb 2] [--folder DIR] [--workers N] [--quick] [--json out.jsonl]``

A model of 7B's shape (fp16), with as many layers as give the size, is written with random bits as one ``.ckpt``; it is
cut for mp8 and for dp4 x mp2 with optimizer parallel, turned from the one into the other, and joined again. Each is the
real ``mindformers/tools/transform_ckpt.py`` in a process of its own; the layouts are those that MindSpore compiles for
these splits, written as JSON strategies. ``extra_mb`` is the largest resident size of the process less that after its
imports; ``largest_mb`` the largest tensor. The copy is a plain one of the source, flushed to the disk, measured right
before; sources are dropped from the page cache before both. ``ratio`` is megabytes a second over those of the copy
(the command also reads each file once to prove its checksum). Needs about four times the size; all is deleted.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bulk import LARGEST_MB, RandomWeights, copy_rate, model_config, run_command
from benchmarks.common import emit
from mindformers.checkpoint.foreign.table import expected_shapes
from mindformers.checkpoint.stream import CheckpointStream, Planned

COLUMNS, ROWS = ("wq", "wk", "wv", "w1", "w3"), ("wo", "w2")
# name -> (data parallel, model parallel, optimizer parallel)
LAYOUTS = {"mp8": (1, 8, False), "dp4_mp2_optimizer": (4, 2, True)}
# name -> (source, layout of the source, layout of the result)
STEPS = {
    "split_mp8": ("whole", "", "mp8"),
    "mp8_to_dp4_mp2_optimizer": ("split_mp8", "mp8", "dp4_mp2_optimizer"),
    "merge_dp4_mp2_optimizer": ("mp8_to_dp4_mp2_optimizer", "dp4_mp2_optimizer", ""),
    "merge_mp8": ("split_mp8", "mp8", ""),
}


def write_strategy(path: Path, names: list[str], dp: int, mp: int, optimizer: bool) -> None:
    """What compilation of this layout writes, as JSON."""
    items = {}
    for name in names:
        part = name.split(".")[-2]
        axes = [0, -1] if part in COLUMNS else [-1, 0] if part in ROWS else [-1] * (1 if "norm" in part else 2)
        step = mp if part in COLUMNS + ROWS else 1
        items[name] = {"dev_matrix": [dp, mp], "tensor_map": axes, "opt_weight_shard_step": step if optimizer else 0,
                       "opt_weight_shard_size": -1 if optimizer else 0}  # fmt: skip
    text = json.dumps({"parallel_strategy_item": {"all": {"stage": 0}}, "parallel_layout_item": items})
    path.write_text(text, encoding="utf-8")


def weights_of(folder: Path) -> list[Path]:
    """The checkpoint files below a folder."""
    return sorted(folder.glob("rank_*/*.ckpt"))


def measure(step: str, folder: Path, workers: int) -> dict[str, float]:
    """Run one command in a process of its own."""
    source, cut, wanted = STEPS[step]
    words = ["--src_ckpt_dir", str(folder / source), "--dst_ckpt_dir", str(folder / step), "--workers", str(workers)]
    for flag, layout in (("--src_ckpt_strategy", cut), ("--dst_ckpt_strategy", wanted)):
        words += [flag, str(folder / f"{layout}.json")] if layout else []
    return run_command(
        "mindformers.tools.transform_ckpt,mindformers.checkpoint.transform", words, weights_of(folder / source)
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size_gb", type=float, default=2.0, help="size of the whole checkpoint")
    parser.add_argument("--folder", type=Path, help="where the files go while it runs (default: the temporary folder)")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--quick", action="store_true", help="one layer")
    parser.add_argument("--json", help="append the records to this file")
    args = parser.parse_args()
    config = model_config(0.0 if args.quick else args.size_gb)
    shapes = expected_shapes(config)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        for layout, (dp, mp, optimizer) in LAYOUTS.items():
            write_strategy(folder / f"{layout}.json", list(shapes), dp, mp, optimizer)
        weights = RandomWeights(config)
        plan = [Planned(item, shape, "float16") for item, shape in shapes.items()]
        with CheckpointStream(folder / "whole/rank_0/model.ckpt", plan, "ckpt") as stream:
            for item in plan:
                stream.add(item, weights.raw(item.name))
        for step, (source, _, _) in STEPS.items():
            copied = copy_rate(weights_of(folder / source), folder / "copy")
            record = measure(step, folder, args.workers)
            emit(
                {
                    "bench": "reshard", "step": step, "workers": args.workers, "layers": config.num_layers,
                    "source_mb": sum(file.stat().st_size for file in weights_of(folder / source)) / 1e6, **record,
                    "extra_mb": record["peak_mb"] - record["imports_mb"], "largest_mb": LARGEST_MB,
                    "copy_MB_per_s": copied, "ratio": record["MB_per_s"] / copied,
                },
                args.json,
            )  # fmt: skip
            if step.startswith("merge"):
                shutil.rmtree(folder / step)


if __name__ == "__main__":
    main()
