# SPDX-License-Identifier: Apache-2.0
"""Finetuning on packed records beside one sample a record: label tokens a second.

``python benchmarks/packing.py [--model T] [--seq_length 512] [--batch 2] [--rounds 7] [--json out.jsonl]``

Both train on the Alpaca subset, converted by ``llama_preprocess.py --dataset_type qa`` with and without ``--pack True``
and read by our dataset, with the same model, batch size and optimizer, fp32. They take turns in processes of their own;
warm-up steps are not counted. Label tokens a second are those of a step, by the average record of the whole file, over
the seconds of a step; ``ratio`` is packed over unpacked of the same round, the median over rounds; the bar is 3.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import MODELS, Worker, emit, peak_memory_mb, serve, spread, take_turns
from benchmarks.qa_case import alpaca_conversations, qa_job

DATA = Path(os.environ.get("MINDFORMERS_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
STEPS, WARM_UP = 4, 2
COLUMNS = {"unpacked": ["input_ids", "labels"], "packed": ["input_ids", "labels", "segment_ids"]}


def work(kind: str, args: argparse.Namespace) -> None:
    """Worker: compile and warm up, then measure rounds of STEPS steps on request."""
    import mindspore as ms

    from benchmarks.common import our_config
    from mindformers.core.optim import AdamW
    from mindformers.core.param_groups import group_parameters
    from mindformers.dataset import create_causal_lm_dataset
    from mindformers.models.llama.llama import LlamaForCausalLM
    from mindformers.wrapper import MFTrainOneStepCell

    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE)
    config = our_config(args.model, seq_length=args.seq_length, pretrain_seqlen=args.seq_length)
    network = LlamaForCausalLM(config).set_train()
    optimizer = AdamW(group_parameters(network, 0.1), learning_rate=1e-4, eps=1e-8)
    cell = MFTrainOneStepCell(network, optimizer, use_clip_grad=True).set_train()
    dataset = create_causal_lm_dataset(
        dataset_dir=str(Path(args.folder) / kind),
        input_columns=COLUMNS[kind],
        batch_size=args.batch,
        shuffle=True,
        epochs=1,
    )
    batches = dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)

    def step() -> float:
        return float(cell(*map(ms.Tensor, next(batches)))[0].asnumpy())

    for _ in range(WARM_UP):
        step()

    def measure() -> dict:
        begin = time.perf_counter()
        losses = [step() for _ in range(STEPS)]
        seconds = (time.perf_counter() - begin) / STEPS
        return {"seconds": seconds, "loss": losses[-1], "peak_mb": peak_memory_mb()}

    serve({}, measure)


def compare(args: argparse.Namespace, folder: Path) -> dict:
    """The record of one comparison."""
    from mindformers.tools.dataset_preprocess.llama import llama_preprocess

    source = alpaca_conversations(args.alpaca, folder)
    record: dict = {"benchmark": "packing", "model": args.model, "seq_length": args.seq_length, "batch": args.batch}
    record |= {"rounds": args.rounds, "steps_per_round": STEPS}
    labels: dict[str, float] = {}
    for kind in COLUMNS:
        job = qa_job(source, args.tokenizer, args.seq_length, folder / kind, kind == "packed")
        counts, _ = llama_preprocess.convert(job)
        labels[kind] = args.batch * counts.label_tokens / counts.records
        record |= {f"{kind}_records": counts.records, f"{kind}_filled": counts.packing_rate}
        record[f"{kind}_label_tokens_per_step"] = labels[kind]
    options = ["--folder", str(folder), "--model", args.model, "--seq_length", str(args.seq_length)]
    options += ["--batch", str(args.batch)]
    workers = [Worker(__file__, ["--worker", kind, *options]) for kind in COLUMNS]
    try:
        answers = list(take_turns(workers, args.rounds))
    finally:
        for worker in workers:
            worker.close()
    rates = {kind: [labels[kind] / turn[i]["seconds"] for turn in answers] for i, kind in enumerate(COLUMNS)}
    for index, (kind, values) in enumerate(rates.items()):
        record[f"{kind}_step_s"] = spread([turn[index]["seconds"] for turn in answers])
        record[f"{kind}_label_tokens_per_s"] = spread(values)
        record[f"{kind}_peak_mb"] = answers[-1][index]["peak_mb"]
        record[f"{kind}_loss"] = answers[-1][index]["loss"]
    record["ratio"] = spread([p / u for p, u in zip(rates["packed"], rates["unpacked"], strict=True)])
    return record


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="T")
    parser.add_argument("--seq_length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--alpaca", type=Path, default=DATA / "alpaca" / "alpaca_data.subset5000.json")
    parser.add_argument("--tokenizer", default=str(DATA / "llama2_tokenizer" / "tokenizer.model"))
    parser.add_argument("--json", help="file the record is appended to")
    parser.add_argument("--worker", choices=list(COLUMNS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args)
        return
    with tempfile.TemporaryDirectory() as name:
        emit(compare(args, Path(name)), args.json)


if __name__ == "__main__":
    main()
