# SPDX-License-Identifier: Apache-2.0
"""Logits, loss and gradients against golden values of transformers; needs no torch."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindformers.models.llama.llama import LlamaForCausalLM
from tests.parity.llama_cases import CASES, fill, formula_weight, records, tiny_config

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "llama.npz"
TOLERANCE = 1e-5  # relative


def our_outputs(name: str, padded: bool) -> dict[str, np.ndarray]:
    """The same dictionary as ``llama_cases.hf_outputs``, computed by us."""
    network = LlamaForCausalLM(tiny_config(name))
    fill(network)
    ids = records(padded)
    network.set_train(False)
    result = {"logits": network(Tensor(ids[:, :-1]))[0].asnumpy()}
    network.set_train(True)
    weights = network.trainable_params()
    loss, grads = ms.value_and_grad(network, None, weights)(Tensor(ids))
    result["loss"] = loss.asnumpy()
    result |= {f"grad:{weight.name}": grad.asnumpy() for weight, grad in zip(weights, grads, strict=True)}
    return result


def summary(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gradients as (norm, projection on a fixed direction), everything else as it is."""
    short = {key: value for key, value in outputs.items() if not key.startswith("grad:")}
    for key in sorted(set(outputs) - set(short)):
        grad = outputs[key].astype(np.float64)
        direction = formula_weight(key + "direction", grad.shape).astype(np.float64)
        short[key] = np.array([np.linalg.norm(grad), (grad * direction).sum() / np.linalg.norm(direction)])
    return short


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference over the largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", list(CASES))
def test_outputs_equal_golden(name: str, padded: bool) -> None:
    golden = np.load(GOLDEN)
    prefix = f"{name}/{'padded' if padded else 'full'}/"
    ours = summary(our_outputs(name, padded))
    real = records(padded)[:, :-1] != 0
    expected = {key[len(prefix) :]: golden[key] for key in golden.files if key.startswith(prefix)}
    assert expected.keys() == ours.keys()
    for key, value in expected.items():
        if key == "logits":  # what padding positions compute is nobody's business
            assert relative_error(ours[key][real], value[real]) < TOLERANCE
        elif key == "loss":
            assert abs(ours[key] - value) < TOLERANCE * value
        else:  # a projection can be small by chance: relative to the norm
            assert np.abs(ours[key] - value).max() < TOLERANCE * value[0], key
