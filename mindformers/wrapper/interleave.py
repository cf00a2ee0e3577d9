# SPDX-License-Identifier: Apache-2.0
"""Parts of a batch that pass through the network interleaved, so that one computes while another communicates."""

from typing import Any

from mindspore import Tensor, nn, ops
from mindspore.nn.wrap.cell_wrapper import _MicroBatch


class InterleavedLoss(nn.Cell):
    """A network whose loss is computed in ``number`` parts of the batch.

    Args:
        network: has ``loss_and_count`` and ``num_label_tokens``.
        number: parts; the batch must divide into them.

    The marks on the slices and on the additions tell MindSpore's scheduler which operations belong to which part.
    """

    def __init__(self, network: nn.Cell, number: int) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.config = network.config
        self.pad_token_id = network.pad_token_id
        self.dropout_step = getattr(network, "dropout_step", None)
        self.number = number
        self.parts = nn.CellList()
        for _ in range(number):
            part = _MicroBatch(number)
            part.strided_slice.add_prim_attr("strided_slice_flag", True)
            part.strided_slice.add_prim_attr("interleave_num", number)
            self.parts.append(part)
        self.add = ops.Add().add_prim_attr("micro_interleaved_add_flag", True)
        self.at_least = ops.Maximum()

    def construct(self, *batch: Tensor) -> Any:
        """Columns of a batch to its mean loss, a fp32 scalar."""
        total, count = self.loss_and_count(*batch)
        return total / self.at_least(count, 1.0)

    def loss_and_count(self, *batch: Tensor) -> tuple:
        """Summed loss and number of label tokens, as those of the network."""
        total, count = self.network.loss_and_count(*self.parts[0](0, *batch))
        for i in range(1, self.number):
            more, tokens = self.network.loss_and_count(*self.parts[i](i, *batch))
            total, count = self.add(total, more), count + tokens
        return total, count

    def num_label_tokens(self, *batch: Tensor) -> Tensor:
        """Label tokens of the batch, a fp32 scalar."""
        return self.network.num_label_tokens(*batch)
