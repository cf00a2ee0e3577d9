# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and preemption: a run ends between two steps, with its state saved."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

from mindspore.communication import GlobalComm, get_group_size
from mindspore.train import Callback

from mindformers.core.progress import TrainProgress
from mindformers.errors import RunStopped
from mindformers.tools.logger import get_logger

__all__ = ["StopMonitor"]

logger = get_logger(__name__)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopMonitor(Callback):
    """End the run after the present optimizer step when SIGINT or SIGTERM arrives; a second one ends it at once.

    Ranks of a cluster would stop at different steps, so there the launcher ends them and the run goes on from its last
    checkpoint. MindSpore's own handler of SIGINT is in place while a graph runs; it sends SIGTERM to the process,
    which is why the two are not told apart. A signal during the first compilation ends the process.

    Args:
        progress: counts optimizer steps.

    Callbacks that save come after it; MindSpore enters and leaves it as a context around the training.
    """

    def __init__(self, progress: TrainProgress) -> None:
        super().__init__()
        self._progress = progress
        self._asked = False
        self._stopped_at = 0
        ranks = get_group_size() if GlobalComm.INITED else 1
        alone = ranks == 1 and threading.current_thread() is threading.main_thread()
        ignored = signal.SIG_IGN  # as nohup leaves it
        self._signals = [s for s in _SIGNALS if alone and signal.getsignal(s) != ignored]

    def __enter__(self) -> "StopMonitor":
        self._before = {number: signal.getsignal(number) for number in self._signals}
        self._listen()
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def on_train_step_begin(self, run_context: Any) -> None:
        """Take the signals back: reading the batch has put a handler of MindSpore in place."""
        self._listen()

    def on_train_step_end(self, run_context: Any) -> None:
        """Stop when that was asked for and the weights have just been updated."""
        args = run_context.original_args()
        if self._asked and self._progress.is_boundary(args):
            self._stopped_at = self._progress.step(args)
            run_context.request_stop()

    def raise_if_stopped(self, saved: Path | None) -> None:
        """Say where a run that was stopped stands.

        Args:
            saved: its newest checkpoint.

        Raises:
            RunStopped: a signal ended the run before its last step.
        """
        if not self._stopped_at or self._stopped_at >= self._progress.total_steps:
            return
        state = (
            f"saved {saved}; go on with the same command and --resume_training True"
            if saved
            else "nothing is saved: the callbacks hold no CheckpointMonitor"
        )
        where = f"after step {self._stopped_at} of {self._progress.total_steps}"
        raise RunStopped(f"interrupted {where}; {state}")

    def _listen(self) -> None:
        for number in self._signals:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        if self._asked:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._asked = True
        logger.warning("interrupted: stopping after this step; once more stops at once")
