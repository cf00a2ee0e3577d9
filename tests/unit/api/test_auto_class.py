# SPDX-License-Identifier: Apache-2.0
"""The Auto classes: every source they take, saving and loading elsewhere, and what they say about wrong ones."""

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import mindformers
from mindformers import (
    AutoConfig,
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaProcessor,
    MindFormerConfig,
    MindFormerRegister,
    load_config,
)
from mindformers.errors import CheckpointError, ConfigError, DataError, MindFormersError
from mindformers.models.llama import convert_weight
from mindformers.registry import MindFormerModuleType
from tests.helpers import REPO
from tests.unit.api.conftest import SEQ, tiny


def same_weights(one: Any, other: Any) -> None:
    theirs = {p.name: p.asnumpy() for p in other.get_parameters()}
    ours = {p.name: p.asnumpy() for p in one.get_parameters()}
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


@pytest.mark.parametrize("source", ["model_dir", "hf_dir"])
def test_a_directory_gives_config_model_and_tokenizer(source: str, model: Any, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(source)
    config = AutoConfig.from_pretrained(folder)
    assert (config.hidden_size, config.num_kv_heads, config.ffn_size) == (32, 2, model.config.ffn_size)
    loaded = AutoModel.from_pretrained(str(folder))
    assert isinstance(loaded, LlamaForCausalLM)
    same_weights(loaded, model)
    assert AutoTokenizer.from_pretrained(folder)("the fox")["input_ids"][0] == 1
    same_weights(AutoModel.from_config(config), model)  # the config leads to the weights


def test_saved_directory_loads_after_it_moved(model_dir: Path, model: Any, tmp_path: Path) -> None:
    moved = tmp_path / "el sewhere \u00e9"
    shutil.copytree(model_dir, moved)
    same_weights(AutoModel.from_pretrained(moved), model)
    assert "/" not in str(yaml.safe_load((moved / "mindspore_model.yaml").read_text(encoding="utf-8"))["model"])


def test_what_save_pretrained_writes(model: Any, tmp_path: Path) -> None:
    loaded = LlamaForCausalLM.from_pretrained
    paths = model.save_pretrained(tmp_path / "st", "mine", checkpoint_format="safetensors")
    assert sorted(Path(path).name for path in paths) == ["mine.safetensors", "mine.yaml"]
    same_weights(loaded(tmp_path / "st"), model)
    same_weights(loaded(paths[0], checkpoint_name_or_path=paths[1]), model)
    written = load_config(paths[0])  # the YAML is a whole one: a run takes it as it is
    assert written.model.config.to_dict() == {**model.config.to_dict(), "checkpoint_name_or_path": ""}
    with pytest.raises(CheckpointError, match="pickle"):
        model.save_pretrained(tmp_path / "no", checkpoint_format="pickle")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="file"):
        model.save_pretrained(tmp_path / "file")


def test_config_and_processor_round_trip(tokenizer: Any, tmp_path: Path) -> None:
    config = tiny(rope_theta=12345.0, eos_token_id=[2, 3])
    file = config.save_pretrained(tmp_path / "c")
    again = AutoConfig.from_pretrained(tmp_path / "c")
    assert again.to_dict() == config.to_dict()
    assert LlamaConfig.from_pretrained(file).to_dict() == config.to_dict()
    processor = LlamaProcessor(tokenizer, max_length=9, padding="max_length", return_tensors="np")
    processor.save_pretrained(tmp_path / "c")  # joins the YAML that is there
    loaded = AutoProcessor.from_pretrained(tmp_path / "c")
    assert (loaded.max_length, loaded.return_tensors) == (9, "np")
    np.testing.assert_array_equal(loaded("a lazy dog")["text"], processor("a lazy dog")["text"])
    assert AutoConfig.from_pretrained(tmp_path / "c").to_dict() == config.to_dict()
    assert AutoProcessor.from_pretrained(tmp_path / "c", max_length=4).max_length == 4


@pytest.mark.parametrize("name", ["llama2_7b", "llama2_13b", "llama2_70b", "llama2_tiny"])
def test_registered_names_have_their_shipped_config(name: str) -> None:
    config = AutoConfig.from_pretrained(name)
    shipped = load_config(f"run_{name}").model.config
    assert config.to_dict() == shipped.to_dict()
    assert AutoConfig.from_pretrained(f"mindspore/{name}").hidden_size == config.hidden_size


