# SPDX-License-Identifier: Apache-2.0
"""Global gradient norm and clipping by it (Pascanu et al. 2013)."""

import math
from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

from mindformers.errors import ConfigError

__all__ = ["ClipGradNorm", "global_norm", "squared_sums"]

_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_ adds the same

_cast = ops.Cast()
_reduce_sum = ops.ReduceSum()
_squared_sum = ops.MultitypeFuncGraph("squared_sum")
_scale = ops.MultitypeFuncGraph("scale")


@_squared_sum.register("Tensor")
def _squared_sum_of(gradient):
    gradient = _cast(gradient, ms.float32)
    # by rows first: on CPU ReduceSum over the last axis is several times as fast as one over all axes
    rows = _reduce_sum(gradient * gradient, -1) if gradient.ndim > 1 else gradient * gradient
    return _reduce_sum(rows)


@_scale.register("Tensor", "Tensor")
def _scaled(factor, gradient):
    return gradient * _cast(factor, gradient.dtype)


def global_norm(gradients: tuple) -> Tensor:
    """Root of the sum of squares of all values, a fp32 scalar; gradients may be of any float type.

    Usable inside a compiled cell, so that a train step can fold the clip factor into another product.
    """
    return ops.sqrt(ops.addn(squared_sums(gradients)))


def squared_sums(gradients: tuple) -> tuple:
    """The sum of squares of each tensor, fp32 scalars."""
    return ops.HyperMap()(_squared_sum, gradients)


class ClipGradNorm(nn.Cell):
    """Scales gradients down so that their global norm is at most ``max_norm``.

    Args:
        max_norm: the bound, positive.
        use_norm: a norm to clip by instead of the measured one.

    Inputs: a tuple of gradients. Outputs: (gradients times ``min(1, max_norm / (norm + 1e-6))`` in their own types,
    norm before clipping as a fp32 scalar).

    Raises:
        ConfigError: an argument is not a positive number.
    """

    def __init__(self, max_norm: float = 1.0, use_norm: float | None = None) -> None:
        super().__init__()
        self.max_norm = _positive("max_norm", max_norm)
        self.use_norm = None if use_norm is None else Tensor(_positive("use_norm", use_norm), ms.float32)
        self.one = Tensor(1.0, ms.float32)
        self.hyper_map = ops.HyperMap()

    def construct(self, gradients: tuple) -> tuple[tuple, Tensor]:
        """Clipped gradients and the norm."""
        norm = global_norm(gradients) if self.use_norm is None else self.use_norm
        factor = ops.minimum(self.one, self.max_norm / (norm + _EPSILON))
        return self.hyper_map(ops.partial(_scale, factor), gradients), norm


def _positive(key: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ConfigError(f"ClipGradNorm: {key} must be a number above 0, got {value!r}")
    return float(value)
