# SPDX-License-Identifier: Apache-2.0
"""The choice of the next token, inside the graph: only token ids ever leave the device.

Legend: B rows, S positions of this call, V vocabulary, C candidates that are ranked.
"""

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from mindformers.generation.generation_config import GenerationConfig
from mindformers.generation.logits_process import LARGEST_FACTOR

__all__ = ["RANKED_CANDIDATES", "Choice", "TokenChooser", "controls_of"]

# Up to this many candidates a partial sort does (0.5 ms a row on CPU against 5 ms for all of 32000).
RANKED_CANDIDATES = 1024


@dataclass(frozen=True)
class Choice:
    """Which graph chooses tokens; everything else about the choice is an input of that graph.

    Attributes:
        method: "greedy"; "all", a draw from the whole vocabulary; "top", from at most RANKED_CANDIDATES
            likeliest tokens; "sorted", from a fully sorted vocabulary; "logits", the host chooses.
        penalised: apply the repetition penalty.
    """

    method: str
    penalised: bool = False

    @classmethod
    def of(cls, config: GenerationConfig) -> "Choice":
        """The graph that does what config asks, at the least cost."""
        penalised = config.repetition_penalty != 1.0
        if not config.do_sample:
            return cls("greedy", penalised)
        if 1 <= config.top_k <= RANKED_CANDIDATES:
            return cls("top", penalised)
        return cls("all" if config.top_k == 0 and config.top_p == 1.0 else "sorted", penalised)

    @property
    def draws(self) -> bool:
        """Whether random numbers are used."""
        return self.method in ("all", "top", "sorted")


def controls_of(config: GenerationConfig, vocab_size: int, uniform: np.ndarray) -> np.ndarray:
    """What steers the choice, one row per sequence.

    Args:
        config: the settings.
        vocab_size: V.
        uniform: fp32 (B,) random numbers in [0, 1) of this step.

    Returns:
        fp32 (B, 5): random number, 1/temperature, top_k, top_p, repetition penalty.
    """
    factor = min(1.0 / config.temperature, LARGEST_FACTOR)
    settings = (factor, min(config.top_k or vocab_size, vocab_size), config.top_p, config.repetition_penalty)
    return np.column_stack([uniform, np.tile(np.float32(settings), (len(uniform), 1))]).astype(np.float32)


class TokenChooser(nn.Cell):
    """Next tokens from logits.

    Args:
        choice: how.
        batch_size: B.
        vocab_size: V.

    Order of processing: repetition penalty, temperature, top-k, top-p. A draw inverts the cumulative distribution of
    what is left at one given uniform number per row, so it is reproducible on every device.
    """

    def __init__(self, choice: Choice, batch_size: int, vocab_size: int) -> None:
        super().__init__(auto_prefix=False)
        self.method = choice.method
        self.penalised = choice.penalised
        self.shape = (batch_size, vocab_size)
        self.candidates = vocab_size if choice.method == "sorted" else min(RANKED_CANDIDATES, vocab_size)
        self.argmax = ops.Argmax(-1, ms.int32)
        self.top = ops.TopK(sorted=True)
        self.columns = ops.Split(1, 5)
        self.ranks = Tensor(np.tile(np.arange(self.candidates, dtype=np.float32), (batch_size, 1)))  # (B, C)
        if self.penalised:
            self.scatter = ops.ScatterUpdate()
            self.row_starts = Tensor(np.arange(batch_size, dtype=np.int32)[:, None] * vocab_size)  # (B, 1)
            self.seen = Parameter(
                initializer("zeros", (batch_size * vocab_size,), ms.float32), name="seen", requires_grad=False
            )

    def forget(self) -> None:
        """Start new rows: no token has been seen."""
        if self.penalised:
            ops.assign(self.seen, ops.zeros_like(self.seen))

    def construct(self, logits: Tensor, tokens: Tensor, controls: Tensor) -> Tensor:
        """Choose.

        Args:
            logits: fp32 (B, V).
            tokens: int32 (B, S), tokens that joined the rows since the last choice.
            controls: fp32 (B, 5), see controls_of.

        Returns:
            int32 (B, 1); the logits unchanged for method "logits".
        """
        if self.method == "logits":
            return logits
        if self.penalised:
            logits = self._penalise(logits, tokens, controls)
        if self.method == "greedy":
            return ops.reshape(self.argmax(logits), (-1, 1))
        uniform, factor, top_k, top_p, _ = self.columns(controls)  # (B, 1) each
        if self.method == "all":
            cumulated = ops.cumsum(ops.softmax(logits * factor, -1), -1)
            total = ops.slice(cumulated, (0, self.shape[1] - 1), (self.shape[0], 1))
            return self._invert(cumulated, uniform * total)
        scores, ids = self.top(logits, self.candidates)  # (B, C), best first
        best = ops.slice(scores, (0, 0), (self.shape[0], 1))
        weights = ops.exp((scores - best) * factor) * ops.cast(ops.less(self.ranks, top_k), ms.float32)
        cumulated = ops.cumsum(weights, -1)
        total = ops.slice(cumulated, (0, self.candidates - 1), (self.shape[0], 1))
        kept = ops.cast(ops.less(cumulated - weights, total * top_p), ms.float32)
        # the largest kept partial sum, not a sum of its own: the place found is then among the kept for sure
        kept_total = ops.ReduceMax(True)(cumulated * kept, -1)
        return ops.cast(ops.gather_elements(ids, 1, self._invert(cumulated, uniform * kept_total)), ms.int32)

    def _invert(self, cumulated: Tensor, target: Tensor) -> Tensor:
        """(B, C) and (B, 1) -> int32 (B, 1), first place whose partial sum is above the target."""
        below = ops.cast(ops.less_equal(cumulated, target), ms.float32)
        return ops.cast(ops.ReduceSum(True)(below, -1), ms.int32)

    def _penalise(self, logits: Tensor, tokens: Tensor, controls: Tensor) -> Tensor:
        places = ops.reshape(tokens + self.row_starts, (-1,))
        seen = ops.reshape(self.scatter(self.seen, places, ops.cast(ops.ones_like(places), ms.float32)), self.shape)
        _, _, _, _, penalty = self.columns(controls)
        changed = ops.relu(logits) / penalty - ops.relu(-logits) * penalty
        return logits + seen * (changed - logits)
