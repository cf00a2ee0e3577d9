# SPDX-License-Identifier: Apache-2.0
"""A small model, its config, and questions as MindRecord files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindformers.config import RunConfig, load_config
from mindformers.dataset.mindrecord import MindRecordWriter
from mindformers.models.llama.llama import LlamaForCausalLM
from mindformers.models.llama.llama_config import LlamaConfig
from mindformers.models.llama.llama_tokenizer import LlamaTokenizer
from tests.parity.llama_cases import fill

LENGTH = 64
WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "wizards",
    "make",
    "toxic",
    "brew",
    "for",
    "evil",
    "queen",
    "Jack",
]


def texts(count: int) -> list[tuple[str, str, str]]:
    """(passage, question, answer) of differing lengths."""
    rng = np.random.default_rng(5)
    return [
        (" ".join(rng.choice(WORDS, rng.integers(1, 14))), f"who {WORDS[i % 17]}?", " ".join(rng.choice(WORDS, 2)))
        for i in range(count)
    ]


def write_questions(path: Path, tokenizer: LlamaTokenizer, items: list[tuple[str, str, str]]) -> Path:
    """An evaluation file as squad_data_process.py lays it out: prompt and answer ids, padded with 0."""
    columns = {"input_ids": [], "labels": []}
    for passage, question, answer in items:
        prompt = tokenizer(f"{passage}\n{question}\n")["input_ids"]
        for name, ids in (("input_ids", prompt), ("labels", tokenizer(answer, add_special_tokens=False)["input_ids"])):
            columns[name].append(np.array(ids[:LENGTH] + [0] * (LENGTH - len(ids)), np.int32))
    writer = MindRecordWriter(path, dict.fromkeys(columns, LENGTH))
    writer.write(**{name: np.stack(rows) for name, rows in columns.items()})
    writer.close()
    return path


@pytest.fixture(scope="session")
def tokenizer(tiny_model_file: Path) -> LlamaTokenizer:
    return LlamaTokenizer(tiny_model_file)


@pytest.fixture(scope="session")
def questions_file(tmp_path_factory: pytest.TempPathFactory, tokenizer: LlamaTokenizer) -> Path:
    return write_questions(tmp_path_factory.mktemp("questions") / "squad.mindrecord", tokenizer, texts(11))


@pytest.fixture(scope="session")
def network(tokenizer: LlamaTokenizer) -> LlamaForCausalLM:
    types = ("compute_dtype", "param_init_type", "layernorm_compute_type", "softmax_compute_type", "rotary_dtype")
    config = LlamaConfig(
        hidden_size=32, num_layers=2, num_heads=4, n_kv_heads=2, vocab_size=tokenizer.vocab_size, seq_length=LENGTH,
        use_past=True, max_new_tokens=6, do_sample=False, **dict.fromkeys(types, "float32"),
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    fill(model)
    return model


@pytest.fixture
def make_config(tmp_path: Path, tiny_model_file: Path, network: LlamaForCausalLM, questions_file: Path) -> Any:
    """A function from overrides to the RunConfig of an EM/F1 evaluation."""

    def make(**overrides: Any) -> RunConfig:
        model = network.config
        values = {
            "run_mode": "eval", "output_dir": str(tmp_path / "out"), "runner_config.batch_size": 4,
            "load_checkpoint": "given",
            "eval_dataset.data_loader.dataset_dir": str(questions_file),
            "eval_dataset.input_columns": ["input_ids", "labels"],
            "processor.tokenizer.vocab_file": str(tiny_model_file),
            "metric.type": "SquadMetric", "model.model_config.vocab_size": model.vocab_size,
            "model.model_config.seq_length": LENGTH, **overrides,
        }  # fmt: skip
        return load_config("run_llama2_tiny", [f"{key}={value}" for key, value in values.items()])

    return make
