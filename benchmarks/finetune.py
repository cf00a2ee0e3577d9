# SPDX-License-Identifier: Apache-2.0
"""LoRA against full finetuning: tokens a second and peak memory of a training step.

``python benchmarks/finetune.py --models M --json out.jsonl``

Each way runs in a process of its own; rounds are taken in turn. Same model, batch, fp32, AdamW and clipping; LoRA as in
the 7B file of configs/llama2: rank 16, dropout 0.05, on wq, wk, wv, wo. ``ratio`` is full seconds over LoRA seconds,
the median over rounds; ``memory_share`` is LoRA's peak over that of full finetuning, each of its whole
process, MindSpore included (``import_mb``).
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import MODELS, Worker, emit, peak_memory_mb, serve, spread, take_turns
from benchmarks.train import STEPS_PER_ROUND, WARM_UP, batch_of

WAYS = ("full", "lora")


def make_step(way: str, name: str, dropout: float):
    """A function that runs one step and waits for its loss, and the number of weights it trains."""
    import mindspore as ms

    from benchmarks.common import our_config
    from mindformers.core.optim import AdamW
    from mindformers.core.param_groups import group_parameters
    from mindformers.models.llama.llama import LlamaForCausalLM
    from mindformers.pet import LoraConfig, get_pet_model
    from mindformers.wrapper import MFTrainOneStepCell

    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(0)
    network = LlamaForCausalLM(our_config(name))
    if way == "lora":
        kinds = {"param_init_type": "float32", "compute_dtype": "float32"}
        get_pet_model(network, LoraConfig(lora_rank=16, lora_alpha=16, lora_dropout=dropout, **kinds))
    network.set_train()
    optimizer = AdamW(group_parameters(network, 0.0), learning_rate=1e-4, eps=1e-8)
    cell = MFTrainOneStepCell(network, optimizer, use_clip_grad=True).set_train()
    batch = ms.Tensor(batch_of(name))
    trained = sum(p.size for p in network.trainable_params())
    return lambda: float(cell(batch)[0].asnumpy()), trained


def work(way: str, name: str, dropout: float) -> None:
    """Worker: compile and warm up, then measure rounds on request."""
    import mindspore  # noqa: F401 - its memory is reported apart

    base = peak_memory_mb()
    step, trained = make_step(way, name, dropout)
    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    for _ in range(WARM_UP[name]):
        step()

    def measure() -> dict:
        begin = time.perf_counter()
        for _ in range(STEPS_PER_ROUND[name]):
            loss = step()
        seconds = (time.perf_counter() - begin) / STEPS_PER_ROUND[name]
        return {"seconds": seconds, "loss": loss, "peak_mb": peak_memory_mb()}

    serve({"first_step_s": first, "import_mb": base, "trained": trained}, measure)


def compare(name: str, rounds: int, dropout: float, path: str | None) -> None:
    """Measure one model both ways and emit the record."""
    arguments = ["--models", name, "--dropout", str(dropout)]
    workers = [Worker(__file__, ["--worker", way, *arguments]) for way in WAYS]
    try:
        answers = list(take_turns(workers, rounds))
    finally:
        for worker in workers:
            worker.close()
    tokens = MODELS[name]["batch"] * MODELS[name]["seq"]
    record: dict = {"benchmark": "finetune", "model": name, "rounds": rounds, "dropout": dropout}
    for index, way in enumerate(WAYS):
        seconds = spread([answer[index]["seconds"] for answer in answers])
        record |= {
            f"{way}_trained_weights": workers[index].ready["trained"],
            f"{way}_step_s": seconds,
            f"{way}_tokens_per_s": tokens / seconds["median"],
            f"{way}_first_step_s": workers[index].ready["first_step_s"],
            f"{way}_peak_mb": answers[-1][index]["peak_mb"],
            f"{way}_loss": answers[-1][index]["loss"],
        }
    record["import_mb"] = workers[0].ready["import_mb"]
    record["ratio"] = spread([full["seconds"] / lora["seconds"] for full, lora in answers])
    record["memory_share"] = record["lora_peak_mb"] / record["full_peak_mb"]
    emit(record, path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["M"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dropout", type=float, default=0.05, help="of the adapter")
    parser.add_argument("--json", help="file the record is appended to")
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.models[0], args.dropout)
        return
    for name in args.models:
        compare(name, args.rounds, args.dropout, args.json)


if __name__ == "__main__":
    main()
