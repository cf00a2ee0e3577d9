# SPDX-License-Identifier: Apache-2.0
"""Weights in the layouts of Hugging Face and of Meta, read and written under our names."""

from mindformers.checkpoint.foreign.detect import foreign_kind
from mindformers.checkpoint.foreign.source import ForeignTensors, WeightSource, open_foreign

__all__ = ["ForeignTensors", "WeightSource", "foreign_kind", "open_foreign"]
