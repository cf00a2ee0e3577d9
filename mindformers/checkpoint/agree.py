# SPDX-License-Identifier: Apache-2.0
"""Which saved step all ranks of a job have: the only one they may resume from together. No MindSpore here.

One rule for all who ask: the ranks (over the network), the launcher and ``checkpoint.cluster`` (over the files).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mindformers.checkpoint.manifest import scan

__all__ = ["common_saves", "common_step", "complete_steps", "saving_options"]

Save = TypeVar("Save")


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


def common_saves(saves: Sequence[Iterable[Save]]) -> list[Save]:
    """The saves that every rank has, oldest first; of one that was repeated the last counts.

    Args:
        saves: of each rank, what tells its complete checkpoints apart, in the order in which they were written. The
            order of the result is that of the first rank, which is the same for whoever looks.
    """
    first, *others = [list(own) for own in saves]
    everywhere = set(first).intersection(*others)
    newest_first = dict.fromkeys(reversed(first))
    return [save for save in reversed(newest_first) if save in everywhere]


def common_step(steps: Sequence[Sequence[int]]) -> int | None:
    """The newest step that every rank has, newest by rank 0's order of writing; None when there is none.

    Args:
        steps: of each rank, its complete steps, oldest first.
    """
    return next(reversed(common_saves(steps)), None)
