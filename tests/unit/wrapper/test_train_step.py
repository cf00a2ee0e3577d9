# SPDX-License-Identifier: Apache-2.0
"""The train step: accumulation, clipping, overflow, loss scale."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from mindformers.models.llama.llama import LlamaForCausalLM
from mindformers.wrapper import MFTrainOneStepCell
from tests.parity.llama_cases import fill, records, tiny_config


def make_cell(rate: float = 0.1, **options: object) -> MFTrainOneStepCell:
    changes = options.pop("config", {})
    network = LlamaForCausalLM(tiny_config("gqa", num_layers=1, **changes))
    fill(network)
    optimizer = nn.SGD(network.trainable_params(), rate)
    return MFTrainOneStepCell(network, optimizer, **options).set_train()


def weights(cell: MFTrainOneStepCell) -> dict[str, np.ndarray]:
    return {p.name: p.asnumpy().copy() for p in cell.network.get_parameters()}


def batches() -> tuple[np.ndarray, np.ndarray]:
    """Four records with very different numbers of label tokens, and their labels."""
    ids = np.concatenate((records(False), records(True)))
    labels = ids.copy()
    labels[0, 5:] = -100
    labels[3, :] = -100
    labels[2, 3] = -100
    return ids, labels


def values(outputs: tuple) -> list[float]:
    return [float(value.asnumpy()) for value in outputs]


def test_accumulation_equals_one_large_batch() -> None:
    ids, labels = batches()
    whole = make_cell(use_clip_grad=True, max_grad_norm=0.01)
    expected = values(whole(Tensor(ids), Tensor(labels)))
    split = make_cell(accumulation=4, use_clip_grad=True, max_grad_norm=0.01)
    for _ in range(2):  # a second round finds the accumulators clean
        start = weights(split)
        for row in range(4):
            got = values(split(Tensor(ids[row : row + 1]), Tensor(labels[row : row + 1])))
            if row < 3:
                assert got[4] == 0.0
                assert all((start[name] == value).all() for name, value in weights(split).items())
        np.testing.assert_allclose(got, expected, rtol=2e-5)
        for name, value in weights(whole).items():
            np.testing.assert_allclose(weights(split)[name], value, rtol=1e-4, atol=1e-7)
        expected = values(whole(Tensor(ids), Tensor(labels)))


def test_clipping_bounds_the_update_and_reports_the_norm_before() -> None:
    ids = Tensor(records(False))
    plain, clipped = make_cell(rate=1.0), make_cell(rate=1.0, use_clip_grad=True, max_grad_norm=0.05)
    before = weights(plain)
    norm = values(plain(ids))[4]
    assert values(clipped(ids))[4] == pytest.approx(norm, rel=1e-6)
    moved = [sum(((cell_weights[n] - before[n]) ** 2).sum() for n in before) ** 0.5 for cell_weights in
             (weights(plain), weights(clipped))]  # fmt: skip
    assert moved[0] == pytest.approx(norm, rel=1e-3)
    assert norm > 0.05
    assert moved[1] == pytest.approx(0.05, rel=1e-3)


def test_overflow_skips_the_update_and_halves_a_dynamic_scale() -> None:
    scale = nn.DynamicLossScaleUpdateCell(loss_scale_value=2.0**60, scale_factor=2, scale_window=2)
    half = {"compute_dtype": "float16"}
    cell = make_cell(rate=1e-3, scale_sense=scale, config=half)
    ids, before = Tensor(records(False)), weights(cell)
    _, overflow, used, _, _ = values(cell(ids))
    assert overflow == 1.0
    assert used == 2.0**60
    assert all((before[name] == value).all() for name, value in weights(cell).items())
    for _ in range(60):
        _, overflow, used, _, _ = values(cell(ids))
        if not overflow:
            break
    assert not overflow
    assert used < 2.0**30
    assert any((before[name] != value).any() for name, value in weights(cell).items())
    cell(ids)
    assert float(cell.scale_sense.asnumpy()) >= used  # two good steps: the window lets it grow again


def test_loss_scale_changes_nothing_in_fp32() -> None:
    ids = Tensor(records(True))
    plain, scaled = make_cell(), make_cell(scale_sense=1024.0)
    np.testing.assert_allclose(
        [values(scaled(ids))[i] for i in (0, 4)], [values(plain(ids))[i] for i in (0, 4)], rtol=1e-5
    )
    for name, value in weights(plain).items():
        np.testing.assert_allclose(weights(scaled)[name], value, rtol=1e-5, atol=1e-7)


def test_a_nan_weight_is_seen_as_overflow_not_hidden() -> None:
    cell = make_cell()
    cell.network.lm_head.weight.set_data(Tensor(np.full((101, 72), np.nan, np.float32)))
    loss, overflow, *_ = values(cell(Tensor(records(False))))
    assert np.isnan(loss)
    assert overflow == 1.0


def test_state_names_survive_for_checkpoints() -> None:
    names = {p.name for p in make_cell(accumulation=2).get_parameters()}
    assert {"scale_sense", "accu_step", "accu_tokens", "accu_loss", "accu_sum.lm_head.weight"} <= names
    assert "lm_head.weight" in names
    assert ms.get_context("mode") == ms.GRAPH_MODE
