# SPDX-License-Identifier: Apache-2.0
"""Which saved step all ranks of a job have: the only one they may resume from together. No MindSpore here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mindformers.checkpoint.manifest import scan

__all__ = ["common_step", "complete_steps", "saving_options"]


def saving_options(cfg: Any) -> tuple[str | None, str | None]:
    """Prefix of a run's checkpoints (None when it saves none) and the folder named in place of ``output_dir``.

    Args:
        cfg: a RunConfig.
    """
    for section in cfg.callbacks:
        if section.type in ("CheckpointMonitor", "CheckpointMointor"):
            options = section.options()
            return options.get("prefix", "CKP"), options.get("directory")
    return None, None


def complete_steps(folder: Path, prefix: str | None, since: float = 0.0) -> list[int]:
    """Optimizer steps of a rank's complete checkpoints, in the order in which they were written.

    Args:
        folder: the ``rank_N`` folder.
        prefix: of the file names; None takes all.
        since: leave out those written before this time, in seconds since 1970.
    """
    found = scan(folder, prefix)
    return [c.manifest.step for c in found if c.manifest is not None and c.manifest.created >= since]


def common_step(steps: Sequence[Sequence[int]]) -> int | None:
    """The newest step that every rank has, newest by rank 0's order of writing; None when there is none.

    Args:
        steps: of each rank, its complete steps, oldest first.
    """
    everywhere = set(steps[0]).intersection(*steps[1:])
    return next((step for step in reversed(steps[0]) if step in everywhere), None)
