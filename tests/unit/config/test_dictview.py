# SPDX-License-Identifier: Apache-2.0
"""MindFormerConfig: what the YAML says, schema defaults, and errors for names nobody declared."""

import argparse
import copy
import pickle

import pytest

from mindformers.config import ActionDict, LlamaModelConfig, MindFormerConfig, UnknownKeyError, load_config
from mindformers.config.files import configs_dir
from mindformers.errors import ConfigError
from tests.unit.config.helpers import SMALL, write

LORA = str(configs_dir() / "llama2" / "run_llama2_7b_lora_910b.yaml")


def test_model_config_holds_what_the_yaml_says(tmp_path):
    config = MindFormerConfig(str(write(tmp_path, SMALL)))
    expected = {"type": "LlamaConfig", "hidden_size": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
    assert dict(config.model.model_config) == expected
    assert LlamaModelConfig(**config.model.model_config).hidden_size == 64


def test_bases_and_nested_sections():
    config = MindFormerConfig(LORA)
    assert config.use_parallel is True
    assert config.parallel_config.pipeline_stage == config["parallel_config"]["pipeline_stage"] == 2
    assert config.model.model_config.pet_config.lora_rank == 16
    assert config.callbacks[1].prefix == "llama_7b_lora"
    assert LlamaModelConfig(**config.model.model_config).pet_config.lora_rank == 16


def test_absent_keys_have_the_schemas_default():
    config = MindFormerConfig()
    assert config.save_file == "text_generation_result.txt"
    assert config.lr_schedule is None
    assert config.parallel_config.data_parallel == 1
    assert config.metric.type == "PerplexityMetric"
    assert config.callbacks == []
    config.context.device_target = "CPU"
    assert config.to_run_config().context.device_target == "CPU"
    assert dict(**config.parallel_config) == {}


def test_unknown_names_raise():
    config = MindFormerConfig(LORA)
    assert not hasattr(config, "nothing")
    assert not hasattr(config.model, "nothing")
    with pytest.raises(AttributeError, match=r"runner_confg: unknown key. Did you mean 'runner_config'"):
        _ = config.runner_confg
    with pytest.raises(AttributeError, match=r"runner_config.epoch: unknown key. Did you mean 'epochs'"):
        config.runner_config.epoch = 3
    with pytest.raises(ConfigError, match="Did you mean 'prefix'"):
        config.callbacks[1].prefx = "x"
    with pytest.raises(UnknownKeyError):
        config.merge_from_dict({"model.model_config.hidden": 3})
    with pytest.raises(UnknownKeyError):
        config.update(sed=3)
    with pytest.raises(UnknownKeyError):
        config.setdefault("sed", 3)
    with pytest.raises(UnknownKeyError):
        MindFormerConfig(sed=3)
    with pytest.raises(KeyError):
        _ = config["nothing"]
    with pytest.raises(AttributeError):
        del config.nothing


def test_free_sections_take_any_name():
    config = MindFormerConfig()
    config.context.ascend_config = {"precision_mode": "x"}
    assert config.context.ascend_config.precision_mode == "x"
    with pytest.raises(AttributeError, match="not given"):
        _ = config.context.ascend_config.other
    config.optimizer = {"type": "Momentum", "momentum": 0.9}
    assert config.optimizer.momentum == 0.9
    config.optimizer.nesterov = True
    assert config.to_run_config().optimizer.options() == {"momentum": 0.9, "nesterov": True}


def test_merge_copy_and_pickle():
    config = MindFormerConfig(LORA, seed=4)
    config.merge_from_dict({"runner_config.epochs": 9, "context": {"device_id": 3}, "infer.device_id": 1})
    assert (config.seed, config.runner_config.epochs, config.context.device_id) == (4, 9, 3)
    assert config.context.mode == 0
    for other in (copy.deepcopy(config), config.copy(), pickle.loads(pickle.dumps(config))):
        assert other == config
        other.runner_config.epochs = 1
        assert config.runner_config.epochs == 9
        with pytest.raises(AttributeError):
            other.runner_config.epoch = 1
    del config.seed
    assert "seed" not in config
    assert "runner_config" in dir(config)


def test_several_files_replace_top_level_keys(tmp_path):
    one = write(tmp_path, SMALL + "runner_config: {epochs: 2, batch_size: 3}\n", "a.yaml")
    two = write(tmp_path, "runner_config: {epochs: 4}\n", "b.yaml")
    assert MindFormerConfig(str(one), str(two)).runner_config == {"epochs": 4}


def test_problems_of_the_file_and_of_changes(tmp_path):
    with pytest.raises(ConfigError, match="line 11: sed: unknown key"):
        MindFormerConfig(str(write(tmp_path, SMALL + "sed: 1\n")))
    with pytest.raises(ConfigError, match="no such file"):
        MindFormerConfig(str(tmp_path / "nothing.yaml"))
    config = MindFormerConfig(LORA)
    config.runner_config.epochs = "many"
    with pytest.raises(ConfigError, match=r"MindFormerConfig: 1 problem\n.*runner_config.epochs: must be a whole"):
        config.to_run_config()


def test_old_spellings_are_logged(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr("mindformers.config.load.logger.warning", lambda text, *args: lines.append(text % args))
    config = MindFormerConfig(str(write(tmp_path, SMALL + "anto_trans_ckpt: True\nlayer_scale: True\n")))
    assert config.auto_trans_ckpt is True
    assert [line.partition("run.yaml ")[2] for line in lines] == [
        "line 11: anto_trans_ckpt: read as auto_trans_ckpt",
        "line 12: layer_scale: no effect: all layers have one learning rate",
    ]


def test_to_run_config_equals_loading():
    assert MindFormerConfig(LORA).to_run_config() == load_config(LORA)


def test_action_dict():
    parser = argparse.ArgumentParser()
    parser.add_argument("--options", nargs="+", action=ActionDict)
    words = ["a.b=True", "c=[1,2]", "d=x y", "e=1e-3", "f="]
    options = parser.parse_args(["--options", *words]).options
    assert options == {"a.b": True, "c": [1, 2], "d": "x y", "e": 1e-3, "f": None}
    with pytest.raises(ConfigError, match="expected key=value, got 'a'"):
        parser.parse_args(["--options", "a"])
