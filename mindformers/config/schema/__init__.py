# SPDX-License-Identifier: Apache-2.0
"""The schema: one pydantic model per section of the YAML, the only description of what a config may hold."""

from mindformers.config.schema.base import Component, Finding, Section
from mindformers.config.schema.model import LlamaModelConfig, LoraSection
from mindformers.config.schema.parallel import MoEConfig, TransformerOpParallelConfig, TransformerRecomputeConfig
from mindformers.config.schema.run import RunConfig

__all__ = [
    "Component",
    "Finding",
    "LlamaModelConfig",
    "LoraSection",
    "MoEConfig",
    "RunConfig",
    "Section",
    "TransformerOpParallelConfig",
    "TransformerRecomputeConfig",
]
