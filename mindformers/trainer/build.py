# SPDX-License-Identifier: Apache-2.0
"""From a config to everything a training run needs, in straight lines."""

from dataclasses import dataclass, field
from typing import Any

import mindspore as ms
from mindspore import nn

from mindformers.checkpoint.layout import OutputLayout
from mindformers.checkpoint.reshard import slices_fields
from mindformers.config import RunConfig
from mindformers.core.callback import CheckpointMonitor
from mindformers.core.distributed import DataParallelReducer, GatherBatch, data_parallel_ranks
from mindformers.core.lr import resolve_schedule
from mindformers.core.parallel_context import is_split
from mindformers.core.param_groups import group_parameters
from mindformers.core.progress import TrainProgress
from mindformers.pet.adapter_file import MANIFEST_KEY, describe_adapter
from mindformers.registry import MindFormerModuleType, MindFormerRegister
from mindformers.trainer.adapters import (
    adopt_base,
    check_base,
    has_adapters,
    settle_adapter,
)
from mindformers.trainer.callbacks import build_callbacks, eval_callback
from mindformers.trainer.evaluate import EvalCell, try_evaluation
from mindformers.trainer.given import Given
from mindformers.trainer.network import load_weights, settled_network
from mindformers.trainer.parallel import batch_part, lay_out
from mindformers.trainer.resuming import find_run
from mindformers.trainer.slices import compile_split, load_parts, loads_slices, meeting, restore_part
from mindformers.trainer.train_data import build_data
from mindformers.wrapper import InterleavedLoss, MFPipelineWithLossScaleCell, MFTrainOneStepCell


@dataclass
class TrainTask:
    """A run that is ready to start.

    Args:
        cell: the train network for ``mindspore.Model``.
        dataset: all micro steps that are left, one stream.
        progress: where the run stands.
        callbacks: in the order they are called.
        steps_left: micro steps in ``dataset``.
        eval_cell: what evaluations while training run; None without ``do_eval``.
    """

    cell: nn.Cell
    dataset: ms.dataset.Dataset
    progress: TrainProgress
    callbacks: list[Any] = field(default_factory=list)
    steps_left: int = 0
    eval_cell: EvalCell | None = None


def build_training(
    cfg: RunConfig,
    layout: OutputLayout,
    dataset: Any = None,
    eval_dataset: Any = None,
    given: Given | None = None,
) -> TrainTask:
    """Dataset, network, optimizer, train cell and callbacks of a train or finetune run.

    Args:
        cfg: the run's config.
        layout: where its files go.
        dataset: a MindSpore dataset of batches to use in place of ``train_dataset``.
        eval_dataset: the same for the evaluations that ``do_eval`` asks for.
        given: further objects a script made itself.
    """
    given = given or Given()
    settle_adapter(cfg, layout.rank)
    ranks = meeting(cfg, layout)
    with ranks.step("find"):
        resume = find_run(cfg, layout)
    if resume is not None:
        adopt_base(cfg, resume.manifest)
    progress, stream, manifest = build_data(cfg, resume, dataset)
    fresh = resume is None and not cfg.only_save_strategy
    later = fresh and loads_slices(cfg)  # after compilation, which makes the parameters slices
    follow = fresh and not later and bool(cfg.load_checkpoint or cfg.run_mode == "finetune")
    network = given.network or settled_network(cfg, weights_follow=follow)
    adapted, base = has_adapters(network), None
    # a checkpoint of a run with adapters does not hold the base
    if not later and (fresh or adapted) and (given.network is None or cfg.load_checkpoint):
        base = load_weights(network, cfg, required=cfg.run_mode == "finetune", rank=layout.rank)
    if adapted:
        manifest[MANIFEST_KEY] = describe_adapter(network, cfg.model.config.pet_config, base)
    network.set_train(True)
    network = lay_out(network, cfg)
    optimizer = given.optimizer or build_optimizer(cfg, network, progress)
    cell = given.wrapper or build_train_cell(cfg, network, optimizer)
    parts = compile_split(cell, cfg, layout.rank)
    if parts is not None:
        manifest |= slices_fields(parts, layout.rank)
    with ranks.step("load"):
        if resume is not None:
            if adapted:
                check_base(network, resume.manifest)
            restore_part(cell, resume, manifest, parts, layout.rank)
        elif later:
            load_parts(network, cfg, layout, parts)
    callbacks = build_callbacks(cfg, progress, layout, cell, manifest, resume, given.callbacks)
    eval_cell = EvalCell(network) if cfg.do_eval else None
    if eval_cell is not None:
        callbacks.append(eval_callback(cfg, eval_cell, progress, eval_dataset))
    left = (progress.total_steps - progress.start_step) * progress.accumulation
    return TrainTask(cell, stream, progress, callbacks, left, eval_cell)


