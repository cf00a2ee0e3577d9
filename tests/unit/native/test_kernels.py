# SPDX-License-Identifier: Apache-2.0
"""Every native training kernel beside a plain form: values and gradients, odd sizes, every mask, both types."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from mindformers.core.loss import CrossEntropyLoss
from mindformers.models.llama.llama_layer import RotaryEmbedding, RotaryTables, rotary_frequencies
from mindformers.modules.kernels import PlainAttention
from tests.unit.native.helpers import assert_close, distance, value_and_gradients

pytestmark = pytest.mark.usefixtures("native_library")

TYPES = [(ms.float32, 1e-5), (ms.bfloat16, 2e-2)]


def trainable() -> bool:
    return False


def frozen() -> bool:
    return True


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


class PlainProduct(nn.Cell):
    def __init__(self):
        super().__init__()
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, x, weight):
        return self.matmul(x, weight)


@pytest.mark.parametrize(("kind", "tolerance"), TYPES)
@pytest.mark.parametrize("sizes", [(1, 3, 5), (7, 37, 19), (130, 48, 200)])
def test_product(kind, tolerance, sizes):
    from mindformers.modules.native_kernels import NativeProduct

    t, k, n = sizes
    inputs, dout = [normal(t, k), normal(n, k)], normal(t, n)
    native = value_and_gradients(NativeProduct(kind, trainable), inputs, dout)
    plain = value_and_gradients(PlainProduct(), inputs, dout)
    for ours, theirs in zip(native, plain, strict=True):
        assert_close(ours, theirs, tolerance)
    if kind == ms.bfloat16:
        assert distance(native[0], plain[0]) > 1e-5  # it was rounded
    y, dx, dweight = value_and_gradients(NativeProduct(kind, frozen), inputs, dout)
    np.testing.assert_array_equal(y, native[0])
    np.testing.assert_array_equal(dx, native[1])
    assert not dweight.any()


class PlainGate(nn.Cell):
    def construct(self, gate, up):
        return gate * ops.sigmoid(gate) * up


@pytest.mark.parametrize("shape", [(1, 1), (7, 37)])
def test_swiglu(shape):
    from mindformers.modules.native_kernels import NativeSwiGLU

    inputs, dout = [4 * normal(*shape), normal(*shape) + 1], normal(*shape)
    native, plain = (value_and_gradients(cell, inputs, dout) for cell in (NativeSwiGLU(), PlainGate()))
    for ours, theirs in zip(native, plain, strict=True):
        assert_close(ours, theirs, 1e-5)


class PlainRopeAttention(nn.Cell):
    """Rotary tables, rotation, additive mask and PlainAttention, put together as the model does."""

    def __init__(self, heads, kv_heads, cos, sin, positions, visible):
        super().__init__()
        self.heads, self.kv_heads, self.d = heads, kv_heads, 2 * cos.shape[1]
        self.tables = RotaryTables(cos, sin)
        self.rotary = RotaryEmbedding()
        self.attend = PlainAttention(self.d)
        self.positions = Tensor(positions, ms.int32)
        hidden = np.where(visible, 0.0, -1e9)[:, None]
        batch, s = positions.shape
        hidden = np.broadcast_to(hidden, (batch, heads, s, s)).reshape(batch, kv_heads, -1, s)
        self.mask = Tensor(np.ascontiguousarray(hidden), ms.float32)

    def construct(self, q, k, v):
        b = self.positions.shape[0]
        cos_q, sin_q, cos_k, sin_k = self.tables(self.positions, self.heads, self.kv_heads)
        q = ops.transpose(ops.reshape(q, (b, -1, self.heads, self.d)), (0, 2, 1, 3))
        k = ops.transpose(ops.reshape(k, (b, -1, self.kv_heads, self.d)), (0, 2, 1, 3))
        v = ops.transpose(ops.reshape(v, (b, -1, self.kv_heads, self.d)), (0, 2, 1, 3))
        q = ops.reshape(self.rotary(q, cos_q, sin_q), (b, self.kv_heads, -1, self.d))
        out = self.attend(q, self.rotary(k, cos_k, sin_k), v, self.mask)
        out = ops.reshape(out, (b, self.heads, -1, self.d))
        return ops.reshape(ops.transpose(out, (0, 2, 1, 3)), (-1, self.heads * self.d))


def masks(batch, s):
    """Name -> (bool mask, positions)."""
    causal = np.tril(np.ones((1, s, s), bool))
    line = np.arange(s)[None]
    left = causal & (line >= np.minimum(np.arange(batch) + 1, s - 1)[:, None])[:, None]  # first rows see nothing
    holes = causal & (np.random.default_rng(1).random((batch, 1, s)) > 0.3)
    text = np.repeat([[0, 1]], [s // 3, s - s // 3], axis=1)
    packed = causal & (text[:, :, None] == text[:, None, :])
    return {
        "causal": (causal, line),
        "left_padding": (left, line),
        "holes": (holes, line),
        "packed": (packed, np.concatenate((line[:, : s // 3], line[:, : s - s // 3]), 1)),
        "full": (np.ones((1, s, s), bool), line),
    }


@pytest.mark.parametrize(("kind", "tolerance"), TYPES)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 2), (2, 5, 4, 2, 6), (2, 70, 4, 1, 10), (1, 130, 2, 2, 64)])
def test_attention(kind, tolerance, sizes):
    from mindformers.modules.native_kernels import NativeAttention

    batch, s, heads, kv_heads, d = sizes
    kv_shape = (batch * s, kv_heads * d)
    inputs = [normal(batch * s, heads * d), normal(*kv_shape) + 0.1, normal(*kv_shape) - 0.1]
    dout = normal(batch * s, heads * d)
    cos, sin = rotary_frequencies(d, 10000.0, s, pretrain_length=s, extend_method="None", scaling_factor=1.0)
    names = list(masks(batch, s)) if s == 70 or (s == 5 and kind == ms.float32) else ["causal"]
    for name in names:
        visible, positions = masks(batch, s)[name]
        table = np.concatenate((cos, sin), -1)[positions]
        native = value_and_gradients(
            NativeAttention(kind), inputs, dout, [Tensor(table, ms.float32), Tensor(visible, ms.bool_)]
        )
        positions = np.ascontiguousarray(np.broadcast_to(positions, (batch, s)))
        plain = PlainRopeAttention(heads, kv_heads, cos, sin, positions, np.broadcast_to(visible, (batch, s, s)))
        for ours, theirs in zip(native, value_and_gradients(plain, inputs, dout), strict=True):
            if s > 1:  # else the gradients of q and k are 0 but for rounding
                assert_close(ours, theirs, tolerance)


class PlainHead(nn.Cell):
    def __init__(self):
        super().__init__()
        self.matmul = ops.MatMul(transpose_b=True)
        self.loss = CrossEntropyLoss()

    def construct(self, hidden, weight, labels, mask):
        return self.loss.total(self.matmul(hidden, weight), labels, mask)


@pytest.mark.parametrize(("kind", "tolerance"), TYPES)
@pytest.mark.parametrize("training", [True, False])
def test_head_and_loss(kind, tolerance, training):
    from mindformers.modules.native_kernels import NativeHeadLoss

    t, h, v = 21, 10, 53
    inputs = [normal(t, h), normal(v, h)]
    labels = np.random.default_rng(0).integers(0, v, t)
    labels[::4] = -100
    mask = labels >= 0
    others = [Tensor(labels, ms.int32), Tensor(mask, ms.float32)]
    dout = np.array(0.25)
    native = value_and_gradients(NativeHeadLoss(kind, trainable).set_train(training), inputs, dout, others)
    plain = value_and_gradients(PlainHead(), inputs, dout, others)
    for ours, theirs in zip(native, plain, strict=True):
        assert_close(ours, theirs, tolerance)
    half = value_and_gradients(NativeHeadLoss(kind, frozen).set_train(training), inputs, dout, others)
    np.testing.assert_array_equal(half[0], native[0])
    np.testing.assert_array_equal(half[1], native[1])
    assert not half[2].any()


def test_head_of_nothing_but_ignored_labels():
    from mindformers.modules.native_kernels import NativeHeadLoss

    others = [Tensor(np.full(3, -100), ms.int32), Tensor(np.zeros(3), ms.float32)]
    inputs = [normal(3, 4), normal(5, 4)]
    results = value_and_gradients(NativeHeadLoss(ms.float32, trainable).set_train(), inputs, np.array(1.0), others)
    assert [float(np.abs(x).sum()) for x in results] == [0.0, 0.0, 0.0]


def test_a_label_outside_the_vocabulary_is_refused():
    from mindformers.modules.native_kernels import NativeHeadLoss
    from mindformers.native import library

    cell = NativeHeadLoss(ms.float32, trainable)
    labels, mask = Tensor([0, 5, 1], ms.int32), Tensor(np.ones(3), ms.float32)
    with pytest.raises(RuntimeError, match="HeadLoss"):
        cell(Tensor(normal(3, 4)), Tensor(normal(5, 4)), labels, mask).asnumpy()
    assert "label 5 of row 1 is not in [0, 5) and not masked" in library.last_error()
