# SPDX-License-Identifier: Apache-2.0
"""Real processes: every way to split a tiny Llama over CPU ranks trains it exactly as one process does, LoRA too.

SGD, not Adam: Adam hides gradients that are wrong by a factor. The norm of the gradients is compared as well, because
clipping hides the same. The first step overflows, so that all ranks have to skip it.
"""

import json
import re
from ast import literal_eval
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.helpers import REPO
from tests.parallel.ranks import run_ranks

RECORDS, BATCH, LENGTH = 24, 4, 17
SPLIT = ("--use_parallel", "True")
TWO_GROUPS = ("--parallel_config.data_parallel", "2", "--runner_config.batch_size")
SHARDED_OPTIMIZER = ("--parallel.enable_parallel_optimizer", "True")
SHARDED_OPTIMIZER += ("--parallel.parallel_optimizer_config.parallel_optimizer_threshold", "0")
PARTS = ("--parallel.full_batch", "False")
SEQUENCE = ("--parallel_config.use_seq_parallel", "True", "--runner_config.batch_size", "2")
SEQUENCE += ("--micro_batch_interleave_num", "2")
DP2_MP2 = (*SPLIT, *TWO_GROUPS, "2", "--parallel_config.model_parallel", "2")
COLUMNS, ROWS = ("wq", "wk", "wv", "w1", "w3"), ("wo", "w2")
HEADS = dict.fromkeys(COLUMNS, 0) | dict.fromkeys(ROWS, 1)
NORMS_AND_TABLES = ("attention_norm", "ffn_norm", "norm_out", "lm_head", "tok_embeddings")
# name -> (ranks, arguments, {part of a weight's name: the axis of which rank r holds part r % 2})
CASES = {
    "dp2": (2, (*SPLIT, *TWO_GROUPS, "2"), {}),
    "mp2_sequence_interleaved": (2, (*SPLIT, "--parallel_config.model_parallel", "2", *SEQUENCE), HEADS),
    "mp2_auto": (2, (*SPLIT, "--parallel_config.model_parallel", "2", "--parallel.parallel_mode", "2"), HEADS),
    "dp2_mp2_parts": (4, (*DP2_MP2, *PARTS), HEADS),
    "dp2_optimizer_accumulation": (
        2,
        (*SPLIT, *TWO_GROUPS, "1", *SHARDED_OPTIMIZER, "--runner_config.gradient_accumulation_steps", "2", *PARTS),
        dict.fromkeys(COLUMNS + ROWS + NORMS_AND_TABLES, 0),
    ),
}
A, B = "mindpet_delta_lora_a", "mindpet_delta_lora_b"
ADAPTERS = {f"{name}.{B}": 0 for name in COLUMNS} | {f"{name}.{A}": 1 for name in ROWS}
DROPOUT = ("--model.model_config.pet_config.lora_dropout", "0.2")
QUIET = ("--do_eval", "False")
PREDICT = ("--run_mode", "predict", "--predict_data", "prompts.txt", "--predict_batch_size", "2", "--auto_trans_ckpt",
           "True", "--load_checkpoint", "init.ckpt", "--model.model_config.max_new_tokens", "6")  # fmt: skip
