# SPDX-License-Identifier: Apache-2.0
"""How much disk the checkpoints of a whole run take."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from mindformers.errors import CheckpointError

__all__ = ["SavePlan", "check_run_space"]


@dataclass(frozen=True)
class SavePlan:
    """The saves of a run that are still to come.

    Args:
        saves: their number; None when it is not known beforehand.
        keep: step checkpoints kept; 0 keeps all.
        present: step checkpoints on the disk already, which count among those kept.
        step_bytes: size of a step checkpoint.
        side_bytes: sizes of the files that every save replaces (bare weights, trainable weights).
    """

    saves: int | None
    keep: int
    present: int
    step_bytes: int
    side_bytes: tuple[int, ...] = ()

    @property
    def step_files(self) -> int:
        """Step checkpoints that stand on the disk together at the worst moment, beyond those there now.

        A new one is written before the oldest is deleted.
        """
        most = self.saves if self.saves is not None else (self.keep + 1 if self.keep else 1)
        return min(most, max(1, self.keep + 1 - self.present)) if self.keep else most

    @property
    def needed_bytes(self) -> int:
        """Free bytes the run needs at its worst moment."""
        if not self.step_files:
            return 0
        sides = sum(self.side_bytes)
        # while a replaced file is written its predecessor is still there, but the oldest step checkpoint is gone
        rewriting = max(self.side_bytes, default=0) if self.saves != 1 else 0
        deleted = self.step_bytes if self.keep and self.step_files > self.keep - self.present else 0
        return self.step_files * self.step_bytes + sides + max(0, rewriting - deleted)


def check_run_space(plan: SavePlan, folder: str | Path) -> None:
    """Fail before training when the disk cannot hold what the run will keep.

    Args:
        plan: the saves to come.
        folder: where they go; it need not exist yet.

    Raises:
        CheckpointError: too little is free; the message names both numbers and the remedies.
    """
    existing = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if free < plan.needed_bytes:
        raise CheckpointError(
            f"the checkpoints of this run need {plan.needed_bytes:,} bytes below {folder} "
            f"({plan.step_files} more step checkpoints of {plan.step_bytes:,} bytes at a time, and the weights), but "
            f"{free:,} are free. Free space, lower keep_checkpoint_max (now {plan.keep}; 0 keeps all), save less "
            "often, set save_network_params False, or change output_dir"
        )
