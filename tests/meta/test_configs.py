# SPDX-License-Identifier: Apache-2.0
"""The shipped configs: valid, complete, round trips, the right values; and the document made from the schema."""

import importlib.util
import re

import pytest

from mindformers.config import MindFormerConfig, load_config, save_config
from mindformers.config.files import configs_dir, shipped_configs
from mindformers.config.tree import keys_of, step, value_at, walk_fields
from mindformers.config.yaml_text import Document
from tests.helpers import REPO

FILES = sorted(configs_dir().rglob("*.yaml"))
OLD_NAMES = {
    *(f"run_llama2_{name}" for name in ("7b", "7b_910b", "7b_910b_finetune", "7b_lora_910b")),
    *(f"run_llama2_{name}" for name in ("13b", "13b_910b", "13b_910b_finetune", "13b_lora_910b")),
    *(f"run_llama2_{name}" for name in ("70b", "70b_910b", "70b_910b_finetune")),
    *("predict_llama2_70b_910b", "export_llama2_7b", "export_llama2_13b"),
}

# name: run_mode, epochs, batch, beta2, lr, lr_end, train columns, eval columns, dp, mp, pp, micro batches, loss scale,
# recompute, select, seq_length
VALUES = {
    "run_llama2_7b": ("train", 2, 2, 0.95, 3e-4, 3e-5, 1, 1, 2, 1, 4, 16, 2**32, True, False, 4096),
    "run_llama2_7b_910b": ("train", 2, 6, 0.95, 5e-5, 0, 1, 1, 8, 1, 1, 4, 65536, True, False, 4096),
    "run_llama2_7b_910b_finetune": ("finetune", 2, 2, 0.999, 1e-6, 0, 2, 1, 2, 1, 4, 64, 65536, True, True, 2048),
    "run_llama2_7b_lora_910b": ("finetune", 2, 2, 0.999, 1e-4, 0, 2, 1, 4, 1, 2, 64, 65536, False, False, 2048),
    "run_llama2_13b": ("train", 2, 1, 0.95, 3e-4, 3e-5, 1, 1, 2, 4, 2, 16, 2**32, True, False, 4096),
    "run_llama2_13b_910b": ("train", 2, 2, 0.95, 1e-4, 1e-5, 1, 1, 8, 1, 1, 16, 2**32, True, False, 4096),
    "run_llama2_13b_910b_finetune": ("finetune", 2, 4, 0.95, 1e-4, 1e-5, 2, 2, 8, 1, 1, 16, 2**32, True, False, 2048),
    "run_llama2_13b_lora_910b": ("finetune", 2, 4, 0.95, 3e-4, 3e-5, 2, 2, 8, 1, 1, 16, 2**32, True, False, 2048),
    "run_llama2_70b": ("train", 2, 1, 0.95, 3e-4, 1.5e-5, 1, 1, 4, 2, 16, 16, 2**32, True, False, 4096),
    "run_llama2_70b_910b": ("train", 3, 1, 0.95, 1e-5, 0, 1, 1, 1, 8, 4, 48, 65536, True, True, 4096),
    "run_llama2_70b_910b_finetune": ("finetune", 2, 1, 0.99, 1e-5, 0, 2, 1, 1, 8, 4, 48, 65536, True, True, 2048),
}


