# SPDX-License-Identifier: Apache-2.0
"""Adapters in the files of Hugging Face PEFT: ``adapter_config.json`` and ``adapter_model.safetensors``.

Facts from PEFT's ``LoraConfig`` and ``save_pretrained``: A is (r, in), B is (out, r), both fp32 or half precision;
the scale is lora_alpha / r, or lora_alpha / sqrt(r) with ``use_rslora``. Our layers use the rotary layout of
transformers, so rows of B need no permutation.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from mindformers.atomic import write_bytes, write_text
from mindformers.checkpoint.foreign.arrays import as_float32
from mindformers.checkpoint.foreign.files import SafetensorsFile
from mindformers.checkpoint.foreign.table import TABLE
from mindformers.config.schema.model import LoraSection
from mindformers.errors import CheckpointError, ConfigError
from mindformers.pet.lora import LORA_A, LORA_B
from mindformers.tools.utils import listing

__all__ = [
    "CONFIG_FILE",
    "PEFT_MODULES",
    "WEIGHTS_FILE",
    "is_peft_folder",
    "read_peft",
    "read_peft_config",
    "write_peft",
]

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"

PEFT_MODULES = {
    entry.ours.split(".", 3)[3].removesuffix(".weight"): entry.huggingface.split(".", 3)[3].removesuffix(".weight")
    for entry in TABLE
    if ".attention.w" in entry.ours or ".feed_forward.w" in entry.ours
}
"""Our linear layers -> those of transformers' Llama, without ``model.layers.N.``: attention.wq -> self_attn.q_proj."""

_OURS = {theirs: ours for ours, theirs in PEFT_MODULES.items()}
_PARTS = {"lora_A": LORA_A, "lora_B": LORA_B}
_KEY = re.compile(r"(?:base_model\.model\.)?model\.layers\.(\d+)\.(\w+\.\w+)\.(lora_[AB])(?:\.default)?\.weight")
_OUR_KEY = re.compile(rf"model\.layers\.(\d+)\.(\w+\.\w+)\.({LORA_A}|{LORA_B})")
# settings of PEFT that change the maths in ways our adapters do not have -> the values that leave it alone
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "use_dora": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "lora_bias": (False, None),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
}


def is_peft_folder(path: str | Path) -> bool:
    """Whether a folder holds an adapter of PEFT."""
    return (Path(path).expanduser() / CONFIG_FILE).is_file()


def read_peft_config(folder: str | Path) -> dict[str, Any]:
    """The settings of a PEFT adapter.

    Raises:
        CheckpointError: not JSON, not LoRA, or a setting that has no counterpart here; the message names it.
    """
    path = Path(folder).expanduser() / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        given = values.get("peft_type") if isinstance(values, dict) else type(values).__name__
        raise CheckpointError(f"{path}: peft_type is {given!r}; only LORA adapters can be used")
    problems = [f"{k} {values[k]!r}" for k, allowed in _UNSUPPORTED.items() if k in values and values[k] not in allowed]
    if problems:
        raise CheckpointError(
            f"{path}: {'; '.join(problems)}: LoRADense has no such thing; merge the adapter with PEFT"
        )
    for key in ("r", "lora_alpha"):
        if isinstance(values.get(key), bool) or not isinstance(values.get(key), int | float) or values[key] <= 0:
            raise CheckpointError(f"{path}: {key} must be a positive number, got {values.get(key)!r}")
    return values


