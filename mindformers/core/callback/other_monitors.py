# SPDX-License-Identifier: Apache-2.0
"""Callbacks around MindSpore's own tools: the profiler, summary files, and upload to an object store."""

from pathlib import Path
from typing import Any

from mindspore.train import Callback, SummaryCollector

from mindformers.core.progress import TrainProgress
from mindformers.registry import MindFormerModuleType, MindFormerRegister
from mindformers.tools.logger import get_logger

logger = get_logger(__name__)


@MindFormerRegister.register(MindFormerModuleType.CALLBACK)
class ProfileMonitor(Callback):
    """Profiles the optimizer steps ``start_step`` to ``stop_step`` with MindSpore's profiler.

    Args:
        start_step: first step, counted over the whole run from 1.
        stop_step: last step.
        output_path: folder of the trace; default ``output/profile/rank_N``.
        start_profile: start before the first step, compilation included, whatever ``start_step`` says.
        profile_communication: collect the communication of the ranks as well.
        profile_memory: collect memory use as well.
    """

    def __init__(
        self,
        start_step: int = 1,
        stop_step: int = 10,
        output_path: str | None = None,
        start_profile: bool = True,
        profile_communication: bool = False,
        profile_memory: bool = True,
    ) -> None:
        super().__init__()
        self.start_step, self.stop_step = start_step, stop_step
        self.output_path = output_path
        self.start_profile = start_profile
        self.profile_communication, self.profile_memory = profile_communication, profile_memory
        self._profiler: Any = None
        self._step = 0

    def bind(self, progress: TrainProgress, default_path: Path) -> None:
        """Tell where the run stands and where traces go by default."""
        self._step = progress.start_step
        self.output_path = self.output_path or str(default_path)

    def _start(self) -> None:
        from mindspore.profiler import ProfilerActivity, profile, tensorboard_trace_handler

        self._profiler = profile(
            activities=[ProfilerActivity.CPU, ProfilerActivity.NPU],
            profile_memory=self.profile_memory,
            parallel_strategy=self.profile_communication,
            start_profile=True,
            on_trace_ready=tensorboard_trace_handler(self.output_path),
        )

    def on_train_begin(self, run_context: Any) -> None:
        """Start, when the compilation is wanted too."""
        if self.start_profile or self.start_step <= self._step + 1:
            self._start()

    def on_train_step_end(self, run_context: Any) -> None:
        """Start before the first step that is wanted, stop after the last."""
        self._step += 1
        if self._profiler is None and self.start_step <= self._step + 1 <= self.stop_step:
            self._start()
        if self._step >= self.stop_step:
            self._stop()

    def on_train_end(self, run_context: Any) -> None:
        """Stop, when the run ends before ``stop_step``."""
        self._stop()

    def _stop(self) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None
            self.start_step = self.stop_step + 1  # once only
            logger.info("profile of the steps up to %d written to %s", self._step, self.output_path)


@MindFormerRegister.register(MindFormerModuleType.CALLBACK)
class SummaryMonitor(SummaryCollector):
    """MindSpore's SummaryCollector with a default folder.

    Args:
        summary_dir: folder of the summary files; default ``output/summary``.
        collect_freq: steps between two collections.
        **options: further arguments of SummaryCollector.
    """

    def __init__(self, summary_dir: str | None = None, collect_freq: int = 10, **options: Any) -> None:
        super().__init__(summary_dir or "output/summary", collect_freq=collect_freq, **options)


@MindFormerRegister.register(MindFormerModuleType.CALLBACK)
class ObsMonitor(Callback):
    """Uploads the output folder to Huawei's object store while training; does nothing outside ModelArts.

    Args:
        src_dir: folder to upload; default the run's output folder.
        target_dir: address to upload to; without one nothing is uploaded.
        step_upload_frequence: steps between two uploads; 0 or less turns them off.
        epoch_upload_frequence: the same in epochs.
        keep_last: upload once more at the end.
    """

    def __init__(
        self,
        src_dir: str | None = None,
        target_dir: str | None = None,
        step_upload_frequence: int = 100,
        epoch_upload_frequence: int = -1,
        keep_last: bool = True,
    ) -> None:
        super().__init__()
        self.src_dir, self.target_dir = src_dir, target_dir
        self.step_interval, self.epoch_interval = step_upload_frequence, epoch_upload_frequence
        self.keep_last = keep_last

    def bind(self, default_source: Path) -> None:
        """Tell which folder is uploaded by default."""
        self.src_dir = self.src_dir or str(default_source)

    def upload(self) -> None:
        """Copy the folder, when there is an address to copy it to."""
        if not self.target_dir:
            return
        import moxing  # exists on ModelArts only, where an address is given

        moxing.file.copy_parallel(self.src_dir, self.target_dir)

    def on_train_step_end(self, run_context: Any) -> None:
        """Upload at the end of an interval of steps."""
        if self.step_interval > 0 and run_context.original_args().cur_step_num % self.step_interval == 0:
            self.upload()

    def on_train_epoch_end(self, run_context: Any) -> None:
        """Upload at the end of an interval of epochs."""
        if self.epoch_interval > 0 and run_context.original_args().cur_epoch_num % self.epoch_interval == 0:
            self.upload()

    def on_train_end(self, run_context: Any) -> None:
        """Upload what the run left."""
        if self.keep_last:
            self.upload()
