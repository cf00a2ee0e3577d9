# SPDX-License-Identifier: Apache-2.0
"""Every directory and file name of a run's output: the only place that knows them."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mindformers.errors import CheckpointError

__all__ = [
    "FORMATS",
    "OutputLayout",
    "StepName",
    "check_format",
    "default_root",
    "manifest_path",
    "parse_step_file",
    "temp_files",
    "temp_path",
]

FORMATS = ("ckpt", "safetensors")
"""File formats a checkpoint can have; also the file extensions."""

_TEMP_PREFIX = ".tmp."
_STEP_FILE = re.compile(r"(?P<prefix>.+)_rank_(?P<rank>\d+)-(?P<epoch>\d+)_(?P<step>\d+)\.(?P<fmt>ckpt|safetensors)")


class StepName(NamedTuple):
    """What the name of a step checkpoint says; epoch and step (within the epoch) count from 1."""

    prefix: str
    rank: int
    epoch: int
    step: int
    fmt: str


def default_root(environ: Mapping[str, str] = os.environ) -> Path:
    """Output folder of a run that names none: LOCAL_DEFAULT_PATH, or ``./output``."""
    return Path(environ.get("LOCAL_DEFAULT_PATH") or "./output")


def check_format(fmt: str) -> str:
    """Return ``fmt`` when it is a known checkpoint format.

    Raises:
        CheckpointError: for any other value.
    """
    if fmt not in FORMATS:
        raise CheckpointError(f"unknown checkpoint format {fmt!r}; allowed: {', '.join(FORMATS)}")
    return fmt


def parse_step_file(name: str | Path) -> StepName | None:
    """Read a step checkpoint's file name (with or without folder); None when it is not one."""
    match = _STEP_FILE.fullmatch(Path(name).name)
    if match is None or match["prefix"].startswith(_TEMP_PREFIX):
        return None
    return StepName(match["prefix"], int(match["rank"]), int(match["epoch"]), int(match["step"]), match["fmt"])


def manifest_path(path: str | Path) -> Path:
    """The manifest that belongs to a checkpoint file: ``<file>.json`` beside it."""
    path = Path(path)
    return path.with_name(path.name + ".json")


def temp_path(path: str | Path) -> Path:
    """The name under which ``path`` is written before it is renamed; same folder, same extension."""
    path = Path(path)
    return path.with_name(_TEMP_PREFIX + path.name)


def temp_files(directory: Path) -> list[Path]:
    """Temporary names of checkpoint files in a folder: saves that are under way, or did not finish."""
    return sorted(directory.glob(f"{_TEMP_PREFIX}*_rank_*"))


class OutputLayout:
    """Folders and files of one rank of one run.

    Args:
        root: output folder of the run; None takes :func:`default_root`.
        rank: global rank of this process.

    Nothing is created here: whoever writes makes its own folder.
    """

    def __init__(self, root: str | Path | None = None, rank: int = 0):
        self.root = default_root() if root is None else Path(root)
        self.rank = rank

    def __repr__(self) -> str:
        return f"OutputLayout({str(self.root)!r}, rank={self.rank})"

    @property
    def rank_name(self) -> str:
        """``rank_N``, the folder name of this rank."""
        return f"rank_{self.rank}"

    @property
    def checkpoint_root(self) -> Path:
        """Folder that holds the step checkpoints of every rank."""
        return self.root / "checkpoint"

    @property
    def checkpoint_dir(self) -> Path:
        """Full training states of this rank, one file per saved step."""
        return self.checkpoint_root / self.rank_name

    @property
    def network_dir(self) -> Path:
        """Weights only, one file that each save replaces."""
        return self.root / "checkpoint_network" / self.rank_name

    @property
    def trainable_dir(self) -> Path:
        """Trainable weights only (LoRA), one file that each save replaces."""
        return self.root / "checkpoint_trainable" / self.rank_name

    @property
    def strategy_dir(self) -> Path:
        """Parallel strategies, one file per rank."""
        return self.root / "strategy"

    @property
    def strategy_file(self) -> Path:
        """This rank's parallel strategy."""
        return self.strategy_dir / f"ckpt_strategy_rank_{self.rank}.ckpt"

    @property
    def events_dir(self) -> Path:
        """Empty files by which ranks tell each other that they have loaded a checkpoint of another layout."""
        return self.root / "transformed_checkpoint"

    @property
    def log_dir(self) -> Path:
        """Log files of this rank."""
        return self.root / "log" / self.rank_name

    @property
    def log_file(self) -> Path:
        """Everything this rank prints, when a launcher started it."""
        return self.log_dir / "mindformer.log"

    @property
    def outcome_file(self) -> Path:
        """How the work of this rank ended, as JSON; written by the rank, read by the launcher."""
        return self.log_dir / "outcome.json"

    @property
    def scheduler_log(self) -> Path:
        """What MindSpore's scheduler process of a CPU job prints."""
        return self.root / "log" / "scheduler.log"

    @property
    def launch_file(self) -> Path:
        """Which processes a launcher has running; ``rank`` is the first one it started."""
        return self.root / "log" / f"launch_{self.rank_name}.json"

    @property
    def profile_dir(self) -> Path:
        """Traces of the profiler."""
        return self.root / "profile" / self.rank_name

    @property
    def metrics_file(self) -> Path:
        """Numbers of every logged step; in the root for rank 0, in the log folder for other ranks."""
        return (self.root if self.rank == 0 else self.log_dir) / "metrics.jsonl"

    @property
    def predictions_file(self) -> Path:
        """Texts an evaluation generated, one JSON line each."""
        return self.root / "predictions.jsonl"

    @property
    def training_predictions_file(self) -> Path:
        """The same of the latest evaluation while training."""
        return self.root / "training_predictions.jsonl"

    @property
    def resolved_config(self) -> Path:
        """The configuration of the run with everything filled in."""
        return self.root / "config.yaml"

    def step_file(self, prefix: str, epoch: int, step: int, fmt: str = "ckpt") -> Path:
        """Full training state after ``step`` (within ``epoch``; both count from 1)."""
        return self.checkpoint_dir / f"{prefix}_{self.rank_name}-{epoch}_{step}.{check_format(fmt)}"

    def network_file(self, prefix: str, fmt: str = "ckpt") -> Path:
        """Weights of the last save."""
        return self.network_dir / f"{prefix}_{self.rank_name}-network.{check_format(fmt)}"

    def trainable_file(self, prefix: str, fmt: str = "ckpt") -> Path:
        """Trainable weights of the last save."""
        return self.trainable_dir / f"{prefix}_{self.rank_name}-trainable_params.{check_format(fmt)}"
