# SPDX-License-Identifier: Apache-2.0
"""The global gradient norm where each rank holds parts of the gradients."""

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from mindformers.core.clip_grad import squared_sums
from mindformers.core.parallel_context import stage_ranks

_weighted = ops.MultitypeFuncGraph("weighted_square")


@_weighted.register("Tensor", "Tensor")
def _times_share(square: Tensor, share: Tensor) -> Tensor:
    return square * ops.reshape(share, ())


class SplitGlobalNorm(nn.Cell):
    """Root of the sum of squares of all gradients, of which this rank holds slices.

    Args:
        weights: the trained parameters, not yet compiled: their shapes are those of the whole model.

    A slice that ``r`` ranks of a pipeline stage hold counts ``1 / r`` on each of them; one AllReduce over all ranks and
    stages then gives every square once, and the same norm everywhere. How parameters are sliced is known when the
    network is compiled: :meth:`measure` has to be called between that and the first step.
    """

    def __init__(self, weights: ParameterTuple) -> None:
        super().__init__()
        self.whole_sizes = [math.prod(weight.shape) for weight in weights]
        self.shares = Parameter(Tensor(np.zeros(len(weights)), ms.float32), name="norm_shares", requires_grad=False)
        self.measured = False
        self.all_reduce = ops.AllReduce()
        self.split = ops.Split(0, len(weights))
        self.hyper_map = ops.HyperMap()

    def measure(self, weights: ParameterTuple) -> None:
        """Read from the compiled parameters which part of each of them this rank holds; later calls do nothing."""
        if self.measured:
            return
        self.measured = True
        ranks = stage_ranks()
        slices = [whole / math.prod(weight.shape) for whole, weight in zip(self.whole_sizes, weights, strict=True)]
        self.shares.set_data(Tensor(np.array(slices) / ranks, ms.float32))

    def construct(self, gradients: tuple) -> Tensor:
        """The norm, a fp32 scalar."""
        # one by one: in a pipeline MindSpore drops the gradients of other stages from this tuple
        parts = self.hyper_map(_weighted, squared_sums(gradients), self.split(self.shares))
        return ops.sqrt(self.all_reduce(ops.addn(parts)))
