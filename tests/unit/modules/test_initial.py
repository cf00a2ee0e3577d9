# SPDX-License-Identifier: Apache-2.0
"""Random initial weights: their distribution, and what they follow from."""

import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore.common.initializer import initializer

from mindformers.modules import initial
from mindformers.modules.initial import ParallelNormal


def drawn(shape: tuple[int, ...], dtype: object = ms.float32, sigma: float = 0.02) -> np.ndarray:
    return initializer(ParallelNormal(sigma), shape, dtype).init_data().asnumpy()


def test_values_are_normal() -> None:
    ms.set_seed(1)
    values = drawn((1000, 700)).reshape(-1) / 0.02  # eleven blocks
    assert abs(values.mean()) < 0.005
    assert abs(values.std() - 1.0) < 0.005
    for bound, share in ((1.0, 0.6827), (2.0, 0.9545), (3.0, 0.9973)):
        assert abs((np.abs(values) < bound).mean() - share) < 0.002
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.005
    first, second = values[: 1 << 16], values[1 << 16 : 1 << 17]
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.015


def test_the_seed_decides_and_threads_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def pair() -> tuple[np.ndarray, np.ndarray]:
        ms.set_seed(5)
        return drawn((900, 400)), drawn((900, 400))

    one, two = pair()
    assert not np.array_equal(one, two)
    monkeypatch.setattr(initial.os, "sched_getaffinity", lambda _: {0})
    again = pair()
    np.testing.assert_array_equal(again[0], one)
    np.testing.assert_array_equal(again[1], two)
    ms.set_seed(6)
    assert not np.array_equal(drawn((900, 400)), one)


@pytest.mark.parametrize("dtype", [ms.float16, ms.bfloat16])
def test_narrow_types_are_the_rounded_values(dtype: object) -> None:
    ms.set_seed(2)
    wide = drawn((30, 20))
    ms.set_seed(2)
    narrow = initializer(ParallelNormal(0.02), (30, 20), dtype).init_data()
    assert narrow.dtype == dtype
    np.testing.assert_array_equal(narrow.astype(ms.float32).asnumpy(), ms.Tensor(wide).astype(dtype).float().asnumpy())


def test_the_model_needs_no_http_library() -> None:
    code = "import sys, mindformers.models.llama.llama; sys.exit('requests' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
