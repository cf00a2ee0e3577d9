# SPDX-License-Identifier: Apache-2.0
"""Scores of continuations against the network's own logits; buckets, cuts and mistakes."""

import logging
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor

from mindformers.errors import ConfigError, DataError
from mindformers.evaluation import TextScorer
from mindformers.models.llama.llama import LlamaForCausalLM
from tests.parity.llama_cases import fill, tiny_config

LENGTH = 96


@pytest.fixture(scope="module")
def network() -> LlamaForCausalLM:
    model = LlamaForCausalLM(tiny_config("gqa", seq_length=LENGTH))
    fill(model)
    return model


@pytest.fixture(scope="module")
def logits(network: LlamaForCausalLM) -> Any:
    """Log-probabilities (LENGTH, V) of a row of tokens, one row at a time and always of one shape."""

    def of(tokens: list[int]) -> np.ndarray:
        network.set_train(False)
        row = np.zeros((1, LENGTH), np.int32)
        row[0, : len(tokens)] = tokens
        scores = network(Tensor(row))[0].asnumpy()[0].astype(np.float64)
        return scores - np.log(np.exp(scores - scores.max(-1, keepdims=True)).sum(-1, keepdims=True)) - scores.max(
            -1, keepdims=True
        )  # fmt: skip

    return of


def expected(logits: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    ids = (context + continuation)[-(LENGTH + 1) :]
    scores = logits(ids[:-1])
    places = range(len(ids) - 1 - len(continuation), len(ids) - 1)
    total = sum(scores[place, token] for place, token in zip(places, continuation, strict=True))
    return total, all(scores[p].argmax() == token for p, token in zip(places, continuation, strict=True))


def test_scores_equal_the_logits_in_every_bucket(network, logits, caplog) -> None:
    rng = np.random.default_rng(1)
    pairs = [
        (rng.integers(3, 101, a).tolist(), rng.integers(3, 101, b).tolist())
        for a, b in [(1, 1), (5, 3), (31, 1), (32, 1), (40, 20), (1, 96), (60, 60), (90, 7), (2, 2), (3, 1), (9, 4)]
    ]
    greedy = int(logits(pairs[0][0])[0].argmax())
    pairs.append((pairs[0][0], [greedy]))
    pairs.append(([5], []))
    scorer = TextScorer(network, batch_size=3)
    logging.getLogger("mindformers").addHandler(caplog.handler)
    try:
        results = scorer.score(pairs, progress=False)
    finally:
        logging.getLogger("mindformers").removeHandler(caplog.handler)
    assert "1 of 13 texts are longer than seq_length 96" in caplog.text
    for (context, continuation), (value, is_greedy) in zip(pairs, results, strict=True):
        wanted, wanted_greedy = expected(logits, context, continuation) if continuation else (0.0, True)
        assert value == pytest.approx(wanted, abs=1e-4)
        assert is_greedy == wanted_greedy
    assert results[-2][1] is True
    assert scorer.num_compiled() == 3  # rows of 32, 64 and 96
    scorer.score(pairs[::-1], progress=False)
    assert scorer.num_compiled() == 3
    assert [scorer.bucket(n) for n in (1, 32, 33, 64, 65, 96)] == [32, 32, 64, 64, 96, 96]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (([], [5]), "empty context"),
        (([5], [5] * 97), "97 tokens, more than seq_length 96"),
        (([5], [101]), "id 101"),
        (([-1], [5]), "id -1"),
    ],
)
def test_mistakes_name_the_text(network, pair, message) -> None:
    with pytest.raises(DataError, match=f"text 1 .*{message}"):
        TextScorer(network).score([([5], [6]), pair])
    with pytest.raises(ConfigError, match="batch_size 0"):
        TextScorer(network, 0)
