# SPDX-License-Identifier: Apache-2.0
"""Several samples in one record give the loss and the gradients they give one by one."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from mindformers.core.metric.perplexity import PerplexityMetric
from mindformers.models.llama.llama import LlamaForCausalLM
from mindformers.tools.dataset_preprocess.llama.packing import IGNORED, Packer
from mindformers.trainer.evaluate import EvalCell, evaluate_dataset
from mindformers.wrapper import MFTrainOneStepCell
from tests.parity.llama_cases import fill, tiny_config

LENGTH = 17


def samples(count: int = 7) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(4)
    made = []
    for _ in range(count):
        ids = rng.integers(3, 101, rng.integers(3, 12)).astype(np.int32)
        ids[0], ids[-1] = 1, 2
        labels = ids.copy()
        labels[: rng.integers(1, len(ids))] = IGNORED
        made.append((ids, labels))
    return made


def alone(made: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    fills = (0, IGNORED)
    return [
        np.stack([np.pad(sample[i], (0, LENGTH - len(sample[i])), constant_values=fills[i]) for sample in made])
        for i in (0, 1)
    ]


def packed(made: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    packer = Packer(LENGTH, 0)
    rows = [row for ids, labels in made for row in packer.add(ids, labels)] + list(packer.rest())
    assert len(rows) < len(made)
    return list(np.stack(rows, axis=1))


class Summed(nn.Cell):
    """Summed loss, its gradients and the number of labels."""

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.grad = ms.value_and_grad(self.total, None, network.trainable_params(), has_aux=True)

    def total(self, batch: tuple) -> tuple:
        return self.network.loss_and_count(*batch)

    def construct(self, *batch: Tensor) -> tuple:
        return self.grad(batch)


@pytest.fixture(scope="module")
def network() -> LlamaForCausalLM:
    made = LlamaForCausalLM(tiny_config("gqa", seq_length=LENGTH - 1))
    fill(made)
    for parameter in made.get_parameters():  # larger weights, so that what attention sees and where matters
        if "attention.w" in parameter.name or "embedding" in parameter.name:
            parameter.set_data(Tensor(6 * parameter.asnumpy()))
    return made.set_train()


def summed(network: LlamaForCausalLM, batch: list[np.ndarray]) -> tuple[float, float, list[np.ndarray]]:
    (loss, count), gradients = Summed(network)(*map(Tensor, batch))
    return float(loss.asnumpy()), float(count.asnumpy()), [gradient.asnumpy() for gradient in gradients]


def test_loss_and_gradients_equal_those_of_single_samples(network) -> None:
    made = samples()
    loss, count, gradients = summed(network, alone(made))
    packed_loss, packed_count, packed_gradients = summed(network, packed(made))
    assert packed_count == count == sum((labels != IGNORED).sum() for _, labels in made)
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    for mine, other in zip(packed_gradients, gradients, strict=True):
        assert np.abs(mine - other).max() <= 1e-5 * np.abs(other).max()
    ids, labels, _ = packed(made)
    leaking, _, _ = summed(network, [ids, labels])
    assert leaking != pytest.approx(loss, rel=1e-3)  # the samples do see each other without the third column


def test_a_first_token_is_no_label_even_when_the_data_says_so(network) -> None:
    ids, _, segments = packed(samples())
    _, count, _ = summed(network, [ids, ids, segments])
    inside = (segments[:, 1:] == segments[:, :-1]).sum()
    assert count == inside


def test_train_step_takes_the_columns_with_and_without_accumulation(network) -> None:
    made = samples()
    loss, count, _ = summed(network, alone(made))
    batch = [Tensor(column) for column in packed(made)]
    rate = {"learning_rate": 0.0}
    for accumulation in (1, 2):
        cell = MFTrainOneStepCell(network, nn.SGD(network.trainable_params(), **rate), accumulation=accumulation)
        for _ in range(accumulation):
            value = cell.set_train()(*batch)[0]
        assert float(value.asnumpy()) == pytest.approx(loss / count, rel=1e-5)
    assert float(network(batch[0], batch[1], segment_ids=batch[2]).asnumpy()) == pytest.approx(loss / count, rel=1e-5)


def test_evaluation_with_a_last_batch_that_is_not_full(network) -> None:
    made = samples(10)
    loss, count, _ = summed(network, alone(made))
    columns = packed(made)
    assert len(columns[0]) % 4

    data = ms.dataset.NumpySlicesDataset(tuple(columns), ["input_ids", "labels", "segment_ids"], shuffle=False)
    result = evaluate_dataset(EvalCell(network), data.batch(4), PerplexityMetric(), IGNORED, 0)
    assert result["loss"] == pytest.approx(loss / count, rel=1e-5)
