# SPDX-License-Identifier: Apache-2.0
"""What all benchmarks share: the models, the peers in processes of their own, medians and ratios, the memory limit.

A measurement runs ours and the peer in turn, so that a busy moment of the machine hits both, and compares them pair by
pair. Both sides are worker processes that speak JSON lines on standard input and output.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

REPO = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Model:
    """Shape of a benchmark model; batch_size is that of training."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    seq_length: int
    batch_size: int
    vocab_size: int = 32000

    @property
    def layer_weights(self) -> int:
        """Weights of all decoder layers, without norms."""
        kv_width = self.hidden_size // self.num_heads * self.num_kv_heads
        attention = 2 * self.hidden_size * (self.hidden_size + kv_width)
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def head_weights(self) -> int:
        """Weights of the output layer; the embedding has as many."""
        return self.hidden_size * self.vocab_size


MODELS = {
    "T": Model(256, 688, 4, 4, 4, 256, 4),
    "S": Model(288, 768, 6, 6, 6, 256, 4),
    "M": Model(1024, 2816, 12, 16, 4, 512, 2),
}


class Worker:
    """A process that answers one JSON line for each JSON line it is sent.

    Args:
        command: program and arguments, after the Python interpreter.

    The first line it prints is its greeting (import and build times); what it writes to stderr is shown on failure.
    """

    def __init__(self, command: Sequence[str]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(REPO), "MINDFORMERS_LOG_LEVEL": "WARNING"}
        self._log = open(os.devnull, "w") if not os.environ.get("BENCH_VERBOSE") else sys.stderr  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        begin = time.perf_counter()
        self.greeting = self._read()
        self.greeting["ready_s"] = time.perf_counter() - begin

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request, wait for the answer."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _read(self) -> dict[str, Any]:
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        code = self._process.wait()
        raise RuntimeError(f"{' '.join(self._process.args)} ended with code {code}; BENCH_VERBOSE=1 shows its messages")


@contextmanager
def workers(commands: dict[str, Sequence[str]]) -> Iterator[dict[str, Worker]]:
    """Named workers, one started after the other, ended at the end."""
    started: dict[str, Worker] = {}
    try:
        for name, command in commands.items():
            started[name] = Worker(command)
        yield started
    finally:
        for worker in started.values():
            worker.close()


def serve(greeting: dict[str, Any], answer: Callable[..., dict[str, Any]]) -> None:
    """The worker's side: greet, then answer requests until standard input ends."""
    print(json.dumps(greeting), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)


def interleave(peers: dict[str, Worker], repeats: int, **request: Any) -> dict[str, list[dict[str, Any]]]:
    """The same request to each worker in turn, ``repeats`` times, after one round that is not counted."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in peers}
    for repeat in range(repeats + 1):
        for name, worker in peers.items():
            answer = worker.ask(**request)
            if repeat:
                answers[name].append(answer)
    return answers


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Smallest, median and largest value."""
    return {
        "min": round(min(values), digits),
        "med": round(statistics.median(values), digits),
        "max": round(max(values), digits),
    }


def paired_ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Spread of their time over ours, pair by pair: above 1 ours is faster."""
    return spread([a / b for a, b in zip(theirs, ours, strict=True)], 3)


def read_bandwidth(megabytes: int = 256, repeats: int = 7) -> float:
    """Bytes per second that all cores together read from memory (best of several passes over a large array)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    data = np.ones(megabytes * 2**20 // 4, np.float32)
    parts = np.array_split(data, cores)
    best = float("inf")
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(repeats):
            begin = time.perf_counter()
            list(pool.map(lambda part: np.dot(part, part), parts))
            best = min(best, time.perf_counter() - begin)
    return data.nbytes / best


def emit(record: dict[str, Any], path: str | None = None) -> None:
    """Print a result as one JSON line; append it to a file as well."""
    line = json.dumps(record)
    print(line, flush=True)
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
