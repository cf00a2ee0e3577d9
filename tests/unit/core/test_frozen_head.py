# SPDX-License-Identifier: Apache-2.0
"""Head and loss of a frozen head: the values and the gradient of head, log-softmax and gather one after the other."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from mindformers.core.frozen_head import FrozenHeadLoss
from mindformers.core.loss import CrossEntropyLoss

WIDTH, VOCABULARY = 24, 50


class Separate(nn.Cell):
    """Head and loss as the model has them for a head that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.head = ops.MatMul(transpose_b=True)
        self.loss = CrossEntropyLoss()

    def construct(self, hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor) -> tuple:
        return self.loss.total(self.head(hidden, weight), labels, mask) / 3.0


class Together(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.function = FrozenHeadLoss()

    def construct(self, hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor) -> tuple:
        return self.function(hidden, weight, labels, mask)[0] / 3.0


def columns(rows: int, counted: str, scale: float) -> tuple[Tensor, ...]:
    """Hidden states, head, labels with -100 where none is due, and their mask."""
    rng = np.random.default_rng(4)
    hidden = (rng.normal(size=(rows, WIDTH)) * scale).astype(np.float32)
    weight = rng.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
    mask = {"all": np.ones(rows), "some": np.arange(rows) % 3 > 0, "none": np.zeros(rows)}[counted].astype(np.float32)
    labels = np.where(mask > 0, rng.integers(0, VOCABULARY, rows), -100).astype(np.int32)
    return tuple(map(Tensor, (hidden, weight, labels, mask)))


@pytest.mark.parametrize(
    ("rows", "counted", "scale"),
    [
        (7, "all", 1.0),
        (256, "some", 1.0),
        (600, "some", 1.0),
        (600, "none", 1.0),
        (5000, "some", 1.0),
        (9, "some", 40.0),
    ],
)
def test_value_and_gradient(rows: int, counted: str, scale: float) -> None:
    batch = columns(rows, counted, scale)
    expected, of_expected = ms.value_and_grad(Separate(), 0)(*batch)
    value, gradient = ms.value_and_grad(Together().set_train(), 0)(*batch)
    np.testing.assert_allclose(value.asnumpy(), expected.asnumpy(), rtol=1e-6)
    np.testing.assert_allclose(gradient.asnumpy(), of_expected.asnumpy(), rtol=1e-5, atol=2e-6)
    assert not gradient.asnumpy()[batch[3].asnumpy() == 0].any()


def test_outside_training_there_is_the_value_alone() -> None:
    batch = columns(300, "some", 1.0)
    value = Together().set_train(False)(*batch)
    np.testing.assert_allclose(value.asnumpy(), Separate()(*batch).asnumpy(), rtol=1e-6)
