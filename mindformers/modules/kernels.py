# SPDX-License-Identifier: Apache-2.0
"""The one place that chooses how a piece of maths is computed on a device.

Every function here returns a cell with the same inputs and outputs whatever the device; the plain version,
made of ops that exist everywhere, is the tested reference. On CPU no elementwise op broadcasts a large tensor:
MindSpore's CPU kernels keep two index lists of 16 bytes per output element for the life of the graph when an
operand is broadcast, which costs a third of all memory in training. A matrix product with a vector of ones does
the same work without them.

Legend: B batch, S sequence, N query heads, K key/value heads, G = N / K, D head dim, T = B * S.
"""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer
from mindspore.ops.auto_generate import SiLU

from mindformers.core.context import device_capabilities
from mindformers.core.parallel_context import is_split
from mindformers.errors import DeviceError
from mindformers.modules.native_kernels import (
    NativeAttention,
    NativeHeadLoss,
    NativeLowRank,
    NativeProduct,
    NativeRMSNorm,
    NativeSwiGLU,
)
from mindformers.native import library

_DTYPE_FIELDS = (
    "compute_dtype",
    "layernorm_compute_type",
    "param_init_type",
    "rotary_dtype",
    "softmax_compute_type",
)


class RMSNorm(nn.Cell):
    """Root mean square norm, ``x / sqrt(mean(x^2) + eps) * weight`` (Zhang and Sennrich 2019, eq. 4).

    Args:
        dim: features, the last axis.
        eps: added to the mean square.
        compute_type: type of the statistics and of the products; the result is cast back to the input's type.

    The factor ``rsqrt(...) * weight`` is an outer product, so no operand is broadcast.
    """

    def __init__(self, dim: int, eps: float = 1e-5, compute_type: ms.Type = ms.float32) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.compute_type = compute_type
        self.weight = Parameter(initializer("ones", (dim,), ms.float32), name="weight")
        self.mean_weights = Tensor(np.full((dim, 1), 1.0 / dim), ms.float32)
        self.square = ops.Mul()
        self.mean = ops.MatMul()
        self.add_eps = ops.Add()
        self.rsqrt = ops.Rsqrt()
        self.as_row = ops.ExpandDims()
        self.outer = ops.MatMul()
        self.scale = ops.Mul()

    def construct(self, x: Tensor) -> Tensor:
        """(T, dim) -> (T, dim), same type as x."""
        wide = ops.cast(x, ms.float32)
        mean_square = self.mean(self.square(wide, wide), self.mean_weights)  # (T, 1)
        weight = self.as_row(self.weight, 0)  # (1, dim)
        factor = self.outer(self.rsqrt(self.add_eps(mean_square, self.eps)), weight)  # (T, dim)
        y = self.scale(ops.cast(wide, self.compute_type), ops.cast(factor, self.compute_type))
        return ops.cast(y, x.dtype)


class FusedRMSNorm(nn.Cell):
    """RMSNorm by the Ascend kernel; parameters and results as :class:`RMSNorm`."""

    def __init__(self, dim: int, eps: float = 1e-5, compute_type: ms.Type = ms.float32) -> None:
        super().__init__()
        self.eps = eps
        self.compute_type = compute_type
        self.weight = Parameter(initializer("ones", (dim,), ms.float32), name="weight")
        self.norm = ops.RmsNorm(eps)

    def construct(self, x: Tensor) -> Tensor:
        """(T, dim) -> (T, dim), same type as x."""
        y, _ = self.norm(ops.cast(x, self.compute_type), ops.cast(self.weight, self.compute_type))
        return ops.cast(y, x.dtype)


class SwiGLU(nn.Cell):
    """The gate of the SwiGLU feed-forward, ``silu(gate) * up`` (Shazeer 2020); inputs and output (T, F)."""

    def __init__(self) -> None:
        super().__init__()
        self.silu = SiLU()
        self.mul = ops.Mul()

    def construct(self, gate: Tensor, up: Tensor) -> Tensor:
        """(T, F) -> (T, F)."""
        return self.mul(self.silu(gate), up)