def read_peft(folder: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A PEFT adapter in our terms.

    Args:
        folder: holds adapter_config.json and adapter_model.safetensors.

    Returns:
        Fields of a LoraConfig, and the adapter's matrices under our names, in their own float type (bf16 as fp32).

    Raises:
        CheckpointError: files are missing or damaged, or they adapt something other than Llama's linear layers.
    """
    folder = Path(folder).expanduser()
    values = read_peft_config(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        other = " adapter_model.bin is a pickle and is not read: save it with safe_serialization=True."
        raise CheckpointError(f"{path} does not exist.{other if (folder / 'adapter_model.bin').is_file() else ''}")
    tensors: dict[str, np.ndarray] = {}
    foreign = []
    for key, value in _load(path).items():
        match = _KEY.fullmatch(key)
        if match is None or match[2] not in _OURS:
            foreign.append(key)
        else:
            tensors[f"model.layers.{match[1]}.{_OURS[match[2]]}.{_PARTS[match[3]]}"] = value
    if foreign or not tensors:
        what = f"unknown names: {listing(foreign)}" if foreign else "it is empty"
        raise CheckpointError(f"{path}: {what}. An adapter of Llama has {', '.join(_OURS)} with lora_A and lora_B")
    rank, alpha = int(values["r"]), float(values["lora_alpha"])
    _check_pairs(tensors, rank, path)
    config = {
        "lora_rank": rank,
        "lora_alpha": alpha * math.sqrt(rank) if values.get("use_rslora") else alpha,
        "lora_dropout": float(values.get("lora_dropout") or 0.0),
        "lora_a_init": "he_uniform",
        "param_init_type": str(next(iter(tensors.values())).dtype),
        "compute_dtype": "float32",
        **_targets(tensors),
    }
    return config, tensors


def write_peft(
    folder: str | Path, config: LoraSection, tensors: Mapping[str, np.ndarray], base_name: str = ""
) -> list[Path]:
    """Write an adapter of ours as PEFT has it; each file appears whole or not at all.

    Args:
        folder: made when absent.
        config: rank, scale and dropout.
        tensors: matrices under our names.
        base_name: ``base_model_name_or_path`` for PEFT's loaders.
    """
    folder = Path(folder).expanduser()
    theirs, modules = {}, set()
    for name, value in tensors.items():
        match = _OUR_KEY.fullmatch(name)
        if match is None or match[2] not in PEFT_MODULES:
            raise CheckpointError(f"{name} has no place in PEFT's Llama: known are {', '.join(PEFT_MODULES)}")
        module = PEFT_MODULES[match[2]]
        part = next(peft for peft, ours in _PARTS.items() if ours == match[3])
        theirs[f"base_model.model.model.layers.{match[1]}.{module}.{part}.weight"] = np.ascontiguousarray(value)
        modules.add((int(match[1]), module))
    leaves = sorted({module.rpartition(".")[2] for _, module in modules})
    layers = sorted({layer for layer, _ in modules})
    paths = [f"model.layers.{layer}.{module}" for layer, module in sorted(modules)]
    complete = len(paths) == len(leaves) * len(layers) and layers == list(range(len(layers)))
    alpha = config.lora_alpha
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name or None,
        "r": config.lora_rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": leaves if complete else paths,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "inference_mode": True,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / WEIGHTS_FILE, save(theirs, metadata={"format": "pt"}))
        write_text(folder / CONFIG_FILE, json.dumps(values, indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(f"could not write the adapter into {folder}: {error}") from error
    return [folder / CONFIG_FILE, folder / WEIGHTS_FILE]


def _load(path: Path) -> dict[str, np.ndarray]:
    file = SafetensorsFile(path)
    raw = {name: file.read(name) for name in file.facts}
    return {name: as_float32(value) if value.dtype == "bfloat16" else value.data for name, value in raw.items()}


def _check_pairs(tensors: Mapping[str, np.ndarray], rank: int, path: Path) -> None:
    for name, value in tensors.items():
        place, _, part = name.rpartition(".")
        if f"{place}.{LORA_B if part == LORA_A else LORA_A}" not in tensors:
            raise CheckpointError(f"{path}: {name} is there without its other half")
        if value.ndim != 2 or value.shape[part == LORA_B] != rank:
            raise CheckpointError(f"{path}: {name} has shape {list(value.shape)}, which does not fit r = {rank}")


def _targets(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """``target_modules`` and ``exclude_layers`` that select exactly the layers of an adapter."""
    places = {name.rpartition(".")[0] for name in tensors}
    modules = sorted({place.split(".", 3)[3] for place in places})
    last = max(int(place.split(".")[2]) for place in places)
    everywhere = {f"model.layers.{layer}.{module}" for layer in range(last + 1) for module in modules}
    absent = [re.escape(place) + "$" for place in sorted(everywhere - places)]
    leaves = "|".join(f"{module.rpartition('.')[2]}$" for module in modules)
    return {"target_modules": leaves} | ({"exclude_layers": absent} if absent else {})


def config_of(fields: Mapping[str, Any], path: Path) -> LoraSection:
    """A LoraSection of fields found in a file; an error there is the file's."""
    try:
        return LoraSection(**fields)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
