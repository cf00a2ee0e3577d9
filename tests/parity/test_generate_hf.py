# SPDX-License-Identifier: Apache-2.0
"""generate against transformers: greedy, and with a repetition penalty."""

import numpy as np
import pytest

from mindformers.models.llama.llama import LlamaForCausalLM
from tests.parity.llama_cases import fill, hf_model, tiny_config

torch = pytest.importorskip("torch", reason="extra `test` brings torch")
pytest.importorskip("transformers", reason="extra `test` brings transformers")


@pytest.mark.parametrize("name", ["mha", "gqa_grouped"])
def test_greedy_and_penalty(name: str) -> None:
    network = LlamaForCausalLM(tiny_config(name))
    fill(network)
    theirs = hf_model(name)
    theirs.generation_config.eos_token_id = None
    rng = np.random.default_rng(2)
    rows = [rng.integers(3, 101, length).tolist() for length in (1, 6, 11)]
    for penalty in (1.0, 1.5):
        ours = network.generate(
            rows, max_new_tokens=12, do_sample=False, use_past=True, repetition_penalty=penalty, eos_token_id=[]
        )
        for row, prompt in zip(ours, rows, strict=True):
            ids = torch.tensor([prompt])
            expected = theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=12,
                min_new_tokens=12,
                do_sample=False,
                repetition_penalty=penalty,
                pad_token_id=0,
            )
            assert row.tolist() == expected[0].tolist()
