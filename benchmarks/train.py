# SPDX-License-Identifier: Apache-2.0
"""Training step (forward, backward, clipping, AdamW) beside PyTorch eager + transformers.

``python benchmarks/train.py --models T S M --peer torch --json out.jsonl``
``python benchmarks/train.py --models T S M --native --dtype bfloat16 --peer torch-bf16``

Same sizes, batch, optimizer and hyper-parameters, gradient clipping in both; warm-up steps are not counted. Weights are
fp32; bfloat16 is the type of our matrix products (``--native``), and torch-bf16 is PyTorch under autocast to bfloat16.
``ratio`` is peer seconds over our seconds, the median over rounds taken in turn: above 1 we are faster.
``first_step_s`` includes compiling; ``second_start_s`` is the first step of a process that finds it in a compile cache.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import (
    MODELS,
    Worker,
    emit,
    num_parameters,
    peak_memory_mb,
    product_rate,
    serve,
    spread,
    take_turns,
)

NATIVE = "MINDFORMERS_NATIVE"
STEPS_PER_ROUND = {"T": 3, "S": 3, "M": 1}
WARM_UP = {"T": 3, "S": 3, "M": 2}


def batch_of(name: str) -> np.ndarray:
    """Random records (B, S+1) int32."""
    size = MODELS[name]
    return np.random.default_rng(0).integers(3, size["vocab"], (size["batch"], size["seq"] + 1)).astype(np.int32)


def our_step(name: str, dtype: str, native: bool):
    """A function that runs one step and waits for its loss."""
    os.environ[NATIVE] = "1" if native else "0"
    import mindspore as ms

    from benchmarks.common import our_config
    from mindformers.core.context import init_context
    from mindformers.core.optim import AdamW
    from mindformers.core.param_groups import group_parameters
    from mindformers.models.llama.llama import LlamaForCausalLM
    from mindformers.modules.kernels import use_native_kernels
    from mindformers.wrapper import MFTrainOneStepCell

    init_context(context_config={"device_target": "CPU", "native_kernels": native})
    network = LlamaForCausalLM(our_config(name, compute_dtype=dtype)).set_train()
    if native and not use_native_kernels():
        raise SystemExit("--native: the native kernels are not built: python -m mindformers native build")
    optimizer = AdamW(group_parameters(network, 0.1), learning_rate=1e-4, eps=1e-8)
    cell = MFTrainOneStepCell(network, optimizer, use_clip_grad=True).set_train()
    batch = ms.Tensor(batch_of(name))
    return lambda: float(cell(batch)[0].asnumpy())


def torch_step(name: str, autocast: bool):
    """The same by PyTorch, products in bfloat16 with ``autocast``."""
    import torch

    from benchmarks.common import peer_model

    model = peer_model(name).train()
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    ids = torch.from_numpy(batch_of(name).astype(np.int64))

    def step() -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            logits = model(input_ids=ids[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def work(args: argparse.Namespace) -> None:
    """Worker: compile and warm up, then measure rounds on request; with a compile cache, the first step only."""
    name = args.models[0]
    if args.compile_cache:
        os.environ |= {"MS_COMPILER_CACHE_ENABLE": "1", "MS_COMPILER_CACHE_PATH": args.compile_cache}
    if args.worker == "mindformers":
        step = our_step(name, args.dtype, args.native)
    else:
        step = torch_step(name, args.worker == "torch-bf16")
    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    for _ in range(0 if args.compile_cache else WARM_UP[name]):
        step()

    def measure() -> dict:
        begin = time.perf_counter()
        for _ in range(STEPS_PER_ROUND[name]):
            loss = step()
        seconds = (time.perf_counter() - begin) / STEPS_PER_ROUND[name]
        return {"seconds": seconds, "loss": loss, "peak_mb": peak_memory_mb()}

    serve({"first_step_s": first}, measure)


def second_start(options: list[str]) -> float:
    """Seconds of the first step in the second of two processes that share a compile cache."""
    with tempfile.TemporaryDirectory(prefix="mindformers-compile-") as folder:
        for _ in range(2):
            worker = Worker(__file__, ["--worker", "mindformers", "--compile-cache", folder, *options])
            worker.close()
    return worker.ready["first_step_s"]


def compare(name: str, args: argparse.Namespace, flops: float) -> None:
    """Measure one model and emit its record."""
    peer, rounds = args.peer, args.rounds
    kinds = ["mindformers"] + ([peer] if peer != "none" else [])
    options = ["--models", name, "--dtype", args.dtype, *(["--native"] if args.native else [])]
    workers = [Worker(__file__, ["--worker", kind, *options]) for kind in kinds]
    try:
        answers = list(take_turns(workers, rounds))
    finally:
        for worker in workers:
            worker.close()
    second = second_start(options)
    size = MODELS[name]
    tokens = size["batch"] * size["seq"]
    _, products = num_parameters(name)
    attention = 6 * size["layers"] * size["hidden"] * size["seq"]  # causal: half of 12 L H S, forward and backward
    ceiling = flops / (6 * products + attention)
    record: dict = {"benchmark": "train", "model": name, "rounds": rounds, "tokens_per_step": tokens}
    record |= {"dtype": args.dtype, "native": args.native, "peer": peer}
    for index, kind in enumerate(kinds):
        seconds = spread([answer[index]["seconds"] for answer in answers])
        record |= {
            f"{kind}_step_s": seconds,
            f"{kind}_tokens_per_s": tokens / seconds["median"],
            f"{kind}_first_step_s": workers[index].ready["first_step_s"],
            f"{kind}_peak_mb": answers[-1][index]["peak_mb"],
            f"{kind}_loss": answers[-1][index]["loss"],
        }
    record["mindformers_second_start_s"] = second
    if peer != "none":
        record["ratio"] = spread([theirs["seconds"] / ours["seconds"] for ours, theirs in answers])
    record["matmul_gflops"] = flops / 1e9
    record["roofline_tokens_per_s"] = ceiling
    record["share_of_roofline"] = record["mindformers_tokens_per_s"] / ceiling
    emit(record, args.json)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["T", "S", "M"])
    parser.add_argument("--peer", choices=["torch", "torch-bf16", "none"], default="torch")
    parser.add_argument("--native", action="store_true", help="with the native CPU kernels")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of our matrix products")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", help="file the records are appended to")
    parser.add_argument("--worker", choices=["mindformers", "torch", "torch-bf16"], help=argparse.SUPPRESS)
    parser.add_argument("--compile-cache", metavar="DIR", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    flops = product_rate()
    for name in args.models:
        compare(name, args, flops)


if __name__ == "__main__":
    main()
