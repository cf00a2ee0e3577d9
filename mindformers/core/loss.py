# SPDX-License-Identifier: Apache-2.0
"""Cross entropy over the vocabulary, averaged over the label tokens."""

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindformers.registry import MindFormerModuleType, MindFormerRegister


@MindFormerRegister.register(MindFormerModuleType.LOSS)
class CrossEntropyLoss(nn.Cell):
    """Mean of ``-log softmax(logits)[label]`` over the positions whose mask is 1, in fp32.

    A log-softmax and a gather were the fastest formulation measured on CPU; a dense one-hot, ``ops.cross_entropy``
    and a hand-written logsumexp cost between 1.5 and 6 times as much.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_softmax = ops.LogSoftmax(-1)
        self.gather = ops.GatherD()
        self.clear = ops.Mul()
        self.mul = ops.Mul()
        self.sum = ops.ReduceSum()

    def total(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Sum instead of mean; arguments as in construct."""
        safe = ops.reshape(
            self.clear(labels, ops.cast(mask, ms.int32)), (-1, 1)
        )  # ignored labels may lie outside [0, V)
        picked = self.gather(self.log_softmax(ops.cast(logits, ms.float32)), 1, safe)
        return -self.sum(self.mul(ops.reshape(picked, (-1,)), mask))

    def construct(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Scalar loss; 0 when the mask is empty.

        Args:
            logits: (T, V).
            labels: (T,) int32.
            mask: (T,) fp32, 1 where the label counts, 0 elsewhere.
        """
        return self.total(logits, labels, mask) / ops.maximum(ops.reduce_sum(mask), Tensor(1.0, ms.float32))


class SplitCrossEntropyLoss(CrossEntropyLoss):
    """The same loss from operations that can be split along the vocabulary: the logits of a row never meet on one rank.

    ``log(sum(exp(z - max))) - (z - max)[label]``; only the maxima, the sums and the picked values are combined.
    """

    def __init__(self) -> None:
        super().__init__()
        self.highest = ops.ReduceMax(keep_dims=True)
        self.shift = ops.Sub()
        self.exp = ops.Exp()
        self.add_up = ops.ReduceSum(keep_dims=True)
        self.log = ops.Log()
        self.one_hot = ops.OneHot()
        self.one = Tensor(1.0, ms.float32)
        self.zero = Tensor(0.0, ms.float32)
        self.pick = ops.Mul()
        self.subtract = ops.Sub()

    def total(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Sum instead of mean; arguments as in construct."""
        safe = self.clear(labels, ops.cast(mask, ms.int32))
        logits = ops.cast(logits, ms.float32)
        shifted = self.shift(logits, ops.stop_gradient(self.highest(logits, -1)))
        chosen = self.one_hot(safe, logits.shape[1], self.one, self.zero)
        picked = self.add_up(self.pick(shifted, chosen), -1)
        losses = self.subtract(self.log(self.add_up(self.exp(shifted), -1)), picked)  # (T, 1)
        return self.sum(self.mul(ops.reshape(losses, (-1,)), mask))
