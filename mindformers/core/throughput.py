# SPDX-License-Identifier: Apache-2.0
"""Rates and estimates of a run; pure functions."""


def tokens_per_second(records: int, seq_length: int, seconds: float) -> float:
    """Predicted tokens a second of ``records`` records of ``seq_length`` tokens done in ``seconds``."""
    return records * seq_length / seconds if seconds > 0 else 0.0


def flops_per_token(num_parameters: int, num_layers: int, hidden_size: int, seq_length: int) -> float:
    """Floating point operations of training on one token: ``6 P + 12 L H S`` (Chowdhery et al. 2022, appendix B).

    Args:
        num_parameters: P, parameters in matrix products (without the embedding table).
        num_layers: L.
        hidden_size: H.
        seq_length: S; the attention term counts the full square, as the source does.
    """
    return 6.0 * num_parameters + 12.0 * num_layers * hidden_size * seq_length


def model_flops_utilization(rate: float, flops: float, peak: float) -> float:
    """Share of the peak that a run uses.

    Args:
        rate: tokens a second.
        flops: operations per token.
        peak: operations a second the devices can do.
    """
    return rate * flops / peak


def clock(seconds: float) -> str:
    """Seconds as ``h:mm:ss``."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
