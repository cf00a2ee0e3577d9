# SPDX-License-Identifier: Apache-2.0
"""One process alone: the shared functions change nothing (several ranks: tests/integration/test_launch.py)."""

import numpy as np

from mindformers.core.distributed import data_parallel_ranks, gather_bytes, gather_numbers, world


def test_one_process_is_its_own_world():
    assert world() == (0, 1)
    assert data_parallel_ranks() == (0, 1)


def test_gathered_bytes_of_one_process_are_its_own():
    assert gather_bytes(b"") == [b""]
    assert gather_bytes(b"\x00\xff\x00") == [b"\x00\xff\x00"]


def test_gathered_numbers_of_one_process_are_exact():
    values = [2.0**45 + 1, -1, 1 / 3]
    gathered = gather_numbers(values)
    assert gathered.dtype == np.float64
    assert gathered.tolist() == [values]
