# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: model sizes, workers measured in turn, the machine's limits, JSON lines.

A peer and we run in processes of our own that take turns, one stopped while the other runs: a shared machine drifts by
a factor of two within minutes, so only the ratio of neighbouring rounds means anything.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

REPO = Path(__file__).resolve().parent.parent
THREADS = 2

# name -> sizes in the words of transformers' LlamaConfig, sequence length and batch size of training
MODELS: dict[str, dict[str, int]] = {
    "T": {
        "hidden": 256,
        "ffn": 688,
        "layers": 4,
        "heads": 4,
        "kv_heads": 4,
        "vocab": 32000,
        "seq": 256,
        "batch": 4,
    },
    "S": {
        "hidden": 288,
        "ffn": 768,
        "layers": 6,
        "heads": 6,
        "kv_heads": 6,
        "vocab": 32000,
        "seq": 256,
        "batch": 4,
    },
    "M": {
        "hidden": 1024,
        "ffn": 2816,
        "layers": 12,
        "heads": 16,
        "kv_heads": 4,
        "vocab": 32000,
        "seq": 512,
        "batch": 2,
    },
}


def our_config(name: str, **changes: Any) -> Any:
    """The LlamaConfig of a model size, fp32 everywhere."""
    from mindformers.models.llama.llama_config import LlamaConfig

    size = MODELS[name]
    kinds = (
        "compute_dtype",
        "param_init_type",
        "layernorm_compute_type",
        "softmax_compute_type",
        "rotary_dtype",
    )
    fields = {
        "hidden_size": size["hidden"],
        "intermediate_size": size["ffn"],
        "num_layers": size["layers"],
        "num_heads": size["heads"],
        "n_kv_heads": size["kv_heads"],
        "vocab_size": size["vocab"],
        "seq_length": size["seq"],
        "pretrain_seqlen": size["seq"],
        "initializer_range": 0.02,  # transformers' default
        **dict.fromkeys(kinds, "float32"),
    }
    return LlamaConfig(**{**fields, **changes})


def peer_model(name: str) -> Any:
    """transformers' LlamaForCausalLM of a model size, fp32, on THREADS threads."""
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    size = MODELS[name]
    config = transformers.LlamaConfig(
        hidden_size=size["hidden"],
        intermediate_size=size["ffn"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["kv_heads"],
        vocab_size=size["vocab"],
        max_position_embeddings=size["seq"],
        attn_implementation="sdpa",
        eos_token_id=None,
        bos_token_id=1,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config)


def num_parameters(name: str) -> tuple[int, int]:
    """All parameters, and those in matrix products (all but the embedding)."""
    m = MODELS[name]
    kv = m["hidden"] * m["kv_heads"] // m["heads"]
    layer = 2 * m["hidden"] * (m["hidden"] + kv) + 3 * m["hidden"] * m["ffn"] + 2 * m["hidden"]
    products = m["layers"] * layer + m["hidden"] + m["vocab"] * m["hidden"]
    return products + m["vocab"] * m["hidden"], products


class Worker:
    """A process that measures one round each time it is asked, and stands still in between.

    Args:
        script: file of the benchmark; it is started with ``arguments`` and must call :func:`serve`.
        arguments: its command line.
        pause: let it stand still until a round is asked for.
    """

    def __init__(self, script: str, arguments: Sequence[str], pause: bool = True) -> None:
        environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": str(THREADS)}
        self._process = subprocess.Popen(
            [sys.executable, script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment, cwd=REPO,
        )  # fmt: skip
        self.ready = self._answer()
        if pause:
            self._process.send_signal(signal.SIGSTOP)

    def _answer(self) -> dict[str, Any]:
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"a worker ended with exit code {self._process.wait()}: {self._process.args}")

    def round(self) -> dict[str, Any]:
        """One measured round."""
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.write("round\n")
        self._process.stdin.flush()
        answer = self._answer()
        self._process.send_signal(signal.SIGSTOP)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def serve(ready: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
    """Worker side: report ``ready``, then one ``measure()`` for every line on standard input."""
    print(json.dumps(ready), flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure()), flush=True)


def take_turns(workers: Sequence[Worker], rounds: int) -> Iterator[list[dict[str, Any]]]:
    """``rounds`` lists with one answer of each worker, measured one after the other."""
    for _ in range(rounds):
        yield [worker.round() for worker in workers]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Smallest, middle and largest value."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def emit(record: dict[str, Any], path: str | None = None) -> None:
    """Print a record as one JSON line, and append it to a file."""
    text = json.dumps({key: round(v, 6) if isinstance(v, float) else v for key, v in record.items()})
    print(text, flush=True)
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text + "\n")


def peak_memory_mb() -> float:
    """Largest resident size of this process so far."""
    from mindformers.tools.utils import peak_memory_bytes

    return peak_memory_bytes() / 2**20


def read_bandwidth(megabytes: int = 256, repeats: int = 3) -> float:
    """Bytes a second that THREADS threads read from memory, the best of some repeats: the ceiling of decoding."""
    # or of integers: the sum of floats waits for its adders, at two thirds of this rate
    parts = [np.ones(megabytes * 2**20 // 8 // THREADS, np.int64) for _ in range(THREADS)]
    best = 0.0
    for _ in range(repeats):
        threads = [threading.Thread(target=np.bitwise_or.reduce, args=(part,)) for part in parts]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - start))
    return best


def product_rate(size: int = 2048, chain: int = 6, repeats: int = 5) -> float:
    """Floating point operations a second of MindSpore's own fp32 MatMul, the best of some: the ceiling of training.

    Measured on products that follow one another in one graph, as in a network: a product launched alone from Python
    spends part of its time in the launch and would set the ceiling too low.
    """
    import mindspore as ms
    from mindspore import Tensor, nn, ops

    class Chain(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.products = [ops.MatMul(transpose_b=True) for _ in range(chain)]

        def construct(self, x: Tensor, weight: Tensor) -> Tensor:
            for product in self.products:
                x = product(x, weight)
            return x

    ms.set_context(mode=ms.GRAPH_MODE)  # the default mode would launch the products one by one
    rng = np.random.default_rng(0)
    x, weight = (Tensor(rng.standard_normal((size, size)) / size**0.5, ms.float32) for _ in range(2))
    network, best = Chain(), 0.0
    for _ in range(repeats + 1):
        start = time.perf_counter()
        network(x, weight).asnumpy()
        best = max(best, 2 * chain * size**3 / (time.perf_counter() - start))
    return best
