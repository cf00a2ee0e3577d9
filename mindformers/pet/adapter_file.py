# SPDX-License-Identifier: Apache-2.0
"""Adapters on disk: our own files with the adapter's config in their manifest, or a folder of PEFT."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspore import nn

from mindformers.checkpoint.ckpt_file import CkptFile
from mindformers.checkpoint.foreign import foreign_kind
from mindformers.checkpoint.foreign.files import SafetensorsFile
from mindformers.checkpoint.layout import manifest_path
from mindformers.checkpoint.load import read_checkpoint, resolve_checkpoint, sound_checkpoint
from mindformers.checkpoint.manifest import read_manifest
from mindformers.checkpoint.names import is_weight_name, modern_name
from mindformers.config.schema.model import LoraSection
from mindformers.errors import CheckpointError
from mindformers.pet.adapter import base_fingerprint, is_adapter_name
from mindformers.pet.peft_format import config_of, is_peft_folder, read_peft

__all__ = [
    "MANIFEST_KEY",
    "AdapterFile",
    "adapter_entry",
    "check_same_adapter",
    "describe_adapter",
    "is_adapter_only",
    "read_adapter",
]

MANIFEST_KEY = "adapter"
"""Entry of a manifest's ``extra`` that describes the adapter."""


@dataclass
class AdapterFile:
    """An adapter found on disk.

    Args:
        path: its file, or its folder when it is PEFT's.
        tensors: its matrices by today's names.
        config: rank, scale, layers; None for a file that does not say (old MindFormers).
        base: the base checkpoint it was trained on, as it was named then; "" when unknown.
        fingerprint: :func:`~mindformers.pet.adapter.base_fingerprint` of that base; "" when unknown.
    """

    path: Path
    tensors: Mapping[str, Any]
    config: LoraSection | None = None
    base: str = ""
    fingerprint: str = ""


def describe_adapter(network: nn.Cell, config: LoraSection, base: str | Path | None) -> dict[str, Any]:
    """What a manifest says about an adapter: its config, the base's path, and the base's fingerprint."""
    return {
        "config": config.to_dict(),
        "base": str(Path(base).absolute()) if base else "",
        "fingerprint": base_fingerprint(network),
    }


def is_adapter_only(path: Path) -> bool:
    """Whether the weights in a checkpoint file are those of an adapter alone; only names are read."""
    weights = [modern_name(name) for name in _names(path) if is_weight_name(name)]
    return bool(weights) and all(map(is_adapter_name, weights))


def read_adapter(value: str | Path, rank: int = 0) -> AdapterFile:
    """Find and read an adapter.

    Args:
        value: a PEFT folder, or a file or folder as for ``load_checkpoint``. A checkpoint that holds a base as well
            is fine: the adapter's part is taken.
        rank: whose ``rank_N`` folder to look into.

    Raises:
        CheckpointError: there is none.
    """
    if is_peft_folder(value):
        fields, tensors = read_peft(value)
        return AdapterFile(Path(value), tensors, config_of(fields, Path(value)))
    path = resolve_checkpoint(value, rank)
    params = read_checkpoint(path)
    tensors = {modern_name(name): params[name] for name in params if is_adapter_name(modern_name(name))}
    tensors = {name: tensor for name, tensor in tensors.items() if is_weight_name(name)}
    if not tensors:
        raise CheckpointError(f"{path} holds no adapter: no name ends with mindpet_delta_lora_a or _b")
    about = adapter_entry(path)
    config = config_of(about["config"], path) if about.get("config") else None
    return AdapterFile(path, tensors, config, about.get("base", ""), about.get("fingerprint", ""))


def adapter_entry(path: Path) -> dict[str, Any]:
    """The description of the adapter in a file's manifest; empty when there is none."""
    if not manifest_path(path).is_file():
        return {}
    entry = read_manifest(path).extra.get(MANIFEST_KEY) or {}
    if not isinstance(entry, dict) or not isinstance(entry.get("config", {}), dict):
        raise CheckpointError(f"{manifest_path(path)}: its entry {MANIFEST_KEY!r} is not a description of an adapter")
    return entry


def check_same_adapter(found: LoraSection, wanted: LoraSection, path: Path) -> None:
    """Refuse an adapter whose rank or scale is not that of the config; its layers are compared when it is loaded.

    Raises:
        CheckpointError: with each value that differs.
    """
    differs = [
        f"{key}: adapter {getattr(found, key)!r}, pet_config {getattr(wanted, key)!r}"
        for key in ("lora_rank", "lora_alpha")
        if getattr(found, key) != getattr(wanted, key)
    ]
    if differs:
        raise CheckpointError(
            f"{path} was made with other settings than model.model_config.pet_config: {'; '.join(differs)}. "
            "Set pet_config to the adapter's, or leave pet_config out: it is then taken from the adapter"
        )


def _names(path: Path) -> list[str]:
    if foreign_kind(path):
        return []
    if manifest_path(path).is_file():
        return [entry["name"] for entry in read_manifest(path).parameters]
    path = sound_checkpoint(path)
    return list((SafetensorsFile if path.suffix == ".safetensors" else CkptFile)(path).facts)