def test_the_old_names_are_there():
    names = set(shipped_configs())
    assert names >= set(OLD_NAMES)
    assert all("_tiny" in name for name in names - set(OLD_NAMES))  # what is new is small enough for any machine


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_valid_without_warning_and_round_trips(path, tmp_path):
    config = load_config(path)
    assert config.warnings == []
    saved = save_config(config, tmp_path / "copy.yaml")
    assert load_config(saved) == config
    assert load_config(saved).to_dict() == config.to_dict()
    assert MindFormerConfig(str(path)).to_run_config() == config


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_yaml_begins_with_its_command(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.name.startswith("_"):
        return
    assert re.match(r"# (cd scripts && bash run_distribute\.sh|python) .*" + re.escape(path.stem), lines[0])
    assert len(lines) <= 80
    config = load_config(path)
    if "run_distribute" in lines[0]:
        ranks = config.parallel_config.ranks
        assert f"[0,{min(ranks, 8)}] {config.run_mode}" in lines[0]
        assert ranks <= 8 or lines[0].endswith(f" {ranks}")
        load_config(path, ranks=ranks)


def test_every_key_of_the_base_has_a_comment():
    names = {"hidden_size", "num_layers", "num_heads", "vocab_size"}
    undocumented = []
    text = (configs_dir() / "llama2" / "_base.yaml").read_text(encoding="utf-8")
    for line in text.splitlines():
        key = re.match(r"([a-z_0-9]+):", line)
        if key and not line.endswith(":") and "#" not in line and key[1] not in names:
            undocumented.append(line)
    assert [line for line in undocumented if not line.startswith("profile_") and "init_start" not in line] == []


@pytest.mark.parametrize("name", sorted(VALUES))
def test_values(name):
    cfg = load_config(name)
    layout, runner, config = cfg.parallel_config, cfg.runner_config, cfg.model.config
    assert VALUES[name] == (
        cfg.run_mode,
        runner.epochs,
        runner.batch_size,
        cfg.optimizer.beta2,
        cfg.lr_schedule.learning_rate,
        cfg.lr_schedule.lr_end,
        len(cfg.train_dataset.input_columns),
        len(cfg.eval_dataset.input_columns),
        layout.data_parallel,
        layout.model_parallel,
        layout.pipeline_stage,
        layout.micro_batch_num,
        cfg.runner_wrapper.scale_sense.loss_scale_value,
        cfg.recompute_config.recompute,
        cfg.recompute_config.select_recompute,
        config.seq_length,
    )
    assert cfg.optimizer.learning_rate == cfg.lr_schedule.learning_rate
    assert (cfg.optimizer.eps, cfg.lr_schedule.warmup_ratio, runner.sink_size) == (1e-8, 0.03, 2)
    assert (runner.sink_mode, cfg.runner_wrapper.use_clip_grad) == (True, True)
    size = re.search(r"_(\d+b)", name)[1]
    assert config.num_parameters == {"7b": 6_738_415_616, "13b": 13_015_864_320, "70b": 68_976_648_192}[size]
    assert config.rms_norm_eps == (1e-6 if name == "run_llama2_70b" else 1e-5)
    assert config.checkpoint_name_or_path == f"llama2_{size}"
    assert cfg.context.max_device_memory == ("58GB" if "910b" in name else "31GB")
    assert cfg.parallel.enable_parallel_optimizer is ("7b_lora" not in name)
    monitor = cfg.callbacks[1]
    assert monitor.save_checkpoint_steps == (1000 if size == "70b" else 100)
    assert monitor.prefix == {"run_llama2_7b_lora_910b": "llama_7b_lora"}.get(name, f"llama_{size}")


def test_lora_predict_export_and_tiny():
    lora = load_config("run_llama2_7b_lora_910b").model.config.pet_config
    assert (lora.lora_rank, lora.lora_alpha, lora.lora_dropout, lora.target_modules) == (
        16, 16, 0.05, ".*wq|.*wk|.*wv|.*wo",
    )  # fmt: skip
    lora = load_config("run_llama2_13b_lora_910b").model.config.pet_config
    assert (lora.lora_rank, lora.target_modules) == (8, ".*wq|.*wv")
    predict = load_config("predict_llama2_70b_910b")
    assert predict.context.ascend_config == {"precision_mode": "must_keep_origin_dtype"}
    assert (predict.model.config.use_past, predict.model.config.use_past_shard) == (True, True)
    assert predict.processor.tokenizer.type == "LlamaTokenizer"
    for size, length, rotary in (("7b", 512, "float16"), ("13b", 4096, "float32")):
        export = load_config(f"export_llama2_{size}")
        assert export.infer.infer_seq_length == export.model.config.seq_length == length
        assert (export.model.config.param_init_type, export.model.config.rotary_dtype) == ("float32", rotary)
        assert export.infer.prefill_model_path == f"llama2_export/llama2_{size}_prefill_seq{length}.mindir"
    tiny = load_config("run_llama2_tiny")
    assert (tiny.context.device_target, tiny.use_parallel, tiny.model.config.pet_config) == ("CPU", False, None)


def test_leaves_repeat_nothing_of_the_base():
    base = Document((configs_dir() / "llama2" / "_base.yaml").read_text(encoding="utf-8"), "base").value
    shown = {("train_dataset", "data_loader", "dataset_dir"), ("eval_dataset", "data_loader", "dataset_dir")}
    keep = {"load_checkpoint", "vocab_file", "input_columns", "checkpoint_name_or_path", "seq_length", "beta2"}
    keep |= {"epochs", "batch_size", "loss_scale_value", "max_device_memory", "model_name", "run_mode"}
    keep |= {"rotary_dtype", "layernorm_compute_type"}  # the types are listed together
    repeated = []
    for path in FILES:
        document = Document(path.read_text(encoding="utf-8"), path.name)
        for key in document.places:
            value = value_at(document.value, key)
            top = str(key[0]) in ("parallel_config", "recompute_config", "callbacks", "parallel", "infer")
            if (
                path.name.startswith("_")
                or isinstance(value, dict | list)
                or isinstance(key[-1], int)
                or key in shown
                or key[-1] in keep
                or top
            ):
                continue
            if value == value_at(base, key) and step(value_at(base, key[:-1]), key[-1]) is not None:
                repeated.append(f"{path.name}: {'.'.join(map(str, key))}")
    assert repeated == [], "\n".join(repeated)


def test_config_document_is_up_to_date():
    spec = importlib.util.spec_from_file_location("gen_config_doc", REPO / "tools" / "gen_config_doc.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = module.render()
    assert (REPO / "docs" / "config.md").read_text(encoding="utf-8") == text, "run: python tools/gen_config_doc.py"
    from mindformers.config import RunConfig

    names = {str(path[-1]) for path, info, _ in walk_fields(RunConfig) if not info.exclude}
    assert not [name for name in names if f"{name}`" not in text]
    assert set(keys_of(RunConfig)) <= names
