# SPDX-License-Identifier: Apache-2.0
"""Runs: training, evaluation and prediction from one config."""

from mindformers.core.context_config import ContextConfig, ParallelContextConfig
from mindformers.trainer.config_args import (
    BaseArgsConfig,
    CheckpointConfig,
    CloudConfig,
    ConfigArguments,
    DataLoaderConfig,
    DatasetConfig,
    LRConfig,
    OptimizerConfig,
    RunnerConfig,
    WrapperConfig,
)
from mindformers.trainer.trainer import Trainer
from mindformers.trainer.training_args import TrainingArguments

__all__ = [
    "BaseArgsConfig",
    "CheckpointConfig",
    "CloudConfig",
    "ConfigArguments",
    "ContextConfig",
    "DataLoaderConfig",
    "DatasetConfig",
    "LRConfig",
    "OptimizerConfig",
    "ParallelContextConfig",
    "RunnerConfig",
    "Trainer",
    "TrainingArguments",
    "WrapperConfig",
]
