# SPDX-License-Identifier: Apache-2.0
"""Global norm and clipping."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from mindformers.core.clip_grad import ClipGradNorm, global_norm
from mindformers.errors import ConfigError

SHAPES = [(11, 7), (5,), (2, 3, 4), ()]


@pytest.fixture(autouse=True)
def _graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


def arrays(scale=1.0):
    rng = np.random.default_rng(3)
    return [np.asarray(scale * rng.standard_normal(s), np.float32) for s in SHAPES]


def exact_norm(values):
    return np.sqrt(sum((v.astype(np.float64) ** 2).sum() for v in values))


class Norm(nn.Cell):
    def construct(self, grads):
        return global_norm(grads)


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
def test_global_norm(mode):
    ms.set_context(mode=mode)
    norm = Norm()(ms.mutable(tuple(map(Tensor, arrays()))))
    assert norm.shape == ()
    assert norm.dtype == ms.float32
    np.testing.assert_allclose(norm.asnumpy(), exact_norm(arrays()), rtol=1e-6)


def test_norm_of_half_gradients_is_computed_in_fp32():
    """The square of 300 is infinite in fp16."""
    grads = tuple(Tensor(np.full(s, 300.0), ms.float16) for s in SHAPES)
    np.testing.assert_allclose(Norm()(ms.mutable(grads)).asnumpy(), 300 * np.sqrt(77 + 5 + 24 + 1), rtol=1e-6)


def test_large_tensor_is_summed_accurately():
    values = np.random.default_rng(0).standard_normal((3000, 256)).astype(np.float32)
    np.testing.assert_allclose(Norm()(ms.mutable((Tensor(values),))).asnumpy(), exact_norm([values]), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_shows_in_the_norm(bad):
    values = arrays()
    values[0][3, 2] = bad
    assert not np.isfinite(Norm()(ms.mutable(tuple(map(Tensor, values)))).asnumpy())


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
def test_large_gradients_are_scaled_to_the_bound(mode):
    ms.set_context(mode=mode)
    clipped, norm = ClipGradNorm(0.5)(ms.mutable(tuple(map(Tensor, arrays()))))
    np.testing.assert_allclose(norm.asnumpy(), exact_norm(arrays()), rtol=1e-6)
    np.testing.assert_allclose(exact_norm([g.asnumpy() for g in clipped]), 0.5, rtol=1e-5)
    factor = 0.5 / (exact_norm(arrays()) + 1e-6)
    for got, value in zip(clipped, arrays(), strict=True):
        np.testing.assert_allclose(got.asnumpy(), value * factor, rtol=1e-5)


def test_small_gradients_pass_unchanged_and_zero_is_no_division():
    for scale in (1e-3, 0.0):
        clipped, _ = ClipGradNorm(1.0)(ms.mutable(tuple(map(Tensor, arrays(scale)))))
        for got, value in zip(clipped, arrays(scale), strict=True):
            np.testing.assert_array_equal(got.asnumpy(), value)


def test_types_are_kept():
    grads = (Tensor(np.full((2, 2), 300.0), ms.float16), Tensor([1.0], ms.float32))
    clipped, norm = ClipGradNorm(1.0)(ms.mutable(grads))
    assert [g.dtype for g in clipped] == [ms.float16, ms.float32]
    assert norm.dtype == ms.float32
    np.testing.assert_allclose(clipped[0].asnumpy(), 0.5, rtol=1e-3)


def test_given_norm_is_used():
    clipped, norm = ClipGradNorm(1.0, use_norm=4.0)(ms.mutable((Tensor([8.0], ms.float32),)))
    assert float(norm.asnumpy()) == 4.0
    np.testing.assert_allclose(clipped[0].asnumpy(), 2.0, rtol=1e-6)


@pytest.mark.parametrize("value", [0, -1.0, "1", True, None, float("inf"), float("nan")])
def test_bad_bound(value):
    with pytest.raises(ConfigError, match="max_norm must be a number above 0"):
        ClipGradNorm(value)
