# SPDX-License-Identifier: Apache-2.0
"""Values and gradients of a cell, and how they are compared."""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn


class _Weighted(nn.Cell):
    """Sum of a cell's output times a fixed tensor: its gradient by the output is that tensor."""

    def __init__(self, cell: nn.Cell, dout: Tensor) -> None:
        super().__init__()
        self.cell = cell
        self.dout = dout

    def construct(self, *inputs: Tensor) -> Tensor:
        return (self.cell(*inputs) * self.dout).sum()


def value_and_gradients(
    cell: nn.Cell, inputs: Sequence[np.ndarray], dout: np.ndarray, others: Sequence[Tensor] = ()
) -> list[np.ndarray]:
    """The output, then the gradients of the float inputs and of the parameters, given that of the output.

    Args:
        cell: the cell.
        inputs: its float32 inputs.
        dout: gradient of its output.
        others: inputs after those, which get no gradient.
    """
    tensors = [Tensor(np.asarray(x), ms.float32) for x in inputs]
    weighted = _Weighted(cell, Tensor(np.asarray(dout), ms.float32))
    weights = list(cell.trainable_params())
    gradient = ms.grad(weighted, tuple(range(len(inputs))), weights or None)(*tensors, *others)
    of_inputs, of_weights = gradient if weights else (gradient, ())
    of_inputs = of_inputs if isinstance(of_inputs, tuple) else (of_inputs,)
    return [g.asnumpy() for g in (cell(*tensors, *others), *of_inputs, *of_weights)]


def distance(actual: np.ndarray, expected: np.ndarray) -> float:
    """Relative L2 distance."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30))


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Same shape, and a relative L2 distance of at most the tolerance."""
    assert actual.shape == expected.shape
    assert distance(actual, expected) <= tolerance
