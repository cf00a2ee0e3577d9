# SPDX-License-Identifier: Apache-2.0
"""Section objects used from Python: construction, assignment, derived sizes, options()."""

import copy
import pickle

import pytest

from mindformers.config import LlamaModelConfig, MoEConfig, RunConfig, TransformerOpParallelConfig, load_config
from mindformers.config.schema.context import ContextSection
from mindformers.config.schema.parallel import ParallelSection
from mindformers.config.schema.train import AdamW, CosineWithWarmUpLR
from mindformers.config.tree import walk_fields
from mindformers.core.context_config import CONTEXT_KEYS, PARALLEL_KEYS
from mindformers.errors import ConfigError


def test_every_field_has_a_description():
    bare = [".".join(map(str, path)) for path, info, _ in walk_fields(RunConfig) if not info.description]
    assert not bare
    long = [path for path, info, _ in walk_fields(RunConfig) if "\n" in info.description]
    assert not long


def test_every_key_of_the_old_tree_is_known():
    keys = {".".join(map(str, path)) for path, _, _ in walk_fields(RunConfig)}
    old = """seed output_dir load_checkpoint src_strategy_path_or_dir auto_trans_ckpt only_save_strategy resume_training
    run_mode trainer.type trainer.model_name runner_config.epochs runner_config.sink_size optimizer.beta1 optimizer.eps
    lr_schedule.lr_end lr_schedule.warmup_ratio lr_schedule.total_steps train_dataset.data_loader.shuffle
    train_dataset.python_multiprocessing train_dataset.numa_enable train_dataset_task.dataset_config do_eval
    eval_step_interval eval_epoch_interval parallel.parallel_mode parallel.enable_alltoall parallel.full_batch
    parallel.strategy_ckpt_config.only_trainable_params parallel.parallel_optimizer_config.parallel_optimizer_threshold
    parallel_config.gradient_aggregation_group micro_batch_interleave_num recompute_config.recompute_slice_activation
    callbacks.integrated_save context.graph_kernel_flags context.ascend_config model.model_config.compute_in_2d
    model.arch.type processor.return_tensors processor.tokenizer.vocab_file metric.type runner_wrapper.use_clip_grad
    runner_wrapper.scale_sense.scale_window eval_callbacks auto_tune filepath_prefix autotune_per_step profile
    profile_start_step profile_stop_step init_start_profile profile_communication profile_memory layer_scale layer_decay
    lr_scale_factor remote_save_url infer.prefill_model_path infer.increment_model_path infer.infer_seq_length
    infer.model_type model.model_config.use_past_shard model.model_config.offset moe_config.expert_num"""
    assert set(old.split()) <= keys


def test_the_context_keys_are_those_that_are_applied():
    assert set(ContextSection.model_fields) == set(CONTEXT_KEYS)
    assert set(ParallelSection.model_fields) == set(PARALLEL_KEYS)


def test_construction_and_assignment_are_checked():
    config = LlamaModelConfig(hidden_size=64, num_heads=4, theta=5e5, extend_method=None)
    assert (config.rope_theta, config.extend_method) == (5e5, "None")
    config.num_heads = 5  # fits only after the next line: keys are checked together by check()
    config.hidden_size = 60
    config.check()
    with pytest.raises(ConfigError, match=r"(?s)2 problems.*hidden_size: must be a number.*Did you mean 'num_heads'"):
        LlamaModelConfig(num_head=3, hidden_size=True)
    with pytest.raises(ConfigError, match=r"hidden_size: 100 is not divisible by num_heads 32"):
        LlamaModelConfig(hidden_size=100)
    with pytest.raises(ConfigError, match=r"seq_length: must be a whole number, got 'x'"):
        config.seq_length = "x"
    with pytest.raises(ConfigError, match=r"unknown key 'seq_len'. Did you mean 'seq_length'"):
        config.seq_len = 3
    assert config.seq_length == 2048
    with pytest.raises(ConfigError, match=r"must be above 0"):
        TransformerOpParallelConfig(data_parallel=0)
    with pytest.raises(ConfigError, match=r"no mixture of experts"):
        MoEConfig(expert_num=2)


