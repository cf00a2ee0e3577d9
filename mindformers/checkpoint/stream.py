# SPDX-License-Identifier: Apache-2.0
"""Writing checkpoints one tensor at a time, for models that do not fit the memory: ``.ckpt`` and ``.safetensors``.

``save`` writes what a network holds; here values come from elsewhere and are gone when they are written. The bytes of
a ``.ckpt`` are those MindSpore writes (the format is described in ``ckpt_index``).
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mindformers.atomic import flush
from mindformers.checkpoint.digest import ALGORITHM, FileDigests
from mindformers.checkpoint.foreign.arrays import Raw, nbytes
from mindformers.checkpoint.layout import check_format, manifest_path, temp_path
from mindformers.checkpoint.manifest import Manifest, write_manifest
from mindformers.errors import CheckpointError
from mindformers.version import __version__

__all__ = ["CheckpointStream", "Planned", "SafetensorsWriter", "check_space"]

_SLICE_BYTES = 512 << 20  # longest content of one record, as MindSpore writes them
_CKPT_TYPES = {"float64": "Float64", "float32": "Float32", "float16": "Float16", "bfloat16": "BFloat16"}
_CKPT_TYPES |= {"int64": "Int64", "int32": "Int32", "int16": "Int16", "int8": "Int8", "uint8": "UInt8", "bool": "Bool"}
_SAFE_TYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
_SAFE_TYPES |= {"int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL"}
_SAFE_ALIGN = 8


class Planned(NamedTuple):
    """A tensor that is going to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of its content."""
        return nbytes(self.shape, self.dtype)


def check_space(folder: Path, needed: int) -> None:
    """Fail before the first byte when the disk is known to be too full.

    Raises:
        CheckpointError: fewer than ``needed`` bytes are free.
    """
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise CheckpointError(f"{folder}: {needed:,} bytes are needed, {free:,} are free on that disk")


class _Output:
    """A file being written, with running checksums when they are wanted."""

    def __init__(self, path: Path, digest: bool) -> None:
        self.file = open(path, "wb")  # noqa: SIM115 (closed by close)
        self.digests = FileDigests() if digest else None

    def write(self, data: bytes | memoryview) -> None:
        if self.digests is not None:
            self.digests.update(data)
        self.file.write(data)

    def finish(self) -> None:
        """Flush to the disk and close."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.close()

    def close(self) -> None:
        """Close; what was not written yet is."""
        if self.digests is not None:
            self.digests.close()
        self.file.close()


def _bytes_of(value: Raw) -> memoryview:
    """The value's memory, little-endian and contiguous."""
    return memoryview(np.ascontiguousarray(value.data).reshape(-1).view(np.uint8))


def _check_planned(item: Planned, value: Raw) -> None:
    assert (item.shape, item.dtype) == (tuple(value.data.shape), value.dtype), f"{item} got {value.dtype}"


class _CkptBody:
    """Records of a ``.ckpt``."""

    def __init__(self, output: _Output, plan: Iterable[Planned]) -> None:
        self._output = output

    def add(self, item: Planned, value: Raw) -> None:
        """Write one tensor; a long one in several records of one name."""
        content = _bytes_of(value)
        dims = b"".join(b"\x08" + _varint(size) for size in item.shape)
        kind = _CKPT_TYPES[item.dtype].encode()
        head = dims + b"\x12" + _varint(len(kind)) + kind
        tag = item.name.encode()
        step = _SLICE_BYTES // value.data.itemsize * value.data.itemsize
        for start in range(0, max(len(content), 1), step):
            part = content[start : start + step]
            inner = head + b"\x1a" + _varint(len(part))
            outer = b"\x0a" + _varint(len(tag)) + tag + b"\x12" + _varint(len(inner) + len(part)) + inner
            self._output.write(b"\x0a" + _varint(len(outer) + len(part)) + outer)
            self._output.write(part)


