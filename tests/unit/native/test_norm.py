# SPDX-License-Identifier: Apache-2.0
"""The native RMSNorm beside the plain one."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from mindformers.modules.kernels import RMSNorm
from tests.unit.native.helpers import assert_close, value_and_gradients

pytestmark = pytest.mark.usefixtures("native_library")


@pytest.mark.parametrize(("rows", "dim"), [(1, 3), (7, 37), (64, 48)])
def test_values_and_gradients(rows, dim):
    from mindformers.modules.native_kernels import NativeRMSNorm

    rng = np.random.default_rng(0)
    x, dy, weight = rng.standard_normal((rows, dim)), rng.standard_normal((rows, dim)), rng.uniform(0.5, 2, dim)
    results = []
    for cell in (NativeRMSNorm(dim, 1e-5), RMSNorm(dim, 1e-5)):
        cell.weight.set_data(Tensor(weight, ms.float32))
        results.append(value_and_gradients(cell, [x], dy))
    for native, plain in zip(*results, strict=True):
        assert_close(native, plain, 1e-5)


def test_sizes_known_only_in_the_run():
    from mindformers.modules.native_kernels import NativeRMSNorm

    cell = NativeRMSNorm(5)
    cell.set_inputs(Tensor(shape=[None, 5], dtype=ms.float32))
    for rows in (2, 3, 1):
        x = np.arange(rows * 5, dtype=np.float32).reshape(rows, 5) + 1
        expected = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        assert_close(cell(Tensor(x)).asnumpy(), expected, 1e-6)


def test_a_wrong_shape_is_refused_and_the_reason_kept():
    from mindformers.modules.native_kernels import NativeRMSNorm
    from mindformers.native import library

    with pytest.raises(RuntimeError, match="RmsNorm"):
        NativeRMSNorm(5)(Tensor(np.ones((3, 4)), ms.float32)).asnumpy()
    assert "argument 1 (weight) must be float32 (4), got float32 (5)" in library.last_error()


def test_a_wrong_dtype_is_refused():
    from mindformers.modules.native_kernels import native_op
    from mindformers.native import library

    class Wrong(nn.Cell):
        def __init__(self):
            super().__init__()
            self.op = native_op("RmsNorm", lambda x, w, e: x, ms.float32)
            self.eps = Tensor([1e-5], ms.float32)

        def construct(self, x, weight):
            return self.op(x, weight, self.eps)

    with pytest.raises(RuntimeError, match="RmsNorm"):
        Wrong()(Tensor(np.ones((3, 4)), ms.int32), Tensor(np.ones(4), ms.float32)).asnumpy()
    assert "argument 0 (x) must be float32 (3, 4), got int32 (3, 4)" in library.last_error()
