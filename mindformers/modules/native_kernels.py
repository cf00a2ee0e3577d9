# SPDX-License-Identifier: Apache-2.0
"""Cells around the native CPU kernels; each has the inputs and outputs of the plain cell it stands for.

``modules/kernels.py`` decides which of the two is used. The kernels' maths is described in ``native/src``. All tensors
of a graph stay float32; ``product_type`` says what the factors of matrix products are rounded to inside a kernel.

Legend: B batch, S sequence, T = B * S, H hidden, N query heads, K key/value heads, D head dim, F feed-forward size,
V vocabulary.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer
from mindspore.ops import CustomRegOp, DataType
from mindspore.ops.primitive import constexpr

from mindformers.native import library

_FORMATS = {
    ms.float32: DataType.F32_Default,
    ms.bfloat16: DataType.BF16_Default,
    ms.int8: DataType.I8_Default,
    ms.int32: DataType.I32_Default,
    ms.bool_: DataType.BOOL_Default,
}
_SUFFIXES = {ms.float32: "F32", ms.bfloat16: "Bf16"}


def native_op(name: str, shapes: Callable[..., Any], dtypes: Any) -> ops.Custom:
    """A kernel of the library with any number of outputs, for graphs whose sizes are known when they are compiled.

    Args:
        name: the kernel, as MF_OP names it.
        shapes: function of the inputs' shapes to the shape of the output, or a tuple of them.
        dtypes: type of the output, or a tuple of them.
    """
    return ops.Custom(f"{library.loaded_file()}:{name}", shapes, lambda *_: dtypes, func_type="aot")


def sized_op(name: str, inputs: Sequence[Any], output: Any) -> ops.Custom:
    """A kernel with one output whose shape the library tells (MF_OP_SHAPE): also for sizes known only in the run.

    Args:
        name: the kernel.
        inputs: types of the inputs.
        output: type of the output.
    """
    # MindSpore keeps the first registration of a name: the same kernel with other inputs needs another name
    digest = hashlib.sha256(" ".join(map(str, inputs)).encode()).hexdigest()[:16]
    registration = CustomRegOp(f"{name}{digest}").fusion_type("OPAQUE")
    for index in range(len(inputs)):
        registration = registration.input(index, f"x{index}")
    registration = registration.output(0, "y").dtype_format(*(_FORMATS[kind] for kind in (*inputs, output)))
    info = registration.target("CPU").get_op_info()
    return ops.Custom(f"{library.loaded_file()}:{name}", None, lambda *_: output, func_type="aot", reg_info=info)


def at_compile_time(question: Callable[[], bool]) -> Callable[[], bool]:
    """The function as one a graph may call: it is asked while the graph is compiled, its answer is a constant there."""

    @constexpr(reuse_result=False)
    def answer() -> bool:
        return question()

    return answer


class NormFunction(nn.Cell):
    """``x / sqrt(mean(x^2) + eps) * weight`` and its gradient; x (T, D), weight (D), float32."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = Tensor([eps], ms.float32)
        self.forward = sized_op("RmsNorm", [ms.float32] * 3, ms.float32)
        self.backward = native_op("RmsNormGrad", lambda x, w, e, d: (x, w), (ms.float32, ms.float32))

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        """(T, D) -> (T, D)."""
        return self.forward(x, weight, self.eps)

    def bprop(self, x: Tensor, weight: Tensor, out: Tensor, dout: Tensor) -> tuple:
        """Gradients of x and weight."""
        return self.backward(x, weight, self.eps, dout)


class NativeRMSNorm(nn.Cell):
    """RMSNorm by one kernel; parameters and results as those of ``kernels.RMSNorm``."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = Parameter(initializer("ones", (dim,), ms.float32), name="weight")
        self.norm = NormFunction(eps)

    def construct(self, x: Tensor) -> Tensor:
        """(T, dim) -> (T, dim), same type as x."""
        return ops.cast(self.norm(ops.cast(x, ms.float32), self.weight), x.dtype)


class NativeProduct(nn.Cell):
    """``x @ weight.T`` and its gradients by oneDNN's products, shared by the threads of the context.

    Args:
        product_type: float32 or bfloat16.
        is_frozen: tells, when a graph is compiled, that the weight gets no gradient, so none is computed.

    Inputs: x (T, in), weight (out, in), float32. Output: (T, out), float32.
    """

    def __init__(self, product_type: Any, is_frozen: Callable[[], bool]) -> None:
        super().__init__()
        suffix, kinds = _SUFFIXES[product_type], (ms.float32, ms.float32)
        self.is_frozen = at_compile_time(is_frozen)
        self.forward = sized_op(f"Linear{suffix}", [ms.float32] * 2, ms.float32)
        self.backward = native_op(f"LinearGrad{suffix}", lambda x, w, d: (x, w), kinds)
        self.backward_of_input = native_op(f"LinearInputGrad{suffix}", lambda d, w: [d[0], w[1]], ms.float32)

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        """(T, in) -> (T, out)."""
        return self.forward(x, weight)

    def bprop(self, x: Tensor, weight: Tensor, out: Tensor, dout: Tensor) -> tuple:
        """Gradients of x and weight."""
        if self.is_frozen():
            return self.backward_of_input(dout, weight), ops.zeros_like(weight)
        return self.backward(x, weight, dout)


class NativeLowRank(nn.Cell):
    """``scaling * B A (x * mask)`` by one kernel that keeps neither masks nor masked inputs.

    Args:
        pool: fp32 (P, in), rows of zeros and ones.
        scaling: the factor.

    Inputs: x (T, in), a (rank, in), b (out, rank), float32, and rows (T,) int32, which row of the pool is the mask of
    each token. Output: (T, out), float32.
    """

    def __init__(self, pool: Tensor, scaling: float) -> None:
        super().__init__()
        self.pool = pool
        self.scaling = Tensor([scaling], ms.float32)
        self.forward = native_op("LowRank", lambda x, a, b, p, r, s: [x[0], b[0]], ms.float32)
        self.backward = native_op("LowRankGrad", lambda x, a, b, p, r, s, d: (x, a, b), (ms.float32,) * 3)

    def construct(self, x: Tensor, a: Tensor, b: Tensor, rows: Tensor) -> Tensor:
        """(T, in) -> (T, out)."""
        return self.forward(x, a, b, self.pool, rows, self.scaling)

    def bprop(self, x: Tensor, a: Tensor, b: Tensor, rows: Tensor, out: Tensor, dout: Tensor) -> tuple:
        """Gradients of x, a and b; zeros for the rows."""
        dx, da, db = self.backward(x, a, b, self.pool, rows, self.scaling, dout)
        return dx, da, db, ops.zeros_like(rows)


class NativeSwiGLU(nn.Cell):
    """``silu(gate) * up`` by one kernel; inputs and output (T, F), float32."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = sized_op("SwiGlu", [ms.float32] * 2, ms.float32)
        self.backward = native_op("SwiGluGrad", lambda g, u, d: (g, u), (ms.float32, ms.float32))

    def construct(self, gate: Tensor, up: Tensor) -> Tensor:
        """(T, F) -> (T, F)."""
        return self.forward(gate, up)

    def bprop(self, gate: Tensor, up: Tensor, out: Tensor, dout: Tensor) -> tuple:
        """Gradients of both inputs."""
        return self.backward(gate, up, dout)


