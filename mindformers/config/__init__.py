# SPDX-License-Identifier: Apache-2.0
"""Strict configuration: YAML, command line and scripts read through one schema, without MindSpore."""

from mindformers.config.dictview import ActionDict, MindFormerConfig, UnknownKeyError
from mindformers.config.load import load_config
from mindformers.config.overrides import Override
from mindformers.config.save import save_config
from mindformers.config.schema import (
    Component,
    LlamaModelConfig,
    LoraSection,
    MoEConfig,
    RunConfig,
    Section,
    TransformerOpParallelConfig,
    TransformerRecomputeConfig,
)

__all__ = [
    "ActionDict",
    "Component",
    "LlamaModelConfig",
    "LoraSection",
    "MindFormerConfig",
    "MoEConfig",
    "Override",
    "RunConfig",
    "Section",
    "TransformerOpParallelConfig",
    "TransformerRecomputeConfig",
    "UnknownKeyError",
    "load_config",
    "save_config",
]
