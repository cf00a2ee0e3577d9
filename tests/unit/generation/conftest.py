# SPDX-License-Identifier: Apache-2.0
"""A tiny model with lively weights, built once: its compiled graphs are shared by the tests."""

import gc
from collections.abc import Iterator

import numpy as np
import pytest

from tests.parity.llama_cases import formula_weight, tiny_config


@pytest.fixture(scope="session")
def network():
    """LlamaForCausalLM, GQA, vocabulary 101, seq_length 32; greedy text does not fall into one repeated token."""
    from mindspore import Tensor

    from mindformers.models.llama.llama import LlamaForCausalLM

    net = LlamaForCausalLM(tiny_config("gqa"))
    for parameter in net.get_parameters():
        scale = 1.0 if len(parameter.shape) == 1 else 4.0
        parameter.set_data(Tensor(scale * formula_weight(parameter.name, parameter.shape)))
    return net


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Four prompts of odd and different lengths."""
    rng = np.random.default_rng(5)
    return [rng.integers(3, 101, length).tolist() for length in (1, 5, 9, 17)]


@pytest.fixture(autouse=True)
def _no_cell_dies_meanwhile() -> Iterator[None]:
    """MindSpore compiles a cell again when another with the same arguments dies; compilations are counted here."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
