# SPDX-License-Identifier: Apache-2.0
"""``python -m mindformers plan``: would this config run on that cluster, without the cluster."""

import argparse
from pathlib import Path

from mindformers.commands import Command
from mindformers.config import RunConfig, load_config
from mindformers.errors import ConfigError
from mindformers.tools.rank_table import read_table

_DEFAULT_MEMORY = "64GB"


def plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``plan``."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or a shipped name")
    cluster = parser.add_mutually_exclusive_group()
    cluster.add_argument("--devices", type=int, metavar="N", help="devices of the cluster; sets data_parallel")
    cluster.add_argument("--rank-table", metavar="FILE", help="rank table whose devices are counted")
    parser.add_argument("--memory", metavar="SIZE", help="of a device; default: context.max_device_memory, else 64GB")
    parser.add_argument("--save-strategy", metavar="DIR", help="leave ckpt_strategy_rank_N.ckpt of every rank here")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="ranks compiled at once; default: one per core, as long as all stay below 8 GiB",
    )
    parser.add_argument("--options", nargs="+", metavar="KEY=VALUE", help="changes to the config to apply first")


def plan(args: argparse.Namespace) -> int:
    """Compile, estimate, report; 0 when the layout fits, 1 when it does not."""
    from mindformers.simulate.plan import compile_stages, fits, parse_memory
    from mindformers.simulate.plan_report import report

    cfg = configured(args)
    given = args.memory or getattr(cfg.context, "max_device_memory", None) or _DEFAULT_MEMORY
    available = parse_memory(str(given))
    if args.workers is not None and args.workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {args.workers}")
    folder = None
    if args.save_strategy:
        folder = Path(args.save_strategy).resolve()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--save-strategy {folder}: {error.strerror or error}") from error
    plans = compile_stages(cfg, args.workers, folder, lambda line: print(line, flush=True))
    print(report(cfg, plans, available))
    return 0 if all(fits(stage.memory, available) for stage in plans) else 1


def configured(args: argparse.Namespace) -> RunConfig:
    """The config with data_parallel set to what fills the cluster.

    Raises:
        ConfigError: the config is wrong, or its model and pipeline parallelism do not divide the devices.
    """
    options = list(args.options or [])
    cfg = load_config(args.config, options)
    devices = read_table(args.rank_table).size if args.rank_table else args.devices
    if devices is None:
        return cfg
    layout = cfg.parallel_config
    unit = layout.model_parallel * layout.pipeline_stage
    if devices < 1 or devices % unit:
        near = sorted({max(devices // unit, 1) * unit, -(-max(devices, 1) // unit) * unit})
        raise ConfigError(
            f"{devices} devices cannot be divided by model_parallel {layout.model_parallel} * pipeline_stage "
            f"{layout.pipeline_stage} = {unit}. Take {' or '.join(map(str, near))} devices, or change these two"
        )
    wanted = devices // unit
    if wanted == layout.data_parallel and (cfg.use_parallel or devices == 1):
        return cfg
    print(f"data_parallel {wanted} instead of {layout.data_parallel}, to fill {devices} devices")
    return load_config(args.config, [*options, "use_parallel=True", f"parallel_config.data_parallel={wanted}"])


PLAN = Command(plan_arguments, plan)
