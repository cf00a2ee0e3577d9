# SPDX-License-Identifier: Apache-2.0
"""Head and cross entropy where the head learns nothing: the logits of a batch are never there as a whole."""

import mindspore as ms
from mindspore import Tensor, nn, ops

_ROWS = 256  # positions whose logits are there at a time
_MOST_PARTS = 16  # each part is compiled apart


class FrozenHeadLoss(nn.Cell):
    """Sum of ``-mask * log softmax(hidden @ weight.T)[label]``, with a gradient for hidden alone.

    In training the gradient is computed with the loss, part by part, as
    ``mask * (softmax(logits) @ weight - weight[label])``; the backward pass only multiplies it. The logits of 256
    positions live at a time, where log-softmax and gather keep three tensors of all of them.

    Inputs: hidden (T, H) and weight (V, H) of one type, labels (T,) int32, any value where the mask is 0, mask (T,)
    fp32, 0 or 1. Output: (the sum, fp32 (), and its gradient (T, H); hidden in its place where nothing is learnt).
    """

    def __init__(self) -> None:
        super().__init__()
        self.logits = ops.MatMul(transpose_b=True)
        self.back = ops.MatMul()
        self.log_softmax = ops.LogSoftmax(-1)
        self.pick = ops.GatherD()
        self.exp = ops.Exp()
        self.row = ops.Gather()
        self.concat = ops.Concat(0)

    def _part(self, hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor) -> tuple:
        """Loss and gradient of some positions."""
        logs = self.log_softmax(ops.cast(self.logits(hidden, weight), ms.float32))
        picked = ops.reshape(self.pick(logs, 1, ops.reshape(labels, (-1, 1))), (-1,))
        total = -ops.reduce_sum(picked * mask)
        if not self.training:
            return total, hidden
        expected = self.back(ops.cast(self.exp(logs), hidden.dtype), weight) - self.row(weight, labels, 0)  # (T, H)
        spread = ops.broadcast_to(ops.expand_dims(ops.cast(mask, hidden.dtype), 1), expected.shape)
        return total, expected * spread

    def construct(self, hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor) -> tuple:
        """(sum, gradient)."""
        length, width = hidden.shape
        size = max(_ROWS, -(-length // _MOST_PARTS))
        safe = labels * ops.cast(mask, ms.int32)  # ignored labels may lie outside [0, V)
        totals, gradients = (), ()
        for start in range(0, length, size):
            count = min(size, length - start)
            rows = ops.slice(hidden, (start, 0), (count, width))
            if start > 0:
                rows = ops.depend(rows, gradients[-1])  # one part after the other
            part = (ops.slice(safe, (start,), (count,)), ops.slice(mask, (start,), (count,)))
            total, gradient = self._part(rows, weight, *part)
            totals, gradients = (*totals, total), (*gradients, gradient)
        if len(totals) == 1:
            return totals[0], gradients[0]
        return ops.addn(totals), self.concat(gradients)

    def bprop(self, hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor, out: tuple, dout: tuple) -> tuple:
        """Gradient of hidden; zeros for the rest."""
        dhidden = out[1] * ops.cast(dout[0], hidden.dtype)
        return dhidden, ops.zeros_like(weight), ops.zeros_like(labels), ops.zeros_like(mask)
