# SPDX-License-Identifier: Apache-2.0
"""The order in which records are read: a pure function of seed and epoch.

It is the same for any number of ranks, so a resumed run is exact, also on another number of devices.
"""

import numpy as np

from mindformers.errors import DataError

__all__ = ["epoch_order", "rank_records", "steps_per_epoch"]


def steps_per_epoch(num_records: int, global_batch_size: int, drop_remainder: bool = True) -> int:
    """Optimizer steps in one pass over the data.

    Args:
        num_records: records in all files.
        global_batch_size: records per optimizer step, over all ranks and micro steps.
        drop_remainder: leave out the last records that do not fill a global batch.

    Raises:
        DataError: a count below 1, or fewer records than one global batch while dropping the remainder.
    """
    if global_batch_size < 1:
        raise DataError(f"global_batch_size must be at least 1, got {global_batch_size}")
    if num_records < 1:
        raise DataError(f"the dataset holds {num_records} records; at least 1 is needed")
    if not drop_remainder:
        return -(-num_records // global_batch_size)
    if num_records < global_batch_size:
        raise DataError(
            f"the dataset holds {num_records} records, fewer than one global batch of {global_batch_size}. "
            "Lower runner_config.batch_size, add data, or set drop_remainder: False"
        )
    return num_records // global_batch_size


def epoch_order(num_records: int, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    """Record numbers in the order of one epoch.

    Args:
        num_records: records in all files.
        seed: of the run; each epoch draws its own permutation from it.
        epoch: counted from 0.
        shuffle: False gives the order of the files.

    Returns:
        int64 array of shape (num_records,).
    """
    if not shuffle:
        return np.arange(num_records)
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    return generator.permutation(num_records)


def rank_records(
    order: np.ndarray,
    global_batch_size: int,
    num_shards: int = 1,
    shard_id: int = 0,
    first_step: int = 0,
    drop_remainder: bool = True,
) -> np.ndarray:
    """The records one rank reads in an epoch: its slice of every global batch.

    Args:
        order: record numbers of the epoch, shape (num_records,).
        global_batch_size: a multiple of ``num_shards``; rank r takes the r-th of ``num_shards`` equal slices.
        num_shards: ranks that read different records.
        shard_id: this rank.
        first_step: leave out the optimizer steps before this one.
        drop_remainder: see :func:`steps_per_epoch`; a last, smaller batch is split as evenly as possible.

    Returns:
        int64 array of record numbers.
    """
    full_steps = len(order) // global_batch_size
    batches = order[: full_steps * global_batch_size].reshape(full_steps, num_shards, global_batch_size // num_shards)
    records = batches[first_step:, shard_id].reshape(-1)
    tail = order[full_steps * global_batch_size :]
    if drop_remainder or not len(tail) or first_step > full_steps:
        return records
    if len(tail) < num_shards:
        raise DataError(
            f"the last batch has {len(tail)} records for {num_shards} ranks. "
            "Choose a batch size that leaves more, or set drop_remainder: True"
        )
    return np.concatenate([records, np.array_split(tail, num_shards)[shard_id]])
