# SPDX-License-Identifier: Apache-2.0
"""Runs with adapters: which file is the base and which the adapter, and loading both."""

from pathlib import Path
from typing import Any

from mindspore import nn

from mindformers.checkpoint.layout import OutputLayout
from mindformers.checkpoint.load import load_into, resolve_checkpoint
from mindformers.checkpoint.manifest import Manifest
from mindformers.config import RunConfig
from mindformers.errors import CheckpointError
from mindformers.pet import get_pet_model
from mindformers.pet.adapter import adapted_layers, base_fingerprint, is_adapter_name
from mindformers.pet.adapter_file import (
    MANIFEST_KEY,
    AdapterFile,
    adapter_entry,
    check_same_adapter,
    is_adapter_only,
    read_adapter,
)
from mindformers.pet.peft_format import config_of, is_peft_folder
from mindformers.tools.logger import get_logger

logger = get_logger(__name__)


def settle_adapter(cfg: RunConfig, rank: int = 0) -> None:
    """Sort out the names of base and adapter in a config, in place; calling it again changes nothing.

    Afterwards ``load_checkpoint`` names the base, ``adapter_checkpoint`` the adapter (or nothing), and ``pet_config``
    is set when there is an adapter: from the adapter itself where the config has none.

    Raises:
        CheckpointError: the adapter does not fit ``pet_config``, or does not say how it was made.
    """
    if cfg.load_checkpoint and not cfg.adapter_checkpoint and _names_adapter(cfg.load_checkpoint, rank):
        cfg.adapter_checkpoint, cfg.load_checkpoint = cfg.load_checkpoint, ""
    if not cfg.adapter_checkpoint:
        return
    adapter = read_adapter(cfg.adapter_checkpoint, rank)
    model = cfg.model.config
    if model.pet_config is None:
        if adapter.config is None:
            raise CheckpointError(
                f"{adapter.path} does not say how it was made (no manifest): set model.model_config.pet_config "
                "(lora_rank, lora_alpha, target_modules)"
            )
        model.pet_config = adapter.config
        logger.info("pet_config is taken from the adapter %s", adapter.path)
    elif adapter.config is not None:
        check_same_adapter(adapter.config, model.pet_config, adapter.path)
    if not cfg.load_checkpoint:
        cfg.load_checkpoint = _recorded_base(adapter.base, adapter.path)


def resume_source(cfg: RunConfig, layout: OutputLayout) -> OutputLayout | str:
    """Where to look for the checkpoint a run goes on from; of a run with adapters ``load_checkpoint`` is the base."""
    named = cfg.load_checkpoint if cfg.model.config.pet_config is None else cfg.adapter_checkpoint
    return named or layout


def adopt_base(cfg: RunConfig, manifest: Manifest) -> None:
    """On resume: check ``pet_config`` against the checkpoint, and take the base it names when the config names none."""
    entry = manifest.extra.get(MANIFEST_KEY) or {}
    if cfg.model.config.pet_config is None:
        return
    if entry.get("config"):
        path = Path("the checkpoint to resume from")
        check_same_adapter(config_of(entry["config"], path), cfg.model.config.pet_config, path)
    if not cfg.load_checkpoint and not cfg.model.config.checkpoint_name_or_path:
        cfg.load_checkpoint = _recorded_base(entry.get("base", ""), Path("the checkpoint to resume from"))


def check_base(network: nn.Cell, manifest: Manifest) -> None:
    """Refuse to resume an adapter on another base than it was trained on.

    Raises:
        CheckpointError: the loaded base is not the recorded one.
    """
    recorded = (manifest.extra.get(MANIFEST_KEY) or {}).get("fingerprint")
    if recorded and recorded != base_fingerprint(network):
        raise CheckpointError(
            "the base weights are not those the checkpoint's adapter was trained on "
            f"({manifest.extra[MANIFEST_KEY].get('base') or 'name unknown'}): name that base with --load_checkpoint"
        )


def add_adapters(network: nn.Cell, cfg: RunConfig) -> nn.Cell:
    """The network with the adapters of ``pet_config``, or as it is when there is none."""
    pet_config = cfg.model.config.pet_config
    return network if pet_config is None else get_pet_model(network, pet_config)


def load_adapter(network: nn.Cell, cfg: RunConfig, base_names: Any, rank: int = 0) -> None:
    """Load ``adapter_checkpoint``; without one, new adapters are fine in training only.

    Args:
        network: with adapters; its base is loaded.
        cfg: the run's config, settled.
        base_names: names in the base checkpoint, which may hold the adapters too (files of the old library).
        rank: this process.

    Raises:
        CheckpointError: no adapter where one is needed, or one with other layers.
    """
    if not cfg.adapter_checkpoint:
        if cfg.run_mode in ("train", "finetune") or any(map(is_adapter_name, base_names)):
            return
        raise CheckpointError(
            f"model.model_config.pet_config is set, but run_mode {cfg.run_mode} was given no adapter: name it with "
            "--adapter_checkpoint PATH, or remove pet_config to use the base alone"
        )
    adapter = read_adapter(cfg.adapter_checkpoint, rank)
    targets = {p.name: p for p in network.get_parameters() if is_adapter_name(p.name)}
    report = load_into(targets, adapter.tensors, source=adapter.path)
    if report.unexpected:
        layers = sorted({name.rpartition(".")[0] for name in report.unexpected})
        raise CheckpointError(
            f"{adapter.path} adapts {len(layers)} layers that pet_config.target_modules "
            f"{cfg.model.config.pet_config.target_modules!r} leaves out, for example {layers[0]}"
        )
    _warn_of_other_base(network, adapter)


def has_adapters(network: nn.Cell) -> bool:
    """Whether any layer of a network has an adapter."""
    return any(adapted_layers(network))


def _warn_of_other_base(network: nn.Cell, adapter: AdapterFile) -> None:
    if adapter.fingerprint and adapter.fingerprint != base_fingerprint(network):
        logger.warning(
            "the adapter %s was trained on another base (%s) than the one loaded",
            adapter.path,
            adapter.base or "unknown",
        )


def _names_adapter(value: str, rank: int) -> bool:
    """Whether ``load_checkpoint`` names an adapter; a name that leads nowhere is left to the loader's error."""
    if is_peft_folder(value):
        return True
    path = Path(value).expanduser()
    if not path.exists():
        return False
    try:
        found = resolve_checkpoint(path, rank)
    except CheckpointError:
        return False  # the loader says what is wrong with it
    return bool(adapter_entry(found)) or is_adapter_only(found)


def _recorded_base(base: str, path: Path) -> str:
    if base and not Path(base).exists():
        raise CheckpointError(f"the base of {path} was {base}, which is not there now: --load_checkpoint BASE names it")
    return base
