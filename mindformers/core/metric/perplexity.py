# SPDX-License-Identifier: Apache-2.0
"""Perplexity, weighted by tokens."""

import math
from typing import Any

import mindspore as ms
import numpy as np
from mindspore.communication import GlobalComm, get_group_size, get_rank

from mindformers.errors import DataError
from mindformers.registry import MindFormerModuleType, MindFormerRegister


@MindFormerRegister.register(MindFormerModuleType.METRIC)
class PerplexityMetric:
    """Mean cross entropy per label token over a whole dataset, and its exponential.

    A mean of batch means would give the tokens of a short batch more weight, so sums are kept (in float64). Padding and
    ignored labels weigh nothing. With a pipeline only the ranks of its last stage know the loss; the others report
    nothing.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything seen."""
        self.total = 0.0
        self.num_tokens = 0

    def update(self, *values: Any) -> None:
        """Add a batch.

        Args:
            *values: either the cross entropy in nats summed over the batch's label tokens, and their number; or what
                the model gives in evaluation: logits (B, S, V), tokens (B, S) and mask (B, S), 1 where a token
                counts as a label and 0 where it is padding.

        Raises:
            DataError: other values, or a mask of anything but 0 and 1 (1 and 2 would count padding by half).
        """
        if len(values) == 3:
            loss_sum, num_tokens = _sums(*(_array(value) for value in values))
        elif len(values) == 2:
            loss_sum, num_tokens = values
        else:
            raise DataError(f"PerplexityMetric takes (loss sum, tokens) or (logits, tokens, mask), got {len(values)}")
        self.total += float(loss_sum)
        self.num_tokens += round(float(num_tokens))

    def eval(self) -> dict[str, float]:
        """``{"loss": nats per token, "PPL": exp(loss)}``; empty on a rank that is not in the pipeline's last stage.

        Raises:
            DataError: there was no label token at all.
        """
        if not in_last_stage():
            return {}
        if not self.num_tokens:
            raise DataError("perplexity of no token: every label of the evaluation data is padding or ignored")
        loss = self.total / self.num_tokens
        return {"loss": loss, "PPL": math.exp(min(loss, 700.0))}


def in_last_stage() -> bool:
    """Whether this process holds the last pipeline stage, the one that computes the loss."""
    if not GlobalComm.INITED:
        return True
    stages, ranks = ms.get_auto_parallel_context("pipeline_stages"), get_group_size()
    return get_rank() * stages // ranks == stages - 1


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.asnumpy() if hasattr(value, "asnumpy") else value)


def _sums(logits: np.ndarray, tokens: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Summed cross entropy of the next tokens, and their number."""
    if logits.ndim != 3 or logits.shape[:2] != tokens.shape or tokens.shape != mask.shape:
        shapes = f"{logits.shape}, {tokens.shape}, {mask.shape}"
        raise DataError(f"logits, tokens, mask have the shapes {shapes}; expected (B, S, V), (B, S), (B, S)")
    if not np.isin(mask, (0, 1)).all():
        raise DataError(f"the mask holds values from {mask.min()} to {mask.max()}; only 0 and 1 have a meaning")
    scores = logits[:, :-1].astype(np.float64)
    scores -= scores.max(-1, keepdims=True)
    chosen = np.take_along_axis(scores, tokens[:, 1:, None].astype(np.int64), -1)[..., 0]
    losses = np.log(np.exp(scores).sum(-1)) - chosen
    weights = mask[:, 1:].astype(np.float64)
    return float((losses * weights).sum()), float(weights.sum())
