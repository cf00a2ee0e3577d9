# SPDX-License-Identifier: Apache-2.0
"""Cells around the native CPU kernels; each has the inputs and outputs of the plain cell it stands for.

``modules/kernels.py`` decides which of the two is used. The kernels' maths is described in ``native/src``.

Legend: B batch, S sequence, T = B * S, H hidden, N query heads, K key/value heads, D head dim, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer
from mindspore.ops import CustomRegOp, DataType

from mindformers.native import library

_FORMATS = {
    ms.float32: DataType.F32_Default,
    ms.bfloat16: DataType.BF16_Default,
    ms.int8: DataType.I8_Default,
    ms.int32: DataType.I32_Default,
    ms.bool_: DataType.BOOL_Default,
}


def native_op(name: str, shapes: Callable[..., Any], dtypes: Any) -> ops.Custom:
    """A kernel of the library with any number of outputs, for graphs whose sizes are known when they are compiled.

    Args:
        name: the kernel, as MF_OP names it.
        shapes: function of the inputs' shapes to the shape of the output, or a tuple of them.
        dtypes: type of the output, or a tuple of them.
    """
    arity = shapes.__code__.co_argcount
    takes = {1: lambda a: dtypes, 2: lambda a, b: dtypes, 3: lambda a, b, c: dtypes, 4: lambda a, b, c, d: dtypes}
    return ops.Custom(_where(name), shapes, takes.get(arity, lambda *_: dtypes), func_type="aot")


def sized_op(name: str, inputs: Sequence[Any], output: Any) -> ops.Custom:
    """A kernel with one output whose shape the library tells (MF_OP_SHAPE): also for sizes known only in the run.

    Args:
        name: the kernel.
        inputs: types of the inputs.
        output: type of the output.
    """
    registration = CustomRegOp(name).fusion_type("OPAQUE")
    for index in range(len(inputs)):
        registration = registration.input(index, f"x{index}")
    registration = registration.output(0, "y").dtype_format(*(_FORMATS[kind] for kind in (*inputs, output)))
    info = registration.target("CPU").get_op_info()
    return ops.Custom(_where(name), None, _constant(len(inputs), output), func_type="aot", reg_info=info)


def _constant(arity: int, value: Any) -> Callable[..., Any]:
    return lambda *_: value


def _where(name: str) -> str:
    return f"{library.library_path()}:{name}"


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
        """(T, dim) -> (T, dim), float32."""
        return self.norm(x, self.weight)