# the same for adapters of all layers
LORA_CASES = {
    "mp2_sequence_interleaved": (*CASES["mp2_sequence_interleaved"][:2], ADAPTERS),
    "dp2_mp2_dropout": (4, (*DP2_MP2, *DROPOUT), ADAPTERS),
    "dp2_optimizer_accumulation": (*CASES["dp2_optimizer_accumulation"][:2], {A: 0, B: 0}),
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with records (some padded), weights to start from and a configuration."""
    import mindspore as ms

    from mindformers.config import load_config
    from mindformers.dataset.mindrecord import MindRecordWriter
    from mindformers.trainer.network import build_network

    folder = tmp_path_factory.mktemp("parallel")
    rng = np.random.default_rng(0)
    records = rng.integers(1, 60, (RECORDS, LENGTH)).astype(np.int32)
    records[::3, 10:] = 0
    writer = MindRecordWriter(folder / "train.mindrecord", {"input_ids": LENGTH})
    writer.write(input_ids=records)
    writer.close()
    config = yaml.safe_load((REPO / "configs/llama2/run_llama2_tiny.yaml").read_text(encoding="utf-8"))
    config["base_config"] = str(REPO / "configs/llama2/_base.yaml")
    config["runner_config"] |= {"epochs": 1, "batch_size": BATCH}
    config["model"]["model_config"] |= {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "n_kv_heads": 2, "vocab_size": 64, "seq_length": 16,
        "pretrain_seqlen": 16, "max_decode_length": 16,
    }  # fmt: skip
    config["processor"]["tokenizer"]["vocab_file"] = "tokenizer.model"
    for section in ("train_dataset", "eval_dataset"):
        config[section]["data_loader"]["dataset_dir"] = "train.mindrecord"
    config |= {"optimizer": {"type": "SGD", "learning_rate": 0.1}, "lr_schedule": None, "load_checkpoint": "init.ckpt"}
    config |= {"do_eval": True, "eval_step_interval": 6}
    config["callbacks"][0]["per_print_times"] = 1
    scale = {"type": "DynamicLossScaleUpdateCell", "loss_scale_value": 1.7e38, "scale_factor": 1.0e36}
    config["runner_wrapper"] = {"scale_sense": scale, "use_clip_grad": True, "max_grad_norm": 2.3}
    (folder / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    network = build_network(load_config(folder / "run.yaml"))
    weights = [
        {"name": p.name, "data": ms.Tensor((rng.normal(size=p.shape) * 0.1 + (p.ndim == 1)).astype(np.float32))}
        for p in network.get_parameters()
    ]
    ms.save_checkpoint(weights, str(folder / "init.ckpt"))
    write_lora(folder, weights)
    write_prompts(folder)
    return folder


def write_lora(folder: Path, base: list[dict]) -> None:
    """lora.yaml, run.yaml with adapters; lora.ckpt, the weights with adapters that are no longer zero."""
    import mindspore as ms

    from mindformers.config import load_config
    from mindformers.pet.adapter import is_adapter_name
    from mindformers.trainer.network import build_network

    pet = {"pet_type": "lora", "lora_rank": 4, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "w"}
    pet |= {"param_init_type": "float32", "compute_dtype": "float32"}
    config = {"base_config": "run.yaml", "model": {"model_config": {"pet_config": pet}}, "load_checkpoint": "lora.ckpt"}
    (folder / "lora.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    rng = np.random.default_rng(1)
    adapters = [
        {"name": p.name, "data": ms.Tensor((rng.normal(size=p.shape) * 0.1).astype(np.float32))}
        for p in build_network(load_config(folder / "lora.yaml")).get_parameters() if is_adapter_name(p.name)
    ]  # fmt: skip
    ms.save_checkpoint(base + adapters, str(folder / "lora.ckpt"))


def write_prompts(folder: Path) -> None:
    """A tokenizer of as many pieces as the model has, and prompts of different lengths."""
    import sentencepiece

    sentences = ["the old cat sat on the mat", "a quick brown fox jumps over my lazy dog", "a dog ran"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), vocab_size=64, model_prefix=str(folder / "tokenizer"), model_type="bpe",
        minloglevel=2,
    )  # fmt: skip
    (folder / "prompts.txt").write_text("the cat\na dog ran\nthe old cat sat\n", encoding="utf-8")


def words(name: str, arguments: tuple[str, ...], config: str = "run.yaml") -> list[str]:
    """The command line of a run after the script's name."""
    return ["--config", config, "--output_dir", name, *arguments]


def run_all(job: Path, ranks: int, runs: list[list[str]]) -> None:
    """Do runs with as many ranks, one after the other."""
    (job / f"{ranks}.json").write_text(json.dumps(runs), encoding="utf-8")
    run_ranks(ranks, ["-m", "tests.parallel.several_runs", f"{ranks}.json"], job)


def metrics(job: Path, name: str) -> np.ndarray:
    """(loss, grad_norm, overflow, loss_scale) of every step."""
    lines = (job / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return np.array([[record[key] for key in ("loss", "grad_norm", "overflow", "loss_scale")] for record in
                     map(json.loads, lines)])  # fmt: skip


def printed(job: Path, name: str) -> str:
    """What rank 0 of a run printed."""
    return (job / f"{name}.rank_0.log").read_text(encoding="utf-8")


def perplexity(output: str) -> float:
    """The last one in what a run printed."""
    found = re.findall(r"PerplexityMetric = .*'PPL': ([\d.]+)", output)
    assert found, output[-2000:]
    return float(found[-1])


def weights(job: Path, name: str, rank: int) -> dict[str, np.ndarray]:
    import mindspore as ms

    """What a rank saved: its part of the network, or of the adapters when only they are trained."""
    (path,) = (job / name).glob(f"checkpoint_*/rank_{rank}/llama2_tiny_rank_{rank}-*.ckpt")
    return {key: value.asnumpy() for key, value in ms.load_checkpoint(str(path)).items()}


@pytest.fixture(scope="module")
def done(job: Path) -> Path:
    """The job's folder after all runs."""
    adapted = [words("one_lora", QUIET, "lora.yaml"), words("one_dropout", (*DROPOUT, *QUIET), "lora.yaml")]
    run_all(job, 1, [words("one", ()), *adapted, words("one_texts", PREDICT)])
    for count in (2, 4):
        runs = [words(name, arguments) for name, (ranks, arguments, _) in CASES.items() if ranks == count]
        runs += [words("two_texts", (*SPLIT, "--parallel_config.model_parallel", "2", *PREDICT))] if count == 2 else []
        runs += [
            words(f"lora_{name}", (*arguments, *QUIET), "lora.yaml")
            for name, (ranks, arguments, _) in LORA_CASES.items() if ranks == count
        ]  # fmt: skip
        run_all(job, count, runs)
    return job


@pytest.mark.parametrize("name", CASES)
def test_same_as_one_process(done: Path, name: str) -> None:
    ranks, _, split = CASES[name]
    compare(done, "one", name, ranks, split)
    assert perplexity(printed(done, name)) == pytest.approx(perplexity(printed(done, "one")), rel=1e-6)


@pytest.mark.parametrize("name", LORA_CASES)
def test_adapters_same_as_one_process(done: Path, name: str) -> None:
    ranks, arguments, split = LORA_CASES[name]
    one = "one_dropout" if set(DROPOUT) <= set(arguments) else "one_lora"
    compare(done, one, f"lora_{name}", ranks, split)


def test_dropout_was_not_without_effect(done: Path) -> None:
    """The runs with masks are equal above because a token's mask does not depend on the rank it is on."""
    plain = weights(done, "one_lora", 0)
    assert any(np.abs(value - plain[key]).max() > 1e-4 for key, value in weights(done, "one_dropout", 0).items())


def test_texts_of_a_batch_are_those_of_one_process(done: Path) -> None:
    """Three prompts of a file, two at a time, over a network of which each rank has half."""
    names = ("one_texts", "two_texts")
    texts = [re.findall(r"text_generation_text': (\[.*?\])", printed(done, name)) for name in names]
    assert texts[0] == texts[1]
    assert [len(literal_eval(batch)) for batch in texts[0]] == [2, 1]
    assert all(literal_eval(batch)[0] not in ("the cat", "the old cat sat") for batch in texts[0])


def compare(job: Path, one: str, name: str, ranks: int, split: dict[str, int]) -> None:
    """Losses, norms, overflows and weights of a run over ranks against those of one process."""
    expected, measured = metrics(job, one), metrics(job, name)
    assert expected[:, 2].tolist() == [1, 0, 0, 0, 0, 0], "the first step was to overflow, the others not"
    np.testing.assert_array_equal(measured[:, 2:], expected[:, 2:])
    np.testing.assert_allclose(measured[1:, :2], expected[1:, :2], rtol=0, atol=1e-6)
    whole = weights(job, one, 0)
    for rank in range(ranks):
        for key, value in weights(job, name, rank).items():
            axis = next((axis for part, axis in split.items() if f".{part}." in f".{key}."), None)
            part = whole[key] if axis is None else np.split(whole[key], 2, axis)[rank % 2]
            np.testing.assert_allclose(value, part, rtol=0, atol=1e-6, err_msg=f"{key} of rank {rank}")
