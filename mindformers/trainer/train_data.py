# SPDX-License-Identifier: Apache-2.0
"""The training data of a run: its stream of batches, and what a checkpoint must remember of it."""

from typing import Any

import mindspore as ms

from mindformers.checkpoint.manifest import flatten_config
from mindformers.checkpoint.resume import ResumePoint
from mindformers.config import RunConfig
from mindformers.core.distributed import data_parallel_ranks
from mindformers.core.progress import TrainProgress
from mindformers.dataset.causal_language_model import check_record_length, check_vocab, create_causal_lm_dataset
from mindformers.dataset.mindrecord import find_mindrecord_files, inspect_mindrecord
from mindformers.dataset.order import steps_per_epoch
from mindformers.errors import ConfigError
from mindformers.trainer.parallel import batch_part, split_records

__all__ = ["build_data", "training_data"]


def training_data(cfg: RunConfig) -> ms.dataset.Dataset:
    """The stream of batches of a whole run, from its first step."""
    return build_data(cfg, None, None)[1]


def build_data(cfg: RunConfig, resume: ResumePoint | None, dataset: Any) -> tuple:
    """Progress, the stream of batches that are left, and what a checkpoint must say about the data."""
    runner, section = cfg.runner_config, cfg.train_dataset
    accumulation = runner.gradient_accumulation_steps
    seq_length = cfg.model.config.seq_length
    rank, ranks = data_parallel_ranks()
    batch_size = runner.batch_size * split_records(cfg)
    global_batch = batch_size * accumulation * ranks
    if ranks == 1:
        rank, ranks = batch_part(cfg)
        batch_size //= ranks
    start = resume.manifest.step if resume else 0
    seed = cfg.seed if section.seed is None else section.seed
    if dataset is not None:
        _check_part(dataset, batch_size, batch_part(cfg)[1])
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


def _check_part(dataset: Any, batch_size: int, parts: int) -> None:
    """Where the step gathers the parts of all ranks, a script's own dataset must give this rank's part of a batch."""
    if parts > 1 and dataset.get_batch_size() != batch_size:
        found = dataset.get_batch_size()
        raise ConfigError(
            f"the dataset given has batches of {found} records; with parallel.full_batch False each of {parts} ranks "
            f"reads its part, {batch_size}. Give batches of so many, or set parallel.full_batch to True"
        )


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