class PlainAttention(nn.Cell):
    """``softmax(q k^T + mask) v`` with its gradient written by hand, so that no probability is kept for it.

    Args:
        softmax_type: type of scores and probabilities; products run in the type of the inputs.

    Inputs: q (B, K, G*S, D), already multiplied by 1/sqrt(D); k and v (B, K, L, D); mask (B, K, G*S, L), 0 where a
    key is seen and a large negative number where not. Output: (B, K, G*S, D). The gradient of the softmax,
    ``p * (dp - rowsum(do * o))`` (Dao et al. 2022, appendix B.2), gets its row term from one more column in the
    product that gives dp, instead of a broadcast subtraction. The mask gets no gradient.
    """

    def __init__(self, head_dim: int, softmax_type: ms.Type = ms.float32) -> None:
        super().__init__()
        self.softmax_type = softmax_type
        self.broadcasts = False
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.add_mask = ops.Add()
        self.softmax = ops.Softmax(-1)
        self.context = ops.BatchMatMul()
        self.grad_transposed = ops.BatchMatMul(transpose_a=True)
        self.concat = ops.Concat(-1)
        self.column = Tensor(np.ones((head_dim, 1)), ms.float32)
        self.row_sum = ops.MatMul()

    def _probabilities(self, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
        scores = ops.cast(self.scores(q, k), self.softmax_type)
        if self.broadcasts:
            spread = ops.reshape(scores, (q.shape[0], -1, mask.shape[2], k.shape[2]))  # (B, N, S, L)
            return ops.reshape(self.softmax(self.add_mask(spread, mask)), scores.shape)
        return self.softmax(self.add_mask(scores, mask))

    def construct(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Attention output (B, K, G*S, D) in the type of q."""
        return self.context(ops.cast(self._probabilities(q, k, mask), q.dtype), v)

    def bprop(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, out: Tensor, dout: Tensor) -> tuple:
        """Gradients of q, k, v; zeros for the mask."""
        b, h, rows, d = q.shape
        # without this the probabilities would be those of the forward pass, kept until now
        p = self._probabilities(ops.depend(q, dout), k, mask)
        dv = self.grad_transposed(ops.cast(p, q.dtype), dout)
        row = ops.reshape(ops.cast(dout, ms.float32) * ops.cast(out, ms.float32), (b * h * rows, d))
        delta = ops.cast(ops.reshape(self.row_sum(row, self.column), (b, h, rows, 1)), q.dtype)
        ones = ops.ones_like(ops.slice(v, (0, 0, 0, 0), (b, h, v.shape[2], 1)))
        dp = self.scores(self.concat((dout, -delta)), self.concat((v, ones)))  # dout v^T - delta
        ds = ops.cast(p * ops.cast(dp, self.softmax_type), q.dtype)
        return self.context(ds, k), self.grad_transposed(ds, q), dv, ops.zeros_like(mask)


def require_dtypes(config: Any) -> None:
    """Refuse, before anything compiles, a dtype the current device has no kernels for.

    Raises:
        DeviceError: a dtype field of the config cannot run on the device.
    """
    target = ms.get_context("device_target")
    allowed = device_capabilities(target).compute_dtypes
    native = use_native_kernels()
    fields = [
        f"{name}: {value}"
        for name, value in config.to_dict().items()
        if name in _DTYPE_FIELDS
        and value not in allowed
        and not (native and name == "compute_dtype" and value == "bfloat16")
    ]
    if fields:
        hint = ". compute_dtype: bfloat16 needs the native kernels (context.native_kernels: True, docs/native.md)"
        raise DeviceError(
            f"model.model_config.{', '.join(fields)}: MindSpore has no such kernels on {target}. "
            f"Use {' or '.join(sorted(allowed))}, or run with --device_target Ascend"
            + (hint if target == "CPU" and "compute_dtype: bfloat16" in fields and not native else "")
        )


def use_fused_kernels() -> bool:
    """True when MindSpore has fused Llama kernels for the current device."""
    return device_capabilities(ms.get_context("device_target")).fused_kernels


def use_native_kernels() -> bool:
    """True when cells built now are those of ``native_kernels``: on CPU, asked for, built, and not split over ranks."""
    return ms.get_context("device_target") == "CPU" and not is_split() and library.usable()


def has_native_kernels(network: nn.Cell) -> bool:
    """Whether any cell of a network is one of ``native_kernels``."""
    return any(type(cell).__module__ == NativeProduct.__module__ for _, cell in network.cells_and_names())


def _has_native_product(compute_type: ms.Type) -> bool:
    return compute_type in (ms.float32, ms.bfloat16) and use_native_kernels()


def activation_type(compute_type: ms.Type) -> ms.Type:
    """Type of the tensors between products of ``compute_type``: native kernels round to bfloat16 inside."""
    return ms.float32 if compute_type == ms.bfloat16 and use_native_kernels() else compute_type


def product(weight: Parameter, compute_type: ms.Type) -> tuple[Any, ms.Type]:
    """``x @ weight.T`` as a callable of x and weight, and the type both must be cast to.

    Native kernels without oneDNN's products would be slower than MindSpore's, so these are kept, with one warning.
    """
    if _has_native_product(compute_type) and (compute_type == ms.bfloat16 or library.has_onednn()):
        return NativeProduct(compute_type, lambda: not weight.requires_grad), ms.float32
    return ops.MatMul(transpose_b=True), compute_type


def rms_norm(dim: int, eps: float, compute_type: ms.Type, fused: bool) -> nn.Cell:
    """The RMSNorm cell of this device: Ascend's kernel when ``fused``, the native or the plain one else."""
    if compute_type == ms.float32 and use_native_kernels():
        return NativeRMSNorm(dim, eps)
    return (FusedRMSNorm if fused else RMSNorm)(dim, eps, compute_type)


def swiglu(compute_type: ms.Type) -> nn.Cell:
    """The gate of the feed-forward for products of ``compute_type``."""
    return NativeSwiGLU() if _has_native_product(compute_type) else SwiGLU()


def low_rank(pool: Tensor, scaling: float, compute_type: ms.Type) -> nn.Cell | None:
    """An adapter's branch with dropout in one cell, see ``NativeLowRank``; None where the caller puts it together."""
    return NativeLowRank(pool, scaling) if compute_type == ms.float32 and use_native_kernels() else None


def rope_attention(compute_type: ms.Type, rotary_type: ms.Type, softmax_type: ms.Type) -> nn.Cell | None:
    """Rotation and attention in one cell, see ``NativeAttention``; None where the caller has to put them together."""
    if _has_native_product(compute_type) and rotary_type == softmax_type == ms.float32:
        return NativeAttention(compute_type)
    return None


def head_loss(weight: Parameter, compute_type: ms.Type) -> nn.Cell | None:
    """Head and cross entropy in one cell, see ``NativeHeadLoss``; None where the caller has to put them together."""
    if _has_native_product(compute_type):
        return NativeHeadLoss(compute_type, lambda: not weight.requires_grad)
    return None
