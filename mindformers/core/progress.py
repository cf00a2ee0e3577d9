# SPDX-License-Identifier: Apache-2.0
"""Where a training run stands: the one place that converts between micro steps, optimizer steps and epochs."""

from dataclasses import dataclass
from typing import Any


@dataclass
class TrainProgress:
    """The shape of a run, counted in optimizer steps.

    Args:
        steps_per_epoch: optimizer steps in one pass over the data.
        epochs: passes over the data.
        global_batch_size: records per optimizer step, over all ranks and micro steps.
        seq_length: predicted tokens per record.
        accumulation: micro steps (forward and backward passes) per optimizer step.
        start_step: optimizer steps that were done before this process started (resume).
    """

    steps_per_epoch: int
    epochs: int
    global_batch_size: int
    seq_length: int
    accumulation: int = 1
    start_step: int = 0

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, resumed part included."""
        return self.steps_per_epoch * self.epochs

    def step(self, cb_params: Any) -> int:
        """Optimizer steps completed, given the callback parameters of ``mindspore.Model``."""
        return self.start_step + cb_params.cur_step_num // self.accumulation

    def is_boundary(self, cb_params: Any) -> bool:
        """True when the step just run updated the weights, False inside a gradient accumulation."""
        return cb_params.cur_step_num % self.accumulation == 0

    def epoch_and_step(self, step: int) -> tuple[int, int]:
        """Epoch and step within it, both counted from 1, of the ``step``-th optimizer step (1-based)."""
        epoch, index = divmod(max(step - 1, 0), self.steps_per_epoch)
        return epoch + 1, index + 1
