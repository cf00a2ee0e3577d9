# SPDX-License-Identifier: Apache-2.0
"""Layers that are alike are compiled once, those that differ are not, and results are those of layers apart."""

import os
import re
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from mindformers.modules.alike import AlikeCell, fingerprint
from tests.helpers import REPO

WIDTH = 5


class Part(nn.Cell):
    """A product with a factor and a constant."""

    def __init__(self, factor: float, constant: float) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.eye(WIDTH), ms.float32), name="weight")
        self.constant = Tensor(np.full(WIDTH, constant), ms.float32)
        self.factor = factor
        self.product = ops.MatMul()

    def construct(self, x: Tensor) -> Tensor:
        """(T, WIDTH) -> (T, WIDTH)."""
        return self.product(x, self.weight) * self.factor + self.constant


class Layer(AlikeCell):
    """A layer with one part."""

    def __init__(self, factor: float = 1.0, constant: float = 0.0) -> None:
        super().__init__()
        self.part = Part(factor, constant)
        self.answer = lambda: factor

    def construct(self, x: Tensor) -> Tensor:
        """(T, WIDTH) -> (T, WIDTH)."""
        return ops.tanh(self.part(x))


class Stack(nn.Cell):
    """Layers in a row and a scalar of them."""

    def __init__(self, layers: list[nn.Cell]) -> None:
        super().__init__()
        self.layers = nn.CellList(layers)

    def construct(self, x: Tensor) -> Tensor:
        """(T, WIDTH) -> ()."""
        for layer in self.layers:
            x = layer(x)
        return ops.reduce_sum(x * x)


def values_and_gradients(layers: list[nn.Cell]) -> list[np.ndarray]:
    """The scalar and the gradient of each trained weight; layer n has weights of its own."""
    random = np.random.default_rng(0)
    for layer in layers:
        layer.part.weight.set_data(Tensor(random.standard_normal((WIDTH, WIDTH)), ms.float32))
    stack = Stack(layers)
    step = ms.value_and_grad(stack, None, stack.trainable_params())
    value, gradients = step(Tensor(random.standard_normal((3, WIDTH)), ms.float32))
    return [value.asnumpy(), *(gradient.asnumpy() for gradient in gradients)]


def frozen() -> Layer:
    layer = Layer()
    layer.part.weight.requires_grad = False
    return layer


def split() -> Layer:
    layer = Layer()
    layer.part.product.shard(((2, 1), (1, 1)))
    return layer


def recomputed() -> Layer:
    layer = Layer()
    layer.part.product.recompute()
    return layer


def recomputed_cell() -> Layer:
    layer = Layer()
    layer.part.recompute()
    return layer


def rounded() -> Layer:
    layer = Layer()
    layer.part.weight.set_dtype(ms.float16)
    return layer


def unlike_inside() -> Layer:
    layer = Layer()
    layer.part = nn.ReLU()
    return layer


def with_other_function() -> Layer:
    layer = Layer()
    layer.answer = lambda: 1.0
    return layer


def with_object() -> Layer:
    layer = Layer()
    layer.unknown = object()
    return layer


DIFFERENT = [
    frozen, split, recomputed, recomputed_cell, rounded, unlike_inside, with_object, with_other_function,
    lambda: Layer(factor=2.0), lambda: Layer(constant=1.0), lambda: Layer().set_train(),
]  # fmt: skip


def test_layers_made_alike_are_alike() -> None:
    assert fingerprint(Layer()) == fingerprint(Layer())
    for make in (Layer, split, recomputed_cell):
        layers = [make(), make()]
        assert fingerprint(layers[0]) == fingerprint(layers[1])
        if make is not split:
            values_and_gradients(layers)  # compiling leaves marks on cells
            assert fingerprint(layers[0]) == fingerprint(layers[1])


@pytest.mark.parametrize("make", DIFFERENT)
def test_what_differs_is_not_alike(make) -> None:
    assert fingerprint(make()) != fingerprint(Layer())


def test_shared_parameters_are_no_copies() -> None:
    both, apart = Layer(), Layer()
    both.first = both.second = Parameter(Tensor([1.0], ms.float32), name="one")
    apart.first, apart.second = (Parameter(Tensor([1.0], ms.float32), name=name) for name in ("one", "two"))
    assert fingerprint(both) != fingerprint(apart)


def test_results_are_those_of_layers_compiled_apart(monkeypatch) -> None:
    def layers() -> list[Layer]:
        return [Layer(), Layer(factor=0.5), Layer(), frozen(), Layer(constant=0.1), Layer(factor=0.5)]

    shared = values_and_gradients(layers())
    assert len(shared) == 1 + 5  # a frozen weight has no gradient
    monkeypatch.setattr(AlikeCell, "cell_init_args", property(lambda self: f"lazy_inline_{id(self)}"))
    for found, expected in zip(shared, values_and_gradients(layers()), strict=True):
        np.testing.assert_array_equal(found, expected)


PROGRAM = """
import mindspore as ms
from tests.unit.modules.test_alike import Layer, values_and_gradients
ms.set_device("CPU")
ms.set_context(mode=ms.GRAPH_MODE)
values_and_gradients([Layer(factor=1.0), Layer(factor=%s), Layer(factor=%s)])
"""


def inferred_layers(folder: Path, *factors: float) -> int:
    """Graphs of layers that MindSpore infers types for when it compiles one of factor 1 and two more."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM % factors], cwd=REPO, capture_output=True, text=True, timeout=300,
        env=os.environ | {"MS_DEV_SAVE_GRAPHS": "2", "MS_DEV_SAVE_GRAPHS_PATH": str(folder), "PYTHONPATH": str(REPO)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = folder.rglob("*type_inference*.ir")
    return len(re.findall("(?m)^subgraph.*Layer_construct", file.read_text(encoding="utf-8")))


def test_mindspore_compiles_what_is_alike_once(tmp_path: Path) -> None:
    apart = inferred_layers(tmp_path / "apart", 2.0, 3.0)
    assert apart % 3 == 0
    assert inferred_layers(tmp_path / "alike", 1.0, 1.0) == apart // 3 > 0
