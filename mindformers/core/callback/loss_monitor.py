# SPDX-License-Identifier: Apache-2.0
"""The progress line of training, metrics.jsonl, TensorBoard, and the guard against a loss that is not a number."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mindspore.train import Callback

from mindformers.atomic import write_text
from mindformers.core.progress import TrainProgress
from mindformers.core.throughput import clock, tokens_per_second
from mindformers.errors import ConfigError, TrainingError
from mindformers.registry import MindFormerModuleType, MindFormerRegister
from mindformers.tools.logger import get_logger

logger = get_logger(__name__)

_NAMES = ("loss", "overflow", "loss_scale", "lr", "grad_norm")


@MindFormerRegister.register(MindFormerModuleType.CALLBACK)
class MFLossMonitor(Callback):
    """Logs a line every ``per_print_times`` optimizer steps and stops a run whose loss is NaN or Inf.

    Args:
        learning_rate: not needed any more, the train step reports it; kept for old configs.
        per_print_times: optimizer steps between two lines.
        micro_batch_num, micro_batch_interleave_num: the loss of a pipeline's step is divided by their product.
        origin_epochs, dataset_size, initial_epoch, global_batch_size: shape of the run for scripts that use the
            callback without the Trainer; the Trainer gives it with :meth:`bind`.
        tensorboard: write the values for TensorBoard too (extra ``tensorboard``).
    """

    def __init__(
        self,
        learning_rate: Any = None,
        per_print_times: int = 1,
        micro_batch_num: int = 1,
        micro_batch_interleave_num: int = 1,
        origin_epochs: int | None = None,
        dataset_size: int | None = None,
        initial_epoch: int = 0,
        global_batch_size: int = 0,
        tensorboard: bool = False,
    ) -> None:
        super().__init__()
        if per_print_times < 1:
            raise ConfigError(f"MFLossMonitor.per_print_times must be at least 1, got {per_print_times}")
        self.learning_rate = learning_rate
        self.per_print_times = per_print_times
        self.loss_divisor = micro_batch_num * micro_batch_interleave_num
        self.tensorboard = tensorboard
        self._shape = (origin_epochs, dataset_size, initial_epoch, global_batch_size)
        self._progress: TrainProgress | None = None
        self._metrics_file: Path | None = None
        self._checkpoint_hint: Callable[[], str | None] = lambda: None
        self._writer: Any = None
        self._rank = 0

    def bind(
        self,
        progress: TrainProgress,
        metrics_file: Path | None = None,
        checkpoint_hint: Callable[[], str | None] | None = None,
        rank: int = 0,
    ) -> None:
        """Tell the callback about its run.

        Args:
            progress: where the run stands.
            metrics_file: JSON lines are appended here; lines of steps that a resumed run does again are dropped.
            checkpoint_hint: gives the last good checkpoint for the message of a failed run.
            rank: only rank 0 writes.
        """
        self._progress, self._rank = progress, rank
        self._checkpoint_hint = checkpoint_hint or self._checkpoint_hint
        self._metrics_file = metrics_file if rank == 0 else None

    def on_train_begin(self, run_context: Any) -> None:
        """Make the files ready and start the clock."""
        params = run_context.original_args()
        if self._progress is None:
            epochs, size, initial, batch = self._shape
            size = size or params.batch_num
            self._progress = TrainProgress(size, epochs or params.epoch_num, batch or 1, 0, start_step=initial * size)
        if self._metrics_file is not None:
            _cut(self._metrics_file, self._progress.start_step)
        if self.tensorboard and self._rank == 0:
            self._writer = _tensorboard_writer(self._metrics_file, self._progress.start_step)
        self._started = self._last_time = time.perf_counter()
        self._first_time: float | None = None
        self._first_step = self._last_step = self._progress.start_step

    def on_train_step_end(self, run_context: Any) -> None:
        """Check the loss; log at the end of an interval."""
        params = run_context.original_args()
        progress = self._progress
        if not progress.is_boundary(params):
            return
        values = self._values(params.net_outputs)
        step = progress.step(params)
        self._guard(values, step)
        if self._first_time is None:
            self._note_first_step(step)
            self._report(step, values, self._last_time - self._started)
        elif step // self.per_print_times > self._last_step // self.per_print_times or step == progress.total_steps:
            now = time.perf_counter()
            self._report(step, values, (now - self._last_time) / (step - self._last_step))
            self._last_time, self._last_step = now, step

    def on_train_end(self, run_context: Any) -> None:
        """Close TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()

    def _values(self, outputs: Any) -> dict[str, float]:
        outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
        values = {name: float(value.asnumpy()) for name, value in zip(_NAMES, outputs, strict=False)}
        values["loss"] /= self.loss_divisor
        return values

    def _note_first_step(self, step: int) -> None:
        """The first step contains the compilation: it is reported by itself and left out of the rates."""
        self._first_time = self._last_time = time.perf_counter()
        self._first_step = self._last_step = step
        logger.info("first step done, compilation included, in %.1f s", self._first_time - self._started)

    def _guard(self, values: dict[str, float], step: int) -> None:
        skipped = values.get("overflow") and values.get("loss_scale", 1.0) > 1.0
        if math.isfinite(values["loss"]) or skipped:
            return
        saved = self._checkpoint_hint()
        last = f"The last good checkpoint is {saved}" if saved else "No checkpoint was saved before it"
        raise TrainingError(
            f"the loss is {values['loss']} at step {step}. {last}. Try a lower optimizer.learning_rate, a longer "
            "lr_schedule.warmup_ratio, runner_wrapper.use_clip_grad: True, float32 in place of float16, and look "
            "at the data of this step"
        )

    def _report(self, step: int, values: dict[str, float], seconds: float) -> None:
        """One line and one record of a step that took so many seconds, on average since the last report."""
        progress = self._progress
        epoch, index = progress.epoch_and_step(step)
        samples = progress.global_batch_size / seconds if seconds > 0 else 0.0
        tokens = tokens_per_second(progress.global_batch_size, progress.seq_length, seconds)
        compiled = step == self._first_step  # its time says nothing about the steps to come
        left = "--" if compiled else clock((progress.total_steps - step) * seconds)
        if self._rank == 0:
            logger.info(
                "{ Epoch:[%3d/%3d], step:[%5d/%5d], loss: %.3f, per_step_time: %dms, lr: %.6g, overflow cond: %s, "
                "loss_scale: %.6g, grad_norm: %.3f } %5.1f%% %.1f samples/s %.0f tokens/s ETA %s",
                epoch, progress.epochs, index, progress.steps_per_epoch, values["loss"], round(seconds * 1e3),
                values.get("lr", math.nan), bool(values.get("overflow")), values.get("loss_scale", 1.0),
                values.get("grad_norm", math.nan), 100 * step / progress.total_steps, samples, tokens, left,
            )  # fmt: skip
        record = {"step": step, "epoch": epoch, "step_in_epoch": index, **values, "step_seconds": seconds,
                  "samples_per_second": samples, "tokens_per_second": tokens}  # fmt: skip
        if self._metrics_file is not None:
            with open(self._metrics_file, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        if self._writer is not None:
            for name, value in record.items():
                self._writer.add_scalar(f"train/{name}", value, step)


def _cut(path: Path, start_step: int) -> None:
    """Keep the lines of steps up to ``start_step``; a fresh run starts a fresh file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = []
    if start_step and path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= start_step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue  # the half line of a killed run
    write_text(path, "".join(kept))


def _tensorboard_writer(metrics_file: Path | None, start_step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "MFLossMonitor.tensorboard is True but tensorboardX is missing: pip install 'mindformers[tensorboard]'"
        ) from error
    folder = (metrics_file.parent if metrics_file else Path("output")) / "tensorboard"
    return SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else None)
