# SPDX-License-Identifier: Apache-2.0
"""Scores of texts under a model, and the model class of lm-evaluation-harness that gives them."""

from mindformers.evaluation.harness import harness_model, run_harness
from mindformers.evaluation.scoring import TextScorer

__all__ = ["TextScorer", "harness_model", "run_harness"]
