# SPDX-License-Identifier: Apache-2.0
"""Which layers get an adapter, which parameters are trained, and what identifies the base they belong to."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from mindformers.checkpoint.names import is_unsaved_name, is_weight_name
from mindformers.config.schema.model import LoraSection
from mindformers.errors import ConfigError
from mindformers.modules.dtypes import to_ms_dtype
from mindformers.modules.linear import Linear
from mindformers.pet.dropout import PooledDropout, mask_pool
from mindformers.pet.lora import LORA_A, LORA_B, LoRADense
from mindformers.registry import MindFormerModuleType, MindFormerRegister
from mindformers.tools.logger import get_logger
from mindformers.tools.utils import listing

__all__ = [
    "ADAPTER_PATTERN",
    "LoraConfig",
    "adapted_layers",
    "base_fingerprint",
    "get_pet_model",
    "is_adapter_name",
    "is_excluded",
]

logger = get_logger(__name__)

ADAPTER_PATTERN = "*mindpet_delta_lora_*"
"""Wildcard pattern of the adapters' parameter names."""
STEP_NAME = "dropout_step"
_SAMPLES = 64  # values of each weight that go into the fingerprint


@MindFormerRegister.register(MindFormerModuleType.CONFIG)
class LoraConfig(LoraSection):
    """Rank, scale, dropout, types and layers of the adapters; the fields are those of the YAML's ``pet_config``."""


def is_adapter_name(name: str) -> bool:
    """True for a parameter of an adapter."""
    return name.endswith((LORA_A, LORA_B))


def get_pet_model(base_model: nn.Cell, config: LoraSection | Mapping[str, Any]) -> nn.Cell:
    """Put low-rank adapters on a model's linear layers and freeze everything else.

    Args:
        base_model: a model whose layers are in its cell ``model`` (LlamaForCausalLM); it is changed in place. Its
            head is outside ``model`` and stays as it is.
        config: a LoraConfig, or its fields as a mapping.

    Returns:
        ``base_model``: the layers whose name (the last part, ``wq``) matches ``target_modules`` from its start are
        :class:`LoRADense` now. Parameters keep their names; new ones are
        ``model.layers.N.attention.wq.mindpet_delta_lora_a`` and ``..._b``.

    Raises:
        ConfigError: the config is wrong, no layer matches, or the model has adapters already.
    """
    config = config if isinstance(config, LoraSection) else LoraConfig(**config)
    if not isinstance(getattr(base_model, "model", None), nn.Cell):
        raise ConfigError(f"{type(base_model).__name__} has no cell 'model' with the layers to adapt")
    if any(adapted_layers(base_model)):
        raise ConfigError("the model has adapters already: get_pet_model is called once")
    chosen = _chosen_layers(base_model, config)
    for parameter in base_model.get_parameters():
        parameter.requires_grad = False
    make_dropout = _dropout_maker(base_model, config)
    for place, (path, parent, leaf, linear) in enumerate(chosen):
        layer = LoRADense(
            linear,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            dropout=make_dropout(linear.in_channels, place),
            a_init=config.lora_a_init,
            b_init=config.lora_b_init,
            param_init_type=to_ms_dtype(config.param_init_type),
            compute_dtype=to_ms_dtype(config.compute_dtype),
        )
        _replace(parent, leaf, layer, path)
    if config.lora_dropout:
        base_model.dropout_step.name = STEP_NAME  # the layers that share it have each put their own name before it
    names = sorted({leaf for _, _, leaf, _ in chosen})
    count = sum(p.size for p in base_model.trainable_params())
    total = sum(p.size for p in base_model.get_parameters() if is_weight_name(p.name))
    logger.info(
        "LoRA rank %d on %d layers (%s): %d of %d weights are trained (%.2f %%)",
        config.lora_rank, len(chosen), ", ".join(names), count, total, 100 * count / total,
    )  # fmt: skip
    return base_model


