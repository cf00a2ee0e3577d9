# SPDX-License-Identifier: Apache-2.0
"""Kernels on numpy arrays, without a graph: for work on weights before a model runs, and for tests."""

import ctypes

import numpy as np

from mindformers.errors import DeviceError
from mindformers.native import library

__all__ = ["call"]


def call(name: str, *arrays: np.ndarray) -> None:
    """Run a kernel in the calling thread.

    Args:
        name: the kernel, as MF_OP names it.
        arrays: its inputs, then its outputs, which are written; C-contiguous. uint16 stands for bfloat16.

    Raises:
        DeviceError: the library cannot be used, or the kernel refuses its arguments.
    """
    loaded = library.load()
    if loaded is None:
        raise DeviceError(f"native kernels: {library.problem()}")
    if not all(array.flags.c_contiguous for array in arrays):
        raise ValueError("native kernels take C-contiguous arrays")
    count = len(arrays)
    shapes = [(ctypes.c_int64 * max(1, array.ndim))(*array.shape) for array in arrays]
    dtypes = ["bfloat16" if array.dtype == np.uint16 else str(array.dtype) for array in arrays]
    failed = getattr(loaded, name)(
        count,
        (ctypes.c_void_p * count)(*(array.ctypes.data for array in arrays)),
        (ctypes.c_int * count)(*(array.ndim for array in arrays)),
        (ctypes.c_void_p * count)(*(ctypes.addressof(shape) for shape in shapes)),
        (ctypes.c_char_p * count)(*(dtype.encode() for dtype in dtypes)),
        None,
        None,
    )
    if failed:
        raise DeviceError(f"native kernel {library.last_error()}")
