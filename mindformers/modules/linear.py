# SPDX-License-Identifier: Apache-2.0
"""A linear layer without bias on 2-D activations."""

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from mindformers.modules.initial import ParallelNormal
from mindformers.modules.kernels import product


class Linear(nn.Cell):
    """``y = x @ weight.T``, weight stored (out, in) as in PyTorch.

    Args:
        in_channels: features of the input.
        out_channels: features of the output.
        compute_dtype: type of the product; input and weight are rounded to it.
        param_init_type: type the weight is stored in.
        init_std: standard deviation of the normal initialisation.

    Inputs and outputs are (T, in_channels) and (T, out_channels), T = B * S: a 3-D input costs MindSpore's
    CPU backend one transposition per product.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        compute_dtype: ms.Type = ms.float32,
        param_init_type: ms.Type = ms.float32,
        init_std: float = 0.01,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.weight = Parameter(
            initializer(ParallelNormal(init_std), (out_channels, in_channels), param_init_type), name="weight"
        )
        self.matmul, self.compute_dtype = product(self.weight, compute_dtype)

    def construct(self, x: Tensor) -> Tensor:
        """(T, in_channels) -> (T, out_channels) in the type of activations (compute_dtype but for native kernels)."""
        return self.matmul(ops.cast(x, self.compute_dtype), ops.cast(self.weight, self.compute_dtype))
