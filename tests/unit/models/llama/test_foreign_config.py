# SPDX-License-Identifier: Apache-2.0
"""LlamaConfig from config.json and params.json, and back."""

import pytest

from mindformers.config import load_config
from mindformers.errors import CheckpointError, ConfigError
from mindformers.models.llama.foreign_config import hf_config_dict, llama_config_from, meta_params_dict
from mindformers.models.llama.llama_config import LlamaConfig
from tests.foreign_models import CONFIG, FFN, HIDDEN, VOCAB, hf_folder, meta_folder, write_json


def from_json(folder, **changes):
    """The config of a config.json with some keys changed; None removes one."""
    values = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    write_json(folder / "config.json", values)
    return llama_config_from(folder / "config.json")


def test_config_json_there_and_back(tmp_path):
    config = from_json(tmp_path, rms_norm_eps=2e-6, rope_theta=5000.0, eos_token_id=[2, 7], pad_token_id=-1)
    assert (config.hidden_size, config.ffn_size, config.num_layers, config.num_kv_heads) == (HIDDEN, FFN, 2, 2)
    assert (config.seq_length, config.rope_theta, config.rms_norm_eps) == (32, 5000.0, 2e-6)
    assert (config.eos_token_id, config.pad_token_id, config.extend_method) == ([2, 7], 0, "None")
    assert config.param_init_type == config.compute_dtype == "float32"
    write_json(tmp_path / "config.json", hf_config_dict(config))
    assert llama_config_from(tmp_path / "config.json") == config


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_rotary_keys_of_transformers_4_and_5(tmp_path, key):
    config = from_json(
        tmp_path, **{key: {"rope_type": "default", "rope_theta": 777.0}, "torch_dtype": None}, dtype="bfloat16"
    )
    assert (config.rope_theta, config.param_init_type) == (777.0, "bfloat16")
    config = from_json(tmp_path, **{key: {"type": "linear", "factor": 4.0}}, rope_theta=300.0)
    assert (config.rope_theta, config.extend_method, config.scaling_factor) == (300.0, "PI", 4.0)
    assert hf_config_dict(config)["rope_scaling"]["factor"] == 4.0
    with pytest.raises(ConfigError, match="'llama3' is not supported"):
        from_json(tmp_path, **{key: {"rope_type": "llama3", "factor": 8.0}})


def test_every_unsupported_feature_is_named_at_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        from_json(
            tmp_path, model_type="mistral", hidden_act="gelu", attention_bias=True, mlp_bias=True, head_dim=8,
            quantization_config={"bits": 4}, num_hidden_layers=None, rope_scaling=[1],
        )  # fmt: skip
    for word in (
        "'mistral'",
        "'gelu'",
        "attention_bias",
        "mlp_bias",
        "head_dim is 8",
        "quantised",
        "num_hidden_layers is missing",
        "[1]",
    ):
        assert word in str(error.value), word
    with pytest.raises(ConfigError, match="float8"):
        from_json(tmp_path, torch_dtype="float8_e4m3fn")
    with pytest.raises(ConfigError, match="hidden_size"):
        from_json(tmp_path, hidden_size="wide")
    with pytest.raises(ConfigError, match="num_heads"):
        from_json(tmp_path, num_attention_heads=3)


def test_defaults_are_those_of_transformers_and_generation_config_is_read(tmp_path):
    hf_folder(tmp_path)
    config = from_json(
        tmp_path, rms_norm_eps=None, num_key_value_heads=None, tie_word_embeddings=None, torch_dtype=None
    )
    assert (config.rms_norm_eps, config.num_kv_heads, config.tie_word_embeddings) == (1e-6, 4, False)
    assert config.param_init_type == "float32"  # of the weights
    assert not config.do_sample
    write_json(tmp_path / "generation_config.json", {"do_sample": True, "top_p": 0.5, "eos_token_id": 9})
    config = llama_config_from(tmp_path, top_k=3)
    assert (config.do_sample, config.top_p, config.eos_token_id, config.top_k) == (True, 0.5, 9, 3)


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither config\.json"):
        llama_config_from(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="JSON"):
        llama_config_from(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="list"):
        llama_config_from(tmp_path)


def test_params_json_with_sizes_from_the_weights(tmp_path):
    pytest.importorskip("torch", reason="extra `convert` brings torch")
    meta_folder(tmp_path)
    config = llama_config_from(tmp_path)
    assert (config.vocab_size, config.ffn_size, config.num_kv_heads, config.seq_length) == (VOCAB, FFN, 2, 4096)
    write_json(tmp_path / "params.json", {**meta_params_dict(config), "vocab_size": 41})
    with pytest.raises(CheckpointError, match="vocab_size 41, the embedding has 40 rows"):
        llama_config_from(tmp_path)
    params = meta_params_dict(config)
    del params["n_kv_heads"]
    write_json(tmp_path / "params.json", params)
    with pytest.raises(CheckpointError, match="n_kv_heads"):  # 4 heads do not fit the shape of wk
        llama_config_from(tmp_path)


def meta_width(params):
    """Meta's formula, as in llama/model.py."""
    hidden = int(2 * (4 * params["dim"]) / 3)
    if params.get("ffn_dim_multiplier") is not None:
        hidden = int(params["ffn_dim_multiplier"] * hidden)
    multiple = params["multiple_of"]
    return multiple * ((hidden + multiple - 1) // multiple)


@pytest.mark.parametrize("name", ["run_llama2_7b", "run_llama2_13b", "run_llama2_70b", "run_llama2_tiny"])
def test_metas_formula_gives_our_width(name):
    config = load_config(name).model.config
    assert meta_width(meta_params_dict(config)) == config.ffn_size


@pytest.mark.parametrize("width", [1, 7, 100, 101, 172, 11008, 50000, 50001])
def test_metas_formula_gives_any_width(width):
    config = LlamaConfig(hidden_size=64, num_heads=8, intermediate_size=width)
    assert meta_width(meta_params_dict(config)) == width


def test_rotary_extensions_in_metas_layout():
    fields = {"hidden_size": 64, "num_heads": 8, "seq_length": 4096, "pretrain_seqlen": 2048}
    assert meta_params_dict(LlamaConfig(**fields, extend_method="NTK"))["rope_theta"] == 20000.0
    assert hf_config_dict(LlamaConfig(**fields, extend_method="NTK"))["rope_theta"] == 20000.0
    with pytest.raises(ConfigError, match="PI"):
        meta_params_dict(LlamaConfig(**fields, extend_method="PI"))
