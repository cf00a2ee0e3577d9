# SPDX-License-Identifier: Apache-2.0
"""Perplexity over a MindRecord file, last partial batch and padding included, against transformers on the same ids."""

from pathlib import Path

import numpy as np
import pytest

from mindformers.core.metric import PerplexityMetric
from mindformers.dataset.causal_language_model import create_causal_lm_dataset
from mindformers.dataset.mindrecord import MindRecordWriter
from mindformers.models.llama.llama import LlamaForCausalLM
from mindformers.trainer.evaluate import EvalCell, evaluate_dataset
from tests.parity.llama_cases import fill, hf_model, tiny_config

torch = pytest.importorskip("torch", reason="extra `test` brings torch")
pytest.importorskip("transformers", reason="extra `test` brings transformers")


def hf_loss(ids: np.ndarray, labels: np.ndarray) -> float:
    """Mean loss per label token by transformers, one record at a time."""
    model = hf_model("gqa")
    total, count = 0.0, 0
    with torch.no_grad():
        for row, label in zip(ids, labels, strict=True):
            logits = model(torch.from_numpy(row[None, :-1]).long()).logits[0].double()
            target = torch.from_numpy(label[1:]).long()
            total += float(torch.nn.functional.cross_entropy(logits, target, ignore_index=-100, reduction="sum"))
            count += int((target != -100).sum())
    return total / count


@pytest.mark.parametrize("length", [33, 32])  # seq_length + 1 as for training, and seq_length
@pytest.mark.parametrize("with_labels", [False, True])
def test_loss_over_a_file_equals_transformers(tmp_path: Path, length: int, with_labels: bool) -> None:
    ids = np.random.default_rng(3).integers(3, 101, (7, length)).astype(np.int32)
    ids[2, 9:] = 0
    labels = np.where(ids == 0, -100, ids).astype(np.int32)
    columns = {"input_ids": length}
    if with_labels:
        labels[4, :20] = -100
        columns["labels"] = length
    writer = MindRecordWriter(tmp_path / "valid.mindrecord", columns)
    writer.write(**({"input_ids": ids, "labels": labels} if with_labels else {"input_ids": ids}))
    writer.close()
    dataset = create_causal_lm_dataset(
        tmp_path / "valid.mindrecord", input_columns=list(columns), batch_size=3, drop_remainder=False
    )
    network = LlamaForCausalLM(tiny_config("gqa"))
    fill(network)
    metric = PerplexityMetric()
    result = evaluate_dataset(EvalCell(network), dataset, metric, -100, 0)
    expected = hf_loss(ids, labels)
    assert metric.num_tokens == int((labels[:, 1:] != -100).sum())
    assert result["loss"] == pytest.approx(expected, rel=1e-5)
    assert result["PPL"] == pytest.approx(np.exp(expected), rel=1e-5)
