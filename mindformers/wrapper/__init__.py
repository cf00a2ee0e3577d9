# SPDX-License-Identifier: Apache-2.0
"""Cells that make a network trainable: one step of forward, backward and update."""

from mindformers.wrapper.interleave import InterleavedLoss
from mindformers.wrapper.pipeline_step import MFPipelineWithLossScaleCell
from mindformers.wrapper.train_step import MFTrainOneStepCell

__all__ = ["InterleavedLoss", "MFPipelineWithLossScaleCell", "MFTrainOneStepCell"]
