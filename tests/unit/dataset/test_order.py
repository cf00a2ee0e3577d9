# SPDX-License-Identifier: Apache-2.0
"""The data order: fixed by seed and epoch, the same for any number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindformers.dataset.order import epoch_order, rank_records, steps_per_epoch
from mindformers.errors import DataError


def test_orders_are_permutations_that_change_by_epoch_and_seed() -> None:
    orders = [epoch_order(50, seed, epoch, shuffle=True) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order) == list(range(50))
    assert len({tuple(order) for order in orders}) == 4
    np.testing.assert_array_equal(epoch_order(50, 1, 1, True), orders[3])
    np.testing.assert_array_equal(epoch_order(5, 1, 1, shuffle=False), range(5))


def test_the_order_never_changes() -> None:
    """A changed formula would break the resume of every run that is under way."""
    assert epoch_order(10, 42, 3, True).tolist() == [4, 3, 7, 2, 5, 1, 9, 8, 0, 6]


@given(
    records=st.integers(1, 200),
    per_rank=st.integers(1, 4),
    ranks=st.integers(1, 4),
    first=st.integers(0, 5),
)
@settings(deadline=None)
def test_ranks_partition_every_global_batch(records: int, per_rank: int, ranks: int, first: int) -> None:
    batch = per_rank * ranks
    order = epoch_order(records, 0, 0, True)
    slices = [rank_records(order, batch, ranks, rank, first) for rank in range(ranks)]
    steps = max(0, records // batch - first)
    for step in range(steps):
        parts = [part[step * per_rank : (step + 1) * per_rank] for part in slices]
        begin = (first + step) * batch
        np.testing.assert_array_equal(np.concatenate(parts), order[begin : begin + batch])
    assert [len(part) for part in slices] == [steps * per_rank] * ranks


def test_the_tail_is_kept_when_asked() -> None:
    slices = [rank_records(np.arange(23), 6, 3, rank, 2, drop_remainder=False) for rank in range(3)]
    assert [part.tolist() for part in slices] == [[12, 13, 18, 19], [14, 15, 20, 21], [16, 17, 22]]
    assert rank_records(np.arange(23), 6, first_step=3, drop_remainder=False).tolist() == [18, 19, 20, 21, 22]
    with pytest.raises(DataError, match="2 records for 3 ranks"):
        rank_records(np.arange(20), 6, 3, 0, drop_remainder=False)


def test_steps_per_epoch() -> None:
    assert steps_per_epoch(10, 4) == 2
    assert steps_per_epoch(10, 4, drop_remainder=False) == 3
    with pytest.raises(DataError, match=r"10 records, fewer than one global batch of 11"):
        steps_per_epoch(10, 11)
    with pytest.raises(DataError, match="0 records"):
        steps_per_epoch(0, 1)
    with pytest.raises(DataError, match="global_batch_size"):
        steps_per_epoch(1, 0)