def build_optimizer(cfg: RunConfig, network: nn.Cell, progress: TrainProgress) -> nn.Optimizer:
    """The optimizer over the trainable parameters, with its weight decay groups and learning rate schedule."""
    options = cfg.optimizer.options()
    weight_decay = options.pop("weight_decay", 0.0)
    if cfg.lr_schedule is not None:
        schedule = dict(cfg.lr_schedule.options())
        kwargs = resolve_schedule(
            {"type": cfg.lr_schedule.type, **schedule},
            progress.total_steps,
            progress.steps_per_epoch,
            options.get("learning_rate"),
        )
        options["learning_rate"] = MindFormerRegister.get_instance_from_cfg(kwargs, MindFormerModuleType.LR)
    options["params"] = group_parameters(network, weight_decay)
    return MindFormerRegister.get_instance_from_cfg(
        {"type": cfg.optimizer.type, **options}, MindFormerModuleType.OPTIMIZER
    )


def build_train_cell(cfg: RunConfig, network: nn.Cell, optimizer: nn.Optimizer) -> MFTrainOneStepCell:
    """The step of a run: with pipeline stages the one that sends micro batches through them."""
    options = {
        "use_clip_grad": cfg.runner_wrapper.use_clip_grad,
        "max_grad_norm": cfg.runner_wrapper.max_grad_norm,
        "scale_sense": _loss_scale(cfg),
    }
    layout = cfg.parallel_config
    _, ranks = data_parallel_ranks()
    if is_split() and cfg.micro_batch_interleave_num > 1:
        network = InterleavedLoss(network, cfg.micro_batch_interleave_num)
    if is_split() and layout.pipeline_stage > 1:
        cell = MFPipelineWithLossScaleCell(network, optimizer, micro_batch_num=layout.micro_batch_num, **options)
    else:
        options["accumulation"] = cfg.runner_config.gradient_accumulation_steps
        options["reducer"] = DataParallelReducer(optimizer.parameters, ranks) if ranks > 1 else None
        options["gather"] = GatherBatch() if batch_part(cfg)[1] > 1 else None
        cell = MFTrainOneStepCell(network, optimizer, **options)
    return cell.set_train(True)


def _loss_scale(cfg: RunConfig) -> Any:
    scale = cfg.runner_wrapper.scale_sense
    if isinstance(scale, int | float):
        return scale
    return MindFormerRegister.get_instance_from_cfg(
        {"type": scale.type, **scale.options()}, MindFormerModuleType.WRAPPER
    )


def try_run(task: TrainTask, cfg: RunConfig, eval_dataset: Any = None) -> None:
    """Do once, before the first step, what a run does only after a while: save, and evaluate a batch.

    A folder that cannot be written, a disk too small or evaluation data that does not fit ends the run here, within its
    first minute. Nothing is left behind, and the losses are those of a run without it.
    """
    for callback in task.callbacks:
        if isinstance(callback, CheckpointMonitor):
            callback.try_save()
    if task.eval_cell is not None:
        try_evaluation(cfg, task.eval_cell, eval_dataset)
