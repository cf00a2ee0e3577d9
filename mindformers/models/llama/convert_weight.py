# SPDX-License-Identifier: Apache-2.0
"""Weights of Llama in and out: ``python mindformers/models/llama/convert_weight.py --help``.

In: ``--torch_ckpt_dir SOURCE --mindspore_ckpt_path FILE`` reads a folder of Hugging Face or Meta and writes a
checkpoint of ours, with its config and the tokenizer beside it. Out: ``--mindspore_ckpt_path FILE`` with ``--to_hf
DIR`` or ``--to_meta DIR``. With ``--torch_ckpt_dir`` these two convert without a checkpoint of ours in between.
"""

import argparse
import re
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mindformers.atomic import replacing
from mindformers.checkpoint.foreign import WeightSource, foreign_kind, open_foreign
from mindformers.checkpoint.foreign.arrays import FLOATS
from mindformers.checkpoint.layout import FORMATS
from mindformers.checkpoint.load import resolve_checkpoint, sound_checkpoint
from mindformers.config import load_config
from mindformers.config.save import save_text, to_yaml
from mindformers.errors import CheckpointError, ConfigError, run_cli
from mindformers.models.llama.conversion import (
    OwnWeights,
    Written,
    check_shards,
    check_target,
    check_weights,
    write_hf,
    write_meta,
    write_ours,
)
from mindformers.models.llama.foreign_config import llama_config_from
from mindformers.models.llama.llama_config import LlamaConfig

