# SPDX-License-Identifier: Apache-2.0
"""The network of a config, and the weights it starts from."""

from contextlib import nullcontext
from pathlib import Path

from mindspore import nn
from mindspore.nn.utils import no_init_parameters

from mindformers.checkpoint.load import load_into, read_checkpoint, resolve_checkpoint
from mindformers.checkpoint.names import modern_name
from mindformers.checkpoint.reshard import load_slices
from mindformers.config import RunConfig
from mindformers.errors import CheckpointError
from mindformers.models.llama.llama_config import LlamaConfig
from mindformers.pet.adapter import ADAPTER_PATTERN, is_adapter_name
from mindformers.registry import MindFormerModuleType, MindFormerRegister
from mindformers.tools.logger import get_logger
from mindformers.trainer.adapters import add_adapters, has_adapters, load_adapter, settle_adapter

__all__ = ["build_network", "load_weights", "settled_network"]

logger = get_logger(__name__)


def build_network(cfg: RunConfig, rank: int = 0, weights_follow: bool = False) -> nn.Cell:
    """The network of ``model.arch`` with ``model.model_config``, adapters included; no weights are loaded.

    Where the config names an adapter (see :func:`~mindformers.trainer.adapters.settle_adapter`), its config is used.

    Args:
        cfg: the run's config.
        rank: this process.
        weights_follow: :func:`load_weights` is called next, so that no random values need be drawn (seconds for every
            hundred million weights).
    """
    settle_adapter(cfg, rank)
    return settled_network(cfg, weights_follow)


def settled_network(cfg: RunConfig, weights_follow: bool = False) -> nn.Cell:
    """As :func:`build_network`, of a config whose adapter is settled."""
    values = cfg.model.config.model_dump() | {"checkpoint_name_or_path": ""}
    network_class = MindFormerRegister.get_cls(MindFormerModuleType.MODELS, cfg.model.arch.type)
    with no_init_parameters() if weights_follow else nullcontext():
        network = network_class(LlamaConfig(**values))
    return add_adapters(network, cfg)


def load_weights(network: nn.Cell, cfg: RunConfig, *, required: bool, rank: int = 0) -> Path | None:
    """Load ``load_checkpoint``, or else the config's ``checkpoint_name_or_path``, into the network.

    Args:
        network: the network.
        cfg: the run's config.
        required: whether random weights are an error; training from scratch is the only run that wants them.
        rank: this process.

    Returns:
        The file, or None for random weights. With adapters it is the base's, and the adapter is loaded as well.
    """
    adapted = has_adapters(network)
    required = required or adapted  # an adapter of random weights is of no use
    source = cfg.load_checkpoint or (cfg.model.config.checkpoint_name_or_path if required else "")
    if not source:
        if required:
            raise CheckpointError(
                f"run_mode {cfg.run_mode} needs weights: give --load_checkpoint FILE (or load_checkpoint in the YAML)"
            )
        logger.info("no load_checkpoint: the weights start from random values (seed %d)", cfg.seed)
        return None
    if cfg.auto_trans_ckpt:  # of any layout into this process' whole network
        load_slices(network, source, strategy=cfg.src_strategy_path_or_dir, strict=cfg.load_checkpoint_strict)
        return Path(source)
    path = resolve_checkpoint(source, rank)
    params = read_checkpoint(path)
    alone = cfg.adapter_checkpoint or not any(is_adapter_name(modern_name(name)) for name in params)
    ignore = (ADAPTER_PATTERN,) if adapted and alone else ()
    report = load_into(network, params, strict=cfg.load_checkpoint_strict, ignore=ignore)
    if report.missing:
        network.init_parameters_data()  # values for what the checkpoint lacks
    logger.info("weights loaded from %s", path)
    if adapted:
        load_adapter(network, cfg, map(modern_name, params), rank)
    return path
