# SPDX-License-Identifier: Apache-2.0
"""The dataset of language model training and evaluation: MindRecord files in a repeatable order."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mindformers.dataset.mindrecord import RecordInfo, find_mindrecord_files, inspect_mindrecord, read_records
from mindformers.dataset.order import epoch_order, rank_records, steps_per_epoch
from mindformers.errors import DataError
from mindformers.registry import MindFormerModuleType, MindFormerRegister
from mindformers.tools.utils import did_you_mean

__all__ = [
    "CausalLanguageModelDataset",
    "build_dataset",
    "check_record_length",
    "check_vocab",
    "create_causal_lm_dataset",
]


def create_causal_lm_dataset(
    dataset_dir: str | Path | None = None,
    dataset_files: str | Sequence[str] | None = None,
    input_columns: Sequence[str] = ("input_ids",),
    batch_size: int = 1,
    shuffle: bool = False,
    seed: int = 0,
    num_shards: int = 1,
    shard_id: int = 0,
    epochs: int = 1,
    start_step: int = 0,
    global_batch_size: int | None = None,
    drop_remainder: bool = True,
    num_samples: int | None = None,
    num_parallel_workers: int = 8,
    prefetch_size: int | None = None,
) -> Any:
    """One stream of batches for a whole run: all epochs, from optimizer step ``start_step`` on.

    Args:
        dataset_dir: a MindRecord file, or a folder of them.
        dataset_files: a list of files, instead of ``dataset_dir``.
        input_columns: columns in the order in which the model takes them.
        batch_size: records per batch of this rank (one micro step).
        shuffle: a new order in every epoch; False keeps the order of the files.
        seed: fixes the orders.
        num_shards: ranks that read different records (1 when every rank reads everything).
        shard_id: this rank, 0 to ``num_shards`` - 1.
        epochs: passes over the data.
        start_step: optimizer steps already done; the stream begins behind them.
        global_batch_size: records per optimizer step over all ranks and micro steps; None means ``batch_size *
            num_shards``.
        drop_remainder: leave out the records at an epoch's end that do not fill a global batch.
        num_samples: use only the first so many records of the files.
        num_parallel_workers: reader threads, at most one per core.
        prefetch_size: batches prepared ahead (set for the whole process); None leaves MindSpore's setting.

    Returns:
        A ``mindspore.dataset.Dataset`` of int32 columns (batch_size, record length). ``get_dataset_size()`` is
        the number of micro steps that remain.

    Raises:
        DataError: files, columns or counts that do not fit.
    """
    import mindspore.dataset as ds

    info = inspect_mindrecord(find_mindrecord_files(dataset_dir, dataset_files))
    check_columns(info, input_columns)
    records = info.num_records if num_samples is None else min(num_samples, info.num_records)
    global_batch = batch_size * num_shards if global_batch_size is None else global_batch_size
    shards = {"num_shards": num_shards, "shard_id": shard_id}
    order = {"shuffle": shuffle, "seed": seed, "drop_remainder": drop_remainder}
    plan = _Plan(records, batch_size, global_batch, epochs=epochs, start_step=start_step, **shards, **order)
    if prefetch_size is not None:
        ds.config.set_prefetch_size(prefetch_size)
    return _Reader(info, tuple(input_columns), plan, max(1, min(num_parallel_workers, os.cpu_count() or 1))).stream()


build_dataset = create_causal_lm_dataset
SEGMENTS = "segment_ids"  # column of records that hold several texts
# Keys of old YAMLs that do not change what is read.
_INERT = ("python_multiprocessing", "numa_enable", "profile", "autotune_per_step", "filepath_prefix", "auto_tune")
_INERT += ("eod_reset", "eod_token_id", "output_columns", "do_eval")


@MindFormerRegister.register(MindFormerModuleType.DATASET)
class CausalLanguageModelDataset:
    """What a YAML names as ``train_dataset_task.type``; making it gives a ``mindspore.dataset.Dataset``.

    Args:
        dataset_config: the section ``train_dataset`` or ``eval_dataset`` as a mapping: ``data_loader`` with its
            options, the others as in :func:`create_causal_lm_dataset`; ``repeat`` multiplies ``epochs``.
        **options: options of :func:`create_causal_lm_dataset` that win over the section's.
    """

    def __new__(cls, dataset_config: Mapping[str, Any] | None = None, **options: Any) -> Any:
        section = dict(dataset_config or {})
        loader = dict(section.pop("data_loader", None) or {})
        kind = loader.pop("type", "MindDataset")
        if kind != "MindDataset":
            raise DataError(
                f"data_loader.type {kind!r} is not one of: MindDataset. Convert text with llama_preprocess.py"
            )
        if section.get("eod_reset"):
            raise DataError("eod_reset is not supported: write records in which each text stands alone instead")
        merged = {**section, **loader, **options}
        repeat = merged.pop("repeat", None) or 1
        known = [*create_causal_lm_dataset.__annotations__][:-1]
        unknown = [name for name in merged if name not in known and name not in _INERT]
        if unknown:
            raise DataError(
                f"CausalLanguageModelDataset: unknown option {unknown[0]!r}.{did_you_mean(unknown[0], known)}"
            )
        chosen = {name: value for name, value in merged.items() if name in known and value is not None}
        return create_causal_lm_dataset(**{**chosen, "epochs": chosen.get("epochs", 1) * repeat})


@dataclass(frozen=True)
class _Plan:
    """Which records this rank reads when; the arguments are those of :func:`create_causal_lm_dataset`."""

    num_records: int
    batch_size: int
    global_batch_size: int
    num_shards: int
    shard_id: int
    epochs: int
    start_step: int
    shuffle: bool
    seed: int
    drop_remainder: bool

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_shards", "epochs"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.shard_id < self.num_shards:
            raise DataError(f"shard_id must be 0 to {self.num_shards - 1} (num_shards - 1), got {self.shard_id}")
        unit = self.batch_size * self.num_shards
        if self.global_batch_size < 1 or self.global_batch_size % unit:
            raise DataError(
                f"global_batch_size {self.global_batch_size} is not a multiple of "
                f"batch_size {self.batch_size} x num_shards {self.num_shards} = {unit}"
            )
        total = self.steps_per_epoch * self.epochs
        if not 0 <= self.start_step < total:
            raise DataError(
                f"start_step {self.start_step} is not below the {total} steps of this run "
                f"({self.epochs} epochs of {self.steps_per_epoch}); raise epochs to train on"
            )

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.num_records, self.global_batch_size, self.drop_remainder)

    def records(self, epoch: int) -> np.ndarray:
        """Record numbers of this rank in one epoch, without the steps that are done."""
        order = epoch_order(self.num_records, self.seed, epoch, self.shuffle)
        skip = max(0, self.start_step - epoch * self.steps_per_epoch)
        return rank_records(order, self.global_batch_size, self.num_shards, self.shard_id, skip, self.drop_remainder)

    @property
    def first_epoch(self) -> int:
        return self.start_step // self.steps_per_epoch

    @property
    def num_batches(self) -> int:
        """Batches of this rank in the whole stream."""
        plan = replace(self, shuffle=False)  # the order does not matter for counting
        rest, whole = (-(-len(plan.records(epoch)) // self.batch_size) for epoch in (self.first_epoch, self.epochs - 1))
        return rest + whole * (self.epochs - 1 - self.first_epoch)


@dataclass(frozen=True)
class _Reader:
    """Reads the epochs of a plan one after the other; holds the order of one epoch at a time."""

    info: RecordInfo
    columns: tuple[str, ...]
    plan: _Plan
    workers: int

    def epoch(self, epoch: int) -> Any:
        """The rest of one epoch as a MindDataset pipeline."""
        import mindspore as ms
        import mindspore.dataset as ds

        sampler = ds.SubsetSampler(self.plan.records(epoch).tolist())
        data = ds.MindDataset(
            list(self.info.paths),
            columns_list=list(self.columns),
            sampler=sampler,
            num_parallel_workers=self.workers,
        )
        for name in self.columns:
            if self.info.columns[name][0] == "int64":
                data = data.map(ds.transforms.TypeCast(ms.int32), input_columns=[name])
        data = data.project(list(self.columns))
        return data.batch(self.plan.batch_size, drop_remainder=False, num_parallel_workers=self.workers)

    def stream(self) -> Any:
        """All epochs; a pipeline inside a generator when there are several, since a sampler serves only one."""
        import mindspore.dataset as ds

        if self.plan.first_epoch == self.plan.epochs - 1:
            return self.epoch(self.plan.first_epoch)
        options = {"num_parallel_workers": 1, "shuffle": False, "python_multiprocessing": False}
        return ds.GeneratorDataset(self, list(self.columns), **options)

    def __len__(self) -> int:
        return self.plan.num_batches

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        for epoch in range(self.plan.first_epoch, self.plan.epochs):
            for row in self.epoch(epoch).create_tuple_iterator(num_epochs=1, output_numpy=True):
                yield tuple(row)


def check_columns(info: RecordInfo, wanted: Sequence[str]) -> None:
    """Raise a DataError when the files lack a column, or when the one that keeps packed samples apart is left out."""
    missing = [name for name in wanted if name not in info.columns]
    if not wanted or missing:
        what = f"input_columns {', '.join(missing)} not found" if missing else "input_columns is empty"
        raise DataError(f"{what} in {info.paths[0]}; it has the columns: {', '.join(info.columns)}")
    if SEGMENTS in info.columns and SEGMENTS not in wanted:
        raise DataError(
            f"{info.paths[0]} holds several samples in a record (llama_preprocess.py --pack True): without the column "
            f"{SEGMENTS} they would read each other. Set input_columns to [input_ids, labels, {SEGMENTS}]"
        )


def check_record_length(info: RecordInfo, seq_length: int, mode: str) -> None:
    """Check that records fit the model, before anything compiles.

    Args:
        info: from :func:`~mindformers.dataset.mindrecord.inspect_mindrecord`.
        seq_length: of the model.
        mode: 'train' (or 'finetune') needs ``seq_length + 1`` tokens, because the model shifts labels by one;
            'eval' takes ``seq_length`` too.

    Raises:
        DataError: says what the file holds, what the model wants, and both remedies.
    """
    if mode not in ("train", "finetune", "eval"):
        raise DataError(f"mode must be 'train', 'finetune' or 'eval', got {mode!r}")
    length = info.record_length
    if length is None:
        column = "input_ids" if "input_ids" in info.columns else next(iter(info.columns))
        lengths = {row.shape[-1] for row in read_records(info, column, 64)}
        if len(lengths) != 1:
            raise DataError(
                f"{info.paths[0]}: records have different lengths ({sorted(lengths)}); they cannot form batches"
            )
        length = lengths.pop()
    allowed = (seq_length + 1,) if mode != "eval" else (seq_length, seq_length + 1)
    if length not in allowed:
        wanted = " or ".join(str(value) for value in allowed)
        raise DataError(
            f"{info.paths[0]} holds records of {length} tokens, but a model with seq_length {seq_length} "
            f"needs {wanted} to {mode}. "
            f"Either run llama_preprocess.py again with --seq_length {seq_length}, "
            f"or set model.model_config.seq_length={length - 1}"
        )


def check_vocab(info: RecordInfo, vocab_size: int, first_records: int = 16) -> None:
    """Check that the ids fit the model's embedding: the recorded tokenizer, and the ids of the first records.

    Raises:
        DataError: the tokenizer, or an id, needs a larger vocabulary.
    """
    recorded = (info.meta or {}).get("vocab_size")
    remedy = "Set model.model_config.vocab_size to the tokenizer's, or use the model's tokenizer for the data"
    if isinstance(recorded, int) and recorded > vocab_size:
        raise DataError(
            f"{info.paths[0]} was written with a tokenizer of {recorded} pieces, but the model has "
            f"vocab_size {vocab_size}. {remedy}"
        )
    if "input_ids" not in info.columns:
        return
    for row in read_records(info, "input_ids", first_records):
        if row.size and (row.max() >= vocab_size or row.min() < 0):
            raise DataError(
                f"{info.paths[0]} holds token ids from {row.min()} to {row.max()}, but the model has "
                f"vocab_size {vocab_size}. {remedy}"
            )
