# SPDX-License-Identifier: Apache-2.0
"""Transposed copies of weights, for products of a few rows on CPU.

oneDNN copies a weight (out, in) into another order before every product. Many rows pay for that; one row of a large
output layer takes twice as long as with a weight (in, out), which is read as it is.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from mindspore import Parameter, Tensor

_ROWS, _COLUMNS = 512, 32  # of a block: both its sides stay in a core's cache


def transposed(weight: Parameter) -> Tensor:
    """A copy (in, out) of a weight (out, in), made by all cores; 1 GB of weights takes about 0.3 s.

    Args:
        weight: on the CPU, of a type NumPy has.
    """
    source = weight.asnumpy()
    rows, columns = source.shape
    target = np.empty((columns, rows), source.dtype)

    def copy(row: int) -> None:
        part = source[row : row + _ROWS]
        for column in range(0, columns, _COLUMNS):
            target[column : column + _COLUMNS, row : row + _ROWS] = part[:, column : column + _COLUMNS].T

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(copy, range(0, rows, _ROWS)))
    return Tensor.from_numpy(target)
