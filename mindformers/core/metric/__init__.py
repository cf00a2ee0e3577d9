# SPDX-License-Identifier: Apache-2.0
"""What an evaluation measures."""

from mindformers.core.metric.perplexity import PerplexityMetric

__all__ = ["PerplexityMetric"]
