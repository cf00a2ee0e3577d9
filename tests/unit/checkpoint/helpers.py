# SPDX-License-Identifier: Apache-2.0
"""States to save and ways to damage them."""

import logging
from collections.abc import Mapping
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

FIELDS = {"step": 3, "epoch": 1, "step_in_epoch": 3, "global_batch_size": 4, "seed": 7, "loss_scale": 1024.0}


def parameter(name: str, value, dtype=ms.float32, **options) -> Parameter:
    """A named parameter."""
    return Parameter(Tensor(value, dtype), name=name, **options)


def small_state(seed: int = 0) -> dict[str, Parameter]:
    """A weight of each shape, moments, and a counter."""
    rng = np.random.default_rng(seed)
    shapes = {"model.a.weight": (3, 5), "model.b.bias": (4,), "adam_m.model.a.weight": (3, 5)}
    state = {name: parameter(name, rng.normal(size=shape)) for name, shape in shapes.items()}
    state["global_step"] = parameter("global_step", [seed], ms.int32)
    return state


def same(first: Mapping, second: Mapping) -> bool:
    """True when every value of ``second`` is in ``first``, bit for bit."""
    return all(
        first[n].dtype == v.dtype
        and first[n].shape == v.shape
        and first[n].asnumpy().tobytes() == v.asnumpy().tobytes()
        for n, v in second.items()
    )


def flip_bit(path: Path, offset: int, bit: int = 0) -> None:
    """Invert one bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


class LogLines(logging.Handler):
    """Collects what the library logs (its logger does not propagate, so caplog sees nothing)."""

    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message."""
        self.lines.append(f"{record.levelname} {record.getMessage()}")

    def __enter__(self) -> "LogLines":
        logging.getLogger("mindformers").addHandler(self)
        return self

    def __exit__(self, *_) -> None:
        logging.getLogger("mindformers").removeHandler(self)

    def having(self, text: str) -> list[str]:
        """The lines that contain ``text``."""
        return [line for line in self.lines if text in line]
