# SPDX-License-Identifier: Apache-2.0
"""Aggregate tokens per second of the service at 1, 8 and 16 clients, over HTTP.

``python benchmarks/serve.py [--model S] [--clients 1 8 16] [--new 64] [--rounds 3] [--json out.jsonl]``

The service runs in a process of its own (``python -m mindformers serve`` would add only its command line); clients are
threads that stream greedy answers of a fixed length to random prompts. ``ratio`` is the aggregate rate over that of one
client in the same round, the median over rounds. ``first_token_ms`` is the time to the first piece of text.
"""

import argparse
import json
import statistics
import sys
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import MODELS, Worker, emit, our_config, peak_memory_mb, spread

PROMPT = 32


class _Ids:
    """A tokenizer for prompts that are ids; text of a token is its number."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def incremental_decoder(self, **options: bool) -> "_Ids":
        return self

    def put(self, ids: list[int]) -> str:
        return "".join(f"{i} " for i in ids)

    def flush(self) -> str:
        return ""


def serve(name: str, slots: int) -> None:
    """Worker: the service on a free port; its address is the first line."""
    import socket

    import uvicorn

    from mindformers.serve.answers import Service
    from mindformers.serve.api import build_app
    from mindformers.serve.engine import Engine
    from mindformers.serve.slot_model import SlotModel, graph_mode

    def make_model() -> SlotModel:
        from mindformers.models.llama.llama import LlamaForCausalLM

        graph_mode("CPU")
        model = SlotModel(LlamaForCausalLM(our_config(name)), slots)
        model.compile()
        return model

    engine = Engine(make_model, max_waiting=64)
    engine.start()
    service = Service(engine, _Ids(MODELS[name]["vocab"]), [], MODELS[name]["seq"])
    listener = socket.create_server(("127.0.0.1", 0))
    print(json.dumps({"port": listener.getsockname()[1], "peak_mb": peak_memory_mb()}), flush=True)
    uvicorn.Server(uvicorn.Config(build_app(service, name, False), log_level="error")).run([listener])


def ask(url: str, name: str, seed: int, new: int, results: list) -> None:
    """One client: stream an answer, record when its first piece came and how many tokens there were."""
    import httpx

    prompt = np.random.default_rng(seed).integers(3, MODELS[name]["vocab"], PROMPT).tolist()
    body = {"model": name, "prompt": prompt, "max_tokens": new, "temperature": 0, "stream": True}
    begin, first, tokens = time.perf_counter(), 0.0, 0
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=600) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter() - begin
                tokens += 1
    results.append((first, tokens))


def burst(url: str, name: str, clients: int, new: int, round_: int) -> tuple[float, float]:
    """All clients at once; aggregate tokens a second and the median time to the first token."""
    results: list[tuple[float, int]] = []
    threads = [threading.Thread(target=ask, args=(url, name, 100 * round_ + i, new, results)) for i in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    tokens = sum(count for _, count in results)
    if tokens != clients * new:
        raise RuntimeError(f"{tokens} tokens came instead of {clients * new}")
    return tokens / seconds, statistics.median(first for first, _ in results)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="S")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 16])
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="file the record is appended to")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(args.model, args.slots)
        return
    worker = Worker(__file__, ["--worker", "--model", args.model, "--slots", str(args.slots)], pause=False)
    url = f"http://127.0.0.1:{worker.ready['port']}"
    taken: dict[int, list[tuple[float, float]]] = {clients: [] for clients in args.clients}
    try:
        burst(url, args.model, 2, 8, 99)
        for round_ in range(args.rounds):
            for clients in args.clients:
                taken[clients].append(burst(url, args.model, clients, args.new, round_))
    finally:
        worker.close()
    record: dict = {"benchmark": "serve", "model": args.model, "slots": args.slots, "new": args.new}
    base = [rate for rate, _ in taken[args.clients[0]]]
    for clients, rounds in taken.items():
        record[f"clients_{clients}_tokens_per_s"] = spread([rate for rate, _ in rounds])
        record[f"clients_{clients}_first_token_ms"] = spread([1e3 * first for _, first in rounds])
        record[f"clients_{clients}_ratio"] = statistics.median(
            rate / one for (rate, _), one in zip(rounds, base, strict=True)
        )
    emit(record, args.json)


if __name__ == "__main__":
    main()
