# SPDX-License-Identifier: Apache-2.0
"""Join the slices of a cluster's checkpoint, cut a whole one, or change its layout.

``python mindformers/tools/transform_ckpt.py --src_ckpt_strategy output/strategy --src_ckpt_dir output/checkpoint
--dst_ckpt_dir merged --prefix llama2_7b`` writes ``merged/rank_0/llama2_7b0.ckpt``. Runs from any folder, as a script
or with ``python -m``.
"""

import argparse
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

if importlib.util.find_spec("mindformers") is None:  # run as a script from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mindformers.checkpoint.layout import FORMATS
from mindformers.errors import ConfigError, run_cli


def _workers(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 64, got {text!r}")
    return int(text)


def _strategy(text: str) -> str | None:
    """A path; an empty text and ``None`` mean that the checkpoint is whole."""
    return None if text in ("", "None") else text


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Join the slices of a cluster's checkpoint (no --dst_ckpt_strategy), cut a whole one (no "
        "--src_ckpt_strategy), or change from one layout to another (both). The source is only read.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--src_ckpt_strategy", type=_strategy, metavar="PATH", help="how the source was cut: folder output/strategy "
        "of its run, or a strategy file (default: the source is whole)")  # fmt: skip
    add("--dst_ckpt_strategy", type=_strategy, metavar="PATH", help="the same for the result (default: one whole file)")
    add("--src_ckpt_dir", required=True, metavar="PATH", help="folder with rank_N folders (the newest step that "
        "all ranks have), output folder of a run, file, or folder of Hugging Face or Meta")  # fmt: skip
    add("--dst_ckpt_dir", required=True, metavar="DIR", help="folder for rank_N/PREFIX<N>.ckpt")
    add("--prefix", default="checkpoint_", help="first part of the names of the results (default: checkpoint_)")
    add("--src_prefix", help="take only checkpoints whose names have this prefix from --src_ckpt_dir")
    add("--step", type=int, metavar="N", help="optimizer step to take from --src_ckpt_dir (default: the newest that "
        "all ranks have)")  # fmt: skip
    add("--format", choices=FORMATS, default="ckpt", help="of the results (default: ckpt)")
    add("--with_optimizer", action="store_true", help="also optimizer state, counters and loss scale, to resume from")
    add(
        "--workers",
        type=_workers,
        default=min(4, os.cpu_count() or 1),
        metavar="N",
        help="threads (default: %(default)s)",
    )
    add("--verify", action="store_true", help="compare checksums of all parts of the results with those of the source")
    add("--overwrite", action="store_true", help="replace results of an earlier call")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; prints what was written."""
    args = build_parser().parse_args(argv)
    if not args.prefix or args.prefix != Path(args.prefix).name or args.prefix.startswith("."):
        raise ConfigError(f"--prefix {args.prefix!r}: the beginning of a file name is needed, without folders")

    from mindformers.checkpoint.sources import open_source
    from mindformers.checkpoint.strategy import read_strategy  # MindSpore, seconds: only when the flags are right
    from mindformers.checkpoint.transform import transform

    layout = read_strategy(args.dst_ckpt_strategy) if args.dst_ckpt_strategy else None
    opened = open_source(args.src_ckpt_dir, args.src_ckpt_strategy, args.src_prefix, args.workers, step=args.step)
    for file in opened.files[:8]:
        print(f"source {file}", flush=True)
    if len(opened.files) > 8:
        print(f"... and {len(opened.files) - 8} more")
    done = transform(
        opened, args.dst_ckpt_dir, layout, prefix=args.prefix, fmt=args.format, workers=args.workers,
        with_optimizer=args.with_optimizer, verify=args.verify, overwrite=args.overwrite,
    )  # fmt: skip
    for file in done.files[:8]:
        print(f"written {file}")
    if len(done.files) > 8:
        print(f"... and {len(done.files) - 8} more")
    if args.verify:
        print(f"verified: the checksums of {done.verified} parts agree with the source")
    print(
        f"{done.tensors} tensors, {done.nbytes / 1e6:.1f} MB in {done.seconds:.1f} s, "
        f"{done.nbytes / 1e6 / max(done.seconds, 1e-9):.0f} MB/s"
    )
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that temporary files are removed
    run_cli(main)
