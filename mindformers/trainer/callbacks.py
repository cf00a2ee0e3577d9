# SPDX-License-Identifier: Apache-2.0
"""The callbacks of a training run, bound to it."""

from collections.abc import Sequence
from typing import Any

from mindspore import nn

from mindformers.checkpoint.layout import OutputLayout
from mindformers.checkpoint.resume import ResumePoint
from mindformers.config import RunConfig
from mindformers.core.callback import CheckpointMonitor, EvalCallBack, MFLossMonitor, ObsMonitor, ProfileMonitor
from mindformers.core.progress import TrainProgress
from mindformers.registry import MindFormerModuleType, MindFormerRegister
from mindformers.trainer.evaluate import EvalCell, evaluate
from mindformers.trainer.state import frozen_weights, train_state

__all__ = ["build_callbacks", "eval_callback"]


def build_callbacks(
    cfg: RunConfig,
    progress: TrainProgress,
    layout: OutputLayout,
    cell: nn.Cell,
    manifest: dict[str, Any],
    resume: ResumePoint | None,
    given: Sequence[Any] = (),
) -> list[Any]:
    """The callbacks of the YAML and the given ones, bound to this run; the guard against NaN comes before the save."""
    sections = [{"type": section.type, **section.options()} for section in cfg.callbacks]
    if cfg.profile:
        sections.append(_profile_section(cfg))
    callbacks = [
        MindFormerRegister.get_instance_from_cfg(section, MindFormerModuleType.CALLBACK) for section in sections
    ]
    callbacks = [c for c in callbacks if not any(isinstance(c, type(own)) for own in given)] + list(given)
    monitors = [c for c in callbacks if isinstance(c, CheckpointMonitor)]
    for callback in callbacks:
        if isinstance(callback, CheckpointMonitor):
            callback.bind(
                progress, layout, lambda: train_state(cell), manifest, resume and resume.path, frozen_weights(cell)
            )
        elif isinstance(callback, MFLossMonitor):
            callback.bind(progress, layout.metrics_file, lambda: _last_saved(monitors), rank=layout.rank)
        elif isinstance(callback, ProfileMonitor):
            callback.bind(progress, layout.profile_dir)
        elif isinstance(callback, ObsMonitor):
            callback.bind(layout.root)
    return sorted(callbacks, key=lambda c: isinstance(c, CheckpointMonitor))


def _last_saved(monitors: list[CheckpointMonitor]) -> str | None:
    saved = [str(monitor.last_saved) for monitor in monitors if monitor.last_saved]
    return saved[-1] if saved else None


def _profile_section(cfg: RunConfig) -> dict[str, Any]:
    return {
        "type": "ProfileMonitor",
        "start_step": cfg.profile_start_step,
        "stop_step": cfg.profile_stop_step,
        "start_profile": cfg.init_start_profile,
        "profile_communication": cfg.profile_communication,
        "profile_memory": cfg.profile_memory,
    }


def eval_callback(cfg: RunConfig, cell: EvalCell, progress: TrainProgress, dataset: Any) -> EvalCallBack:
    """The evaluations while training that ``do_eval`` asks for."""
    callback = EvalCallBack(
        lambda: evaluate(cfg, cell, dataset, training=True), cfg.eval_step_interval, cfg.eval_epoch_interval
    )
    callback.bind(progress)
    return callback
