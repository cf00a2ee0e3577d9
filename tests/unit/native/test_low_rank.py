# SPDX-License-Identifier: Apache-2.0
"""The native branch of an adapter beside the plain one."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from mindformers.modules.linear import Linear
from mindformers.native import library
from mindformers.pet.dropout import POOL_ROWS, PooledDropout, mask_pool
from mindformers.pet.lora import DroppedLowRank, LoRADense
from tests.unit.native.helpers import assert_close, value_and_gradients

pytestmark = pytest.mark.usefixtures("native_library")


def dropout(width: int) -> PooledDropout:
    step = Parameter(Tensor([3], ms.int32), name="dropout_step", requires_grad=False)
    return PooledDropout(0.3, mask_pool(width, 0.3, 5), step, 1, 5)


@pytest.mark.parametrize(("tokens", "width", "rank", "out"), [(1, 3, 1, 2), (7, 37, 5, 11), (70, 64, 16, 48)])
def test_values_and_gradients(tokens, width, rank, out):
    from mindformers.modules.native_kernels import NativeLowRank

    random = np.random.default_rng(0)
    inputs = [random.standard_normal(shape) for shape in ((tokens, width), (rank, width), (out, rank))]
    dout, rows = random.standard_normal((tokens, out)), random.integers(0, POOL_ROWS, tokens)
    drop = dropout(width)
    results = [
        value_and_gradients(cell, inputs, dout, [Tensor(rows, ms.int32)])
        for cell in (NativeLowRank(drop.pool, 1.7), DroppedLowRank(drop, 1.7))
    ]
    for native, plain in zip(*results, strict=True):
        assert_close(native, plain, 1e-5)


@pytest.mark.parametrize(("kind", "fused"), [(ms.float32, True), (ms.float16, False)])
def test_an_adapter_in_training_uses_it_for_float32(native_on, kind, fused):
    layer = LoRADense(Linear(6, 4), rank=2, alpha=4, dropout=dropout(6), param_init_type=kind, compute_dtype=kind)
    assert (layer.fused is not None) == fused


def test_a_layer_is_the_same_with_and_without(native_on, monkeypatch):
    def layer() -> LoRADense:
        made = LoRADense(Linear(6, 4), rank=2, alpha=4, dropout=dropout(6), b_init="ones").set_train()
        made.weight.set_data(Tensor(np.arange(24).reshape(4, 6) / 24, ms.float32))
        made.mindpet_delta_lora_a.set_data(Tensor(np.arange(12).reshape(2, 6) / 12 - 0.5, ms.float32))
        return made

    native = layer()
    monkeypatch.setenv(library.ENVIRONMENT, "0")
    x, dout = np.linspace(-1, 1, 30).reshape(5, 6), np.linspace(1, 2, 20).reshape(5, 4)
    for found, expected in zip(
        value_and_gradients(native, [x], dout), value_and_gradients(layer(), [x], dout), strict=True
    ):
        assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("row", [-1, POOL_ROWS])
def test_a_row_beyond_the_pool_is_refused(row):
    from mindformers.modules.native_kernels import NativeLowRank

    inputs = [Tensor(np.ones(shape), ms.float32) for shape in ((2, 6), (3, 6), (4, 3))]
    with pytest.raises(RuntimeError, match="LowRank"):
        NativeLowRank(dropout(6).pool, 1.0)(*inputs, Tensor([0, row], ms.int32)).asnumpy()
    assert f"row {row} of token 1 is not in [0, {POOL_ROWS})" in library.last_error()
