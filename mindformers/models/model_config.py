# SPDX-License-Identifier: Apache-2.0
"""From a source to the model's config object."""

from collections.abc import Mapping
from typing import Any

import mindspore as ms

from mindformers.checkpoint.foreign import foreign_kind
from mindformers.config import RunConfig
from mindformers.core.context import device_capabilities
from mindformers.models.llama.llama_config import LlamaConfig
from mindformers.models.pretrained import Source, run_config_of, saved_weights
from mindformers.registry import MindFormerModuleType, MindFormerRegister
from mindformers.tools.logger import get_logger

__all__ = ["model_config_from_run", "model_config_of"]

logger = get_logger(__name__)


def model_config_of(source: Source, changes: Mapping[str, Any]) -> LlamaConfig:
    """The config of a source; its ``checkpoint_name_or_path`` leads to the source's weights, or is empty.

    Args:
        source: from ``find_source``.
        changes: keys of ``model.model_config`` and the values they get.

    Raises:
        ConfigError: an unknown key, or a value that is not allowed.
    """
    if source.kind == "foreign":
        from mindformers.models.llama.foreign_config import llama_config_from

        config = llama_config_from(source.path)
        config.checkpoint_name_or_path = str(source.path) if foreign_kind(source.path) else ""
        config.use_past = True  # these files describe weights, and whoever loads them so wants to generate
        _run_in_a_dtype_of_the_device(config)
    else:
        run = run_config_of(source)
        config = model_config_from_run(run)
        if source.kind == "ours":
            config.checkpoint_name_or_path = str(saved_weights(source) or "")
        elif source.kind == "yaml":
            config.checkpoint_name_or_path = run.load_checkpoint or config.checkpoint_name_or_path
        # the shipped YAML of a name says which weights belong to it
    for key, value in changes.items():
        setattr(config, key, value)
    return config


def _run_in_a_dtype_of_the_device(config: LlamaConfig) -> None:
    """Foreign files say how weights are stored; where the device cannot compute in that type, float32 is used."""
    target = ms.get_context("device_target")
    stored = config.compute_dtype
    if stored not in device_capabilities(target).compute_dtypes:
        config.compute_dtype = config.param_init_type = "float32"
        logger.info("the weights are %s, which MindSpore does not compute on %s: float32 is used", stored, target)


def model_config_from_run(run: RunConfig) -> LlamaConfig:
    """The config object of the section ``model`` of a run, with the class of model that section names."""
    values = run.model.config.model_dump()
    config = MindFormerRegister.get_cls(MindFormerModuleType.CONFIG, values["type"])(**values)
    config.architecture = run.model.arch.type
    return config