class NativeAttention(nn.Cell):
    """Rotary positions and attention by one kernel that never holds all probabilities, forward or backward.

    Args:
        product_type: float32 or bfloat16.

    Inputs: q (T, N*D), k and v (T, K*D); table (B or 1, S, D), the cosines and sines of the positions; visible
    (B or 1, S, S) bool, which keys a position may see. Output: (T, N*D). Scores are scaled by 1/sqrt(D). A position
    that sees no key gets the mean of all values, as from a mask added to the scores.
    """

    def __init__(self, product_type: Any) -> None:
        super().__init__()
        suffix, kind = _SUFFIXES[product_type], ms.float32
        self.forward = sized_op(f"Attention{suffix}", [kind, kind, kind, kind, ms.bool_], kind)
        self.backward = native_op(
            f"AttentionGrad{suffix}", lambda q, k, v, table, visible, dout: (q, k, v), (kind, kind, kind)
        )

    def construct(self, q: Tensor, k: Tensor, v: Tensor, table: Tensor, visible: Tensor) -> Tensor:
        """(T, N*D)."""
        return self.forward(q, k, v, table, visible)

    def bprop(
        self, q: Tensor, k: Tensor, v: Tensor, table: Tensor, visible: Tensor, out: Tensor, dout: Tensor
    ) -> tuple:
        """Gradients of q, k and v; zeros for the rest."""
        dq, dk, dv = self.backward(q, k, v, table, visible, dout)
        return dq, dk, dv, ops.zeros_like(table), ops.zeros_like(visible)


class _HeadLossFunction(nn.Cell):
    """Summed loss, and in training the gradients for a gradient of 1, in one pass over the logits."""

    def __init__(self, product_type: Any, is_frozen: Callable[[], bool]) -> None:
        super().__init__()
        suffix, kind = _SUFFIXES[product_type], ms.float32
        self.is_frozen = at_compile_time(is_frozen)
        self.loss = native_op(f"HeadLoss{suffix}", lambda h, w, y, m: [1], kind)
        self.loss_and_input = native_op(f"HeadLossInputGrad{suffix}", lambda h, w, y, m: ([1], h), (kind, kind))
        self.loss_and_both = native_op(f"HeadLossGrad{suffix}", lambda h, w, y, m: ([1], h, w), (kind, kind, kind))
        self.scale = native_op("ScaleBy", lambda x, factor: x, kind)

    def _with_gradients(self, hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor) -> tuple:
        if self.is_frozen():
            total, dhidden = self.loss_and_input(hidden, weight, labels, mask)
            return total, dhidden, total
        return self.loss_and_both(hidden, weight, labels, mask)

    def construct(self, hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor) -> tuple:
        """(total (1,), gradient of hidden, of weight); three times the total where nothing is to be learnt."""
        if self.training:
            return self._with_gradients(hidden, weight, labels, mask)
        total = self.loss(hidden, weight, labels, mask)
        return total, total, total

    def bprop(self, hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor, out: tuple, dout: tuple) -> tuple:
        """Gradients of hidden and weight; zeros for labels and mask."""
        results = out if self.training else self._with_gradients(hidden, weight, labels, mask)
        factor = dout[0]
        dweight = ops.zeros_like(weight) if self.is_frozen() else self.scale(results[2], factor)
        return self.scale(results[1], factor), dweight, ops.zeros_like(labels), ops.zeros_like(mask)


class NativeHeadLoss(nn.Cell):
    """Head and cross entropy by one kernel that holds the logits of some rows at a time.

    Args:
        product_type: float32 or bfloat16.
        is_frozen: as in :class:`NativeProduct`.

    Inputs: hidden (T, H), weight (V, H), labels (T,) int32 in [0, V) where the mask is not 0, mask (T,) float32.
    Output: the sum of ``-mask * log softmax(hidden @ weight.T)[label]``, a float32 scalar.
    """

    def __init__(self, product_type: Any, is_frozen: Callable[[], bool]) -> None:
        super().__init__()
        self.function = _HeadLossFunction(product_type, is_frozen)

    def construct(self, hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Scalar."""
        return ops.reshape(self.function(hidden, weight, labels, mask)[0], ())
