# SPDX-License-Identifier: Apache-2.0
"""Greedy decoding beside PyTorch + transformers ``generate``.

``python benchmarks/decode.py --models T S M --batch 1 8 --peer torch --json out.jsonl``
``python benchmarks/decode.py --models M --native --weight-dtype float32 bfloat16 int8``

Same sizes, fp32 (ours also with weights of fewer bits, by native kernels: ``to_float32`` is then their speed over that
of float32), prompts and number of new tokens in both (no end token). ``ratio`` is peer seconds over our seconds of
a whole call, prompt and new tokens, the median over calls taken in turn: above 1 we are faster. Cold start is import,
building the model and the first token, compiling included. The ceiling reads every weight and the filled part of the
cache once per step at the largest memory bandwidth seen between those calls.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import (
    MODELS,
    Worker,
    emit,
    num_parameters,
    peak_memory_mb,
    read_bandwidth,
    serve,
    spread,
    take_turns,
)

Generate = Callable[[np.ndarray, int], int]

WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def prompts_of(name: str, batch: int, length: int) -> np.ndarray:
    """Random prompts (B, length)."""
    return np.random.default_rng(0).integers(3, MODELS[name]["vocab"], (batch, length))


def our_generate(name: str, weight_dtype: str | None) -> Generate:
    """A function that generates and returns the number of tokens per row; weights in ``weight_dtype``."""
    import mindspore as ms

    from benchmarks.common import our_config
    from mindformers.models.llama.llama import LlamaForCausalLM

    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE)
    network = LlamaForCausalLM(our_config(name, weight_dtype=weight_dtype))
    settings = {"do_sample": False, "use_past": True, "eos_token_id": [], "repetition_penalty": 1.0}

    def generate(prompts: np.ndarray, new: int) -> int:
        return min(map(len, network.generate(prompts, max_new_tokens=new, **settings)))

    return generate


def torch_generate(name: str) -> Generate:
    """The same by PyTorch."""
    import torch

    from benchmarks.common import peer_model

    model = peer_model(name).eval()

    def generate(prompts: np.ndarray, new: int) -> int:
        ids = torch.from_numpy(prompts)
        with torch.inference_mode():
            settings = {"do_sample": False, "use_cache": True, "attention_mask": torch.ones_like(ids)}
            return model.generate(ids, max_new_tokens=new, min_new_tokens=new, **settings).shape[1]

    return generate


def work(args: argparse.Namespace) -> None:
    """Worker: build, generate once to warm up, then measure a prompt alone and a whole call on request."""
    kind, name, batch, prompt, new = args.worker, args.models[0], args.batch[0], args.prompt, args.new
    if args.native:
        os.environ["MINDFORMERS_NATIVE"] = "1"
    begin = time.perf_counter()
    generate = torch_generate(name) if kind == "torch" else our_generate(name, args.weight_dtype[0])
    prompts = prompts_of(name, batch, prompt)
    generate(prompts, 1)
    cold = time.perf_counter() - begin
    generate(prompts, new)
    ready = {"cold_start_s": cold}
    if kind == "mindformers":
        from mindformers.modules.kernels import use_native_kernels

        ready["native"] = use_native_kernels()

    def measure() -> dict:
        start = time.perf_counter()
        generate(prompts, 1)
        middle = time.perf_counter()
        length = generate(prompts, new)
        seconds = time.perf_counter() - middle
        if length != prompt + new:
            raise RuntimeError(f"{kind} generated {length - prompt} tokens instead of {new}")
        return {"seconds": seconds, "prefill_s": middle - start, "peak_mb": peak_memory_mb()}

    serve(ready, measure)


def ceiling(name: str, batch: int, cached: float, bandwidth: float, weight_bytes: int) -> float:
    """Tokens a second when memory is the only limit.

    Args:
        name: model size.
        batch: sequences decoded together.
        cached: mean number of positions in the cache.
        bandwidth: bytes a second.
        weight_bytes: of a weight.
    """
    size = MODELS[name]
    _, products = num_parameters(name)
    cache = 2 * size["layers"] * size["kv_heads"] * (size["hidden"] // size["heads"]) * cached * batch
    return batch * bandwidth / (weight_bytes * products + 4 * cache)


def compare(name: str, batch: int, args: argparse.Namespace) -> None:
    """Measure one model at one batch size and emit a record for each type of weights."""
    kinds = [("mindformers", dtype) for dtype in args.weight_dtype]
    kinds += [(args.peer, "float32")] if args.peer != "none" else []
    common = ["--models", name, "--batch", str(batch), "--prompt", str(args.prompt), "--new", str(args.new)]
    common += ["--native"] if args.native else []
    workers: list[Worker] = []
    try:
        for kind, dtype in kinds:
            workers.append(Worker(__file__, ["--worker", kind, "--weight-dtype", dtype, *common]))
        rounds = [(answer, read_bandwidth()) for answer in take_turns(workers, args.reps)]
    finally:
        for worker in workers:
            worker.close()
    answers = [answer for answer, _ in rounds]
    bandwidth = max(rate for _, rate in rounds)

    def figures(index: int) -> dict[str, Any]:
        kind = kinds[index][0]
        seconds = spread([answer[index]["seconds"] for answer in answers])
        return {
            f"{kind}_s": seconds,
            f"{kind}_tokens_per_s": batch * args.new / seconds["median"],
            f"{kind}_prefill_ms": spread([1e3 * answer[index]["prefill_s"] for answer in answers]),
            f"{kind}_cold_start_s": workers[index].ready["cold_start_s"],
            f"{kind}_peak_mb": answers[-1][index]["peak_mb"],
        }

    for index, dtype in enumerate(args.weight_dtype):
        record: dict[str, Any] = {"benchmark": "decode", "model": name, "batch": batch, "prompt": args.prompt}
        record |= {
            "new": args.new,
            "reps": args.reps,
            "dtype": "float32",
            "weight_dtype": dtype,
            "native": workers[index].ready["native"],
        }
        record |= figures(index)
        if args.peer != "none":
            record |= figures(len(kinds) - 1)
            record["ratio"] = spread([answer[-1]["seconds"] / answer[index]["seconds"] for answer in answers])
        if dtype != "float32" and "float32" in args.weight_dtype:
            base = args.weight_dtype.index("float32")
            record["to_float32"] = spread([answer[base]["seconds"] / answer[index]["seconds"] for answer in answers])
        limit = ceiling(name, batch, args.prompt + args.new / 2, bandwidth, WEIGHT_BYTES[dtype])
        record["read_gb_per_s"] = bandwidth / 1e9
        record["roofline_tokens_per_s"] = limit
        record["share_of_roofline"] = record["mindformers_tokens_per_s"] / limit
        emit(record, args.json)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["T", "S", "M"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--peer", choices=["torch", "none"], default="torch")
    parser.add_argument("--native", action="store_true", help="our native CPU kernels (docs/native.md)")
    parser.add_argument("--weight-dtype", nargs="+", choices=list(WEIGHT_BYTES), default=["float32"])
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens generated for each prompt")
    parser.add_argument("--reps", type=int, default=5, help="measured calls, taken in turn")
    parser.add_argument("--json", help="file the records are appended to")
    parser.add_argument("--worker", choices=["mindformers", "torch"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    for name in args.models:
        for batch in args.batch:
            compare(name, batch, args)


if __name__ == "__main__":
    main()