TOKENIZER = "tokenizer.model"
TOKENIZER_FILES = (TOKENIZER, "tokenizer_config.json")
_KINDS = {"huggingface": "Hugging Face", "meta": "Meta", "mindspore": "MindSpore"}
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS or not float(match[1]):
        raise argparse.ArgumentTypeError(f"must be a size such as 5GB or 500MB, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 99:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 99, got {text!r}")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Convert weights of Llama between Hugging Face, Meta and MindSpore. Relative paths are relative to "
        "the current folder. wq and wk of Meta's files are reordered (their rotary embedding turns neighbouring "
        "features, ours and Hugging Face's turns halves); nothing else changes but names.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--torch_ckpt_dir", type=Path, metavar="DIR", help="source: a folder (or file) of Hugging Face or Meta")
    add("--mindspore_ckpt_path", type=Path, metavar="FILE", help="checkpoint of ours: the result, or without "
        "--torch_ckpt_dir the source")  # fmt: skip
    add("--to_hf", type=Path, metavar="DIR", help="write a Hugging Face folder")
    add("--to_meta", type=Path, metavar="DIR", help="write a folder in Meta's layout")
    add("--shards", type=_count, metavar="N", help="files of --to_meta (default: 1)")
    add("--max_shard_size", type=_bytes, metavar="SIZE", help="largest file of --to_hf (default: 5GB)")
    add("--dtype", choices=FLOATS, help="type of all weights (default: keep each as it is)")
    add("--format", choices=FORMATS, help="of --mindspore_ckpt_path (default: by its name, else ckpt)")
    add("--config", metavar="YAML", help="config of the model (default: from the source, or beside the checkpoint)")
    add("--verify", action="store_true", help="compare logits of source and results on a fixed prompt")
    add("--overwrite", action="store_true", help="replace a folder of converted weights")
    add("--pre_ckpt_path", type=Path, metavar="FILE", help="source: an old MindSpore checkpoint with interleaved "
        "rotary order; the result is --mindspore_ckpt_path, or NAME_hf.ckpt beside it")  # fmt: skip
    add("--config_path", metavar="YAML", help="config of --pre_ckpt_path")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Combinations that mean nothing, all at once."""
    problems = []
    outputs = [args.to_hf, args.to_meta]
    if args.pre_ckpt_path and args.torch_ckpt_dir:
        problems.append("--torch_ckpt_dir and --pre_ckpt_path are both sources; give one")
    if args.config_path and not args.pre_ckpt_path:
        problems.append("--config_path belongs to --pre_ckpt_path; elsewhere the flag is --config")
    if args.pre_ckpt_path and not (args.config_path or args.config):
        problems.append("--pre_ckpt_path needs --config_path YAML, which says how many heads the model has")
    if not (args.torch_ckpt_dir or args.pre_ckpt_path or args.mindspore_ckpt_path):
        problems.append("no source: give --torch_ckpt_dir DIR, or --mindspore_ckpt_path FILE")
    elif not args.pre_ckpt_path and not any(outputs) and not (args.torch_ckpt_dir and args.mindspore_ckpt_path):
        ours = "--mindspore_ckpt_path FILE, " if args.torch_ckpt_dir else ""
        problems.append(f"no result: give {ours}--to_hf DIR or --to_meta DIR")
    if args.shards and not args.to_meta:
        problems.append("--shards belongs to --to_meta")
    if args.max_shard_size and not args.to_hf:
        problems.append("--max_shard_size belongs to --to_hf")
    if args.overwrite and not any(outputs):
        problems.append("--overwrite belongs to --to_hf and --to_meta; a file is always replaced")
    writes_ours = args.pre_ckpt_path or (args.torch_ckpt_dir and args.mindspore_ckpt_path)
    if args.format and not writes_ours:
        problems.append("--format belongs to a checkpoint of ours that is written; none is")
    if args.to_hf and args.to_meta and args.to_hf.resolve() == args.to_meta.resolve():
        problems.append("--to_hf and --to_meta are the same folder")
    if problems:
        raise ConfigError("\n  ".join(["the flags do not fit together", *problems]))


def _result_file(args: argparse.Namespace) -> Path | None:
    """The checkpoint of ours to write; None when there is none.

    Raises:
        ConfigError: its name and --format disagree, or it is a folder.
    """
    path = args.mindspore_ckpt_path
    if args.pre_ckpt_path and path is None and not (args.to_hf or args.to_meta):
        path = args.pre_ckpt_path.with_name(f"{args.pre_ckpt_path.stem}_hf.{args.format or 'ckpt'}")
    if path is None or not (args.torch_ckpt_dir or args.pre_ckpt_path):
        return None
    path = path.expanduser()
    if path.is_dir():
        raise ConfigError(f"--mindspore_ckpt_path {path} is a folder; name a file in it, such as {path / 'llama.ckpt'}")
    suffix = path.suffix.removeprefix(".")
    if suffix in FORMATS:
        if args.format and args.format != suffix:
            raise ConfigError(f"--mindspore_ckpt_path {path} and --format {args.format} disagree")
        return path
    return path.with_name(f"{path.name}.{args.format or 'ckpt'}")


def _open_source(args: argparse.Namespace) -> tuple[WeightSource, LlamaConfig, Path]:
    """The source, its config, and the folder it lies in."""
    if args.torch_ckpt_dir:
        path = args.torch_ckpt_dir.expanduser()
        weights = open_foreign(path)
        config = _yaml_config(args.config) if args.config else llama_config_from(path, weights)
        return weights, config, path if path.is_dir() else path.parent
    old = args.pre_ckpt_path
    path = sound_checkpoint(_own_file(old or args.mindspore_ckpt_path))
    config = _yaml_config(args.config_path or args.config or _config_beside(path))
    heads = (config.num_heads, config.num_kv_heads) if old else None
    return OwnWeights(path, interleaved=heads), config, path.parent


def _own_file(value: Path) -> Path:
    """The checkpoint file of ours at a path."""
    path = resolve_checkpoint(value)
    if foreign_kind(path):
        raise CheckpointError(f"{path} holds weights of another library; give it as --torch_ckpt_dir")
    return path


def _config_beside(path: Path) -> Path:
    """The YAML that belongs to a checkpoint: of its name, or the config.yaml of the run that wrote it."""
    for candidate in (path.with_suffix(".yaml"), path.parent.parent.parent / "config.yaml"):
        if candidate.is_file():
            return candidate
    raise ConfigError(f"no config for {path}: {path.with_suffix('.yaml').name} is not beside it; give --config YAML")


def _yaml_config(name: str | Path) -> LlamaConfig:
    """The LlamaConfig of a YAML file or of a shipped config."""
    return LlamaConfig(**load_config(name).model.config.model_dump())


def _write_all(args: argparse.Namespace, weights: WeightSource, config: LlamaConfig, folder: Path) -> list[Written]:
    """Check, then write every result."""
    target = _result_file(args)
    _refuse_source(weights.path, target, args.to_hf, args.to_meta)
    for out in filter(None, (args.to_hf, args.to_meta)):
        check_target(out.expanduser(), args.overwrite)
    if args.to_meta:
        check_shards(config, args.shards or 1)
    checked = check_weights(weights, config, args.dtype)
    written = []
    if target:
        started = time.perf_counter()
        count = write_ours(checked, target, target.suffix.removeprefix("."))
        _report(target, f"{count} weights", target.stat().st_size, started)
        written.append(Written("mindspore", target))
        _write_config(config, target.with_suffix(".yaml"))
        _copy_tokenizer(folder, target.parent)
    for out, kind in ((args.to_hf, "huggingface"), (args.to_meta, "meta")):
        if out:
            out, started = out.expanduser(), time.perf_counter()
            if kind == "meta":
                count = write_meta(checked, out, args.shards or 1, args.overwrite)
            else:
                count = write_hf(checked, out, args.max_shard_size or _bytes("5GB"), args.overwrite)
            _report(out, f"{count} files", sum(p.stat().st_size for p in out.iterdir()), started)
            written.append(Written(kind, out))
            _copy_tokenizer(folder, out, (TOKENIZER,) if kind == "meta" else TOKENIZER_FILES)
    return written


def _refuse_source(source: Path, *targets: Path | None) -> None:
    """A result must not replace what it is made from."""
    for target in targets:
        if target and target.expanduser().resolve() == source.resolve():
            raise CheckpointError(f"{target} is the source; name another place for the result")


def _report(path: Path, what: str, size: int, started: float) -> None:
    seconds = max(time.perf_counter() - started, 1e-9)
    print(f"wrote {path}: {what}, {size / 1e6:.1f} MB in {seconds:.1f} s, {size / 1e6 / seconds:.0f} MB/s")


def _write_config(config: LlamaConfig, path: Path) -> None:
    """The config beside the checkpoint, so that whoever reads it needs no flag."""
    values = config.to_dict() | {"checkpoint_name_or_path": ""}
    save_text(path, to_yaml({"model": {"model_config": values, "arch": {"type": "LlamaForCausalLM"}}}))
    print(f"wrote {path}: the config")


def _copy_tokenizer(source: Path, target: Path, names: Sequence[str] = TOKENIZER_FILES) -> None:
    """Take the tokenizer along; another one that lies there already stays."""
    for name in names:
        there, new = source / name, target / name
        if not there.is_file() or (new.exists() and new.read_bytes() == there.read_bytes()):
            continue
        if new.exists():
            print(f"note: {new} exists and differs from {there}; it was left as it is")
            continue
        with replacing(new) as temporary:
            shutil.copyfile(there, temporary)
        print(f"wrote {new}: the tokenizer")


def _describe(weights: WeightSource, config: LlamaConfig) -> str:
    dtypes = sorted({weights.dtype(name) for name in weights})
    dropped = getattr(weights, "dropped", [])
    tied = ", output layer tied to the embedding" if config.tie_word_embeddings else ""
    rest = f"; left out: {', '.join(dropped[:5])} (follows from the config)" if dropped else ""
    heads = f"{config.num_layers} layers, {config.num_heads} heads, {config.num_kv_heads} key/value heads"
    kind = _KINDS[weights.kind]
    return f"source {weights.path}: {kind}, {len(list(weights))} weights, {', '.join(dtypes)}, {heads}{tied}{rest}"


def main(argv: list[str] | None = None) -> int:
    """The command; prints what was read, written and compared."""
    args: Any = build_parser().parse_args(argv)
    check_arguments(args)
    weights, config, folder = _open_source(args)
    if args.dtype:
        config.param_init_type = config.compute_dtype = args.dtype
    print(_describe(weights, config))
    written = _write_all(args, weights, config, folder)
    if args.verify:
        from mindformers.models.llama.verify_weights import verify

        source = Written("interleaved" if args.pre_ckpt_path else weights.kind, Path(weights.path))
        verify(source, written, config, args.dtype)
    return 0


def _terminated(*_: Any) -> None:
    raise SystemExit(143)  # lets the half-written files be removed


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    run_cli(main)