def test_config_stays_mutable_and_is_checked() -> None:
    config = AutoConfig.from_pretrained("llama2_7b", seq_length=128)
    config.use_past = True
    assert (config.use_past, config.seq_length) == (True, 128)
    with pytest.raises(ConfigError, match="Did you mean 'use_past'"):
        config.use_pasts = True
    with pytest.raises(ConfigError, match="Did you mean 'seq_length'"):
        AutoConfig.from_pretrained("llama2_7b", seqlength=128)
    with pytest.raises(ConfigError, match="seq_length"):
        AutoConfig.from_pretrained("llama2_7b", seq_length=-1)


def test_from_config_goes_by_type_not_identity(model: Any, model_dir: Path) -> None:
    config = AutoConfig.from_pretrained(model_dir)
    same_weights(AutoModel.from_config(copy.deepcopy(config)), model)
    same_weights(AutoModel.from_config(LlamaConfig(**config.model_dump())), model)
    by_yaml = MindFormerConfig(str(model_dir / "mindspore_model.yaml"))
    assert isinstance(AutoModel.from_config(by_yaml), LlamaForCausalLM)
    changed = AutoModel.from_config(config, seq_length=16)
    assert (changed.config.seq_length, config.seq_length) == (16, SEQ)  # a copy was changed
    with pytest.raises(ConfigError, match="LlamaConfig"):
        AutoModel.from_config({"hidden_size": 32})


def test_user_registered_architecture(model_dir: Path, tmp_path: Path) -> None:
    @MindFormerRegister.register(MindFormerModuleType.MODELS)
    class LlamaOfATest(LlamaForCausalLM):
        """Another class of model."""

    try:
        document = yaml.safe_load((model_dir / "mindspore_model.yaml").read_text(encoding="utf-8"))
        document["model"]["arch"]["type"] = "LlamaOfATest"
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
        config = AutoConfig.from_pretrained(tmp_path / "own.yaml")
        assert type(AutoModel.from_config(copy.deepcopy(config))) is LlamaOfATest
        config.save_pretrained(tmp_path / "saved")
        assert AutoConfig.from_pretrained(tmp_path / "saved").architecture == "LlamaOfATest"
        with pytest.raises(ConfigError, match="not a LlamaOfATest"):
            LlamaOfATest.from_pretrained(model_dir)
    finally:
        MindFormerRegister.registry["models"].pop("LlamaOfATest")


def test_random_weights_only_when_asked(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "bare")
    with pytest.raises(CheckpointError, match=r"put mindspore_model\.ckpt"):
        AutoModel.from_pretrained(tmp_path / "bare")
    with caplog.at_level("INFO", logger="mindformers"):
        first = AutoModel.from_config(tmp_path / "bare")
    assert "random" in caplog.text
    assert first.lm_head.weight.asnumpy().std() > 0
    assert AutoModel.from_pretrained(tmp_path / "bare", download_checkpoint=False).lm_head.weight.asnumpy().std() > 0


@pytest.mark.parametrize(
    ("name", "words"),
    [("llama2_tiny", "quickstart"), ("llama2_7b", "llama2_7b.ckpt"), ("llama2_70b", "llama2_70b")],
)
def test_names_without_weights_say_what_to_put_where(name: str, words: str) -> None:
    with pytest.raises(MindFormersError, match=words):
        AutoModel.from_pretrained(name)


def test_vocabulary_of_a_name_is_missing() -> None:
    with pytest.raises(MindFormersError, match=r"tokenizer\.model"):
        AutoTokenizer.from_pretrained("llama2_7b")


