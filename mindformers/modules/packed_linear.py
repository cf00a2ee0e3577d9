# SPDX-License-Identifier: Apache-2.0
"""Linear layers whose weights are kept in bfloat16 or int8 on CPU, for generation and evaluation.

Legend: T rows, K features of the input, N features of the output.
"""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from mindformers.checkpoint.foreign.arrays import Raw, cast, to_tensor
from mindformers.modules.native_kernels import sized_op
from mindformers.native.calls import call

__all__ = ["PackedLinear", "pack_rows"]

_TYPES = {"bfloat16": ms.bfloat16, "int8": ms.int8}


class PackedLinear(nn.Cell):
    """``y = x @ weight.T`` of a weight in few bits, widened to float32 while it is multiplied.

    Args:
        weight: float32, float16 or bfloat16 (N, K); not kept.
        weight_dtype: "bfloat16", rounded to nearest; or "int8", every row as integers times a scale of its own,
            ``max |row| / 127``.
        name: where the layer stands in its model, for the names of its parameters.

    There is no gradient.
    """

    def __init__(self, weight: Parameter, weight_dtype: str, name: str) -> None:
        super().__init__()
        packed, scale = pack_rows(weight.asnumpy(), weight_dtype, name)
        self.out_channels, self.in_channels = packed.shape
        self.packed = Parameter(packed, name=f"{name}.packed", requires_grad=False)
        kinds: list[Any] = [ms.float32, _TYPES[weight_dtype]]
        self.scale = None
        if scale is not None:
            self.scale = Parameter(scale, name=f"{name}.scale", requires_grad=False)
            kinds.append(ms.float32)
        self.product = sized_op("PackedLinear", kinds, ms.float32)

    def construct(self, x: Tensor) -> Tensor:
        """float32 (T, K) -> (T, N)."""
        if self.scale is None:
            return self.product(x, self.packed)
        return self.product(x, self.packed, self.scale)


def pack_rows(weight: np.ndarray, weight_dtype: str, name: str) -> tuple[Tensor, Tensor | None]:
    """A weight (N, K) in few bits, and the scales (N,) of its rows when these are needed.

    Raises:
        DeviceError: a number is not finite.
        CheckpointError: a number lies outside the range of bfloat16.
    """
    if weight_dtype == "bfloat16":
        wide = np.ascontiguousarray(weight, np.float32)
        return to_tensor(cast(Raw(wide, "float32"), "bfloat16", name)), None
    wide = np.ascontiguousarray(weight, np.float32)
    packed, scale = np.empty(wide.shape, np.int8), np.empty(len(wide), np.float32)
    call("QuantizeRows", wide, packed, scale)
    return Tensor.from_numpy(packed), Tensor.from_numpy(scale)
