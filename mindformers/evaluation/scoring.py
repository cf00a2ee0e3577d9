# SPDX-License-Identifier: Apache-2.0
"""Log-likelihoods of continuations, in batches of few different shapes.

Legend: B rows, S tokens of a row, T = B * S, V vocabulary.
"""

from collections.abc import Iterator, Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from tqdm import tqdm

from mindformers.errors import ConfigError, DataError
from mindformers.tools.logger import get_logger

__all__ = ["ScoreCell", "TextScorer"]

logger = get_logger(__name__)

SMALLEST_BUCKET = 32


class ScoreCell(nn.Cell):
    """Log-likelihood of chosen next tokens, so that no logits leave the graph.

    Args:
        network: a LlamaForCausalLM.
    """

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.log_softmax = ops.LogSoftmax(-1)
        self.gather = ops.GatherD()

    def construct(self, tokens: Tensor, targets: Tensor, mask: Tensor) -> tuple:
        """Score each row.

        Args:
            tokens: int32 (B, S).
            targets: int32 (B, S), the token expected after each.
            mask: fp32 (B, S), 1 where the target counts.

        Returns:
            fp32 (B,) summed log-probabilities of the targets in nats, and fp32 (B,) how many counted targets are not
            the likeliest token.
        """
        b, s = tokens.shape
        scores = self.log_softmax(ops.reshape(self.network(tokens)[0], (b * s, -1)))  # (T, V)
        flat = ops.reshape(targets, (-1, 1))
        chosen = ops.reshape(self.gather(scores, 1, flat), (b, s))
        likeliest = ops.reshape(ops.argmax(scores, 1), (b, s))
        missed = ops.cast(ops.not_equal(ops.cast(likeliest, ms.int32), targets), ms.float32)
        return ops.reduce_sum(chosen * mask, 1), ops.reduce_sum(missed * mask, 1)


class TextScorer:
    """Scores (context, continuation) pairs of token ids.

    Rows are put into buckets by length, powers of two up to the model's sequence length; a bucket has one compiled
    graph of ``batch_size`` rows, whatever comes.

    Args:
        network: a LlamaForCausalLM with its weights.
        batch_size: rows computed together.

    Raises:
        ConfigError: ``batch_size`` is below 1.
    """

    def __init__(self, network: nn.Cell, batch_size: int = 8) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size} is not allowed: give 1 or more")
        self.network = network
        self.batch_size = batch_size
        self.max_length = network.config.seq_length
        self._cell = ScoreCell(network)

    def score(self, pairs: Sequence[tuple[list[int], list[int]]], progress: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after its context.

        Args:
            pairs: (context, continuation) ids; a context has at least one token. Where both together are longer than
                the model reads, the left end of the context is left out, and counted in one warning.
            progress: show a progress bar.

        Returns:
            For each pair the log-probability in nats and whether every token of it is the likeliest one. An empty
            continuation has (0.0, True).

        Raises:
            DataError: an empty context, a continuation longer than the model reads, or ids outside the vocabulary.
        """
        for number, (context, continuation) in enumerate(pairs):
            self._check(number, context, continuation)
        cut = sum(len(context) + len(continuation) > self.max_length + 1 for context, continuation in pairs)
        if cut:
            logger.warning("%d of %d texts are longer than seq_length %d: their left ends are cut off",
                           cut, len(pairs), self.max_length)  # fmt: skip
        results: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        wanted = [number for number, pair in enumerate(pairs) if pair[1]]
        training = self.network.training
        self.network.set_train(False)
        try:
            with tqdm(total=len(wanted), desc="score", unit="text", disable=None if progress else True) as bar:
                for length, numbers in self._batches(pairs, wanted):
                    self._run(length, [pairs[number] for number in numbers], numbers, results)
                    bar.update(len(numbers))
        finally:
            self.network.set_train(training)
        return results

    def num_compiled(self) -> int:
        """Graphs compiled so far, at most one per bucket."""
        return len(self._cell.compile_cache)

    def bucket(self, length: int) -> int:
        """Row length that a sequence of ``length`` tokens is filled up to."""
        return min(self.max_length, max(SMALLEST_BUCKET, 1 << (length - 1).bit_length()))

    def _check(self, number: int, context: list[int], continuation: list[int]) -> None:
        if not context:
            raise DataError(f"text {number} has an empty context: give at least one token, such as bos")
        if len(continuation) > self.max_length:
            raise DataError(
                f"the continuation of text {number} has {len(continuation)} tokens, more than seq_length "
                f"{self.max_length}: score it in windows (loglikelihood_rolling), or raise seq_length"
            )
        size = self.network.config.vocab_size
        wrong = next((token for token in (*context, *continuation) if not 0 <= token < size), None)
        if wrong is not None:
            raise DataError(f"text {number} holds the id {wrong}, but the vocabulary has ids 0 to {size - 1}")

    def _batches(self, pairs: Sequence[tuple], wanted: list[int]) -> Iterator[tuple[int, list[int]]]:
        """(row length, numbers of pairs), the longest first."""
        buckets: dict[int, list[int]] = {}
        for number in wanted:
            context, continuation = pairs[number]
            rows = min(len(context) + len(continuation) - 1, self.max_length)
            buckets.setdefault(self.bucket(rows), []).append(number)
        for length in sorted(buckets, reverse=True):
            numbers = buckets[length]
            for start in range(0, len(numbers), self.batch_size):
                yield length, numbers[start : start + self.batch_size]

    def _run(self, length: int, pairs: list[tuple], numbers: list[int], results: list[tuple[float, bool]]) -> None:
        tokens, targets = (np.zeros((self.batch_size, length), np.int32) for _ in range(2))
        mask = np.zeros((self.batch_size, length), np.float32)
        for row, (context, continuation) in enumerate(pairs):
            ids = np.asarray([*context, *continuation][-(length + 1) :] if len(context) + len(continuation) > length + 1
                             else [*context, *continuation], np.int32)  # fmt: skip
            n = len(ids) - 1
            tokens[row, :n], targets[row, :n] = ids[:-1], ids[1:]
            mask[row, n - len(continuation) : n] = 1.0
        sums, missed = (part.asnumpy() for part in self._cell(Tensor(tokens), Tensor(targets), Tensor(mask)))
        for row, number in enumerate(numbers):
            results[number] = (float(sums[row]), bool(missed[row] == 0))