def adapted_layers(network: nn.Cell) -> Iterator[tuple[str, LoRADense]]:
    """(path, layer) of every layer with an adapter."""
    return ((path, cell) for path, cell in network.cells_and_names() if isinstance(cell, LoRADense))


def is_excluded(path: str, patterns: str | list[str] | None) -> bool:
    """Whether ``exclude_layers`` names a layer: by its last part (``wq``) or by its whole path, from the start."""
    patterns = [patterns] if isinstance(patterns, str) else patterns or []
    return any(re.match(p, path.rpartition(".")[2]) or re.match(p, path) for p in patterns)


def base_fingerprint(network: nn.Cell) -> str:
    """Digest that tells base models apart: names, shapes and some values of all frozen weights.

    The values are compared as fp16, so that a base loaded in another float type counts as the same.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted((p.name, p) for p in network.get_parameters() if not is_adapter_name(p.name)):
        if not is_weight_name(name):
            continue
        values = parameter.asnumpy().reshape(-1)
        with np.errstate(over="ignore"):
            sample = values[:: max(1, values.size // _SAMPLES)][:_SAMPLES].astype(np.float16)
        digest.update(f"{name} {list(parameter.shape)}".encode() + sample.tobytes())
    return digest.hexdigest()[:16]


def _chosen_layers(network: nn.Cell, config: LoraSection) -> list[tuple[str, nn.Cell, str, Linear]]:
    """(path, parent, leaf, layer) of the layers that get an adapter, in the order of the model."""
    found = []
    for parent_path, parent in network.model.cells_and_names(name_prefix="model"):
        for leaf, cell in parent.name_cells().items():
            if isinstance(cell, Linear):
                found.append((f"{parent_path}.{leaf}", parent, leaf, cell))
    matched = [item for item in found if re.match(config.target_modules, item[2])]
    if not matched:
        raise ConfigError(
            f"pet_config.target_modules {config.target_modules!r} matches no linear layer. It is matched from the "
            f"start with the last part of the name: {listing(dict.fromkeys(leaf for _, _, leaf, _ in found))}"
        )
    chosen = [item for item in matched if not is_excluded(item[0], config.exclude_layers)]
    if not chosen:
        raise ConfigError(
            f"pet_config.exclude_layers {config.exclude_layers!r} excludes all {len(matched)} layers that "
            f"target_modules {config.target_modules!r} matches"
        )
    patterns = config.exclude_layers or []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if not any(is_excluded(item[0], pattern) for item in found):
            raise ConfigError(
                f"pet_config.exclude_layers {pattern!r} matches no linear layer, by its name such as "
                f"{found[0][2]!r} or by its path such as {found[0][0]!r}"
            )
    return chosen


def _dropout_maker(network: nn.Cell, config: LoraSection) -> Any:
    """A function (width, place) -> dropout or None; pools and the step counter are shared."""
    rate = config.lora_dropout
    if rate == 0:
        return lambda width, place: None
    seed = ms.get_seed()
    if seed is None:  # nobody asked for the same masks in every process
        seed = int(np.random.default_rng().integers(1 << 31))
    network.dropout_step = Parameter(Tensor([0], ms.int32), name=STEP_NAME, requires_grad=False)
    pools: dict[int, Tensor] = {}

    def make(width: int, place: int) -> PooledDropout:
        if width not in pools:
            pools[width] = mask_pool(width, rate, seed)
        return PooledDropout(rate, pools[width], network.dropout_step, place, seed)

    return make


def _replace(parent: nn.Cell, leaf: str, layer: LoRADense, path: str) -> None:
    """Put the layer into its parent; parameters keep the names of their places, which MindSpore would prefix anew."""
    names = {id(parameter): parameter.name for parameter in layer.get_parameters()}
    setattr(parent, leaf, layer)
    for parameter in layer.get_parameters():
        old = names[id(parameter)]
        parameter.name = f"{path}.{old}" if is_adapter_name(old) or is_unsaved_name(f".{old}") else old
