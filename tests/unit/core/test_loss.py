# SPDX-License-Identifier: Apache-2.0
"""The loss for a vocabulary split over ranks: the same values and gradients as the plain one."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindformers.core.loss import CrossEntropyLoss, SplitCrossEntropyLoss

ROWS, VOCABULARY = 7, 13


def batch(scale: float, counted: str) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels with -100 where none is due, and their mask."""
    rng = np.random.default_rng(3)
    logits = (rng.normal(size=(ROWS, VOCABULARY)) * scale).astype(np.float32)
    labels = rng.integers(0, VOCABULARY, ROWS).astype(np.int32)
    mask = {"all": np.ones(ROWS), "some": np.arange(ROWS) % 3 > 0, "none": np.zeros(ROWS)}[counted].astype(np.float32)
    return Tensor(logits), Tensor(np.where(mask > 0, labels, -100).astype(np.int32)), Tensor(mask)


@pytest.mark.parametrize(("scale", "counted"), [(1.0, "all"), (1.0, "some"), (1.0, "none"), (200.0, "some")])
def test_split_loss_equals_the_plain_one(scale: float, counted: str) -> None:
    columns = batch(scale, counted)
    (plain, of_plain), (split, of_split) = (
        ms.value_and_grad(loss(), 0)(*columns) for loss in (CrossEntropyLoss, SplitCrossEntropyLoss)
    )
    np.testing.assert_allclose(split.asnumpy(), plain.asnumpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(of_split.asnumpy(), of_plain.asnumpy(), rtol=1e-5, atol=1e-7)
    ignored = columns[2].asnumpy() == 0
    assert not of_split.asnumpy()[ignored].any()
    assert of_split.asnumpy()[~ignored].any() == (counted != "none")