def test_type_objects_are_taken_by_name():
    class Float16:
        def __str__(self):
            return "Float16"

    assert LlamaModelConfig(compute_dtype=Float16()).compute_dtype == "float16"


def test_parallel_config_of_scripts():
    config = LlamaModelConfig()
    config.parallel_config = TransformerOpParallelConfig(data_parallel=2, model_parallel=4)
    assert config.parallel_config.ranks == 8
    assert "parallel_config" not in config.to_dict()
    assert LlamaModelConfig().parallel_config.ranks == 1


@pytest.mark.parametrize(
    ("fields", "ffn", "parameters"),
    [
        ({}, 11008, 6_738_415_616),
        ({"hidden_size": 5120, "num_layers": 40, "num_heads": 40}, 13824, 13_015_864_320),
        (
            {"hidden_size": 8192, "num_layers": 80, "num_heads": 64, "n_kv_heads": 8, "ffn_dim_multiplier": 1.3},
            28672,
            68_976_648_192,
        ),
        ({"intermediate_size": 100}, 100, None),
    ],
)
def test_derived_sizes(fields, ffn, parameters):
    config = LlamaModelConfig(**fields)
    assert config.ffn_size == ffn
    assert parameters is None or config.num_parameters == parameters


def test_tied_embeddings_count_once():
    config = LlamaModelConfig(hidden_size=64, num_heads=4, vocab_size=100, num_layers=1)
    untied = config.num_parameters
    config.tie_word_embeddings = True
    assert untied - config.num_parameters == 6400


def test_options():
    assert AdamW(beta2=0.95, learning_rate=1).options()["betas"] == (0.9, 0.95)
    assert AdamW(betas=(0.8, 0.9)).options() == {"betas": (0.8, 0.9), "eps": 1e-8, "weight_decay": 0.0}
    with pytest.raises(ConfigError, match=r"not both"):
        AdamW(betas=(0.8, 0.9), beta1=0.8)
    schedule = CosineWithWarmUpLR(type="cosine", warmup_steps=3)
    assert "type" not in schedule.options()
    assert "learning_rate" not in schedule.options()


def test_copies_are_independent():
    cfg = load_config("run_llama2_tiny")
    for other in (copy.deepcopy(cfg), cfg.model_copy(deep=True), pickle.loads(pickle.dumps(cfg))):
        assert other == cfg
        other.model.config.seq_length = 7
        assert cfg.model.config.seq_length == 128
        assert other != cfg
    assert cfg != 3


def test_run_config_in_python():
    cfg = RunConfig(seed=3, model={"model_config": {"hidden_size": 64, "num_heads": 4}})
    assert cfg.model.config.hidden_size == 64
    cfg.optimizer = AdamW(learning_rate=1)
    assert cfg.to_dict()["optimizer"]["type"] == "AdamW"
    with pytest.raises(ConfigError, match=r"model.model_config.hidden_siz: unknown key"):
        RunConfig(model={"model_config": {"hidden_siz": 64}})
    with pytest.raises(ConfigError, match=r"must be a section"):
        cfg.runner_config = 3
    with pytest.raises(ConfigError, match=r"unknown key 'sed'"):
        cfg.sed = 3


def test_columns_of_llama_come_in_one_order() -> None:
    for columns in (["input_ids"], ["input_ids", "labels"], ["input_ids", "labels", "segment_ids"]):
        cfg = load_config("run_llama2_tiny", [("train_dataset.input_columns", str(columns))])
        assert cfg.train_dataset.input_columns == columns
    for columns in ("[labels]", "[input_ids,segment_ids]", "[input_ids,labels,segment_ids,more]"):
        with pytest.raises(ConfigError, match=r"is not one of: \[input_ids\], \[input_ids, labels\]"):
            load_config("run_llama2_tiny", [("train_dataset.input_columns", columns)])
