# SPDX-License-Identifier: Apache-2.0
"""A tiny model and its exported files, made once."""

from pathlib import Path

import pytest

from tests.parity.llama_cases import formula_weight, tiny_config

LENGTH = 32


@pytest.fixture(scope="session")
def network():
    """LlamaForCausalLM, GQA, as many tokens as the tiny tokenizer has; its greedy text is not one repeated token."""
    from mindspore import Tensor

    from mindformers.models.llama.llama import LlamaForCausalLM

    config = tiny_config("gqa", vocab_size=400, batch_size=2, seq_length=LENGTH, use_past=True, do_sample=False)
    net = LlamaForCausalLM(config)
    for parameter in net.get_parameters():
        scale = 1.0 if len(parameter.shape) == 1 else 4.0
        parameter.set_data(Tensor(scale * formula_weight(parameter.name, parameter.shape)))
    return net


@pytest.fixture(scope="session")
def pair(network, tmp_path_factory) -> tuple[Path, Path]:
    """The files of a batch of 2."""
    from mindformers.inference.exporter import export_mindir

    folder = tmp_path_factory.mktemp("pair")
    return tuple(export_mindir(network, folder / "a_prefill.mindir", folder / "a_mini.mindir", batch_size=2))


@pytest.fixture(scope="session")
def exported(pair):
    """The pair, opened by MindSpore."""
    from mindformers.inference import ExportedModel

    return ExportedModel.open(*pair, backend="ms")
