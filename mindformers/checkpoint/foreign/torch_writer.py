# SPDX-License-Identifier: Apache-2.0
"""A file that ``torch.load`` reads, written one tensor at a time; ``torch.save`` needs all of them in memory.

PyTorch's format since 1.6 is a zip archive without compression: ``data.pkl`` describes the tensors and refers to
records ``data/0``, ``data/1``, ... with their bytes, each at a multiple of 64 so that the file can be mapped
(``torch/serialization.py``, ``caffe2/serialize/inline_container.h``).
"""

import contextlib
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from mindformers.checkpoint.foreign.arrays import Raw
from mindformers.checkpoint.foreign.files import import_torch

__all__ = ["TorchWriter"]

_ALIGN = 64
_LOCAL_HEADER, _ZIP64_FIELD = 30, 20  # bytes before the name; of the field zipfile adds for sizes above 4 GB
_STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage"}


class _Storage:
    """Stands for a tensor's memory in the pickle."""

    def __init__(self, number: int, dtype: str, count: int) -> None:
        self.number, self.dtype, self.count = number, dtype, count


class _Tensor:
    """Stands for a tensor in the pickle: the call that rebuilds it."""

    def __init__(self, storage: _Storage, shape: tuple[int, ...]) -> None:
        self.storage, self.shape = storage, shape

    def __reduce__(self) -> tuple:
        from torch._utils import _rebuild_tensor_v2

        strides = [int(np.prod(self.shape[axis + 1 :], dtype=np.int64)) for axis in range(len(self.shape))]
        return _rebuild_tensor_v2, (self.storage, 0, self.shape, tuple(strides), False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> tuple | None:
        if not isinstance(obj, _Storage):
            return None
        torch = import_torch("writing .pth")
        return "storage", getattr(torch, _STORAGES[obj.dtype]), str(obj.number), "cpu", obj.count


class TorchWriter:
    """One ``.pth`` file.

    Args:
        path: the file; the caller sees to temporary names.
        plan: (name, shape, dtype) of what will be added, in this order.

    Raises:
        CheckpointError: torch is absent.
    """

    def __init__(self, path: Path, plan: list[tuple[str, tuple[int, ...], str]]) -> None:
        import_torch(f"writing {path.name}")
        self._root = path.name.removesuffix(path.suffix)
        self._file = open(path, "wb")  # noqa: SIM115 (closed by finish)
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._next = 0
        state = {}
        for number, (name, shape, dtype) in enumerate(plan):
            state[name] = _Tensor(_Storage(number, dtype, int(np.prod(shape, dtype=np.int64))), shape)
        text = io.BytesIO()
        _Pickler(text, protocol=2).dump(state)
        self._record("data.pkl", memoryview(text.getvalue()))
        self._record("byteorder", memoryview(b"little"))

    def add(self, value: Raw) -> None:
        """Write the next tensor of the plan."""
        data = np.ascontiguousarray(value.data).reshape(-1).view(np.uint8)
        self._record(f"data/{self._next}", memoryview(data))
        self._next += 1

    def _record(self, name: str, content: memoryview) -> None:
        """A record whose content begins at a multiple of 64."""
        info = zipfile.ZipInfo(f"{self._root}/{name}")
        begin = self._file.tell() + _LOCAL_HEADER + len(info.filename.encode()) + _ZIP64_FIELD + 4
        padding = -begin % _ALIGN
        info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
        info.file_size = len(content)
        with self._zip.open(info, "w", force_zip64=True) as record:
            record.write(content)

    def finish(self) -> None:
        """Flush to the disk and close."""
        self._record("version", memoryview(b"3\n"))
        self._zip.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        """Let go of the file, complete or not."""
        with contextlib.suppress(OSError, ValueError):  # of a file that stays incomplete and is removed
            self._zip.close()
        self._file.close()
