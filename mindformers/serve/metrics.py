# SPDX-License-Identifier: Apache-2.0
"""Numbers for Prometheus."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from mindformers.serve.engine import Counters, Engine

__all__ = ["Metrics"]

_MEANING = {
    "prompt_tokens": "Prompt tokens read",
    "generated_tokens": "Tokens generated",
    "steps": "Steps of the model over all slots",
    "finished": "Answers finished",
    "cancelled": "Answers given up because the client left",
    "timeouts": "Answers stopped at the time limit",
    "rejected": "Answers refused because the queue was full",
    "failed": "Answers lost to an error",
}
_KNOWN_PATHS = ("/v1/completions", "/v1/chat/completions")


class Metrics:
    """The numbers of one service.

    Args:
        engine: whose counters are shown.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(engine))
        self._requests = Counter("mindformers_requests", "HTTP requests", ["path", "status"], registry=self._registry)
        self._seconds = Histogram(
            "mindformers_request_seconds", "Time to the answer, or to the begin of a stream", ["path"],
            registry=self._registry,
        )  # fmt: skip

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count an HTTP request."""
        label = path if path in _KNOWN_PATHS else "other"
        self._requests.labels(label, str(status)).inc()
        self._seconds.labels(label).observe(seconds)

    def text(self) -> bytes:
        """All numbers in Prometheus' format."""
        return generate_latest(self._registry)


class _EngineCollector:
    """Reads the engine's counters when they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Any]:
        """Families of the engine."""
        for field in fields(Counters):
            family = CounterMetricFamily(f"mindformers_{field.name}", _MEANING[field.name])
            family.add_metric([], getattr(self._engine.counters, field.name))
            yield family
        yield GaugeMetricFamily("mindformers_slots", "Slots", self._engine.num_slots)
        yield GaugeMetricFamily("mindformers_active", "Answers in slots", self._engine.num_active)
        yield GaugeMetricFamily("mindformers_waiting", "Answers waiting for a slot", self._engine.num_waiting)
