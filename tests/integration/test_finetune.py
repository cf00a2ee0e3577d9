# SPDX-License-Identifier: Apache-2.0
"""Full finetuning from its shipped YAML: evaluation and the checks before step 1 leave the losses alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindformers.checkpoint.save import save_network
from mindformers.config import load_config
from mindformers.dataset.mindrecord import MindRecordWriter
from mindformers.errors import CheckpointError, DataError
from mindformers.models.llama.llama import LlamaForCausalLM
from mindformers.models.llama.llama_config import LlamaConfig
from mindformers.trainer import Trainer, callbacks

STEPS, LENGTH, VOCAB = 6, 16, 300


def write(path: Path, count: int, length: int = LENGTH + 1) -> None:
    """Records of a prompt and an answer that follows from it; labels on the answer only."""
    rng = np.random.default_rng(count)
    ids = (rng.integers(3, 60, (count, 1)) + np.arange(length)).astype(np.int32)
    labels = ids.copy()
    labels[:, :9] = -100
    writer = MindRecordWriter(path, {"input_ids": length, "labels": length})
    writer.write(input_ids=ids, labels=labels)
    writer.close()


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Overrides that make the shipped finetuning YAML run in seconds on data of its own."""
    folder = tmp_path_factory.mktemp("finetune")
    write(folder / "train.mindrecord", 4 * STEPS)
    write(folder / "valid.mindrecord", 6)
    model = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "n_kv_heads": 2, "vocab_size": VOCAB,
             "seq_length": LENGTH, "pretrain_seqlen": LENGTH, "max_decode_length": LENGTH}  # fmt: skip
    base = load_config("run_llama2_tiny_finetune", [f"model.model_config.{k}={v}" for k, v in model.items()])
    network = LlamaForCausalLM(LlamaConfig(**base.model.config.model_dump()))
    save_network({p.name: p for p in network.get_parameters()}, folder / "base.ckpt")
    return {
        **{f"model.model_config.{key}": value for key, value in model.items()},
        "load_checkpoint": str(folder / "base.ckpt"),
        "train_dataset.data_loader.dataset_dir": str(folder / "train.mindrecord"),
        "eval_dataset.data_loader.dataset_dir": str(folder / "valid.mindrecord"),
        "runner_config.batch_size": 4, "runner_config.epochs": 2, "callbacks.0.per_print_times": 1,
        "callbacks.1.save_checkpoint_steps": 5, "eval_step_interval": -1,
    }  # fmt: skip


def finetune(options: dict[str, Any], output: Path, **changes: Any) -> list[float]:
    """Run it; the loss of every step."""
    values = options | {"output_dir": str(output)} | changes
    cfg = load_config("run_llama2_tiny_finetune", [f"{key}={value}" for key, value in values.items()])
    Trainer(cfg).finetune()
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def plain(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], Path]:
    """Losses and folder of a run without evaluation."""
    folder = tmp_path_factory.mktemp("plain")
    return finetune(options, folder, do_eval=False), folder


def test_it_learns_the_answers_and_leaves_exactly_its_files(plain: tuple[list[float], Path]) -> None:
    losses, folder = plain
    assert len(losses) == 2 * STEPS
    assert losses[-1] < losses[0] - 0.05
    names = [f"checkpoint/rank_0/llama2_tiny_finetune_rank_0-{name}.ckpt" for name in ("1_5", "2_4", "2_6")]
    names.append("checkpoint_network/rank_0/llama2_tiny_finetune_rank_0-network.ckpt")
    expected = {name + end for name in names for end in ("", ".json")} | {"config.yaml", "metrics.jsonl"}
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == expected


@pytest.mark.parametrize(
    ("changes", "evaluations"),
    [
        ({"eval_step_interval": 4}, 3),
        ({"eval_epoch_interval": 1}, 2),
        ({"eval_epoch_interval": 1, "metric.type": "SquadMetric", "model.model_config.max_new_tokens": 3}, 2),
    ],
)
def test_evaluation_changes_no_loss(
    options, plain, tmp_path, monkeypatch, tiny_tokenizer, changes, evaluations
) -> None:
    results = []

    evaluate = callbacks.evaluate
    monkeypatch.setattr(callbacks, "evaluate", lambda *args, **kw: results.append(evaluate(*args, **kw)))
    if "metric.type" in changes:
        changes = changes | {"processor.tokenizer.vocab_file": str(tiny_tokenizer[0]),
                             "eval_dataset.data_loader.dataset_dir": str(tiny_tokenizer[1])}  # fmt: skip
    losses = finetune(options, tmp_path / "run", do_eval=True, **changes)
    assert losses == plain[0]  # digit for digit
    assert len(results) == evaluations
    if "metric.type" not in changes:
        values = [result["PerplexityMetric"]["loss"] for result in results]
        assert values == sorted(values, reverse=True)


@pytest.fixture(scope="module")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tokenizer whose pieces fit the model, and questions (prompt and answer, padded) written with it."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("questions")
    text = "\n".join(f"the {a} {b} sat" for a in ("big", "small", "old") for b in ("cat", "dog", "fox"))
    (folder / "text.txt").write_text(text * 20, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "tokenizer"), vocab_size=VOCAB, byte_fallback=True,
        model_type="bpe", hard_vocab_limit=False, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    writer = MindRecordWriter(folder / "squad.mindrecord", {"input_ids": LENGTH, "labels": LENGTH})
    ids, labels = np.zeros((5, LENGTH), np.int32), np.zeros((5, LENGTH), np.int32)
    for i in range(5):
        ids[i, : 4 + i] = range(1, 5 + i)
        labels[i, :2] = 7 + i
    writer.write(input_ids=ids, labels=labels)
    writer.close()
    return folder / "tokenizer.model", folder / "squad.mindrecord"


def test_a_bad_folder_ends_the_run_before_its_first_step(options, tmp_path) -> None:
    (tmp_path / "taken").write_text("precious", encoding="utf-8")
    with pytest.raises(CheckpointError, match="taken"):
        finetune(options, tmp_path / "run", do_eval=False, **{"callbacks.1.directory": str(tmp_path / "taken")})
    assert not (tmp_path / "run").exists()
    assert (tmp_path / "taken").read_text(encoding="utf-8") == "precious"


def test_bad_evaluation_data_ends_the_run_before_its_first_step(options, tmp_path) -> None:
    write(tmp_path / "long.mindrecord", 3, LENGTH + 5)
    with pytest.raises(DataError, match=r"long\.mindrecord holds records of 21 tokens"):
        finetune(options, tmp_path / "run", do_eval=True, eval_epoch_interval=1,
                 **{"eval_dataset.data_loader.dataset_dir": str(tmp_path / "long.mindrecord")})  # fmt: skip
    assert not (tmp_path / "run").exists()
