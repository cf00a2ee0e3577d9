# SPDX-License-Identifier: Apache-2.0
"""Evaluation while training."""

from collections.abc import Callable
from typing import Any

from mindspore.train import Callback

from mindformers.core.progress import TrainProgress
from mindformers.registry import MindFormerModuleType, MindFormerRegister


@MindFormerRegister.register(MindFormerModuleType.CALLBACK)
class EvalCallBack(Callback):
    """Calls an evaluation every so many optimizer steps, or at the end of every so many epochs.

    Args:
        eval_func: evaluates and logs; takes nothing.
        step_interval: optimizer steps between two evaluations; 0 or less turns them off.
        epoch_interval: the same in passes over the data.

    In sink mode a step is seen only at the end of a sink: an interval that ends inside one is evaluated there.
    """

    def __init__(self, eval_func: Callable[[], Any], step_interval: int = 100, epoch_interval: int = -1) -> None:
        super().__init__()
        self.eval_func = eval_func
        self.step_interval = step_interval
        self.epoch_interval = epoch_interval
        self._progress: TrainProgress | None = None
        self._last = 0

    def bind(self, progress: TrainProgress) -> None:
        """Tell where the run stands; without it steps are MindSpore's own."""
        self._progress = progress
        self._last = progress.start_step

    def on_train_step_end(self, run_context: Any) -> None:
        """Evaluate when an interval ended since the last look."""
        params = run_context.original_args()
        step, steps_per_epoch = params.cur_step_num, params.batch_num
        if self._progress is not None:
            if not self._progress.is_boundary(params):
                return
            step, steps_per_epoch = self._progress.step(params), self._progress.steps_per_epoch
        intervals = (self.step_interval, self.epoch_interval * steps_per_epoch)
        due = any(interval > 0 and step // interval > self._last // interval for interval in intervals)
        self._last = step
        if due:
            self.eval_func()
