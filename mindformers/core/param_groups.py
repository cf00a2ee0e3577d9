# SPDX-License-Identifier: Apache-2.0
"""Which parameters decay."""

from typing import Any

from mindspore import Parameter, nn


def group_parameters(network: nn.Cell, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Trainable parameters in MindSpore's group form: with decay, without, and the order of the network.

    Norm weights and biases (one-dimensional parameters and names that end in ``bias``) do not decay.

    Args:
        network: a cell; parameters with ``requires_grad`` False are left out.
        weight_decay: decay of the other parameters.

    Returns:
        One or two groups ``{"params": [...], "weight_decay": float}`` and ``{"order_params": [...]}``, which keeps
        optimizer state and gradients in the order of ``network.trainable_params()``. Empty when all is frozen.
    """
    trainable = list(network.trainable_params())
    groups: dict[float, list[Parameter]] = {}
    for param in trainable:
        groups.setdefault(0.0 if _is_exempt(param) else float(weight_decay), []).append(param)
    result: list[dict[str, Any]] = [{"params": params, "weight_decay": decay} for decay, params in groups.items()]
    return [*result, {"order_params": trainable}] if result else []


def _is_exempt(param: Parameter) -> bool:
    return param.ndim <= 1 or param.name.rpartition(".")[2].endswith("bias")
