# SPDX-License-Identifier: Apache-2.0
"""Perplexity, weighted by tokens."""

import math

from mindformers.errors import DataError
from mindformers.registry import MindFormerModuleType, MindFormerRegister


@MindFormerRegister.register(MindFormerModuleType.METRIC)
class PerplexityMetric:
    """Mean cross entropy per label token over a whole dataset, and its exponential.

    A mean of batch means would give the tokens of a short batch more weight, so sums are kept (in float64).
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything seen."""
        self.total = 0.0
        self.num_tokens = 0

    def update(self, loss_sum: float, num_tokens: float) -> None:
        """Add a batch.

        Args:
            loss_sum: cross entropy in nats, summed over the batch's label tokens.
            num_tokens: their number.
        """
        self.total += float(loss_sum)
        self.num_tokens += round(float(num_tokens))

    def eval(self) -> dict[str, float]:
        """``{"loss": nats per token, "PPL": exp(loss)}``.

        Raises:
            DataError: there was no label token at all.
        """
        if not self.num_tokens:
            raise DataError("perplexity of no token: every label of the evaluation data is padding or ignored")
        loss = self.total / self.num_tokens
        return {"loss": loss, "PPL": math.exp(min(loss, 700.0))}
