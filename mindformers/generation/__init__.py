# SPDX-License-Identifier: Apache-2.0
"""Text generation: its configuration, the processing of logits, the decode loop, streaming."""

from mindformers.generation.generation_config import GenerationConfig
from mindformers.generation.logits_process import (
    LogitNormalization,
    LogitsProcessor,
    LogitsProcessorList,
    LogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from mindformers.generation.streamers import BaseStreamer, TextIteratorStreamer, TextStreamer
from mindformers.generation.text_generator import GeneratorMixin

__all__ = [
    "BaseStreamer",
    "GenerationConfig",
    "GeneratorMixin",
    "LogitNormalization",
    "LogitsProcessor",
    "LogitsProcessorList",
    "LogitsWarper",
    "RepetitionPenaltyLogitsProcessor",
    "TemperatureLogitsWarper",
    "TextIteratorStreamer",
    "TextStreamer",
    "TopKLogitsWarper",
    "TopPLogitsWarper",
]
