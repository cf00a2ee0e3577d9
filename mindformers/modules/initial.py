# SPDX-License-Identifier: Apache-2.0
"""Random initial values of weights, drawn by all cores: MindSpore's own generator takes 20 ns for each on one."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from mindspore.common.initializer import Normal

_BLOCK = 1 << 16  # values drawn by one generator; they fit a core's cache


class ParallelNormal(Normal):
    """Normal values of mean 0; takes the place of MindSpore's initializer of that name.

    Args:
        sigma: standard deviation, not negative.

    The values follow from the global seed (``mindspore.set_seed``) and from the number of tensors drawn before, as
    MindSpore's do; how many threads there are does not matter. Block i of 2^16 values comes from numpy's SFC64 with
    the seed (s, i), where s is one draw of numpy's global generator for each tensor.
    """

    def __init__(self, sigma: float) -> None:
        super().__init__(sigma)

    def _initialize(self, arr: np.ndarray) -> None:
        seed = int(np.random.randint(1, 1 << 63, dtype=np.int64))
        if arr.dtype == np.float32 and arr.flags.c_contiguous:
            _fill(arr.reshape(-1), self.sigma, seed)
        else:
            values = np.empty(arr.shape, np.float32)
            _fill(values.reshape(-1), self.sigma, seed)
            arr[...] = values


def _fill(values: np.ndarray, sigma: float, seed: int) -> None:
    """Draw fp32 ``values`` (n,) in place."""

    def draw(start: int) -> None:
        block = values[start : start + _BLOCK]
        generator = np.random.Generator(np.random.SFC64([seed, start // _BLOCK]))
        generator.standard_normal(out=block, dtype=np.float32)
        np.multiply(block, np.float32(sigma), out=block)

    starts = range(0, values.size, _BLOCK)
    if len(starts) <= 1:
        for start in starts:
            draw(start)
        return
    with ThreadPoolExecutor(min(len(starts), len(os.sched_getaffinity(0)))) as pool:
        list(pool.map(draw, starts))  # the list raises what a thread raised
