# SPDX-License-Identifier: Apache-2.0
"""What an evaluation measures."""

from mindformers.core.metric.em_f1 import EmF1Metric, SquadMetric
from mindformers.core.metric.perplexity import PerplexityMetric

__all__ = ["EmF1Metric", "PerplexityMetric", "SquadMetric"]
