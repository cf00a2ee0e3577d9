# SPDX-License-Identifier: Apache-2.0
"""The gate of the feed-forward with its gradient written by hand: that of the formula, and of MindSpore's own."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from mindformers.modules.kernels import LeanSwiGLU, SwiGLU, swiglu


class Weighted(nn.Cell):
    """A sum whose gradient with respect to the gate's output is ``weight``."""

    def __init__(self, gate: nn.Cell) -> None:
        super().__init__()
        self.gate = gate

    def construct(self, x: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        return ops.reduce_sum(self.gate(x, up) * weight)


def inputs() -> list[np.ndarray]:
    """Gate values up to 50 on both sides, and two more arrays."""
    rng = np.random.default_rng(3)
    gate = np.concatenate((rng.standard_normal(60) * 3, [0.0, 20.0, -20.0, 50.0, -50.0]))
    return [array.reshape(5, 13) for array in (gate, *rng.standard_normal((2, 65)))]


def gradients(gate: nn.Cell, dtype: ms.Type) -> list[np.ndarray]:
    found = ms.grad(Weighted(gate), (0, 1))(*(Tensor(array, dtype) for array in inputs()))
    return [array.asnumpy().astype(np.float64) for array in found]


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
def test_gradients_are_those_of_the_formula(mode: int) -> None:
    x, up, weight = inputs()
    sigmoid = 1 / (1 + np.exp(-x))
    expected = [weight * up * (sigmoid + x * sigmoid * (1 - sigmoid)), weight * x * sigmoid]
    ms.set_context(mode=mode)
    try:
        found = gradients(LeanSwiGLU(), ms.float32)
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    for array, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, wanted, rtol=2e-6, atol=5e-6)


@pytest.mark.parametrize(("dtype", "bound"), [(ms.float32, 5e-6), (ms.float16, 2e-2)])
def test_gradients_are_mindspores(dtype: ms.Type, bound: float) -> None:
    for lean, own in zip(gradients(LeanSwiGLU(), dtype), gradients(SwiGLU(), dtype), strict=True):
        np.testing.assert_allclose(lean, own, rtol=bound, atol=bound)


def test_it_is_chosen_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINDFORMERS_NATIVE", "0")
    assert type(swiglu(ms.float32)) is LeanSwiGLU
    monkeypatch.setattr("mindformers.modules.kernels.is_split", lambda: True)
    assert type(swiglu(ms.float32)) is SwiGLU
