# SPDX-License-Identifier: Apache-2.0
"""Logits processors on numpy arrays: the readable reference of generation/sampling.py, and a place for your own.

Legend: B rows, n tokens of a row so far, V vocabulary.
"""

import inspect
from collections.abc import Iterable
from typing import Any

import numpy as np

from mindformers.errors import ConfigError
from mindformers.generation.generation_config import GenerationConfig

__all__ = [
    "LogitNormalization",
    "LogitsProcessor",
    "LogitsProcessorList",
    "LogitsWarper",
    "RepetitionPenaltyLogitsProcessor",
    "TemperatureLogitsWarper",
    "TopKLogitsWarper",
    "TopPLogitsWarper",
    "build_processors",
    "draw",
]

LARGEST_FACTOR = 1e30  # bound of 1/temperature, so that scores stay finite in fp32
FILTERED = -50000.0  # score of a token that must not be drawn: its probability is exactly 0 in fp32


class LogitsProcessor:
    """Changes the scores of the next token before the choice."""

    def __call__(self, input_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """Scores to use instead.

        Args:
            input_ids: int32 (B, n), prompt and generated tokens; ``generate`` passes one row at a time, unpadded.
            logits: fp32 (B, V).

        Returns:
            fp32 (B, V).
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__(input_ids, logits)")


class LogitsWarper(LogitsProcessor):
    """A processor that only matters when tokens are drawn at random."""


class LogitsProcessorList(list):
    """Processors applied in order."""

    def __call__(self, input_ids: np.ndarray, logits: np.ndarray, **kwargs: Any) -> np.ndarray:
        """Scores after every processor; kwargs go to the processors that name them."""
        for processor in self:
            extra = list(inspect.signature(processor).parameters.values())[2:]
            names = [parameter.name for parameter in extra]
            missing = [parameter.name for parameter in extra if parameter.name not in kwargs and _required(parameter)]
            if missing:
                raise ConfigError(f"{type(processor).__name__} needs the arguments {', '.join(missing)}")
            logits = processor(input_ids, logits, **{name: kwargs[name] for name in names if name in kwargs})
        return logits


class RepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Divides positive and multiplies negative scores of tokens already present (Keskar et al. 2019).

    Args:
        penalty: above 0; above 1 discourages repeats.
    """

    def __init__(self, penalty: float) -> None:
        self.penalty = _positive("repetition penalty", penalty)

    def __call__(self, input_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """See LogitsProcessor."""
        score = np.take_along_axis(logits, input_ids, axis=1)
        score = np.where(score < 0, score * self.penalty, score / self.penalty)
        changed = logits.copy()
        np.put_along_axis(changed, input_ids, score.astype(logits.dtype), axis=1)
        return changed


class LogitNormalization(LogitsWarper):
    """Scores become log-probabilities."""

    def __call__(self, input_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """See LogitsProcessor."""
        shifted = logits - logits.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


class TemperatureLogitsWarper(LogitsWarper):
    """Divides scores.

    Args:
        temperature: above 0; below 1 sharpens the distribution.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = _positive("temperature", temperature)

    def __call__(self, input_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """See LogitsProcessor."""
        return logits * np.float32(min(1.0 / self.temperature, LARGEST_FACTOR))


class TopKLogitsWarper(LogitsWarper):
    """Keeps the k best scores (and those equal to the k-th); k of V or more keeps all.

    Args:
        top_k: at least 1.
        filter_value: score of the others.
        min_tokens_to_keep: floor of top_k.
    """

    def __init__(self, top_k: int, filter_value: float = FILTERED, min_tokens_to_keep: int = 1) -> None:
        if isinstance(top_k, bool) or not hasattr(top_k, "__index__") or top_k < 1:
            raise ConfigError(f"top_k {top_k!r} is not allowed: give an integer of at least 1")
        self.top_k = max(int(top_k), min_tokens_to_keep)
        self.filter_value = filter_value

    def __call__(self, input_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """See LogitsProcessor."""
        size = logits.shape[-1]
        if self.top_k >= size:
            return logits
        kth = np.partition(logits, size - self.top_k, axis=-1)[:, size - self.top_k, None]
        return np.where(logits < kth, np.asarray(self.filter_value, logits.dtype), logits)


class TopPLogitsWarper(LogitsWarper):
    """Keeps the fewest likeliest tokens whose probabilities reach top_p (Holtzman et al. 2020).

    Args:
        top_p: in (0, 1].
        filter_value: score of the others.
        min_tokens_to_keep: keep at least this many.
    """

    def __init__(self, top_p: float, filter_value: float = FILTERED, min_tokens_to_keep: int = 1) -> None:
        self.top_p = _positive("top_p", top_p)
        if self.top_p > 1.0:
            raise ConfigError(f"top_p {top_p!r} is not allowed: give a number above 0 and at most 1")
        self.filter_value = filter_value
        self.min_tokens_to_keep = min_tokens_to_keep

    def __call__(self, input_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """See LogitsProcessor."""
        order = np.argsort(-logits, axis=-1, kind="stable")
        weights = _weights(np.take_along_axis(logits, order, axis=-1))
        before = np.cumsum(weights, axis=-1) - weights
        dropped = before >= self.top_p * weights.sum(-1, keepdims=True)
        dropped[:, : self.min_tokens_to_keep] = False
        mask = np.zeros_like(dropped)
        np.put_along_axis(mask, order, dropped, axis=-1)
        return np.where(mask, np.asarray(self.filter_value, logits.dtype), logits)


def build_processors(config: GenerationConfig, custom: Iterable[LogitsProcessor]) -> LogitsProcessorList:
    """All processors of a call in their order: penalty, custom, [normalise], temperature, top-k, top-p, [normalise].

    Args:
        config: the settings.
        custom: the caller's own processors.

    Raises:
        ConfigError: a custom processor does what a setting of config already does, or is not callable.
    """
    first: list[LogitsProcessor] = []
    last: list[LogitsProcessor] = []
    if config.repetition_penalty != 1.0:
        first.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.renormalize_logits:
        last.append(LogitNormalization())
    if config.do_sample:
        if config.temperature != 1.0:
            last.append(TemperatureLogitsWarper(config.temperature))
        if config.top_k:
            last.append(TopKLogitsWarper(config.top_k))
        if config.top_p < 1.0:
            last.append(TopPLogitsWarper(config.top_p))
        if config.renormalize_logits:
            last.append(LogitNormalization())
    own = list(custom)
    for processor in own:
        if not callable(processor):
            raise ConfigError(f"logits_processor holds {processor!r}: give callables (input_ids, logits) -> logits")
        if type(processor) in {type(item) for item in first + last}:
            raise ConfigError(
                f"{type(processor).__name__} is in logits_processor and also asked for by the generation settings: "
                "drop one of the two"
            )
    return LogitsProcessorList(first + own + last)


def draw(logits: np.ndarray, uniform: np.ndarray, by_rank: bool) -> np.ndarray:
    """Token ids drawn by inverting the cumulative distribution; the numpy twin of generation/sampling.py.

    Args:
        logits: fp32 (B, V).
        uniform: fp32 (B,) in [0, 1).
        by_rank: cumulate from the likeliest token on; False in the order of ids.

    Returns:
        int32 (B,).
    """
    order = np.argsort(-logits, axis=-1, kind="stable") if by_rank else None
    weights = _weights(logits if order is None else np.take_along_axis(logits, order, axis=-1))
    total = np.cumsum(weights, axis=-1, dtype=np.float64)
    place = (total <= uniform[:, None] * total[:, -1:]).sum(-1, keepdims=True)
    place = np.minimum(place, logits.shape[-1] - 1)
    return (place if order is None else np.take_along_axis(order, place, axis=-1))[:, 0].astype(np.int32)


def _weights(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits - logits.max(-1, keepdims=True))


def _positive(name: str, value: Any) -> float:
    number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0
    if not 0.0 < number < float("inf"):
        raise ConfigError(f"{name} {value!r} is not allowed: give a number above 0")
    return number


def _required(parameter: inspect.Parameter) -> bool:
    optional = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return parameter.default is inspect.Parameter.empty and parameter.kind not in optional
