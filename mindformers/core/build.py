# SPDX-License-Identifier: Apache-2.0
"""Objects of core from sections of a config: one call of the registry each, by their old names."""

from collections.abc import Mapping, Sequence
from typing import Any

from mindformers.config import TransformerOpParallelConfig, TransformerRecomputeConfig
from mindformers.core.context import init_context
from mindformers.errors import ConfigError
from mindformers.registry import MindFormerModuleType, MindFormerRegister

__all__ = [
    "build_callback",
    "build_context",
    "build_loss",
    "build_lr",
    "build_metric",
    "build_optim",
    "build_parallel_config",
]


def build_lr(config: Mapping[str, Any], default_args: Mapping[str, Any] | None = None) -> Any:
    """The learning rate schedule of a section ``lr_schedule``; ``default_args`` fill in what it leaves out.

    Raises:
        ConfigError: an unknown ``type`` or argument, as for the other functions here.
    """
    return _build(config, MindFormerModuleType.LR, default_args)


def build_optim(config: Mapping[str, Any], default_args: Mapping[str, Any] | None = None) -> Any:
    """The optimizer of a section ``optimizer``; ``default_args`` bring ``params``."""
    return _build(config, MindFormerModuleType.OPTIMIZER, default_args)


def build_loss(config: Mapping[str, Any], default_args: Mapping[str, Any] | None = None) -> Any:
    """The loss that a mapping with ``type`` describes."""
    return _build(config, MindFormerModuleType.LOSS, default_args)


def build_metric(config: Mapping[str, Any], default_args: Mapping[str, Any] | None = None) -> Any:
    """The metric of a section ``metric``."""
    return _build(config, MindFormerModuleType.METRIC, default_args)


def build_callback(
    config: Mapping[str, Any] | Sequence[Mapping[str, Any]], default_args: Mapping[str, Any] | None = None
) -> list[Any]:
    """The callbacks of a section ``callbacks``, or of one entry of it."""
    sections = [config] if isinstance(config, Mapping) else list(config)
    return [_build(section, MindFormerModuleType.CALLBACK, default_args) for section in sections]


def build_context(config: Any) -> tuple[int, int]:
    """Set the device up as a config says (``use_parallel``, ``context``, ``parallel``, ``output_dir``).

    Args:
        config: a RunConfig or a MindFormerConfig.

    Returns:
        (rank of this process, number of processes).
    """
    return init_context(config.use_parallel, config.context, config.parallel, config.output_dir)


def build_parallel_config(config: Any) -> None:
    """Turn ``recompute_config`` and ``parallel_config`` of a MindFormerConfig into checked sections, in place.

    Raises:
        ConfigError: an unknown key or a wrong value.
    """
    for key, section in (
        ("recompute_config", TransformerRecomputeConfig),
        ("parallel_config", TransformerOpParallelConfig),
    ):
        config[key] = section(**dict(getattr(config, key))).to_dict()


def _build(config: Any, kind: str, default_args: Mapping[str, Any] | None) -> Any:
    if not isinstance(config, Mapping):
        raise ConfigError(f"a {kind} section must be a mapping with a key 'type', got {type(config).__name__}")
    return MindFormerRegister.get_instance_from_cfg(config, kind, default_args)
