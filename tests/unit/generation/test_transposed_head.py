# SPDX-License-Identifier: Apache-2.0
"""Long generations read a transposed copy of a large output layer: the same tokens, and the copy is never old."""

from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from mindformers.generation import session
from mindformers.models.llama.llama import LlamaForCausalLM
from mindformers.modules import kernels
from mindformers.modules.transpose import transposed
from tests.parity.llama_cases import tiny_config

GREEDY = {"use_past": True, "do_sample": False, "eos_token_id": [], "repetition_penalty": 1.0}
PROMPTS = [[5, 6, 7, 8], [9, 3]]


@pytest.fixture
def transposing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every output layer is large, twelve steps are many; native kernels, which read it themselves, are off."""
    monkeypatch.setenv("MINDFORMERS_NATIVE", "0")
    monkeypatch.setattr(kernels, "_LARGE_WEIGHT", 1)
    monkeypatch.setattr(session, "MANY_STEPS", 12)


def kinds(network: Any) -> set[str]:
    """The kinds of graphs a network has used."""
    return {kind for used in network._decode_sessions.values() for kind, _ in used._graphs}


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (700, 37), (1025, 96)])
def test_transposed(rows: int, columns: int) -> None:
    values = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    np.testing.assert_array_equal(transposed(Parameter(Tensor(values))).asnumpy(), values.T)


@pytest.mark.parametrize("case", ["gqa", "tied"])
def test_tokens_are_those_of_the_weight_itself(transposing: None, case: str) -> None:
    network = LlamaForCausalLM(tiny_config(case))
    cached = network.generate(PROMPTS, max_new_tokens=14, **GREEDY)
    assert kinds(network) == {"prefill", "step with head"}
    full = network.generate(PROMPTS, max_new_tokens=14, **{**GREEDY, "use_past": False})
    assert all(np.array_equal(a, b) for a, b in zip(cached, full, strict=True))


def test_a_new_weight_is_followed(transposing: None) -> None:
    network = LlamaForCausalLM(tiny_config("gqa"))
    first = network.generate(PROMPTS, max_new_tokens=14, **GREEDY)
    weight = network.lm_head.weight
    weight.set_data(Tensor(weight.asnumpy()[::-1].copy()))
    second = network.generate(PROMPTS, max_new_tokens=14, **GREEDY)
    assert not all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    expected = network.generate(PROMPTS, max_new_tokens=14, **{**GREEDY, "use_past": False})
    assert all(np.array_equal(a, b) for a, b in zip(second, expected, strict=True))


def test_short_generations_and_small_layers_do_without(transposing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    network = LlamaForCausalLM(tiny_config("gqa"))
    network.generate(PROMPTS, max_new_tokens=12, **GREEDY)
    assert kinds(network) == {"prefill", "step"}
    monkeypatch.setattr(kernels, "_LARGE_WEIGHT", network.lm_head.weight.size + 1)
    network.generate(PROMPTS, max_new_tokens=14, **GREEDY)
    assert kinds(network) == {"prefill", "step"}
    assert network.transposed_head() is None
    assert ms.get_context("device_target") == "CPU"
