# SPDX-License-Identifier: Apache-2.0
"""Logits, loss and every single gradient against transformers, computed here and now."""

import numpy as np
import pytest
from mindspore import Tensor

from mindformers.models.llama.llama import LlamaForCausalLM
from tests.parity.llama_cases import CASES, fill, hf_model, hf_outputs, records, tiny_config
from tests.parity.test_llama_golden import TOLERANCE, our_outputs, relative_error

torch = pytest.importorskip("torch", reason="extra `test` brings torch")
pytest.importorskip("transformers", reason="extra `test` brings transformers")


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", list(CASES))
def test_logits_loss_and_gradients(name: str, padded: bool) -> None:
    ours, theirs = our_outputs(name, padded), hf_outputs(name, padded)
    real = records(padded)[:, :-1] != 0
    assert relative_error(ours["logits"][real], theirs["logits"][real]) < TOLERANCE
    assert abs(ours["loss"] - theirs["loss"]) < TOLERANCE * theirs["loss"]
    grads = [key for key in theirs if key.startswith("grad:")]
    assert len(grads) == len(ours) - 2
    for key in grads:
        assert relative_error(ours[key], theirs[key]) < TOLERANCE, key


def test_left_padding_with_mask_and_positions() -> None:
    network = LlamaForCausalLM(tiny_config("gqa"))
    fill(network)
    network.set_train(False)
    ids = records(False)[:, :-1].copy()
    ids[1, :9] = 0
    mask = (ids != 0).astype(np.int32)
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0).astype(np.int32)
    logits = network(Tensor(ids), None, None, Tensor(positions), Tensor(mask))[0].asnumpy()
    with torch.no_grad():
        theirs = hf_model("gqa")(
            torch.from_numpy(ids).long(),
            attention_mask=torch.from_numpy(mask).long(),
            position_ids=torch.from_numpy(positions).long(),
        ).logits.numpy()
    assert relative_error(logits[mask == 1], theirs[mask == 1]) < TOLERANCE


def test_labels_are_shifted_and_ignored() -> None:
    network = LlamaForCausalLM(tiny_config("mha"))
    fill(network)
    ids, labels = records(False), records(False).copy()
    labels[:, :20] = -100
    network.set_train(True)
    ours = float(network(Tensor(ids), Tensor(labels)).asnumpy())
    with torch.no_grad():
        logits = hf_model("mha")(torch.from_numpy(ids[:, :-1]).long()).logits
        targets = torch.from_numpy(labels[:, 1:]).long().reshape(-1)
        theirs = float(torch.nn.functional.cross_entropy(logits.reshape(-1, 101), targets))
    assert abs(ours - theirs) < TOLERANCE * theirs
