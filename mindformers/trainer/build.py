# SPDX-License-Identifier: Apache-2.0
"""From a config to everything a training run needs, in straight lines."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import nn

from mindformers.checkpoint.layout import OutputLayout
from mindformers.checkpoint.load import load_into, read_checkpoint, resolve_checkpoint
from mindformers.checkpoint.manifest import flatten_config
from mindformers.checkpoint.reshard import load_slices, own_layout, own_parameters, slices_fields
from mindformers.checkpoint.resume import ResumePoint, restore
from mindformers.config import RunConfig
from mindformers.core.callback import CheckpointMonitor, EvalCallBack, MFLossMonitor, ObsMonitor, ProfileMonitor
from mindformers.core.lr import resolve_schedule
from mindformers.core.parallel_context import is_split
from mindformers.core.param_groups import group_parameters
from mindformers.core.progress import TrainProgress
from mindformers.dataset.causal_language_model import (
    check_record_length,
    check_vocab,
    create_causal_lm_dataset,
)
from mindformers.dataset.mindrecord import find_mindrecord_files, inspect_mindrecord
from mindformers.dataset.order import steps_per_epoch
from mindformers.errors import CheckpointError, ConfigError
from mindformers.models.llama.llama_config import LlamaConfig
from mindformers.registry import MindFormerModuleType, MindFormerRegister
from mindformers.tools.logger import get_logger
from mindformers.trainer.evaluate import EvalCell, evaluate
from mindformers.trainer.parallel import compile_split, lay_out, split_records
from mindformers.trainer.slices import find_state, load_parts, loads_slices, meeting
from mindformers.wrapper import InterleavedLoss, MFPipelineWithLossScaleCell, MFTrainOneStepCell

logger = get_logger(__name__)


@dataclass
class TrainTask:
    """A run that is ready to start.

    Args:
        cell: the train network for ``mindspore.Model``.
        dataset: all micro steps that are left, one stream.
        progress: where the run stands.
        callbacks: in the order they are called.
        steps_left: micro steps in ``dataset``.
    """

    cell: nn.Cell
    dataset: ms.dataset.Dataset
    progress: TrainProgress
    callbacks: list[Any] = field(default_factory=list)
    steps_left: int = 0


def build_network(cfg: RunConfig) -> nn.Cell:
    """The network of ``model.arch`` with ``model.model_config``; no weights are loaded."""
    values = cfg.model.config.model_dump() | {"checkpoint_name_or_path": ""}
    network_class = MindFormerRegister.get_cls(MindFormerModuleType.MODELS, cfg.model.arch.type)
    return network_class(LlamaConfig(**values))


def load_weights(network: nn.Cell, cfg: RunConfig, *, required: bool, rank: int = 0) -> Path | None:
    """Load ``load_checkpoint``, or else the config's ``checkpoint_name_or_path``, into the network.

    Args:
        network: the network.
        cfg: the run's config.
        required: whether random weights are an error; training from scratch is the only run that wants them.
        rank: this process.

    Returns:
        The file, or None for random weights.
    """
    source = cfg.load_checkpoint or (cfg.model.config.checkpoint_name_or_path if required else "")
    if not source:
        if required:
            raise CheckpointError(
                f"run_mode {cfg.run_mode} needs weights: give --load_checkpoint FILE (or load_checkpoint in the YAML)"
            )
        logger.info("no load_checkpoint: the weights start from random values (seed %d)", cfg.seed)
        return None
    if cfg.auto_trans_ckpt:  # of any layout into this process' whole network
        load_slices(network, source, strategy=cfg.src_strategy_path_or_dir, strict=cfg.load_checkpoint_strict)
        return Path(source)
    path = resolve_checkpoint(source, rank)
    load_into(network, read_checkpoint(path), strict=cfg.load_checkpoint_strict)
    logger.info("weights loaded from %s", path)
    return path


def build_training(cfg: RunConfig, layout: OutputLayout, dataset: Any = None, eval_dataset: Any = None) -> TrainTask:
    """Dataset, network, optimizer, train cell and callbacks of a train or finetune run.

    Args:
        cfg: the run's config.
        layout: where its files go.
        dataset: a MindSpore dataset of batches to use in place of ``train_dataset``.
        eval_dataset: the same for the evaluations that ``do_eval`` asks for.
    """
    ranks = meeting(cfg, layout)
    with ranks.step("find"):
        resume = find_state(cfg, layout, _prefix(cfg))
    progress, stream, manifest = _build_data(cfg, resume, dataset)
    network = build_network(cfg)
    fresh = resume is None and not cfg.only_save_strategy
    if fresh and not loads_slices(cfg):
        load_weights(network, cfg, required=cfg.run_mode == "finetune", rank=layout.rank)
    network.set_train(True)
    network = lay_out(network, cfg)
    optimizer = build_optimizer(cfg, network, progress)
    cell = build_train_cell(cfg, network, optimizer)
    begin = time.time()
    compile_split(cell, cfg)
    parts = own_layout(layout.rank, begin) if is_split() else None
    if parts is not None:
        manifest |= slices_fields(parts, layout.rank)
    with ranks.step("load"):
        if resume is not None:
            if resume.tensors is not None:
                resume.tensors = resume.tensors.of(parts)
            restore(own_parameters(train_state(cell), parts, layout.rank), resume, manifest)
        elif fresh and loads_slices(cfg):
            load_parts(network, cfg, layout, parts)
    callbacks = build_callbacks(cfg, progress, layout, cell, manifest, resume)
    if cfg.do_eval:
        callbacks.append(_eval_callback(cfg, network, progress, eval_dataset))
    left = (progress.total_steps - progress.start_step) * progress.accumulation
    return TrainTask(cell, stream, progress, callbacks, left)


def _build_data(cfg: RunConfig, resume: ResumePoint | None, dataset: Any) -> tuple:
    """Progress, the stream of batches that are left, and what a checkpoint must say about the data."""
    runner, section = cfg.runner_config, cfg.train_dataset
    accumulation = runner.gradient_accumulation_steps
    seq_length = cfg.model.config.seq_length
    batch_size = runner.batch_size * split_records(cfg)
    global_batch = batch_size * accumulation
    start = resume.manifest.step if resume else 0
    if dataset is not None:
        steps = dataset.get_dataset_size() // accumulation
        if start:
            dataset = dataset.skip(start % steps * accumulation)
        progress = TrainProgress(steps, runner.epochs, global_batch, seq_length, accumulation, start)
        return progress, dataset.repeat(runner.epochs - start // steps), {"seed": cfg.seed}
    loader = section.data_loader
    info = inspect_mindrecord(find_mindrecord_files(loader.dataset_dir, loader.dataset_files))
    check_record_length(info, seq_length, "train")
    check_vocab(info, cfg.model.config.vocab_size)
    records = min(info.num_records, loader.num_samples or info.num_records)
    epochs = runner.epochs * section.repeat
    steps = steps_per_epoch(records, global_batch, True)
    progress = TrainProgress(steps, epochs, global_batch, seq_length, accumulation, start)
    if start >= progress.total_steps:
        raise ConfigError(
            f"the checkpoint is at step {start} and the run has {progress.total_steps} steps "
            f"({steps} a pass x {epochs} epochs): nothing is left to do. Raise runner_config.epochs to go on"
        )
    stream = create_causal_lm_dataset(
        dataset_dir=loader.dataset_dir,
        dataset_files=loader.dataset_files,
        input_columns=section.input_columns,
        batch_size=batch_size,
        global_batch_size=global_batch,
        shuffle=loader.shuffle,
        seed=cfg.seed,
        epochs=epochs,
        start_step=start,
        num_samples=loader.num_samples,
        num_parallel_workers=section.num_parallel_workers,
        prefetch_size=section.prefetch_size,
    )
    manifest = {
        "seed": cfg.seed,
        "global_batch_size": global_batch,
        "dataset_records": records,
        "shuffle": bool(loader.shuffle),
        "steps_per_epoch": steps,
        "config": _settings(cfg),
    }
    return progress, stream, manifest


def _settings(cfg: RunConfig) -> dict[str, Any]:
    """The config, flat, without what may differ between the parts of one run: where it reads, writes and runs."""
    passing = (
        "resume_training",
        "load_checkpoint",
        "output_dir",
        "callbacks",
        "context",
        "input_data",
        "save_file",
    )
    return {key: value for key, value in flatten_config(cfg.to_dict()).items() if not key.startswith(passing)}


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
    if is_split() and cfg.micro_batch_interleave_num > 1:
        network = InterleavedLoss(network, cfg.micro_batch_interleave_num)
    if is_split() and layout.pipeline_stage > 1:
        cell = MFPipelineWithLossScaleCell(network, optimizer, micro_batch_num=layout.micro_batch_num, **options)
    else:
        accumulation = cfg.runner_config.gradient_accumulation_steps
        cell = MFTrainOneStepCell(network, optimizer, accumulation=accumulation, **options)
    return cell.set_train(True)


def _loss_scale(cfg: RunConfig) -> Any:
    scale = cfg.runner_wrapper.scale_sense
    if isinstance(scale, int | float):
        return scale
    return MindFormerRegister.get_instance_from_cfg(
        {"type": scale.type, **scale.options()}, MindFormerModuleType.WRAPPER
    )


def train_state(cell: nn.Cell) -> dict[str, ms.Parameter]:
    """What a checkpoint holds: weights, moments, counters, loss scale.

    Accumulated gradients are left out: a checkpoint is taken between optimizer steps, where they count for nothing. So
    is what compilation finds out anew.
    """
    return {p.name: p for p in cell.get_parameters() if not p.name.startswith(("accu_", "norm_shares"))}


def _prefix(cfg: RunConfig) -> str | None:
    """File name prefix of the run's checkpoints; None when it saves none."""
    for section in cfg.callbacks:
        if section.type in ("CheckpointMonitor", "CheckpointMointor"):
            return section.options().get("prefix", "CKP")
    return None


def build_callbacks(
    cfg: RunConfig,
    progress: TrainProgress,
    layout: OutputLayout,
    cell: nn.Cell,
    manifest: dict[str, Any],
    resume: ResumePoint | None,
) -> list[Any]:
    """The callbacks of the YAML, bound to this run; the guard against a NaN loss comes before the save."""
    sections = [{"type": section.type, **section.options()} for section in cfg.callbacks]
    if cfg.profile:
        sections.append(_profile_section(cfg))
    callbacks = [
        MindFormerRegister.get_instance_from_cfg(section, MindFormerModuleType.CALLBACK) for section in sections
    ]
    monitors = [c for c in callbacks if isinstance(c, CheckpointMonitor)]
    for callback in callbacks:
        if isinstance(callback, CheckpointMonitor):
            callback.bind(progress, layout, lambda: train_state(cell), manifest, resume and resume.path)
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


def _eval_callback(cfg: RunConfig, network: nn.Cell, progress: TrainProgress, dataset: Any) -> EvalCallBack:
    cell = EvalCell(network)
    callback = EvalCallBack(lambda: evaluate(cfg, cell, dataset), cfg.eval_step_interval, cfg.eval_epoch_interval)
    callback.bind(progress)
    return callback
