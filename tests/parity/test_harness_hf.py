# SPDX-License-Identifier: Apache-2.0
"""lm-evaluation-harness with our model class and with its own class for transformers: same requests, same numbers."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor

from mindformers.errors import ConfigError, DataError
from mindformers.models.llama.llama import LlamaForCausalLM
from mindformers.models.llama.llama_config import LlamaConfig
from mindformers.models.llama.llama_tokenizer import LlamaTokenizer
from tests.helpers import shared_data
from tests.parity.llama_cases import FLOAT32, hf_name

pytest.importorskip("lm_eval", reason="extra `eval` brings lm-eval")
pytest.importorskip("transformers", reason="extra `test` brings transformers")

TASKS = {
    "tiny_choice": {
        "output_type": "multiple_choice", "doc_to_text": "{{start}}", "doc_to_target": "{{answer}}",
        "doc_to_choice": "{{choices}}", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "tiny_rolling": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "tiny_generate": {
        "output_type": "generate_until", "doc_to_text": "{{start}}", "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["."], "do_sample": False, "max_gen_toks": 24},
        "metric_list": [{"metric": "exact_match"}],
    },
}  # fmt: skip
STARTS = (
    "Once upon a time, there was a little", "Tom and Lily went to the", "The dog was very",
    "One day, a big bird saw a small fish. The bird said,", "She was happy because her mom gave her a new",
)  # fmt: skip


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files with data beside them; nothing comes from the hub."""
    import yaml

    folder = tmp_path_factory.mktemp("tasks")
    choices = ["girl named Lily", "park to play", "sad and cried", "xyzzy 1234"]
    docs = [
        {"start": start, "choices": choices, "answer": i % 4, "text": " ".join(STARTS[: i + 1]) * (1 + 3 * i)}
        for i, start in enumerate(STARTS)
    ]
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
    for name, content in TASKS.items():
        data = {
            "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "docs.jsonl")}},
            "test_split": "test",
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **data, **content}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Caches of `datasets` in a folder of the test, and no network."""
    import datasets

    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def ours() -> Any:
    """The real 260K-parameter TinyStories model inside our class."""
    from safetensors.numpy import load_file

    from mindformers.evaluation import harness_model

    folder = shared_data("stories260k/hf")
    sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    network = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=sizes["hidden_size"], intermediate_size=sizes["intermediate_size"],
            num_layers=sizes["num_hidden_layers"], num_heads=sizes["num_attention_heads"],
            n_kv_heads=sizes["num_key_value_heads"], vocab_size=sizes["vocab_size"],
            seq_length=sizes["max_position_embeddings"], rms_norm_eps=sizes["rms_norm_eps"],
            tie_word_embeddings=True, **FLOAT32,
        )
    )  # fmt: skip
    weights = load_file(folder / "model.safetensors")
    for parameter in network.get_parameters():
        parameter.set_data(Tensor(weights[hf_name(parameter.name)].astype(np.float32)))
    return harness_model(network, LlamaTokenizer(folder / "tokenizer.model"), batch_size=4)


@pytest.fixture(scope="module")
def theirs(ours: Any) -> Any:
    import torch
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(1)  # the model is far too small for more
    folder = str(shared_data("stories260k/hf"))
    return HFLM(pretrained=folder, device="cpu", batch_size=4, dtype="float32", max_length=512)


def test_local_tasks_give_the_numbers_of_transformers(offline, task_folder, ours, theirs) -> None:
    from mindformers.evaluation import run_harness

    found = {
        name: run_harness(model, list(TASKS), str(task_folder), log_samples=True, bootstrap_iters=0)
        for name, model in (("ours", ours), ("theirs", theirs))
    }
    for task in TASKS:
        mine, other = (found[name]["results"][task] for name in ("ours", "theirs"))
        keys = [key for key in other if key.endswith(",none") and "stderr" not in key]
        assert keys
        for key in keys:
            assert mine[key] == pytest.approx(other[key], rel=1e-5), (task, key)
        by_doc = [sorted(found[name]["samples"][task], key=lambda s: s["doc_id"]) for name in ("ours", "theirs")]
        assert len(by_doc[0]) == len(STARTS)
        for a, b in zip(*by_doc, strict=True):
            flat = [str(value) for value in np.ravel(a["filtered_resps"])]
            other_flat = [str(value) for value in np.ravel(b["filtered_resps"])]
            if task == "tiny_generate":
                assert flat == other_flat
                assert flat[0].strip()
            else:
                for x, y in zip(flat, other_flat, strict=True):
                    assert x == y or float(x) == pytest.approx(float(y), rel=2e-5, abs=2e-4)


def request(*args: Any) -> SimpleNamespace:
    return SimpleNamespace(args=args)


def test_generation_options_and_stop_texts(ours) -> None:
    start = STARTS[0]
    whole, cut, none = ours.generate_until(
        [
            request(start, {"max_gen_toks": 30}),
            request(start, {"max_gen_toks": 30, "until": ["Lily", "\n"]}),
            request(start, {"max_tokens": 30, "until": " girl"}),
        ],
        disable_tqdm=True,
    )
    assert "Lily" in whole
    assert cut == whole.split("Lily")[0]
    assert none == whole.split(" girl")[0]
    drawn = {"max_gen_toks": 12, "do_sample": True, "temperature": 0.8, "top_k": 40, "seed": 3}
    assert ours.generate_until([request(start, drawn)], True) == ours.generate_until([request(start, drawn)], True)
    with pytest.raises(ConfigError, match="512"):
        ours.generate_until([request(start, {"max_gen_toks": 512})])
    with pytest.raises(ConfigError, match="num_beams"):
        ours.generate_until([request(start, {"num_beams": 2})])


def test_edges_of_likelihood(ours) -> None:
    rolling = ours.loglikelihood_rolling([request(""), request("a"), request(" ".join(STARTS) * 20)], True)
    assert rolling[0] == pytest.approx(0.0, abs=20)  # bos after bos is all there is
    assert rolling[2] < rolling[1] < 0
    (empty, _), (spaced, _) = ours.loglikelihood([request("", " time"), request("Once upon a ", "time")], True)
    assert empty < spaced  # the context helps


def test_unknown_tasks_and_missing_data_are_named(offline, tmp_path, ours) -> None:
    from mindformers.evaluation import run_harness

    with pytest.raises(ConfigError, match=r"no task is called 'hellaswagg'\. Did you mean 'hellaswag'"):
        run_harness(ours, ["hellaswagg"])
    (tmp_path / "broken.yaml").write_text(
        "task: broken_local\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/nowhere.jsonl}}}}\n"
        "doc_to_text: '{{a}}'\ndoc_to_target: 0\ndoc_to_choice: ['a', 'b']\n",
        encoding="utf-8",
    )
    with pytest.raises(DataError, match="broken_local cannot be loaded"):
        run_harness(ours, ["broken_local"], str(tmp_path))


def test_the_command_prints_a_table_and_writes_all_results(offline, task_folder, tmp_path, ours, capsys) -> None:
    import yaml

    from mindformers.__main__ import main
    from mindformers.checkpoint.save import save_network

    network = ours.network
    save_network({p.name: p for p in network.get_parameters() if "decode_" not in p.name}, tmp_path / "s.ckpt")
    kept = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "n_kv_heads", "vocab_size", "seq_length")
    sizes = {name: getattr(network.config, name) for name in (*kept, "tie_word_embeddings")}
    run = {
        "load_checkpoint": str(tmp_path / "s.ckpt"), "context": {"device_target": "CPU"},
        "model": {"model_config": {"type": "LlamaConfig", **sizes, **FLOAT32}},
        "processor": {"tokenizer": {"vocab_file": str(shared_data("stories260k/hf/tokenizer.model"))}},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    words = ["--harness", "tiny_choice", "--include_path", str(task_folder), "--output", str(tmp_path / "out/r.json")]
    assert main(["eval", str(tmp_path / "run.yaml"), *words, "--limit", "3"]) == 0
    assert "|tiny_choice|" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "r.json").read_text(encoding="utf-8"))
    assert written["n-samples"]["tiny_choice"]["effective"] == 3
    assert 0 <= written["results"]["tiny_choice"]["acc,none"] <= 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["r.json"]
