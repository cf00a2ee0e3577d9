# SPDX-License-Identifier: Apache-2.0
"""A ``.ckpt`` file read one tensor at a time, where MindSpore would read the whole of it twice."""

from pathlib import Path

import numpy as np

from mindformers.checkpoint.ckpt_index import Record, ckpt_records
from mindformers.checkpoint.foreign.arrays import Raw, new_array
from mindformers.checkpoint.foreign.files import Facts
from mindformers.errors import CheckpointError

__all__ = ["CkptFile"]

_DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "bool")
_KINDS = {name.capitalize(): name for name in _DTYPES} | {"BFloat16": "bfloat16"}
_KINDS |= {f"UInt{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)}


class CkptFile:
    """The tensors of a ``.ckpt`` file; values that are no tensors (text, maps) are left out.

    Args:
        path: a file that ``load.sound_checkpoint`` has found whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, Facts] = {}
        self._records: dict[str, list[Record]] = {}
        for record in ckpt_records(path):
            if record.kind in _KINDS:
                self._records.setdefault(record.tag, []).append(record)
                shape = () if record.dims == (0,) else record.dims  # how MindSpore writes a scalar
                self.facts[record.tag] = Facts(shape, _KINDS[record.kind])

    def read(self, name: str) -> Raw:
        """The value, in memory of its own."""
        shape, dtype = self.facts[name]
        value = new_array(shape, dtype)
        self.read_into(name, 0, value)
        return Raw(value, dtype)

    def read_into(self, name: str, offset: int, target: np.ndarray) -> None:
        """Fill ``target``, contiguous, with the bytes of a value from ``offset`` on."""
        content = memoryview(target.reshape(-1).view(np.uint8))
        place = 0
        with open(self.path, "rb", buffering=0) as file:
            for record in self._records[name]:
                if offset >= record.length:
                    offset -= record.length
                    continue
                file.seek(record.start + offset)
                end = min(place + record.length - offset, len(content))
                offset = 0
                while place < end:
                    count = file.readinto(content[place:end])
                    if not count:
                        raise CheckpointError(f"{self.path} became shorter while it was read")
                    place += count
