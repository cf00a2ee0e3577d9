# SPDX-License-Identifier: Apache-2.0
"""The pipeline step with one stage, where micro batches follow each other in one process: it equals the plain one."""

import numpy as np
import pytest
from mindspore import Tensor, nn

from mindformers.config.schema.model import LoraSection
from mindformers.models.llama.llama import LlamaForCausalLM
from mindformers.pet import get_pet_model
from mindformers.wrapper import InterleavedLoss, MFPipelineWithLossScaleCell, MFTrainOneStepCell
from tests.parity.llama_cases import fill, tiny_config
from tests.unit.wrapper.test_train_step import batches, values, weights


def network(dropout: float | None = None) -> nn.Cell:
    net = LlamaForCausalLM(tiny_config("gqa", num_layers=1))
    fill(net)
    if dropout is None:
        return net
    pet = LoraSection(lora_rank=4, lora_dropout=dropout, target_modules="wq|w1", param_init_type="float32",
                      compute_dtype="float32")  # fmt: skip
    return get_pet_model(net, pet)


def cell_of(kind: type, net: nn.Cell, **options: object) -> nn.Cell:
    options = {"use_clip_grad": True, "max_grad_norm": 0.01, "scale_sense": 8.0} | options
    return kind(net, nn.SGD(net.trainable_params(), 1.0), **options).set_train()


def test_micro_batches_equal_the_plain_step() -> None:
    ids, labels = batches()  # very different numbers of label tokens, one record without any
    plain = cell_of(MFTrainOneStepCell, network())
    pipeline = cell_of(MFPipelineWithLossScaleCell, network(), micro_batch_num=4)
    for _ in range(2):  # a second round finds the accumulators clean
        expected, got = (values(cell(Tensor(ids), Tensor(labels))) for cell in (plain, pipeline))
        np.testing.assert_allclose(got, expected, rtol=2e-5)
    for name, value in weights(plain).items():
        np.testing.assert_allclose(weights(pipeline)[name], value, rtol=1e-4, atol=1e-7)
    assert all(not parameter.asnumpy().any() for parameter in pipeline.accu_grads)


def test_overflow_in_one_micro_batch_skips_the_step() -> None:
    net = network()
    net.lm_head.weight.set_data(Tensor(np.full((101, 72), np.nan, np.float32)))
    cell = cell_of(MFPipelineWithLossScaleCell, net, micro_batch_num=2)
    before = weights(cell)
    ids, labels = batches()
    assert values(cell(Tensor(ids), Tensor(labels)))[1] == 1.0
    for name, value in weights(cell).items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("wrapped", ["pipeline", "interleaved"])
def test_dropout_advances_once_a_step(wrapped: str) -> None:
    net = network(dropout=0.5)
    if wrapped == "pipeline":
        cell = cell_of(MFPipelineWithLossScaleCell, net, micro_batch_num=2)
    else:
        cell = cell_of(MFTrainOneStepCell, InterleavedLoss(net, 2))
    ids, labels = (Tensor(columns) for columns in batches())
    for step in (1, 2):
        cell(ids, labels)
        assert net.dropout_step.asnumpy().tolist() == [step]
