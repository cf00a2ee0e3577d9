# SPDX-License-Identifier: Apache-2.0
"""One tiny model, saved in our layout and in Hugging Face's, with tokenizer and records, for all tests of the API."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.parity.llama_cases import formula_weight

SEQ = 32
KINDS = ("compute_dtype", "layernorm_compute_type", "softmax_compute_type", "rotary_dtype", "param_init_type")
_HF_NAMES = {
    "model.tok_embeddings.embedding_weight": "model.embed_tokens.weight",
    "model.norm_out.weight": "model.norm.weight",
    ".attention.w": ".self_attn.w",
    ".wq.": ".q_proj.",
    ".wk.": ".k_proj.",
    ".wv.": ".v_proj.",
    ".wo.": ".o_proj.",
    ".feed_forward.w1.": ".mlp.gate_proj.",
    ".feed_forward.w2.": ".mlp.down_proj.",
    ".feed_forward.w3.": ".mlp.up_proj.",
    ".attention_norm.": ".input_layernorm.",
    ".ffn_norm.": ".post_attention_layernorm.",
}


def tiny(**changes: Any) -> Any:
    """LlamaConfig of two layers, 400 tokens of vocabulary, fp32, greedy with a cache."""
    from mindformers import LlamaConfig

    values = {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "n_kv_heads": 2, "vocab_size": 400, "multiple_of": 16,
        "seq_length": SEQ, "pretrain_seqlen": SEQ, "max_decode_length": 24, "use_past": True, "do_sample": False,
        **dict.fromkeys(KINDS, "float32"), **changes,
    }  # fmt: skip
    return LlamaConfig(**values)


@pytest.fixture(scope="session")
def model() -> Any:
    """A model whose greedy text does not fall into one repeated token."""
    from mindspore import Tensor

    from mindformers import AutoModel

    network = AutoModel.from_config(tiny())
    for parameter in network.get_parameters():
        scale = 1.0 if len(parameter.shape) == 1 else 4.0
        parameter.set_data(Tensor(scale * formula_weight(parameter.name, parameter.shape)))
    return network


@pytest.fixture(scope="session")
def tokenizer(tiny_model_file: Path) -> Any:
    """The tokenizer that goes with it."""
    from mindformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_file)


@pytest.fixture(scope="session")
def model_dir(model: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model and its tokenizer as save_pretrained writes them."""
    folder = tmp_path_factory.mktemp("saved") / "llama"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def hf_dir(model: Any, tiny_model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in Hugging Face's layout."""
    folder = tmp_path_factory.mktemp("hf") / "llama"
    folder.mkdir()
    tensors = {}
    for parameter in model.get_parameters():
        name = parameter.name
        for ours, theirs in _HF_NAMES.items():
            name = name.replace(ours, theirs)
        tensors[name] = np.ascontiguousarray(parameter.asnumpy())
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 400, "max_position_embeddings": SEQ,
        "intermediate_size": model.config.ffn_size, "rms_norm_eps": 1e-5, "hidden_act": "silu", "bos_token_id": 1,
        "eos_token_id": 2, "tie_word_embeddings": False, "torch_dtype": "float32", "rope_theta": 10000.0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False}), encoding="utf-8")
    shutil.copy(tiny_model_file, folder / "tokenizer.model")
    return folder


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.mindrecord (18 records) and valid.mindrecord (7) of SEQ + 1 tokens."""
    from mindformers.dataset.mindrecord import MindRecordWriter

    folder = tmp_path_factory.mktemp("records")
    rng = np.random.default_rng(0)
    for name, count in (("train", 18), ("valid", 7)):
        writer = MindRecordWriter(folder / f"{name}.mindrecord", {"input_ids": SEQ + 1})
        writer.write(input_ids=(rng.integers(3, 60, (count, 1)) + np.arange(SEQ + 1)).astype(np.int32))
        writer.close()
    return folder


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINDFORMERS_OFFLINE", "1")
    monkeypatch.delenv("CHECKPOINT_DOWNLOAD_FOLDER", raising=False)
