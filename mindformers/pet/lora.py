# SPDX-License-Identifier: Apache-2.0
"""A linear layer with a low-rank adapter (Hu et al. 2021, LoRA). Maths only; activations are (T, features)."""

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import HeUniform, Initializer, initializer

from mindformers.modules.kernels import low_rank
from mindformers.modules.linear import Linear
from mindformers.pet.dropout import PooledDropout

LORA_A, LORA_B = "mindpet_delta_lora_a", "mindpet_delta_lora_b"
"""Last part of the adapter's parameter names."""


class DroppedLowRank(nn.Cell):
    """``scaling * B A dropout(x)`` with a gradient written by hand, which keeps neither mask nor masked input.

    Args:
        dropout: gives the masks.
        scaling: the factor.

    Inputs: x (T, in), a (rank, in), b (out, rank), all of one type, and rows (T,), see :class:`PooledDropout`.
    Output: (T, out). Masks are gathered again in the backward pass: a fetch of rows costs less than keeping them for
    every layer, which would be two of the largest activations of each.
    """

    def __init__(self, dropout: PooledDropout, scaling: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.scaling = scaling
        self.plain = ops.MatMul()
        self.right = ops.MatMul(transpose_b=True)
        self.left = ops.MatMul(transpose_a=True)
        self.mul = ops.Mul()

    def _dropped(self, x: Tensor, rows: Tensor) -> tuple:
        mask = ops.cast(self.dropout.mask(rows), x.dtype)
        return self.mul(x, mask), mask

    def construct(self, x: Tensor, a: Tensor, b: Tensor, rows: Tensor) -> Tensor:
        """(T, in) -> (T, out)."""
        dropped, _ = self._dropped(x, rows)
        return self.right(self.right(dropped, a) * self.scaling, b)

    def bprop(self, x: Tensor, a: Tensor, b: Tensor, rows: Tensor, out: Tensor, dout: Tensor) -> tuple:
        """Gradients of x, A and B; zeros for the rows."""
        dropped, mask = self._dropped(x, ops.depend(rows, dout))  # else the forward pass's would be kept until now
        low = self.right(dropped, a) * self.scaling  # (T, rank)
        dlow = self.plain(dout, b) * self.scaling
        dx = self.mul(self.plain(dlow, a), mask)
        return dx, self.left(dlow, dropped), self.left(dout, low), ops.zeros_like(rows)


class LoRADense(nn.Cell):
    """``y = W x + (alpha / rank) * B A dropout(x)`` on the frozen W of a linear layer.

    Args:
        linear: the layer to adapt; its weight and its product (with whatever strategy it has) are taken over.
        rank: rows of A and columns of B.
        alpha: see the formula.
        dropout: drops features of the adapter's input in training; None drops nothing.
        a_init, b_init: names of MindSpore initializers; ``he_uniform`` is that of slope sqrt(5),
            U(-1/sqrt(in), 1/sqrt(in)), which PyTorch's LoRA implementations use for A.
        param_init_type: type A and B are stored in.
        compute_dtype: type of the adapter's products; its result is cast to that of the layer.

    ``A`` is (rank, in) and ``B`` (out, rank); B of zeros leaves the layer as it was. Where the compiler splits the
    network, ``by_operations`` has to be True: messages between ranks are put behind single operations, and a gradient
    written by hand would have none.
    """

    def __init__(
        self,
        linear: Linear,
        *,
        rank: int,
        alpha: float,
        dropout: PooledDropout | None = None,
        a_init: str = "normal",
        b_init: str = "zero",
        param_init_type: ms.Type = ms.float32,
        compute_dtype: ms.Type = ms.float32,
    ) -> None:
        super().__init__()
        self.in_channels = linear.in_channels
        self.out_channels = linear.out_channels
        self.compute_dtype = linear.compute_dtype
        self.adapter_dtype = compute_dtype
        self.weight = linear.weight
        self.matmul = linear.matmul
        self.scaling = alpha / rank
        self.dropped = self.fused = None
        if dropout is not None:
            self.dropped = DroppedLowRank(dropout, self.scaling / dropout.kept)
            self.fused = low_rank(dropout.pool, self.dropped.scaling, compute_dtype)
        self.mindpet_delta_lora_a = Parameter(
            initializer(_initializer(a_init), (rank, self.in_channels), param_init_type), name=LORA_A
        )
        self.mindpet_delta_lora_b = Parameter(
            initializer(_initializer(b_init), (self.out_channels, rank), param_init_type), name=LORA_B
        )
        self.lora_a_matmul = ops.MatMul(transpose_b=True)
        self.lora_b_matmul = ops.MatMul(transpose_b=True)
        self.scale = ops.Mul()
        self.add = ops.Add()
        self.by_operations = False

    def construct(self, x: Tensor) -> Tensor:
        """(T, in_channels) -> (T, out_channels) in the layer's compute_dtype."""
        y = self.matmul(ops.cast(x, self.compute_dtype), ops.cast(self.weight, self.compute_dtype))
        x = ops.cast(x, self.adapter_dtype)
        a = ops.cast(self.mindpet_delta_lora_a, self.adapter_dtype)
        b = ops.cast(self.mindpet_delta_lora_b, self.adapter_dtype)
        scaling = self.scaling
        if self.training and self.dropped is not None:
            if not self.by_operations:
                branch = self.dropped if self.fused is None else self.fused
                delta = branch(x, a, b, self.dropped.dropout.rows(x.shape[0]))
                return self.add(y, ops.cast(delta, y.dtype))
            x, scaling = self.dropped.dropout(x), self.dropped.scaling
        low = self.lora_a_matmul(x, a)  # (T, rank)
        delta = self.lora_b_matmul(self.scale(low, scaling), b)
        return self.add(y, ops.cast(delta, y.dtype))


def _initializer(name: str) -> str | Initializer:
    return HeUniform(negative_slope=5**0.5) if name == "he_uniform" else name
