# SPDX-License-Identifier: Apache-2.0
"""The callback that saves the training state while a run goes on."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mindspore import Parameter
from mindspore.communication import GlobalComm, get_group_size
from mindspore.train import Callback

from mindformers.checkpoint.layout import FORMATS, OutputLayout
from mindformers.checkpoint.manifest import scan
from mindformers.checkpoint.names import is_weight_name
from mindformers.checkpoint.save import host_copy, rotate, save_network, save_step, try_save
from mindformers.checkpoint.space import SavePlan, check_run_space
from mindformers.core.progress import TrainProgress
from mindformers.errors import ConfigError, TrainingError
from mindformers.registry import MindFormerModuleType, MindFormerRegister
from mindformers.tools.logger import get_logger

__all__ = ["CheckpointMointor", "CheckpointMonitor"]

logger = get_logger(__name__)


@MindFormerRegister.register(MindFormerModuleType.CALLBACK)
class CheckpointMonitor(Callback):
    """Save the full training state, and the bare weights, at steps of the whole run.

    Args:
        prefix: first part of every file name.
        directory: output folder to use in place of the run's; None keeps the run's.
        save_checkpoint_steps: save whenever the count of optimizer steps of the whole run (resumed part
            included) reaches a multiple of this; ignored when ``save_checkpoint_seconds`` is set.
        save_checkpoint_seconds: save when this many seconds have passed since the last save; 0 saves by
            steps. Only for runs of one process, since the clocks of ranks do not agree on a step.
        keep_checkpoint_max: complete step checkpoints to keep; the oldest are deleted after a save. 0 keeps
            all.
        integrated_save: accepted for old files; every rank always saves its own slices.
        async_save: write in a background thread, from a private copy in host memory.
        save_network_params: also write the bare weights to ``checkpoint_network/``, replacing the ones
            before; None means True, but False in a run with adapters.
        save_trainable_params: also write the trainable weights to ``checkpoint_trainable/``; None means False,
            but True in a run with adapters.
        checkpoint_format: ``ckpt`` or ``safetensors``.
        exception_save: when the run stops by an exception between two steps, save the state it leaves.

    ``last_saved`` is the file of the newest complete checkpoint, or None.
    """

    def __init__(
        self,
        prefix: str = "CKP",
        directory: str | None = None,
        save_checkpoint_steps: int = 1,
        save_checkpoint_seconds: float = 0,
        keep_checkpoint_max: int = 5,
        integrated_save: bool = False,
        async_save: bool = False,
        save_network_params: bool | None = None,
        save_trainable_params: bool | None = None,
        checkpoint_format: str = "ckpt",
        exception_save: bool = False,
    ):
        super().__init__()
        self.prefix = prefix
        self.directory = directory
        self.save_checkpoint_steps = save_checkpoint_steps
        self.save_checkpoint_seconds = save_checkpoint_seconds
        self.keep_checkpoint_max = keep_checkpoint_max
        self.integrated_save = integrated_save
        self.async_save = async_save
        self.save_network_params = save_network_params
        self.save_trainable_params = save_trainable_params
        self.checkpoint_format = checkpoint_format
        self.exception_save = exception_save
        self.last_saved: Path | None = None
        self._check_arguments()
        self._progress: TrainProgress | None = None
        self._layout = OutputLayout()
        self._state_fn: Callable[[], dict[str, Parameter]] = dict
        self._fields: Mapping[str, Any] | Callable[[], Mapping[str, Any]] = {}
        self._frozen: Mapping[str, Parameter] = {}
        self._step = self._saved_step = 0
        self._saved_time = time.monotonic()
        self._in_step = False
        self._pending: Future | None = None
        self._writer = ThreadPoolExecutor(1, "checkpoint") if async_save else None

    def bind(
        self,
        progress: TrainProgress,
        layout: OutputLayout,
        state_fn: Callable[[], dict[str, Parameter]],
        manifest_fields: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
        resumed_from: Path | None = None,
        frozen: Mapping[str, Parameter] | None = None,
    ) -> None:
        """Connect the callback to a run; called by the trainer before training.

        Args:
            progress: counts optimizer steps.
            layout: folders of this rank.
            state_fn: gives every parameter that makes up the training state, by name.
            manifest_fields: seed, dataset_records, shuffle, config, config_hash, loss_scale, ...; a function
                is asked at each save. Step, epoch and data position are filled in here.
            resumed_from: the checkpoint this run continues from; it counts as the last one saved.
            frozen: weights of the base below adapters, which are not part of the state.
        """
        self._progress = progress
        self._layout = OutputLayout(self.directory, layout.rank) if self.directory else layout
        self._state_fn = state_fn
        self._fields = manifest_fields or {}
        self._frozen = frozen or {}
        if self.save_network_params is None:
            self.save_network_params = not self._frozen
        if self.save_trainable_params is None:
            self.save_trainable_params = bool(self._frozen)
        self._step = self._saved_step = progress.start_step
        self._saved_time = time.monotonic()
        self.last_saved = resumed_from
        ranks = get_group_size() if GlobalComm.INITED else 1
        if ranks > 1 and self.save_checkpoint_seconds > 0:
            raise ConfigError(
                f"save_checkpoint_seconds={self.save_checkpoint_seconds} with {ranks} ranks: clocks would "
                "save different steps; set it to 0 and use save_checkpoint_steps"
            )

    def try_save(self) -> None:
        """Prove before training that saves will succeed: room for those of the whole run, then one trial.

        The trial leaves nothing behind and is no checkpoint. Ranks that share a disk each count their own files only.

        Raises:
            CheckpointError: too little room, or the folder cannot be written.
        """
        state, layout = self._state_fn(), self._layout
        sizes = {name: value.nbytes for name, value in state.items()}
        sides = []
        if self.save_network_params:
            sides.append(sum(size for name, size in sizes.items() if is_weight_name(name)))
        if self.save_trainable_params:
            sides.append(sum(sizes[name] for name in _trainable(state)))
        every, total, start = self.save_checkpoint_steps, self._progress.total_steps, self._progress.start_step
        saves = None if self.save_checkpoint_seconds else total // every - start // every + (total % every > 0)
        present = sum(c.manifest is not None for c in scan(layout.checkpoint_dir, self.prefix))
        plan = SavePlan(saves, self.keep_checkpoint_max, present, sum(sizes.values()), tuple(sides))
        check_run_space(plan, layout.root)
        begin = time.monotonic()
        for folder in (layout.checkpoint_dir, *([layout.network_dir] if self.save_network_params else [])):
            try_save(state, folder / f"{self.prefix}_{layout.rank_name}-trial.{self.checkpoint_format}",
                     self.checkpoint_format)  # fmt: skip
        logger.info(
            "checkpoints can be written to %s (%.2f s); the run needs %.1f MB there",
            layout.checkpoint_dir, time.monotonic() - begin, plan.needed_bytes / 1e6,
        )  # fmt: skip

    def on_train_begin(self, run_context: Any) -> None:
        """Refuse to train when nobody called :meth:`bind`: nothing could be saved."""
        if self._progress is None:
            raise ConfigError("CheckpointMonitor is not connected to the run: call bind(...), or use Trainer")
        self._saved_time = time.monotonic()

    def on_train_step_begin(self, run_context: Any) -> None:
        """Remember that the weights are in motion."""
        self._in_step = True

    def on_train_step_end(self, run_context: Any) -> None:
        """Save when a save is due and the weights have just been updated."""
        args = run_context.original_args()
        if not self._progress.is_boundary(args):
            return
        self._in_step = False
        before, self._step = self._step, self._progress.step(args)
        if self._is_due(before):
            self.save()

    def on_train_end(self, run_context: Any) -> None:
        """Save the last step unless that is done, and wait for the background writer."""
        if self._step > self._saved_step:
            self.save()
        self.wait()

    def __exit__(self, *error: Any) -> None:
        """Called by MindSpore when training is over, however it ended."""
        kind = error[0] if error else None
        if kind is not None and self.exception_save and self._step > self._saved_step:
            if self._in_step or issubclass(kind, TrainingError):
                logger.warning("exception_save: the state is unfinished or not finite, so it is not saved")
            else:
                self.save()
        self.wait()

    def save(self) -> None:
        """Save the state as it is now, under the number of the last finished step.

        Raises:
            CheckpointError: a file could not be written; with ``async_save``, possibly that of the save
                before.
        """
        self.wait()
        step = self._saved_step = self._step
        state = self._state_fn()
        fields = self._manifest_fields(step, state)
        trainable = _trainable(state)
        if self._writer is None:
            self._write(state, fields, trainable)
        else:
            self._pending = self._writer.submit(self._write, host_copy(state), fields, trainable)
        self._saved_time = time.monotonic()

    def wait(self) -> None:
        """Wait until a background save is complete; raise its error if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _is_due(self, before: int) -> bool:
        """True when a save is due after going from step ``before`` to the present one."""
        if self.save_checkpoint_seconds > 0:
            return time.monotonic() - self._saved_time >= self.save_checkpoint_seconds
        return self._step // self.save_checkpoint_steps > before // self.save_checkpoint_steps

    def _manifest_fields(self, step: int, state: Mapping[str, Any]) -> dict[str, Any]:
        """Everything the manifest shall say about the run."""
        epoch, step_in_epoch = self._progress.epoch_and_step(step)
        batch = self._progress.global_batch_size
        scale = next((state[name] for name in ("scale_sense", "loss_scale") if name in state), None)
        given = self._fields() if callable(self._fields) else self._fields
        return {
            "loss_scale": None if scale is None else float(scale.asnumpy().reshape(-1)[0]),
            **given,
            "step": step,
            "epoch": epoch,
            "step_in_epoch": step_in_epoch,
            "global_batch_size": batch,
            "records_consumed": step * batch,
            "steps_per_epoch": self._progress.steps_per_epoch,
        }

    def _write(self, state: Mapping[str, Any], fields: Mapping[str, Any], trainable: list[str]) -> None:
        """Write the files of one save; the step checkpoint first, since the others can be made from it."""
        start = time.monotonic()
        layout, fmt = self._layout, self.checkpoint_format
        path = layout.step_file(self.prefix, fields["epoch"], fields["step_in_epoch"], fmt)
        manifest = save_step(state, path, manifest_fields=fields, fmt=fmt)
        self.last_saved = path
        rotate(path.parent, self.prefix, self.keep_checkpoint_max, layout.rank)
        if self.save_network_params:
            weights = {**self._frozen, **{name: value for name, value in state.items() if is_weight_name(name)}}
            save_network(weights, layout.network_file(self.prefix, fmt), manifest_fields=fields, fmt=fmt)
        if self.save_trainable_params:
            chosen = {name: state[name] for name in trainable}
            save_network(chosen, layout.trainable_file(self.prefix, fmt), manifest_fields=fields, fmt=fmt)
        seconds = time.monotonic() - start
        logger.info("saved step %d to %s (%.1f MB in %.2f s)", fields["step"], path, manifest.size / 1e6, seconds)

    def _check_arguments(self) -> None:
        """Refuse values that make no sense, before anything is trained."""
        problems = []
        if not isinstance(self.prefix, str) or not self.prefix or self.prefix != Path(self.prefix).name:
            problems.append(f"prefix {self.prefix!r}: a plain file name is needed")
        elif self.prefix.startswith("."):
            problems.append(f"prefix {self.prefix!r}: must not start with a dot")
        if not _is_int(self.save_checkpoint_steps) or self.save_checkpoint_steps < 1:
            problems.append(f"save_checkpoint_steps {self.save_checkpoint_steps!r}: a number of 1 or more is needed")
        seconds = self.save_checkpoint_seconds
        if not (_is_int(seconds) or isinstance(seconds, float)) or not seconds >= 0:
            problems.append(f"save_checkpoint_seconds {seconds!r}: 0 or more seconds are needed")
        if not _is_int(self.keep_checkpoint_max) or self.keep_checkpoint_max < 0:
            problems.append(f"keep_checkpoint_max {self.keep_checkpoint_max!r}: 0 (keep all) or more is needed")
        if self.checkpoint_format not in FORMATS:
            problems.append(f"checkpoint_format {self.checkpoint_format!r}: allowed are {', '.join(FORMATS)}")
        if problems:
            raise ConfigError("CheckpointMonitor: " + "; ".join(problems))


def _trainable(state: Mapping[str, Any]) -> list[str]:
    """Names of the weights that training changes."""
    return [name for name, p in state.items() if is_weight_name(name) and getattr(p, "requires_grad", True)]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@MindFormerRegister.register(MindFormerModuleType.CALLBACK)
class CheckpointMointor(CheckpointMonitor):  # the old, misspelt name that existing YAML files use
    """The name under which older configurations know :class:`CheckpointMonitor`."""
