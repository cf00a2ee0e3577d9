# SPDX-License-Identifier: Apache-2.0
"""Merge a LoRA adapter into its base, or exchange adapters with Hugging Face PEFT.

    python mindformers/tools/merge_lora.py --base BASE --adapter ADAPTER --output merged.safetensors --check
    python mindformers/tools/merge_lora.py --adapter ADAPTER --to_peft FOLDER
    python mindformers/tools/merge_lora.py --adapter PEFT_FOLDER --to_mindformers adapter.safetensors

ADAPTER is an adapter's file, the output folder of a run, or a folder of PEFT. BASE is a checkpoint, or weights of
Hugging Face or Meta. Weights are read and written one at a time.
"""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

if importlib.util.find_spec("mindformers") is None:  # run as a script from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mindformers.errors import CheckpointError, ConfigError, run_cli

_FORMATS = {".ckpt": "ckpt", ".safetensors": "safetensors"}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--adapter", metavar="PATH", help="the adapter; default: BASE, when it holds one as well")
    parser.add_argument("--base", metavar="PATH", help="weights to merge into")
    parser.add_argument("--output", type=Path, metavar="FILE", help="merged checkpoint, .safetensors or .ckpt")
    parser.add_argument("--check", action="store_true", help="take the adapter out again and compare with the base")
    parser.add_argument("--to_peft", type=Path, metavar="FOLDER", help="write the adapter for Hugging Face PEFT")
    parser.add_argument("--base_name", default="", metavar="NAME", help="base model named in PEFT's config")
    parser.add_argument("--to_mindformers", type=Path, metavar="FILE", help="write the adapter as a checkpoint of ours")
    parser.add_argument("--lora_alpha", type=float, help="scale of an adapter that does not say how it was made")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse combinations that mean nothing.

    Raises:
        ConfigError: with what is missing or too much.
    """
    wanted = [name for name in ("output", "to_peft", "to_mindformers") if getattr(args, name)]
    if len(wanted) != 1:
        given = " and ".join(f"--{name}" for name in wanted) or "none of them"
        raise ConfigError(f"give one of --output FILE, --to_peft FOLDER, --to_mindformers FILE; got {given}")
    if args.output and not args.base:
        raise ConfigError("merging needs --base PATH, the weights the adapter was trained on")
    if not args.output and (args.check or args.base):
        raise ConfigError(f"--{'check' if args.check else 'base'} belongs to merging, with --output FILE")
    if not (args.adapter or args.output):
        raise ConfigError("--adapter PATH is needed")
    if args.base_name and not args.to_peft:
        raise ConfigError("--base_name belongs to --to_peft")
    if args.lora_alpha is not None and not args.lora_alpha > 0:
        raise ConfigError(f"--lora_alpha must be positive, got {args.lora_alpha}")
    for name in ("output", "to_mindformers"):
        path = getattr(args, name)
        if path and path.suffix not in _FORMATS:
            raise ConfigError(f"--{name} {path}: the name must end with {' or '.join(_FORMATS)}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; prints what was read, changed and written."""
    args = build_parser().parse_args(argv)
    check_arguments(args)
    adapter, config, tensors = _read(args.adapter or args.base, args.lora_alpha)
    print(
        f"adapter {adapter.path}: rank {config.lora_rank}, alpha {config.lora_alpha:g}, "
        f"{len(tensors) // 2} layers, {sum(t.size for t in tensors.values()):,} values"
    )
    if args.to_peft:
        from mindformers.pet.peft_format import write_peft

        for path in write_peft(args.to_peft, config, tensors, args.base_name):
            print(f"wrote {path}")
    elif args.to_mindformers:
        _import(args.to_mindformers, adapter, config)
    else:
        _merge(args, adapter, config, tensors)
    return 0


def _read(value: str, alpha: float | None) -> tuple[Any, Any, dict[str, Any]]:
    """The adapter, its config, and its matrices in fp32."""
    import mindspore as ms
    import numpy as np

    from mindformers.config.schema.model import LoraSection
    from mindformers.pet.adapter_file import read_adapter

    adapter = read_adapter(value)
    config = adapter.config
    if config is None:
        if alpha is None:
            raise CheckpointError(f"{adapter.path} does not say how it was made (no manifest): give --lora_alpha")
        rank = min(min(tensor.shape) for tensor in adapter.tensors.values())
        config = LoraSection(lora_rank=rank, lora_alpha=alpha, lora_dropout=0.0)
    elif alpha is not None and alpha != config.lora_alpha:
        raise ConfigError(f"--lora_alpha {alpha:g}: the adapter {adapter.path} was made with {config.lora_alpha:g}")
    tensors = {
        name: value.astype(np.float32) if isinstance(value, np.ndarray) else value.astype(ms.float32).asnumpy()
        for name, value in adapter.tensors.items()
    }
    return adapter, config, tensors


def _import(output: Path, adapter: Any, config: Any) -> None:
    from mindformers.checkpoint.save import save_network
    from mindformers.pet.adapter_file import MANIFEST_KEY

    about = {"config": config.to_dict(), "base": adapter.base, "fingerprint": adapter.fingerprint}
    save_network(dict(adapter.tensors), output, manifest_fields={MANIFEST_KEY: about}, fmt=_FORMATS[output.suffix])
    print(f"wrote {output}; use it with --adapter_checkpoint {output} and the base as --load_checkpoint")


def _merge(args: argparse.Namespace, adapter: Any, config: Any, tensors: dict[str, Any]) -> None:
    from mindformers.pet.merge import adapter_deltas, check_unmerge, merge_into, open_base

    base = open_base(args.base)
    if args.output.resolve() in (Path(base.path).resolve(), Path(adapter.path).resolve()):
        raise ConfigError(f"--output {args.output} would replace the base or the adapter: choose another name")
    pairs = adapter_deltas(tensors, config.lora_alpha / config.lora_rank, base)
    report = merge_into(base, pairs, args.output, _FORMATS[args.output.suffix], _bar("merge"))
    print(
        f"wrote {args.output}: {report.merged} weights changed, by {report.largest_change:.3g} at most, {report.kept} "
        f"as in {base.path}"
    )
    if args.check:
        check_unmerge(base, pairs, args.output, report, _bar("check"))
        print(
            f"check passed: without the adapter it is the base again, largest difference {report.unmerge_error:.3g} "
            f"(rounding explains {report.allowed:.3g} there)"
        )


def _bar(what: str) -> Any:
    from tqdm import tqdm

    return partial(tqdm, desc=what, unit="weight", disable=None)


if __name__ == "__main__":
    run_cli(main)
