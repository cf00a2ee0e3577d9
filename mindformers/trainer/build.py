# SPDX-License-Identifier: Apache-2.0
"""From a config to everything a training run needs, in straight lines."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import nn
from mindspore.nn.utils import no_init_parameters

from mindformers.checkpoint.agree import common_step, complete_steps, saving_options
from mindformers.checkpoint.layout import OutputLayout
from mindformers.checkpoint.load import load_into, read_checkpoint, resolve_checkpoint
from mindformers.checkpoint.manifest import flatten_config
from mindformers.checkpoint.names import is_weight_name, modern_name
from mindformers.checkpoint.resume import ResumePoint, find_resume, rank_folder, restore, resume_at
from mindformers.config import RunConfig
from mindformers.core.callback import CheckpointMonitor, EvalCallBack, MFLossMonitor, ObsMonitor, ProfileMonitor
from mindformers.core.distributed import DataParallelReducer, data_parallel_ranks, gather_numbers
from mindformers.core.lr import resolve_schedule
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
from mindformers.models.llama.llama_parallel import apply_recompute
from mindformers.pet.adapter import ADAPTER_PATTERN, is_adapter_name
from mindformers.pet.adapter_file import MANIFEST_KEY, describe_adapter
from mindformers.registry import MindFormerModuleType, MindFormerRegister
from mindformers.tools.logger import get_logger
from mindformers.trainer.adapters import (
    add_adapters,
    adopt_base,
    check_base,
    has_adapters,
    load_adapter,
    resume_source,
    settle_adapter,
)
from mindformers.trainer.evaluate import EvalCell, evaluate, try_evaluation
from mindformers.wrapper import MFTrainOneStepCell

logger = get_logger(__name__)

_STEPS_COMPARED = 64  # saved steps of a rank that are compared with those of the others


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


@dataclass
class Given:
    """Objects a script made itself, used in place of what the config describes.

    Args:
        network: a model; its weights are kept unless ``load_checkpoint`` names others.
        optimizer: over parameters of ``network``.
        wrapper: the train step of ``network``, with an optimizer of its own.
        callbacks: in addition to the config's; one of the same class replaces the config's.
    """

    network: nn.Cell | None = None
    optimizer: nn.Optimizer | None = None
    wrapper: nn.Cell | None = None
    callbacks: Sequence[Any] = ()


def build_network(cfg: RunConfig, rank: int = 0, weights_follow: bool = False) -> nn.Cell:
    """The network of ``model.arch`` with ``model.model_config``, adapters included; no weights are loaded.

    Where the config names an adapter (see :func:`~mindformers.trainer.adapters.settle_adapter`), its config is used.

    Args:
        cfg: the run's config.
        rank: this process.
        weights_follow: :func:`load_weights` is called next, so that no random values need be drawn (seconds for every
            hundred million weights).
    """
    settle_adapter(cfg, rank)
    return _settled_network(cfg, weights_follow)


def _settled_network(cfg: RunConfig, weights_follow: bool = False) -> nn.Cell:
    values = cfg.model.config.model_dump() | {"checkpoint_name_or_path": ""}
    network_class = MindFormerRegister.get_cls(MindFormerModuleType.MODELS, cfg.model.arch.type)
    with no_init_parameters() if weights_follow else nullcontext():
        network = network_class(LlamaConfig(**values))
    return add_adapters(network, cfg)


def load_weights(network: nn.Cell, cfg: RunConfig, *, required: bool, rank: int = 0) -> Path | None:
    """Load ``load_checkpoint``, or else the config's ``checkpoint_name_or_path``, into the network.

    Args:
        network: the network.
        cfg: the run's config.
        required: whether random weights are an error; training from scratch is the only run that wants them.
        rank: this process.

    Returns:
        The file, or None for random weights. With adapters it is the base's, and the adapter is loaded as well.
    """
    adapted = has_adapters(network)
    required = required or adapted  # an adapter of random weights is of no use
    source = cfg.load_checkpoint or (cfg.model.config.checkpoint_name_or_path if required else "")
    if not source:
        if required:
            raise CheckpointError(
                f"run_mode {cfg.run_mode} needs weights: give --load_checkpoint FILE (or load_checkpoint in the YAML)"
            )
        logger.info("no load_checkpoint: the weights start from random values (seed %d)", cfg.seed)
        return None
    path = resolve_checkpoint(source, rank)
    params = read_checkpoint(path)
    alone = cfg.adapter_checkpoint or not any(is_adapter_name(modern_name(name)) for name in params)
    ignore = (ADAPTER_PATTERN,) if adapted and alone else ()
    report = load_into(network, params, strict=cfg.load_checkpoint_strict, ignore=ignore)
    if report.missing:
        network.init_parameters_data()  # values for what the checkpoint lacks
    logger.info("weights loaded from %s", path)
    if adapted:
        load_adapter(network, cfg, map(modern_name, params), rank)
    return path


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
    resume = _find_resume(cfg, layout) if cfg.resume_training else None
    if resume is not None:
        adopt_base(cfg, resume.manifest)
    progress, stream, manifest = _build_data(cfg, resume, dataset)
    loads = resume is None and bool(cfg.load_checkpoint or cfg.run_mode == "finetune")
    network = given.network or _settled_network(cfg, weights_follow=loads)
    adapted, base = has_adapters(network), None
    # a checkpoint of a run with adapters does not hold the base
    if (resume is None or adapted) and (given.network is None or cfg.load_checkpoint):
        base = load_weights(network, cfg, required=cfg.run_mode == "finetune", rank=layout.rank)
    if adapted:
        manifest[MANIFEST_KEY] = describe_adapter(network, cfg.model.config.pet_config, base)
    network.set_train(True)
    apply_recompute(network, cfg.recompute_config)
    optimizer = given.optimizer or build_optimizer(cfg, network, progress)
    _, ranks = data_parallel_ranks()
    cell = given.wrapper or MFTrainOneStepCell(
        network,
        optimizer,
        use_clip_grad=cfg.runner_wrapper.use_clip_grad,
        max_grad_norm=cfg.runner_wrapper.max_grad_norm,
        scale_sense=_loss_scale(cfg),
        accumulation=progress.accumulation,
        reducer=DataParallelReducer(optimizer.parameters, ranks) if ranks > 1 else None,
    )
    cell.set_train(True)
    if resume is not None:
        if adapted:
            check_base(network, resume.manifest)
        restore(train_state(cell), resume, manifest)
    callbacks = build_callbacks(cfg, progress, layout, cell, manifest, resume, given.callbacks)
    eval_cell = EvalCell(network) if cfg.do_eval else None
    if eval_cell is not None:
        callbacks.append(_eval_callback(cfg, eval_cell, progress, eval_dataset))
    left = (progress.total_steps - progress.start_step) * progress.accumulation
    return TrainTask(cell, stream, progress, callbacks, left, eval_cell)


def _find_resume(cfg: RunConfig, layout: OutputLayout) -> ResumePoint:
    """The checkpoint to go on from; with several ranks, that of the newest step which all of them have."""
    where, prefix = resume_source(cfg, layout), saving_options(cfg)[0]
    rank, ranks = data_parallel_ranks()
    if ranks == 1 or (isinstance(where, str) and Path(where).is_file()):
        return find_resume(where, prefix, layout.rank)
    root = layout.root if where is layout else Path(where)
    folder = rank_folder(root, rank)
    if folder.name != f"rank_{rank}":  # a run with fewer ranks wrote it: they all hold the same state
        folder = rank_folder(root, 0)
    steps = complete_steps(folder, prefix)[-_STEPS_COMPARED:]
    everybody = gather_numbers(steps + [-1] * (_STEPS_COMPARED - len(steps)))
    lists = [[int(step) for step in row if step >= 0] for row in everybody]
    step = common_step(lists)
    if step is None:
        listed = "; ".join(f"rank {i}: {', '.join(map(str, found)) or 'none'}" for i, found in enumerate(lists))
        raise CheckpointError(
            f"nothing to resume from: no step is complete on all {ranks} ranks below {root} ({listed}). "
            "Start anew without --resume_training"
        )
    logger.info("resuming from step %d, the newest that all %d ranks have", step, ranks)
    if lists[0][-1] != step:
        logger.warning("rank 0 also has step %d, which is not complete on all ranks", lists[0][-1])
    return resume_at(folder, prefix, step)


def training_data(cfg: RunConfig) -> ms.dataset.Dataset:
    """The stream of batches of a whole run, from its first step."""
    return _build_data(cfg, None, None)[1]


def _build_data(cfg: RunConfig, resume: ResumePoint | None, dataset: Any) -> tuple:
    """Progress, the stream of batches that are left, and what a checkpoint must say about the data."""
    runner, section = cfg.runner_config, cfg.train_dataset
    accumulation = runner.gradient_accumulation_steps
    seq_length = cfg.model.config.seq_length
    rank, ranks = data_parallel_ranks()
    global_batch = runner.batch_size * accumulation * ranks
    start = resume.manifest.step if resume else 0
    seed = cfg.seed if section.seed is None else section.seed
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
        batch_size=runner.batch_size,
        global_batch_size=global_batch,
        num_shards=ranks,
        shard_id=rank,
        shuffle=loader.shuffle,
        seed=seed,
        epochs=epochs,
        start_step=start,
        num_samples=loader.num_samples,
        num_parallel_workers=section.num_parallel_workers,
        prefetch_size=section.prefetch_size,
    )
    manifest = {
        "seed": seed,
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
        "adapter_checkpoint",
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


def _loss_scale(cfg: RunConfig) -> Any:
    scale = cfg.runner_wrapper.scale_sense
    if isinstance(scale, int | float):
        return scale
    return MindFormerRegister.get_instance_from_cfg(
        {"type": scale.type, **scale.options()}, MindFormerModuleType.WRAPPER
    )


def train_state(cell: nn.Cell) -> dict[str, ms.Parameter]:
    """What a checkpoint holds: weights, moments, counters, loss scale.

    Accumulated gradients are left out: a checkpoint is taken between optimizer steps, where they count for nothing.
    So is the frozen base of adapters, see :func:`frozen_weights`.
    """
    frozen = frozen_weights(cell)
    return {p.name: p for p in cell.get_parameters() if not p.name.startswith("accu_") and p.name not in frozen}


def frozen_weights(cell: nn.Cell) -> dict[str, ms.Parameter]:
    """The base under the adapters of a network, which no training step changes; empty without adapters."""
    if not has_adapters(cell):
        return {}
    return {p.name: p for p in cell.get_parameters() if is_weight_name(p.name) and not p.requires_grad}


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


def _eval_callback(cfg: RunConfig, cell: EvalCell, progress: TrainProgress, dataset: Any) -> EvalCallBack:
    callback = EvalCallBack(
        lambda: evaluate(cfg, cell, dataset, training=True), cfg.eval_step_interval, cfg.eval_epoch_interval
    )
    callback.bind(progress)
    return callback
