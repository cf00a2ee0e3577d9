# SPDX-License-Identifier: Apache-2.0
"""How a Llama is laid out on machines, apart from its maths: which layers are recomputed in the backward pass."""

from typing import Any

from mindspore import nn


def apply_recompute(network: nn.Cell, recompute_config: Any) -> None:
    """Mark what is computed again in the backward pass instead of being kept.

    Args:
        network: a LlamaForCausalLM.
        recompute_config: the ``recompute_config`` section. ``recompute`` marks whole decoder layers,
            ``select_recompute`` only their attention product.
    """
    if recompute_config is None or not (recompute_config.recompute or recompute_config.select_recompute):
        return
    for layer in network.model.layers:
        if recompute_config.recompute and not recompute_config.select_recompute:
            layer.recompute()
        else:
            layer.attention.attend.recompute()