def _varint(value: int) -> bytes:
    """An integer of 7 bits a byte, as in protobuf."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


class _SafetensorsBody:
    """Header and data of a ``.safetensors`` file."""

    def __init__(self, output: _Output, plan: Iterable[Planned], metadata: dict[str, str] | None = None) -> None:
        self._output = output
        self._order = list(plan)
        header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
        place = 0
        for item in self._order:
            ends = [place, place + item.nbytes]
            header[item.name] = {"dtype": _SAFE_TYPES[item.dtype], "shape": list(item.shape), "data_offsets": ends}
            place = ends[1]
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _SAFE_ALIGN)
        output.write(len(text).to_bytes(8, "little") + text)

    def add(self, item: Planned, value: Raw) -> None:
        """Write the next tensor of the plan."""
        self._output.write(_bytes_of(value))


class SafetensorsWriter:
    """One ``.safetensors`` file, written in the order of its plan.

    Args:
        path: the file; the caller sees to temporary names.
        plan: what will be added, in this order.
        metadata: text values for the header.
    """

    def __init__(self, path: Path, plan: list[Planned], metadata: dict[str, str] | None = None) -> None:
        self._output = _Output(path, digest=False)
        self._body = _SafetensorsBody(self._output, plan, metadata)

    def add(self, item: Planned, value: Raw) -> None:
        """Write the next tensor."""
        _check_planned(item, value)
        self._body.add(item, value)

    def finish(self) -> None:
        """Flush to the disk and close."""
        self._output.finish()


class CheckpointStream:
    """A checkpoint of ours with its manifest; it appears under its name when it is complete, or not at all.

    Args:
        path: the file; its folder is made.
        plan: everything that will be added, in this order.
        fmt: ``ckpt`` or ``safetensors``.
        fields: more values for the manifest, see :class:`~mindformers.checkpoint.manifest.Manifest`.

    Use as a context manager: leaving it without an exception completes the file.

    Raises:
        CheckpointError: the disk is too full or cannot be written.
    """

    def __init__(self, path: Path, plan: list[Planned], fmt: str, fields: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self._fields = dict(fields or {})
        self._plan = list(plan)
        self._added = 0
        self._temp = temp_path(path)
        body = _CkptBody if check_format(fmt) == "ckpt" else _SafetensorsBody
        check_space(path.parent, sum(item.nbytes for item in plan))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._output = _Output(self._temp, digest=True)
            self._body = body(self._output, self._plan)
        except OSError as error:
            self._temp.unlink(missing_ok=True)
            raise CheckpointError(f"{path} cannot be written: {error}") from error

    def __enter__(self) -> "CheckpointStream":
        return self

    def add(self, item: Planned, value: Raw) -> None:
        """Write the next tensor."""
        _check_planned(item, value)
        assert self._plan[self._added] == item, f"{item.name} is not the next of the plan"
        self._body.add(item, value)
        self._added += 1

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._complete()
        except OSError as problem:
            raise CheckpointError(f"{self.path} cannot be written: {problem}") from problem
        finally:
            self._output.close()
            self._temp.unlink(missing_ok=True)

    def _complete(self) -> None:
        assert self._added == len(self._plan)
        self._output.finish()
        manifest_path(self.path).unlink(missing_ok=True)  # an old one would call the new file damaged
        size = self._temp.stat().st_size
        os.replace(self._temp, self.path)
        flush(self.path.parent)
        described = [{"name": n, "shape": list(shape), "dtype": dtype} for n, shape, dtype in self._plan]
        checksum, pieces = self._output.digests.result()
        known = {"size": size, "algorithm": ALGORITHM, "checksum": checksum, "pieces": pieces, "parameters": described}
        manifest = Manifest.from_fields({**self._fields, **known})
        manifest.created = self.path.stat().st_mtime
        manifest.mindformers_version = __version__
        write_manifest(self.path, manifest)
