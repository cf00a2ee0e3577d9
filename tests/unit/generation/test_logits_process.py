# SPDX-License-Identifier: Apache-2.0
"""Processors on numpy arrays, and the draw."""

from typing import Any

import numpy as np
import pytest

from mindformers.errors import ConfigError
from mindformers.generation import (
    GenerationConfig,
    LogitNormalization,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from mindformers.generation.logits_process import build_processors, draw

IDS = np.array([[1, 3, 3]])
SCORES = np.array([[1.0, -2.0, 0.5, 3.0, 0.0]], np.float32)


def kept(scores: np.ndarray) -> list[int]:
    """Places that are not filtered out."""
    return np.flatnonzero(scores[0] > -20000).tolist()


def test_penalty_counts_an_id_once() -> None:
    out = RepetitionPenaltyLogitsProcessor(2.0)(IDS, SCORES)
    np.testing.assert_array_equal(out, [[1.0, -4.0, 0.5, 1.5, 0.0]])
    assert SCORES[0, 1] == -2.0


@pytest.mark.parametrize(("k", "places"), [(1, [3]), (2, [0, 3]), (5, [0, 1, 2, 3, 4]), (99, [0, 1, 2, 3, 4])])
def test_top_k_of_the_vocabulary_and_more_keeps_all(k: int, places: list[int]) -> None:
    assert kept(TopKLogitsWarper(k)(IDS, SCORES)) == places


@pytest.mark.parametrize(("p", "places"), [(1e-6, [3]), (0.7, [3]), (0.8, [0, 3]), (1.0, [0, 1, 2, 3, 4])])
def test_top_p_keeps_the_token_that_crosses(p: float, places: list[int]) -> None:
    # probabilities: 3 -> .777, 0 -> .105, 2 -> .064, 4 -> .039, 1 -> .005
    assert kept(TopPLogitsWarper(p)(IDS, SCORES)) == places


def test_top_p_sees_more_than_200_candidates() -> None:
    assert len(kept(TopPLogitsWarper(0.9)(IDS, np.zeros((1, 1000), np.float32)))) == 900


def test_temperature_and_normalisation() -> None:
    np.testing.assert_allclose(TemperatureLogitsWarper(0.5)(IDS, SCORES), SCORES * 2)
    assert np.exp(LogitNormalization()(IDS, SCORES)).sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (RepetitionPenaltyLogitsProcessor, 0),
        (TemperatureLogitsWarper, 0.0),
        (TemperatureLogitsWarper, "1"),
        (TopKLogitsWarper, 0),
        (TopKLogitsWarper, 1.5),
        (TopPLogitsWarper, 0.0),
        (TopPLogitsWarper, 1.1),
    ],
)
def test_refused_values(kind: type, value: Any) -> None:
    with pytest.raises(ConfigError, match="not allowed"):
        kind(value)


class Ban(LogitsProcessor):
    """Forbids one id."""

    def __call__(self, input_ids: np.ndarray, logits: np.ndarray, banned: int = 3) -> np.ndarray:
        """See LogitsProcessor."""
        out = logits.copy()
        out[:, banned] = -50000
        return out


def test_order() -> None:
    config = GenerationConfig(
        do_sample=True, top_k=3, top_p=0.9, temperature=0.7, repetition_penalty=1.1, renormalize_logits=True
    )
    names = [type(item).__name__ for item in build_processors(config, [Ban()])]
    assert names == [
        "RepetitionPenaltyLogitsProcessor",
        "Ban",
        "LogitNormalization",
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "LogitNormalization",
    ]
    assert build_processors(GenerationConfig(temperature=0.5), []) == []


def test_same_processor_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="TopKLogitsWarper"):
        build_processors(GenerationConfig(do_sample=True, top_k=3), [TopKLogitsWarper(4)])
    with pytest.raises(ConfigError, match="callables"):
        build_processors(GenerationConfig(), [3])


def test_list_hands_over_named_arguments() -> None:
    processors = LogitsProcessorList([Ban(), TemperatureLogitsWarper(2.0)])
    assert kept(processors(IDS, SCORES, banned=0)) == [1, 2, 3, 4]

    class Needy(LogitsProcessor):
        """Asks for something."""

        def __call__(self, input_ids: np.ndarray, logits: np.ndarray, table: Any) -> np.ndarray:
            """See LogitsProcessor."""
            return logits

    with pytest.raises(ConfigError, match="table"):
        LogitsProcessorList([Needy()])(IDS, SCORES)


@pytest.mark.parametrize("by_rank", [True, False])
def test_draw_follows_the_distribution(by_rank: bool) -> None:
    uniform = ((np.arange(4000) + 0.5) / 4000).astype(np.float32)
    counts = np.bincount(draw(np.repeat(SCORES, 4000, 0), uniform, by_rank), minlength=5) / 4000
    expected = np.exp(SCORES[0]) / np.exp(SCORES[0]).sum()
    np.testing.assert_allclose(counts, expected, atol=1e-3)
