# SPDX-License-Identifier: Apache-2.0
"""Small helpers that need neither MindSpore nor numpy: text to values, output folders, names a user meant."""

import difflib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mindformers.errors import ConfigError

__all__ = [
    "MODE",
    "PARALLEL_MODE",
    "check_in_modelarts",
    "count_params",
    "did_you_mean",
    "get_output_root_path",
    "get_output_subpath",
    "listing",
    "nearest",
    "parse_value",
    "peak_memory_bytes",
    "str2bool",
]

# What a YAML may write -> the number MindSpore uses.
MODE = {"GRAPH_MODE": 0, "PYNATIVE_MODE": 1, 0: 0, 1: 1}
# What a YAML may write -> the name MindSpore uses.
PARALLEL_MODE = {
    0: "data_parallel",
    1: "semi_auto_parallel",
    2: "auto_parallel",
    3: "hybrid_parallel",
    "STAND_ALONE": "stand_alone",
    "DATA_PARALLEL": "data_parallel",
    "SEMI_AUTO_PARALLEL": "semi_auto_parallel",
    "AUTO_PARALLEL": "auto_parallel",
    "HYBRID_PARALLEL": "hybrid_parallel",
}

_NAMES_SHOWN = 24


def str2bool(text: str | bool) -> bool:
    """``"true"`` / ``"false"`` in any case -> bool; a bool passes through.

    Raises:
        ConfigError: anything else.
    """
    if isinstance(text, bool):
        return text
    lowered = str(text).strip().lower()
    if lowered not in ("true", "false"):
        raise ConfigError(f"expected True or False, got {text!r}")
    return lowered == "true"


def parse_value(text: str) -> Any:
    """A command line word as int, float, bool, None, JSON list or mapping, and else as the text itself.

    For arguments that no schema types; config keys are typed by the schema instead.
    """
    lowered = text.strip().lower()
    if lowered in ("true", "false", "none", "null"):
        return {"true": True, "false": False}.get(lowered)
    for convert in (int, float, json.loads):
        try:
            return convert(text)
        except ValueError:  # not of this kind: try the next
            continue
    return text


def count_params(net: Any) -> int:
    """Trainable parameters of a MindSpore cell, in whole millions."""
    total = 0
    for parameter in net.trainable_params():
        size = 1
        for length in parameter.shape:
            size *= length
        total += size
    return total // 1_000_000


def get_output_root_path() -> str:
    """Absolute output folder: environment variable LOCAL_DEFAULT_PATH, else ``./output``. Nothing is created."""
    return os.path.abspath(os.path.expanduser(os.environ.get("LOCAL_DEFAULT_PATH") or "./output"))


def get_output_subpath(sub_class: str, rank_id: int = 0, append_rank: bool = True) -> str:
    """Path of a folder below the output folder; nothing is created.

    Args:
        sub_class: name of the folder (``checkpoint``, ``strategy``, ...).
        rank_id: rank of this process.
        append_rank: add ``rank_{rank_id}``.
    """
    path = Path(get_output_root_path()) / sub_class
    return str(path / f"rank_{rank_id}") if append_rank else str(path)


def check_in_modelarts() -> bool:
    """Whether the process runs inside a Huawei ModelArts job, by its environment."""
    return any(name in os.environ for name in ("SERVER_ID", "MA_JOB_DIR", "MODELARTS_JOB_ID"))


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice most like ``name``, or None when nothing is close.

    Args:
        name: what was written.
        choices: the names that exist.
    """
    pool = {choice.lower(): choice for choice in choices}
    wanted = str(name).lower()[:200]  # the comparison is quadratic
    hits = difflib.get_close_matches(wanted, pool, n=1, cutoff=0.6)
    if not hits and len(wanted) >= 4:
        parts = [low for low in pool if wanted in low or (len(low) >= 4 and low in wanted)]
        hits = sorted(parts, key=lambda low: abs(len(low) - len(wanted)))
    return pool[hits[0]] if hits else None


def listing(choices: Iterable[Any]) -> str:
    """The choices in one comma-separated line, cut after a couple of dozen."""
    names = [str(choice) for choice in choices]
    tail = f", ... {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + tail


def did_you_mean(name: str, choices: Iterable[str], label: str = "allowed") -> str:
    """Text `` Did you mean 'x'? (label: a, b, c)``; the question is left out when nothing is close.

    Args:
        name: what was written.
        choices: the names that exist.
        label: what to call the list.
    """
    names = list(choices)
    if not names:
        return ""
    best = nearest(name, names)
    question = f" Did you mean {best!r}?" if best is not None and best != name else ""
    return f"{question} ({label}: {listing(names)})"


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far; unlike getrusage it leaves out that of the parent before exec."""
    with open("/proc/self/status", encoding="utf-8") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024
