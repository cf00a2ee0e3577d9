# SPDX-License-Identifier: Apache-2.0
"""What parameter names mean: weights, optimizer state, caches, old spellings, other libraries' names."""

import re
from difflib import get_close_matches

from mindformers.checkpoint.foreign.table import HEAD, TABLE

__all__ = [
    "is_setting_name",
    "is_state_name",
    "is_unsaved_name",
    "is_weight_name",
    "missing_hint",
    "modern_name",
    "shape_hint",
]

_STATE_PREFIXES = ("adam_m.", "adam_v.", "moments.", "moment1.", "moment2.", "accu_", "accum.", "stat.")
_STATE_NAMES = frozenset(
    (
        "global_step",
        "scale_sense",
        "loss_scale",
        "epoch_num",
        "step_num",
        "beta1_power",
        "beta2_power",
        "current_iterator_step",
        "last_overflow_iterator_step",
        "current_step",
        "good_steps",
        "dropout_step",
    )
)
_UNSAVED_SUFFIXES = (".key_past", ".value_past", ".dropout_offset")
_RENAMED = (("tk_delta", "mindpet_delta"),)
_AXES = (
    # name pattern, the model_config value that sets each axis; the first pattern that fits is used
    (r"lora_a$", ("pet_config.lora_rank", "hidden_size")),
    (r"lora_b$", ("hidden_size", "pet_config.lora_rank")),
    *((re.escape(entry.ours.split("{i}.")[-1]) + "$", entry.axes) for entry in TABLE),
)


def is_unsaved_name(name: str) -> bool:
    """True for what no checkpoint holds: key/value caches, and places of dropout, which follow from the seed."""
    return name.endswith(_UNSAVED_SUFFIXES)


def is_state_name(name: str) -> bool:
    """True for optimizer moments, step counters and loss-scale state: not part of the model."""
    return name.startswith(_STATE_PREFIXES) or name in _STATE_NAMES or is_setting_name(name)


def is_setting_name(name: str) -> bool:
    """True for a constant of the configuration that MindSpore keeps as a parameter."""
    return name.startswith(("learning_rate", "group_lr", "weight_decay"))


def is_weight_name(name: str) -> bool:
    """True for a parameter of the model itself."""
    return not (is_state_name(name) or is_unsaved_name(name))


def modern_name(name: str) -> str:
    """Today's spelling of a parameter name of an old checkpoint."""
    for old, new in _RENAMED:
        name = name.replace(old, new)
    return name


def missing_hint(missing: list[str], given: list[str]) -> str:
    """Explain why weights are missing, when the names tell.

    Args:
        missing: names the model wants and the checkpoint lacks.
        given: names the checkpoint has and the model does not know.

    Returns:
        One sentence; empty when there is nothing to say.
    """
    tool = "run mindformers/models/llama/convert_weight.py on it first"
    if any(re.search(r"\.self_attn\.[qkvo]_proj\.|(^|\.)embed_tokens\.", name) for name in given):
        return f"this looks like a Hugging Face checkpoint; {tool}"
    if any(re.match(r"(layers\.\d+\.(attention|feed_forward)\.|tok_embeddings\.weight$)", name) for name in given):
        return f"this looks like a checkpoint in Meta's layout; {tool}"
    if missing == [HEAD]:
        return "without an output layer of its own the checkpoint fits a model with tie_word_embeddings True"
    if all("mindpet_delta" in name for name in missing):
        return "only LoRA weights are missing: name the adapter with --adapter_checkpoint"
    if all(re.search(r"\.layers\.\d+\.", name) for name in missing) and not given:
        return "whole layers are missing: check num_layers of the model"
    return _near_hint(missing, given)


def _near_hint(missing: list[str], given: list[str]) -> str:
    """Name a missing weight's nearest relative among the unknown names."""
    for name in missing:
        inside = [other for other in given if other.endswith("." + name) or name.endswith("." + other)]
        near = inside or get_close_matches(name, given, 1, 0.7)
        if near:
            return f"{near[0]} may be meant for {name}: were the names changed, or given another prefix?"
    return ""


def shape_hint(name: str, given: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """Which model_config value to check when a shape differs; empty when the name does not tell.

    Args:
        name: parameter name.
        given: its shape in the checkpoint.
        wanted: its shape in the model.
    """
    if len(given) != len(wanted):
        return ""
    differs = [i for i, (a, b) in enumerate(zip(given, wanted, strict=True)) if a != b]
    for pattern, keys in _AXES:
        if re.search(pattern, name):
            found = [f"{keys[i]} (checkpoint {given[i]}, model {wanted[i]})" for i in differs if keys[i]]
            return "model_config: " + ", ".join(found) if found else ""
    return ""
