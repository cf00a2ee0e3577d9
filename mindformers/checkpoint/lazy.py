# SPDX-License-Identifier: Apache-2.0
"""Contents of a checkpoint file whose values are read when they are asked for; several at once where that pays."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mindspore as ms

from mindformers.checkpoint.ckpt_file import CkptFile
from mindformers.checkpoint.foreign.arrays import to_tensor
from mindformers.checkpoint.foreign.files import SafetensorsFile

__all__ = ["LazyTensors", "read_in_order"]

_READERS = min(4, os.cpu_count() or 1)
_AHEAD = _READERS + 1  # values read before they are asked for: more would fill memory when the user of them is slow


class LazyTensors(Mapping[str, ms.Tensor]):
    """Contents of a file of ours; each access reads the value anew, into memory of its own.

    Attributes:
        concurrent: whether several threads may read at once.
    """

    concurrent = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = SafetensorsFile(path) if path.suffix == ".safetensors" else CkptFile(path)

    def __getitem__(self, name: str) -> ms.Tensor:
        return to_tensor(self._file.read(name))

    def __contains__(self, name: object) -> bool:
        return name in self._file.facts

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.facts)

    def __len__(self) -> int:
        return len(self._file.facts)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a value, without reading it."""
        return self._file.facts[name].shape


def read_in_order(params: Mapping[str, Any], names: Iterable[str]) -> Iterator[Any]:
    """``params[name]`` for every name, in this order.

    Values of a file are read by threads, a few ahead of the one in use: most of the time of reading goes into new pages
    of memory, which the processors can make side by side.
    """
    if not getattr(params, "concurrent", False):
        yield from (params[name] for name in names)
        return
    with ThreadPoolExecutor(_READERS, "read") as pool:
        waiting: deque[Future[Any]] = deque()
        try:
            for name in names:
                waiting.append(pool.submit(params.__getitem__, name))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
