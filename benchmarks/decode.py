# SPDX-License-Identifier: Apache-2.0
"""Greedy decoding: ours beside PyTorch + transformers ``generate``, and beside the limit that memory sets.

    python benchmarks/decode.py --models T S M --batch 1 8 --peer torch

One JSON line per model and batch: times of the whole call (prompt and new tokens), of the prompt alone and of the cold
start, tokens per second, and the ratio of the peer's time to ours over interleaved pairs (above 1 ours is faster).
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import MODELS, Model, emit, interleave, paired_ratio, read_bandwidth, serve, spread, workers


def main() -> int:
    """Measure, or act as a worker."""
    args = _arguments()
    if args.worker:
        {"ours": _serve_ours, "torch": _serve_torch}[args.worker](MODELS[args.models[0]], args.threads)
        return 0
    bandwidth = read_bandwidth()
    for name in args.models:
        sides = ["ours"] + ([] if args.peer == "none" else [args.peer])
        common = ["--models", name, "--threads", str(args.threads)]
        commands = {side: [__file__, *common, "--worker", side] for side in sides}
        with workers(commands) as peers:
            for index, batch in enumerate(args.batch):
                request = {"batch": batch, "prompt": args.prompt, "new": args.new}
                firsts = {side: peer.ask(**{**request, "new": 1}) for side, peer in peers.items()}
                answers = interleave(peers, args.reps, **request)
                record = {"benchmark": "decode", "model": name, **request, "dtype": "float32", "reps": args.reps}
                for side, worker in peers.items():
                    record[side] = _summary(request, answers[side])
                    if index == 0:
                        start = worker.greeting
                        cold = start["import_s"] + start["build_s"] + firsts[side]["seconds"]
                        record[side]["cold_start_s"] = round(cold, 2)
                if len(sides) == 2:
                    times = {side: [answer["seconds"] for answer in answers[side]] for side in sides}
                    record["ratio"] = paired_ratio(times[sides[1]], times["ours"])
                limit = _ceiling(MODELS[name], batch, args.prompt + args.new / 2, bandwidth)
                record["roofline"] = {"read_gb_s": round(bandwidth / 1e9, 1), "tok_s": round(limit, 1)}
                record["of_roofline"] = round(record["ours"]["tok_s"] / limit, 3)
                emit(record, args.json)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Greedy decoding speed, ours beside transformers on PyTorch.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="shapes to measure")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8], help="prompts decoded together")
    parser.add_argument("--peer", choices=("torch", "none"), default="torch", help="what to compare with")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens generated for each prompt")
    parser.add_argument("--reps", type=int, default=5, help="interleaved repetitions that count")
    parser.add_argument("--threads", type=int, default=2, help="threads of the peer; MindSpore takes all cores")
    parser.add_argument("--json", help="file to append the JSON lines to")
    parser.add_argument("--worker", choices=("ours", "torch"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _summary(request: dict[str, int], answers: list[dict[str, float]]) -> dict[str, Any]:
    seconds = spread([answer["seconds"] for answer in answers])
    return {
        "tok_s": round(request["batch"] * request["new"] / seconds["med"], 1),
        "seconds": seconds,
        "prefill_ms": spread([1e3 * answer["prefill"] for answer in answers], 2),
    }


def _ceiling(model: Model, batch: int, cached: float, bandwidth: float) -> float:
    """Tokens per second when a step only reads every weight and the filled part of the cache once, in fp32."""
    cache = 2 * model.num_layers * model.num_kv_heads * (model.hidden_size // model.num_heads) * cached * batch
    return batch * bandwidth / (4 * (model.layer_weights + model.head_weights + cache))


def _prompts(model: Model, batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, model.vocab_size, (batch, length))


def _serve_ours(model: Model, threads: int) -> None:
    begin = time.perf_counter()
    import mindspore as ms

    from mindformers.models.llama.llama import LlamaForCausalLM
    from mindformers.models.llama.llama_config import LlamaConfig

    imported = time.perf_counter()
    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(0)
    net = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=model.hidden_size,
            intermediate_size=model.intermediate_size,
            num_layers=model.num_layers,
            num_heads=model.num_heads,
            n_kv_heads=model.num_kv_heads,
            vocab_size=model.vocab_size,
            seq_length=model.seq_length,
            compute_dtype="float32",
            param_init_type="float32",
        )
    )
    built = time.perf_counter()

    def generate(prompts: np.ndarray, new: int) -> float:
        start = time.perf_counter()
        out = net.generate(
            prompts.astype(np.int32), max_new_tokens=new, do_sample=False, use_past=True, eos_token_id=[]
        )
        seconds = time.perf_counter() - start
        assert all(len(row) == prompts.shape[1] + new for row in out)
        return seconds

    _answer(model, generate, imported - begin, built - imported)


def _serve_torch(model: Model, threads: int) -> None:
    begin = time.perf_counter()
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    imported = time.perf_counter()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=model.hidden_size,
            intermediate_size=model.intermediate_size,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_heads,
            num_key_value_heads=model.num_kv_heads,
            vocab_size=model.vocab_size,
            max_position_embeddings=model.seq_length,
            attn_implementation="sdpa",
            bos_token_id=1,
            eos_token_id=None,
            pad_token_id=0,
        )
    ).eval()
    built = time.perf_counter()

    def generate(prompts: np.ndarray, new: int) -> float:
        ids = torch.tensor(prompts)
        start = time.perf_counter()
        with torch.inference_mode():
            out = net.generate(
                ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, attention_mask=torch.ones_like(ids)
            )
        seconds = time.perf_counter() - start
        assert out.shape[1] == prompts.shape[1] + new
        return seconds

    _answer(model, generate, imported - begin, built - imported)


def _answer(model: Model, generate: Any, import_s: float, build_s: float) -> None:
    def answer(batch: int, prompt: int, new: int) -> dict[str, float]:
        prompts = _prompts(model, batch, prompt)
        prefill = generate(prompts, 1)
        return {"prefill": prefill, "seconds": prefill if new == 1 else generate(prompts, new)}

    serve({"import_s": import_s, "build_s": build_s}, answer)


if __name__ == "__main__":
    sys.exit(main())
