# SPDX-License-Identifier: Apache-2.0
"""Export a model to MindIR: ``python mindformers/tools/export.py --config_path configs/llama2/export_llama2_7b.yaml``.

Runs from any folder, as a script or with ``python -m``.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if importlib.util.find_spec("mindformers") is None:  # run as a script from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mindformers.config import RunConfig, load_config
from mindformers.errors import ConfigError, run_cli


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Export a Llama to MindIR.", allow_abbrev=False)
    add = parser.add_argument
    add("--config_path", help="YAML with the sections infer and model (configs/llama2/export_*.yaml)")
    add("--model_dir", help="a folder with one YAML and one checkpoint, in place of --config_path")
    add("--batch_size", type=int, help="prompts computed together (default: model.model_config.batch_size)")
    add("--model_type", type=str.lower, choices=["mindir"], default="mindir", help="format (default: mindir)")
    add("--device_id", type=int, help="device that traces the graphs (default: context.device_id)")
    add("--device_target", choices=["Ascend", "CPU"], help="default: context.device_target")
    add("--load_checkpoint", help="weights (default: model.model_config.checkpoint_name_or_path)")
    add("--options", nargs="+", default=[], metavar="KEY=VALUE", help="changes to the YAML")
    return parser


def read_config(args: argparse.Namespace) -> RunConfig:
    """The run's config from the flags, everything checked that can be before MindSpore is imported.

    Raises:
        ConfigError: no config, two of them, or one that cannot be exported.
    """
    if bool(args.config_path) == bool(args.model_dir):
        raise ConfigError("give one of --config_path YAML and --model_dir FOLDER")
    path, checkpoint = args.config_path, args.load_checkpoint
    if args.model_dir:
        path, found = _model_dir(Path(args.model_dir))
        checkpoint = checkpoint or found
    options = list(args.options)
    for key, value in {
        "model.model_config.batch_size": args.batch_size,
        "context.device_id": args.device_id,
        "context.device_target": args.device_target,
        "load_checkpoint": checkpoint,
    }.items():
        options += [] if value is None else [f"{key}={value}"]
    return load_config(path, [*options, "run_mode=export"])


def _model_dir(folder: Path) -> tuple[Path, str]:
    """The YAML and the checkpoint of a folder.

    Raises:
        ConfigError: there is not exactly one of each.
    """
    if not folder.is_dir():
        raise ConfigError(f"--model_dir {folder}: no such folder")
    found = []
    for what, suffixes in (("YAML", (".yaml", ".yml")), ("checkpoint", (".ckpt", ".safetensors"))):
        files = sorted(file for file in folder.iterdir() if file.suffix in suffixes)
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "none"
            raise ConfigError(f"--model_dir {folder} must hold one {what} file, it holds: {names}")
        found.append(files[0])
    return found[0], str(found[1])


def main(argv: Sequence[str] | None = None) -> int:
    """The command; prints what each graph takes and gives, and the files."""
    cfg = read_config(build_parser().parse_args(argv))

    from mindformers.core.context import init_context  # MindSpore, seconds: only when the config is right
    from mindformers.inference.exporter import export_mindir
    from mindformers.trainer.network import build_network, load_weights

    cfg.context.native_kernels = False  # a MindIR file holds MindSpore's own ops only
    init_context(False, cfg.context, cfg.parallel, cfg.output_dir)
    network = build_network(cfg)
    print(f"weights: {load_weights(network, cfg, required=True)}", flush=True)
    infer = cfg.infer
    files = export_mindir(
        network,
        infer.prefill_model_path,
        infer.increment_model_path,
        cfg.model.config.batch_size,
        report=lambda line: print(line, flush=True),
    )
    for file in files:
        print(f"exported {file} ({os.path.getsize(file) / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    run_cli(main)
