# SPDX-License-Identifier: Apache-2.0
"""Dropout whose masks follow from (seed, step, place), so that a resumed run drops what an unbroken one would.

MindSpore's dropout kernels keep their random state in the process: after a restart they begin anew, and the
generators that take a state as an input have no CPU kernels. Here a pool of random rows is drawn once; each token
takes one row, and which one is arithmetic on the step counter. Both devices compute the same.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

POOL_ROWS = 1021  # prime, so that tokens t and u share a row only when t = u modulo it
_PERIOD = POOL_ROWS * (POOL_ROWS - 1)  # steps after which the choice of rows repeats


def mask_pool(width: int, rate: float, seed: int) -> Tensor:
    """Rows of zeros and ones, fp32 (POOL_ROWS, width); in each column the same share of zeros, at random rows.

    Args:
        width: features of a row.
        rate: wanted share of zeros, in (0, 1).
        seed: of the draw.
    """
    generator = np.random.default_rng([seed, width])
    zeros = min(max(1, round(rate * POOL_ROWS)), POOL_ROWS - 1)
    column = np.ones((POOL_ROWS, 1), np.float32)
    column[:zeros] = 0.0
    return Tensor(generator.permuted(np.repeat(column, width, 1), axis=0))


def kept_share(rate: float) -> float:
    """The exact share of ones in a pool made for ``rate``."""
    return 1.0 - min(max(1, round(rate * POOL_ROWS)), POOL_ROWS - 1) / POOL_ROWS


class PooledDropout(nn.Cell):
    """Zeroes features of tokens at random; what is kept is not scaled up (the caller divides by ``kept``).

    Args:
        rate: share to drop, in (0, 1).
        pool: from :func:`mask_pool`; places of equal width share one.
        step: int32 (1,) parameter, the number of forward passes of training so far; whoever trains adds 1 after
            each (``MFTrainOneStepCell`` does).
        place: number of this dropout in the network; others choose other rows (of up to POOL_ROWS places).
        seed: of the choice of rows.

    The row of token t at step s is ``(t * stride(s) + start(s) + offset(place)) mod POOL_ROWS``. Only the offset
    differs between places: what is equal in all of them the compiler computes once.
    """

    def __init__(self, rate: float, pool: Tensor, step: Parameter, place: int, seed: int) -> None:
        super().__init__()
        self.kept = kept_share(rate)
        self.pool = pool
        self.step = step
        generator = np.random.default_rng([seed, 1])
        *self.factors, first, gap = (int(n) for n in generator.integers(1, POOL_ROWS - 1, 4))
        # A parameter, not a number: layers that differ in numbers would have to be compiled one by one (AlikeCell).
        offset = Tensor([(first + place * gap) % POOL_ROWS], ms.int32)
        self.dropout_offset = Parameter(offset, name="dropout_offset", requires_grad=False)
        self.gather = ops.Gather()
        self.mul = ops.Mul()
        self.stretch = ops.Mul()  # one instance for each place a strategy may be given to
        self.shift = ops.Add()
        self.wrap = ops.FloorMod()
        self.wrap_index = ops.FloorMod()

    def rows(self, tokens: int) -> Tensor:
        """int32 (tokens,): the row of the pool each token takes at the present step."""
        for_stride, for_start = self.factors
        step = ops.floor_mod(self.step, _PERIOD)  # all products stay below 2^31
        stride = ops.floor_mod(step * for_stride, POOL_ROWS - 1) + 1
        start = ops.floor_mod(step * for_start, POOL_ROWS)
        index = self.wrap_index(ops.arange(0, tokens, dtype=ms.int32), POOL_ROWS)
        return self.wrap(self.shift(self.stretch(index, stride), start + self.dropout_offset), POOL_ROWS)

    def mask(self, rows: Tensor) -> Tensor:
        """fp32 (T, width): zeros where the tokens that take these rows lose a feature, ones elsewhere."""
        return self.gather(self.pool, rows, 0)

    def construct(self, x: Tensor) -> Tensor:
        """(T, width) -> (T, width) in the type of x, with zeros put in."""
        return self.mul(x, ops.cast(self.mask(self.rows(x.shape[0])), x.dtype))
