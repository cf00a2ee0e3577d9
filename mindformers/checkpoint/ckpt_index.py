# SPDX-License-Identifier: Apache-2.0
"""A look into a ``.ckpt`` file without loading it: are its records whole?

MindSpore trusts the file: a record whose content is shorter than its shape is filled up with foreign memory,
and one that is longer overwrites it. The walk below reads only names, shapes and lengths, so it is quick for
big files.

The file is one protobuf message (``mindspore.train.checkpoint_pb2``): field 1, repeated, is a value with a
tag (1) and a tensor (2), which has dims (1), tensor_type (2) and tensor_content (3). A big tensor is spread
over several consecutive values of one tag.
"""

import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Record", "ckpt_problem", "ckpt_records"]

_SIZES = {"Bool": 1, "Int8": 1, "UInt8": 1, "Int16": 2, "UInt16": 2, "Float16": 2, "BFloat16": 2, "Int32": 4}
_SIZES |= {"UInt32": 4, "Float32": 4, "Int64": 8, "UInt64": 8, "Float64": 8}
_CRC_MARK, _CRC_BYTES = b"crc_num", 17  # optional trailer: the mark and ten bytes
_VARINT, _BYTES = 0, 2  # protobuf wire types


class Record(NamedTuple):
    """One value of the file: its tag, shape, element type, number of content bytes and where they begin."""

    tag: str
    dims: tuple[int, ...]
    kind: str
    length: int
    start: int = 0


class _BrokenError(Exception):
    """The bytes are not what the format allows."""


def ckpt_problem(path: Path) -> str:
    """Why a ``.ckpt`` file must not be given to MindSpore; empty when its records are whole.

    Args:
        path: a file that is not empty.
    """
    try:
        return _check(iter(ckpt_records(path)))
    except (_BrokenError, UnicodeDecodeError):
        return "it is cut off or damaged: its records do not end where the file ends"


def ckpt_records(path: Path) -> list[Record]:
    """Every value of a ``.ckpt`` file that :func:`ckpt_problem` has found whole, in the order of the file."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        end = len(data)
        if end > _CRC_BYTES and data[end - _CRC_BYTES : end - _CRC_BYTES + len(_CRC_MARK)] == _CRC_MARK:
            end -= _CRC_BYTES
        return list(_records(data, end))


def _check(records: Iterator[Record]) -> str:
    """Compare what each tensor's shape asks for with what is there."""
    last, have, count = None, 0, 0
    for record in [*records, None]:
        if last is not None and (record is None or record.tag != last.tag):
            want = _bytes_wanted(last)
            if want is not None and want != have:
                return f"{last.tag} {list(last.dims)} has {have} bytes, its shape needs {want}"
            have = 0
        if record is not None:
            have, count = have + record.length, count + 1
        last = record
    return "" if count else "it holds no parameters"


def _bytes_wanted(record: Record) -> int | None:
    """Bytes of a tensor of this shape; None for kinds without a fixed size (text, maps)."""
    dims = () if record.dims == (0,) else record.dims  # how MindSpore writes a scalar
    return math.prod(dims) * _SIZES[record.kind] if record.kind in _SIZES else None


def _records(data: mmap.mmap, end: int) -> Iterator[Record]:
    """Every value of the file."""
    for number, start, stop in _fields(data, 0, end):
        if number != 1 or start is None:
            raise _BrokenError
        yield _record(data, start, stop)


def _record(data: mmap.mmap, start: int, end: int) -> Record:
    """Read one value."""
    tag, dims, kind, length, place = "", [], "", 0, 0
    for number, first, last in _fields(data, start, end):
        if number == 1 and first is not None:
            tag = data[first:last].decode()
        elif number == 2 and first is not None:
            for inner, begin, stop in _fields(data, first, last):
                if inner == 1:
                    dims += [stop] if begin is None else _packed(data, begin, stop)
                elif inner == 2 and begin is not None:
                    kind = data[begin:stop].decode()
                elif inner == 3 and begin is not None:
                    length, place = stop - begin, begin
    return Record(tag, tuple(dims), kind, length, place)


def _fields(data: mmap.mmap, place: int, end: int) -> Iterator[tuple[int, int | None, int]]:
    """Fields of a message: (number, start, stop) of bytes, or (number, None, value) of an integer."""
    while place < end:
        key, place = _varint(data, place, end)
        value, place = _varint(data, place, end)
        if key & 7 == _VARINT:
            yield key >> 3, None, value
        elif key & 7 == _BYTES and place + value <= end:
            yield key >> 3, place, place + value
            place += value
        else:
            raise _BrokenError


def _packed(data: mmap.mmap, place: int, end: int) -> list[int]:
    """A run of integers written as one field."""
    values = []
    while place < end:
        value, place = _varint(data, place, end)
        values.append(value)
    return values


def _varint(data: mmap.mmap, place: int, end: int) -> tuple[int, int]:
    """An integer of 7 bits a byte, and where it ends."""
    value = shift = 0
    while place < end and shift < 64:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
    raise _BrokenError
