# SPDX-License-Identifier: Apache-2.0
"""Which parameters of a train cell a checkpoint holds."""

import mindspore as ms
from mindspore import nn

from mindformers.checkpoint.names import is_unsaved_name, is_weight_name
from mindformers.trainer.adapters import has_adapters

__all__ = ["frozen_weights", "train_state"]


def train_state(cell: nn.Cell) -> dict[str, ms.Parameter]:
    """What a checkpoint holds: weights, moments, counters, loss scale.

    Accumulated gradients are left out: a checkpoint is taken between optimizer steps, where they count for nothing. So
    is what compilation finds out anew. So is the frozen base of adapters, see :func:`frozen_weights`.
    """
    frozen = frozen_weights(cell)
    return {
        p.name: p
        for p in cell.get_parameters()
        if not (p.name.startswith(("accu_", "norm_shares")) or is_unsaved_name(p.name) or p.name in frozen)
    }


def frozen_weights(cell: nn.Cell) -> dict[str, ms.Parameter]:
    """The base under the adapters of a network, which no training step changes; empty without adapters."""
    if not has_adapters(cell):
        return {}
    return {p.name: p for p in cell.get_parameters() if is_weight_name(p.name) and not p.requires_grad}