def test_wrong_sources(tmp_path: Path, model_dir: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'llama2_7b'"):
        AutoModel.from_pretrained("llama27b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no model"):
        AutoConfig.from_pretrained(tmp_path / "empty")
    with pytest.raises(ConfigError, match="checkpoint_name_or_path"):
        AutoConfig.from_pretrained(model_dir / "mindspore_model.ckpt")
    for rubbish in (None, "", 3, b"llama2_7b"):
        with pytest.raises(ConfigError, match="not a model"):
            AutoConfig.from_pretrained(rubbish)
    with pytest.raises(ConfigError, match="once"):
        AutoConfig.from_pretrained("llama2_7b", pretrained_model_name_or_path="llama2_7b")
    assert AutoConfig.from_pretrained(pretrained_model_name_or_path="llama2_7b").hidden_size == 4096
    two = tmp_path / "two"
    shutil.copytree(model_dir, two)
    shutil.copy(two / "mindspore_model.yaml", two / "other.yaml")
    with pytest.raises(ConfigError, match=r"mindspore_model\.yaml, other\.yaml"):
        AutoModel.from_pretrained(two)
    shutil.copytree(model_dir, tmp_path / "v")
    (tmp_path / "v" / "tokenizer.model").unlink()
    with pytest.raises((ConfigError, DataError), match=r"tokenizer\.model"):
        AutoTokenizer.from_pretrained(tmp_path / "v")


def test_foreign_weights_in_bfloat16_run_in_float32_on_cpu(hf_dir: Path, tmp_path: Path) -> None:
    """Most Llama folders are bf16, which the CPU cannot compute; their values fit into float32 exactly."""
    folder = tmp_path / "bf16"
    convert_weight.main(["--torch_ckpt_dir", str(hf_dir), "--to_hf", str(folder), "--dtype", "bfloat16"])
    model = AutoModel.from_pretrained(folder)
    assert (model.config.compute_dtype, model.config.param_init_type) == ("float32", "float32")
    want = AutoModel.from_pretrained(hf_dir)
    for got, full in zip(model.get_parameters(), want.get_parameters(), strict=True):
        bits = got.asnumpy().view(np.uint32)
        assert got.dtype == full.dtype
        assert not (bits & 0xFFFF).any()  # a bf16 value, widened
        np.testing.assert_allclose(got.asnumpy(), full.asnumpy(), rtol=2**-8)
    with pytest.raises(MindFormersError, match="bfloat16"):  # who asks for it by name is told
        AutoModel.from_pretrained(folder, compute_dtype="bfloat16")


def test_damaged_and_foreign_weights_are_refused(model_dir: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model_dir, broken)
    content = (broken / "mindspore_model.ckpt").read_bytes()
    (broken / "mindspore_model.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"mindspore_model\.ckpt"):
        AutoModel.from_pretrained(broken)
    with pytest.raises(CheckpointError, match="shapes differ"):
        AutoModel.from_pretrained(model_dir, hidden_size=64)


def test_a_yaml_of_a_run_names_its_weights(model_dir: Path, model: Any, tmp_path: Path) -> None:
    text = yaml.safe_dump(
        {
            "base_config": str(REPO / "configs/llama2/run_llama2_tiny.yaml"),
            "load_checkpoint": str(model_dir / "mindspore_model.ckpt"),
            "model": {"model_config": model.config.to_dict()},
            "processor": {"tokenizer": {"vocab_file": str(model_dir / "tokenizer.model")}},
        }
    )
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    same_weights(AutoModel.from_pretrained(tmp_path / "run.yaml"), model)
    assert AutoTokenizer.from_pretrained(tmp_path / "run.yaml").vocab_size == 400


def test_they_are_not_made_themselves() -> None:
    for cls in (AutoConfig, AutoModel, AutoTokenizer, AutoProcessor):
        with pytest.raises(OSError, match="from_pretrained"):
            cls()
        assert "llama2_7b" in cls.get_support_list()["llama2"]


def test_builders_of_sections(tokenizer: Any, tiny_model_file: Path) -> None:
    config = mindformers.build_model_config({"type": "LlamaConfig", "hidden_size": 64})
    assert isinstance(config, LlamaConfig)
    section = {"type": "LlamaTokenizer", "vocab_file": str(tiny_model_file)}
    assert mindformers.build_tokenizer(section).vocab_size == tokenizer.vocab_size
    processor = mindformers.build_processor({"type": "LlamaProcessor", "max_length": 5, "tokenizer": section})
    assert processor.max_length == 5
    network = mindformers.build_model({"arch": {"type": "LlamaForCausalLM"}, "model_config": tiny().to_dict()})
    assert isinstance(network, LlamaForCausalLM)
