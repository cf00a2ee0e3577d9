# SPDX-License-Identifier: Apache-2.0
"""Values in host memory with their element type; bfloat16, which numpy lacks, as its 16 bits."""

import mmap
from typing import Any, NamedTuple

import numpy as np

from mindformers.errors import CheckpointError

__all__ = ["FLOATS", "Raw", "cast", "nbytes", "new_array", "numpy_dtype", "to_tensor"]

FLOATS = ("float32", "float16", "bfloat16")
_NUMPY = {"bfloat16": "uint16"}
_LARGE = 4 << 20  # bytes from which numpy asks for huge pages


class Raw(NamedTuple):
    """An array and the name of its element type; bfloat16 is held as uint16 of the same bits."""

    data: np.ndarray
    dtype: str


def numpy_dtype(name: str) -> np.dtype:
    """The numpy type in which values of an element type are held, little-endian."""
    return np.dtype(_NUMPY.get(name, name)).newbyteorder("<")


def nbytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a value."""
    return int(np.prod(shape, dtype=np.int64)) * numpy_dtype(dtype).itemsize


def new_array(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An array to be filled, in memory of its own.

    A large one is made of small pages: numpy asks for huge ones, and where free memory is in pieces the kernel
    first moves it together, at 1.5 GB in 2 to 3 seconds where reading takes 0.3.
    """
    size = nbytes(shape, dtype)
    if size < _LARGE or not hasattr(mmap, "MAP_ANONYMOUS"):
        return np.empty(shape, numpy_dtype(dtype))
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, numpy_dtype(dtype)).reshape(shape)


def cast(value: Raw, dtype: str | None, name: str) -> Raw:
    """``value`` with another floating point type, rounded to nearest even.

    Args:
        value: any value; integers are left as they are.
        dtype: one of ``FLOATS``; None keeps the type.
        name: for the message.

    Raises:
        CheckpointError: a finite number lies outside the range of the new type.
    """
    if dtype is None or dtype == value.dtype or value.dtype not in (*FLOATS, "float64"):
        return value
    wide = _widen(value)
    if dtype == "bfloat16":
        result = _round_to_bfloat16(wide)
        lost = np.isinf(_widen(Raw(result, dtype))) & np.isfinite(wide)
    else:
        with np.errstate(over="ignore"):
            result = wide.astype(dtype)
        lost = np.isinf(result) & np.isfinite(wide)
    if lost.any():
        largest = float(np.abs(wide[lost]).max())
        raise CheckpointError(
            f"{name}: {int(lost.sum())} values do not fit {dtype} (largest {largest:.6g}); use --dtype float32"
        )
    return Raw(result, dtype)


def _widen(value: Raw) -> np.ndarray:
    """fp32 of the same numbers (exact; fp64 is rounded)."""
    if value.dtype == "bfloat16":
        return (value.data.astype(np.uint32) << 16).view(np.float32)
    return value.data.astype(np.float32, copy=False)


def _round_to_bfloat16(wide: np.ndarray) -> np.ndarray:
    """The upper 16 bits of fp32 numbers, rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(wide).view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype(np.uint16)
    return np.where(np.isnan(wide), ((bits >> 16) | 0x40).astype(np.uint16), rounded)


def as_float32(value: Raw) -> np.ndarray:
    """The value as an fp32 array."""
    return _widen(value)


def to_tensor(value: Raw) -> Any:
    """A MindSpore tensor that takes the array's memory over."""
    import mindspore as ms
    from mindspore.common.np_dtype import bfloat16

    data = np.require(value.data, requirements=["C", "W"])
    return ms.Tensor.from_numpy(data.view(bfloat16) if value.dtype == "bfloat16" else data)
