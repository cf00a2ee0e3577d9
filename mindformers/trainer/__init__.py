# SPDX-License-Identifier: Apache-2.0
"""Runs: training, evaluation and prediction from one config."""

from mindformers.trainer.trainer import Trainer

__all__ = ["Trainer"]
