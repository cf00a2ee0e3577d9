# SPDX-License-Identifier: Apache-2.0
"""Rates and estimates."""

import pytest

from mindformers.core.throughput import clock, flops_per_token, model_flops_utilization, tokens_per_second


def test_tokens_per_second() -> None:
    assert tokens_per_second(8, 128, 0.5) == 2048
    assert tokens_per_second(8, 128, 0.0) == 0.0


def test_flops_of_llama_7b_are_near_six_per_parameter() -> None:
    flops = flops_per_token(6_607_000_000, 32, 4096, 4096)
    assert flops == 6 * 6_607_000_000 + 12 * 32 * 4096 * 4096
    assert model_flops_utilization(2433, flops, 320e12) == pytest.approx(
        0.35, abs=0.02
    )  # 7B on a 910B, by the model card


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01"), (-3, "0:00:00"), (360000, "100:00:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
