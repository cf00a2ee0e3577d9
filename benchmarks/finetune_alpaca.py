# SPDX-License-Identifier: Apache-2.0
"""Do full finetuning and LoRA learn? A real small Llama on real instructions, held-out answer loss, both curves.

``python benchmarks/finetune_alpaca.py --data ../shared/data --output curves --picture docs/images/finetune_alpaca.png``

``--data`` holds ``stories260k/hf`` (the TinyStories Llama of 260K parameters as a Hugging Face folder) and
``alpaca/alpaca_data.subset5000.json``. Only the answers and their end tokens count, in training and in the held-out
loss; records that do not fit are left out and counted. Afterwards the adapter is merged, and the logits of the merged
model are compared with those of base and adapter.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import REPO, emit

LENGTH, HELD_OUT, EVERY = 256, 256, 20
RATES = {"full": 1e-3, "lora": 3e-3}
PET = {"lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.05, "lora_a_init": "he_uniform",
       "target_modules": "w", "param_init_type": "float32", "compute_dtype": "float32"}  # fmt: skip


def prompt_of(record: dict[str, str]) -> str:
    """The prompt of Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca, README)."""
    more = ", paired with an input that provides further context" if record.get("input") else ""
    extra = f"\n\n### Input:\n{record['input']}" if record.get("input") else ""
    return (
        f"Below is an instruction that describes a task{more}. Write a response that appropriately completes the "
        f"request.\n\n### Instruction:\n{record['instruction']}{extra}\n\n### Response:"
    )


def make_records(path: Path, tokenizer: Any, limit: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Ids and labels int32 (records, LENGTH + 1) of the first records that fit, and how many did not."""
    ids, labels, left_out = [], [], 0
    for record in json.loads(path.read_text(encoding="utf-8")):
        prompt = tokenizer(prompt_of(record))["input_ids"]
        answer = [*tokenizer(record["output"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        missing = LENGTH + 1 - len(prompt) - len(answer)
        if missing < 0:
            left_out += 1
            continue
        ids.append([*prompt, *answer, *[0] * missing])
        labels.append([*[-100] * len(prompt), *answer, *[-100] * missing])
        if len(ids) == limit:
            break
    return np.array(ids, np.int32), np.array(labels, np.int32), left_out


def prepare(data: Path, output: Path, records: int) -> dict[str, Any]:
    """Write the MindRecord files; what went into them."""
    from mindformers.dataset.mindrecord import MindRecordWriter
    from mindformers.models.llama.llama_tokenizer import LlamaTokenizer

    tokenizer = LlamaTokenizer(data / "stories260k" / "hf" / "tokenizer.model")
    source = data / "alpaca" / "alpaca_data.subset5000.json"
    ids, labels, left_out = make_records(source, tokenizer, records + HELD_OUT)
    for name, part in (("valid", slice(HELD_OUT)), ("train", slice(HELD_OUT, None))):
        writer = MindRecordWriter(output / f"{name}.mindrecord", {"input_ids": LENGTH + 1, "labels": LENGTH + 1})
        writer.write(input_ids=ids[part], labels=labels[part])
        writer.close()
    answers = int((labels[HELD_OUT:] != -100).sum())
    return {"train_records": len(ids) - HELD_OUT, "held_out": HELD_OUT, "too_long": left_out, "answer_tokens": answers}


def config(way: str, data: Path, output: Path, epochs: int) -> Any:
    """The run's config: the tiny YAML with the model and the data of this check."""
    from mindformers.config import MindFormerConfig

    values = MindFormerConfig(str(REPO / "configs/llama2/run_llama2_tiny.yaml"))
    run = values.to_run_config()
    run.run_mode, run.load_checkpoint, run.output_dir = "finetune", str(data / "stories260k" / "hf"), str(output / way)
    run.runner_config.epochs, run.runner_config.batch_size = epochs, 8
    run.optimizer.learning_rate = run.lr_schedule.learning_rate = RATES[way]
    run.lr_schedule.lr_end, run.optimizer.weight_decay = 0.0, 0.0
    run.metric.type = "PerplexityMetric"
    for name in ("train", "eval"):
        section = getattr(run, f"{name}_dataset")
        section.input_columns = ["input_ids", "labels"]
        section.data_loader.dataset_dir = str(output / f"{'valid' if name == 'eval' else name}.mindrecord")
    sizes = {"hidden_size": 64, "intermediate_size": 172, "num_layers": 5, "num_heads": 8, "n_kv_heads": 4,
             "vocab_size": 512, "seq_length": LENGTH, "pretrain_seqlen": 512, "tie_word_embeddings": True,
             "use_past": False}  # fmt: skip
    for key, value in sizes.items():
        setattr(run.model.config, key, value)
    if way == "lora":
        from mindformers.pet import LoraConfig

        run.model.config.pet_config = LoraConfig(**PET)
    return run


def finetune(way: str, data: Path, output: Path, epochs: int) -> tuple[Any, list[tuple[int, float]]]:
    """Train one way; the trained network and (step, held-out answer loss) from step 0 on."""
    from mindformers.checkpoint.layout import OutputLayout
    from mindformers.core.callback import EvalCallBack
    from mindformers.core.context import init_context, set_seed
    from mindformers.trainer.build import build_training
    from mindformers.trainer.evaluate import EvalCell, evaluate
    from mindformers.trainer.trainer import run

    cfg = config(way, data, output, epochs)
    rank, _ = init_context(cfg.use_parallel, cfg.context, cfg.parallel, cfg.output_dir)
    set_seed(cfg.seed)
    task = build_training(cfg, OutputLayout(cfg.output_dir, rank))
    cell, curve = EvalCell(task.cell.network), []

    def measure(step: int | None = None) -> None:
        step = len(curve) * EVERY if step is None else step
        curve.append((step, evaluate(cfg, cell)["PerplexityMetric"]["loss"]))

    measure()
    callback = EvalCallBack(measure, EVERY)
    callback.bind(task.progress)
    task.callbacks.append(callback)
    run(task, cfg)
    if curve[-1][0] != task.progress.total_steps:
        measure(task.progress.total_steps)
    return task.cell.network, curve


def merged_difference(network: Any, data: Path, output: Path) -> float:
    """Largest relative difference of logits, merged model against base and adapter, over some held-out records."""
    from mindspore import Tensor

    from mindformers.checkpoint.load import load_into, read_checkpoint
    from mindformers.models.llama.llama import LlamaForCausalLM
    from mindformers.models.llama.llama_config import LlamaConfig
    from mindformers.tools import merge_lora

    target = output / "merged.safetensors"
    words = ["--base", str(data / "stories260k" / "hf"), "--adapter", str(output / "lora" / "checkpoint_trainable")]
    merge_lora.main([*words, "--output", str(target), "--check"])
    plain = config("full", data, output, 1).model.config
    merged = LlamaForCausalLM(LlamaConfig(**plain.model_dump()))
    load_into(merged, read_checkpoint(target))
    from mindspore.dataset import MindDataset

    rows = MindDataset(str(output / "valid.mindrecord"), ["input_ids"], shuffle=False).batch(8)
    ids = Tensor(next(rows.create_dict_iterator(output_numpy=True))["input_ids"][:, :LENGTH])
    logits = [n.set_train(False)(ids)[0].asnumpy() for n in (network, merged)]
    return float(np.abs(logits[0] - logits[1]).max() / np.abs(logits[0]).max())


def draw(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """The held-out loss of both ways as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4.5), dpi=100, layout="constrained")
    names = {"full": "full finetuning, all weights", "lora": "LoRA, rank 8 on every linear layer"}
    for way, curve in curves.items():
        axis.plot(*zip(*curve, strict=True), label=names[way], linewidth=2)
    title = "stories260k on Alpaca: loss per answer token, held-out records"
    axis.set(xlabel="step", ylabel="loss", title=title)
    axis.grid(alpha=0.3)
    axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REPO.parent / "shared" / "data", help="folder of the real data")
    parser.add_argument("--output", type=Path, required=True, help="new folder for records, checkpoints and curves")
    parser.add_argument("--records", type=int, default=800, help="training records")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--picture", type=Path, help="PNG of the curves")
    parser.add_argument("--json", help="file the record is appended to")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"benchmark": "finetune_alpaca", **prepare(args.data, args.output, args.records)}
    curves, networks = {}, {}
    for way in RATES:
        networks[way], curves[way] = finetune(way, args.data, args.output, args.epochs)
        record |= {f"{way}_loss_before": curves[way][0][1], f"{way}_loss_after": curves[way][-1][1]}
        record[f"{way}_trained_weights"] = sum(p.size for p in networks[way].trainable_params())
    record["merged_difference"] = merged_difference(networks["lora"], args.data, args.output)
    (args.output / "curves.json").write_text(json.dumps(curves) + "\n", encoding="utf-8")
    if args.picture:
        draw(curves, args.picture)
    emit(record, args.json)


if __name__ == "__main__":
    main()
