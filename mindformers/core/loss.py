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

    def total(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Sum instead of mean; arguments as in construct."""
        safe = ops.reshape(labels * ops.cast(mask, ms.int32), (-1, 1))  # ignored labels may lie outside [0, V)
        picked = self.gather(self.log_softmax(ops.cast(logits, ms.float32)), 1, safe)
        return -ops.reduce_sum(ops.reshape(picked, (-1,)) * mask)

    def construct(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Scalar loss; 0 when the mask is empty.

        Args:
            logits: (T, V).
            labels: (T,) int32.
            mask: (T,) fp32, 1 where the label counts, 0 elsewhere.
        """
        return self.total(logits, labels, mask) / ops.maximum(ops.reduce_sum(mask), Tensor(1.0, ms.float32))
