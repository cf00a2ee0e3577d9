# SPDX-License-Identifier: Apache-2.0
"""What the ranks of a job do together outside the model: who am I, sums over ranks, exchanged numbers.

Process start is the launcher's work, ``core/context.py`` connects the processes; how a model is split is none of
this module's business.
"""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, communication, nn, ops
from mindspore.communication import GlobalComm

__all__ = ["DataParallelReducer", "GatherBatch", "data_parallel_ranks", "gather_bytes", "gather_numbers", "world"]


def world() -> tuple[int, int]:
    """(rank of this process, number of processes); (0, 1) while no communication is set up."""
    if not GlobalComm.INITED:
        return 0, 1
    return communication.get_rank(), communication.get_group_size()


def data_parallel_ranks() -> tuple[int, int]:
    """(this rank, ranks) among those that hold the whole model and read different records.

    Plain data parallel (``parallel_mode`` 0) only; (0, 1) in every other mode, where the compiler splits the data.
    """
    if ms.get_auto_parallel_context("parallel_mode") != "data_parallel":
        return 0, 1
    return world()


class GatherBatch(nn.Cell):
    """The columns of a batch of which every rank has read an equal part, whole; in rank order, inside the train step.

    Small beside what the ranks exchange anyhow: 4 bytes per token.
    """

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.gather = ops.AllGather()

    def construct(self, *columns: Tensor) -> tuple[Tensor, ...]:
        """(records of this rank, ...) arrays to (records of all ranks, ...)."""
        whole = ()
        for column in columns:
            whole += (self.gather(column),)
        return whole


class _Gather(nn.Cell):
    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.gather = ops.AllGather()

    def construct(self, values: Tensor) -> Tensor:
        return self.gather(values)


def gather_numbers(values: Sequence[float]) -> np.ndarray:
    """The numbers of every rank, on every rank; all ranks must call it together and give equally many.

    Args:
        values: whole numbers are exact to 2^47, others to 14 digits, although the exchange itself is in float32.

    Returns:
        float64 array of shape (ranks, len(values)), in rank order.
    """
    _, ranks = world()
    exact = np.asarray(values, np.float64).reshape(-1)
    if ranks == 1:
        return exact.reshape(1, -1)
    high = exact.astype(np.float32)
    low = (exact - high).astype(np.float32)
    gathered = _Gather()(Tensor(np.concatenate((high, low)))).asnumpy().reshape(ranks, 2, -1)
    return gathered.astype(np.float64).sum(axis=1)


def gather_bytes(content: bytes) -> list[bytes]:
    """What every rank gives, on every rank, in rank order; all ranks must call it together."""
    sizes = gather_numbers([len(content)])[:, 0].astype(int)
    if len(sizes) == 1:
        return [content]
    padded = content.ljust(int(sizes.max()) + 1 & ~1, b"\0")
    numbers = np.frombuffer(padded, np.uint16).astype(np.float32)  # exact, and a type every backend exchanges
    if not numbers.size:
        return [b""] * len(sizes)
    gathered = _Gather()(Tensor(numbers)).asnumpy().reshape(len(sizes), -1).astype(np.uint16)
    return [row.tobytes()[:size] for row, size in zip(gathered, sizes, strict=True)]


class DataParallelReducer(nn.Cell):
    """Sums over the ranks of a data parallel job, inside the train step.

    Args:
        parameters: the trainable parameters, in the order of the gradients.
        ranks: number of ranks.

    A call sums gradients element by element; ``parallel.all_reduce_fusion_config`` and ``gradient_fp32_sync`` are
    followed. The step divides by the number of label tokens of all ranks, so ranks whose records hold more labels
    weigh more, and the result is that of one process with the whole batch.
    """

    def __init__(self, parameters: Sequence[Parameter], ranks: int) -> None:
        super().__init__(auto_prefix=False)
        self.ranks = ranks
        self.reduce_gradients = nn.DistributedGradReducer(parameters, mean=False, degree=ranks)
        self.all_reduce = ops.AllReduce()

    def construct(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Gradients of this rank -> their sum over all ranks."""
        return self.reduce_gradients(gradients)

    def sums(self, total: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Two float32 scalars of this rank -> their sums over all ranks."""
        both = self.all_reduce(ops.stack((ops.reshape(total, (1,)), ops.reshape(count, (1,)))))
        return ops.reshape(both[0], ()), ops.reshape(both[1], ())
