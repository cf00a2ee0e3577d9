# SPDX-License-Identifier: Apache-2.0
"""Loading: inheritance, all problems at once with their lines, warnings, and what comes back."""

import pytest

from mindformers.config import files, load_config, save_config
from mindformers.errors import ConfigError
from tests.unit.config.helpers import SMALL, problems, write


def test_defaults_and_types(tmp_path):
    cfg = load_config(write(tmp_path, SMALL))
    assert cfg.model.config.hidden_size == 64
    assert cfg.model.config.num_kv_heads == 4
    assert cfg.optimizer.options() == {"betas": (0.9, 0.999), "learning_rate": 1e-3, "eps": 1e-8, "weight_decay": 0.0}
    assert cfg.runner_config.epochs == 1
    assert cfg.warnings == []


def test_the_message_of_the_style_guide(tmp_path):
    path = write(tmp_path, SMALL + "runner_config:\n  epoch: 2\nuse_parallel: True\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["parallel_config.model_parallel=3"])
    assert str(caught.value).splitlines() == [
        f"{path}: 4 problems",
        "  line 12: runner_config.epoch: unknown key. Did you mean 'epochs'? (keys: epochs, batch_size, "
        "gradient_accumulation_steps, sink_mode, sink_size, initial_epoch)",
        "  override parallel_config.model_parallel=3: 4 attention heads are not divisible by model_parallel 3; "
        "layouts of 3 ranks that work: 3 * 1 * 1",
        "  override parallel_config.model_parallel=3: 4 key/value heads are not divisible by model_parallel 3",
        "  override parallel_config.model_parallel=3: 256 feed-forward columns are not divisible by model_parallel 3",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sed: 1", "line 11: sed: unknown key. Did you mean 'seed'?"),
        ("epochs: 1", "line 11: epochs: unknown key. Did you mean 'runner_config.epochs'?"),
        ("seed: 2.5", "line 11: seed: must be a whole number, got 2.5"),
        ("seed: True", "line 11: seed: must be a number, got True"),
        ("seed: -1", "line 11: seed: must be at least 0, got -1"),
        ("seed: [1]", "line 11: seed: must be a whole number, got [1]"),
        ("use_parallel: maybe", "line 11: use_parallel: must be True or False, got 'maybe'"),
        ("output_dir: 3", "line 11: output_dir: must be text, got 3"),
        ("output_dir: ''", "line 11: output_dir: must not be empty"),
        ("run_mode: tran", "line 11: run_mode: 'tran' is not allowed. Did you mean 'train'?"),
        ("context: 3", "line 11: context: must be a section (a mapping of keys), got 3"),
        ("context: {max_device_memory: 3}", "line 11: context.max_device_memory: must be text, got 3"),
        ("context: {max_device_memory: 3MB}", "line 11: context.max_device_memory: '3MB' does not have the right form"),
        ("context: {mode: 2}", "line 11: context.mode: 2 is not allowed. (allowed: 0, 1, GRAPH_MODE, PYNATIVE_MODE)"),
        ("lr_schedule: {learning_rate: 1}", "line 11: lr_schedule: missing key 'type' (allowed: ConstantWarmUpLR"),
        ("lr_schedule: 5", "line 11: lr_schedule: must be a section with the key 'type'"),
        ("lr_schedule: {type: WarmUpDecayLR}", "line 11: lr_schedule.decay_steps: missing: Optimizer steps"),
        ("lr_schedule: {type: cosin}", "line 11: lr_schedule.type: no lr is called 'cosin'. Did you mean 'cosine'?"),
        ("callbacks: [{type: MFLossMonitor, tensorbord: 1}]", "line 11: callbacks.0.tensorbord: unknown key. Did you"),
        ("callbacks: 3", "line 11: callbacks: must be a list"),
        ("metric: {type: Perplexity}", "line 11: metric.type: no metric is called 'Perplexity'. Did you mean 'Perplex"),
        (
            "runner_wrapper: {type: wrapper, scale_sense: 0}",
            "line 11: runner_wrapper.scale_sense: must be above 0, got 0",
        ),
        (
            "runner_wrapper: {type: wrapper, scale_sense: {scale_facto: 2}}",
            "runner_wrapper.scale_sense.scale_facto: unk",
        ),
        ("runner_config: {sink_size: 0}", "line 11: runner_config.sink_size: must be -1 or above 0, got 0"),
        ("runner_config: {epochs: 2, initial_epoch: 2}", "runner_config.initial_epoch: 2 is not below epochs 2"),
        ("parallel_config: {data_parallel: 0}", "line 11: parallel_config.data_parallel: must be above 0, got 0"),
        ("moe_config: {expert_num: 4}", "line 11: moe_config.expert_num: Llama 2 has no mixture of experts"),
        ("train_dataset: {input_columns: []}", "line 11: train_dataset.input_columns: must not be empty"),
        ("register_path: nothing.py", "line 11: register_path: nothing.py: no such .py file or folder"),
        ("register_path: [null]", "line 11: register_path: must be text or a list (each text) or null, got [None]"),
        ("register_path: 3", "line 11: register_path: must be text or a list (each text) or null, got 3"),
        ("lr_schedule: {type: linear, warmup_steps: 1, warmup_ratio: 0.1}", "warmup_steps and warmup_ratio exclude"),
        ("lr_schedule: {type: linear, learning_rate: 1}", "line 10: optimizer.learning_rate: 0.001 but lr_schedule"),
        ("lr_schedule: {type: cosine, learning_rate: 1e-3, lr_end: 1}", "lr_schedule.lr_end: 1.0 is above the highest"),
        ("run_mode: finetune", "load_checkpoint: run_mode finetune needs weights to start from"),
        ("base_config: nothing.yaml", "line 11: base_config: "),
        ("base_config: 3", "line 11: base_config: must be a file name, got 3"),
    ],
)
def test_each_kind_of_problem(tmp_path, text, expected):
    found = problems(write(tmp_path, SMALL + text + "\n"))
    assert len(found) == 1
    assert expected in found[0]


def small_model(**changes):
    return ["model.model_config." + f"{key}={value}" for key, value in changes.items()]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (small_model(num_heads=5), "hidden_size: 64 is not divisible by num_heads 5"),
        (small_model(num_heads=64), "heads of odd size 1"),
        (small_model(n_kv_heads=3), "num_heads 4 is not divisible by n_kv_heads 3"),
        (small_model(eos_token_id="[2,100]"), "100 is not below vocab_size 100"),
        (small_model(eos_token_id="[]"), "the list is empty"),
        (small_model(eos_token_id="[1,x]"), "must be a whole number or a list"),
        (small_model(seq_length=0), "must be above 0, got 0"),
        (small_model(max_position_embedding=3), "3 is below seq_length 2048"),
        (small_model(compute_dtype="flot16"), "Did you mean 'float16'?"),
        ([*small_model(compute_dtype="bfloat16"), "context.device_target=CPU"], "no bfloat16 kernels on CPU"),
        ([*small_model(param_init_type="bfloat16"), "context.device_target=CPU"], "no bfloat16 kernels on CPU"),
        (small_model(extend_method="YARN"), "(allowed: None, PI, NTK)"),
        (["model.model_config.pet_config={target_modules: '*wq'}"], "not a regular expression"),
        (["use_parallel=True", "parallel_config.pipeline_stage=2"], "micro_batch_num: 1 is below pipeline_stage 2"),
        (
            ["use_parallel=True", "parallel_config.pipeline_stage=3", "parallel_config.micro_batch_num=3"],
            "3 stages for num_layers 2",
        ),
        (
            ["use_parallel=True", "parallel_config.model_parallel=2", "parallel_config.vocab_emb_dp=False"]
            + small_model(vocab_size=101),
            "vocab_size 101 is not divisible by model_parallel 2",
        ),
        (
            ["use_parallel=True", "run_mode=predict", "parallel_config.data_parallel=2"],
            "run_mode predict on several ranks needs 1, got 2",
        ),
        (["run_mode=export", "infer.prefill_model_path=p"], "512 is not the model's seq_length 2048"),
        (["run_mode=eval", "metric.type=EmF1Metric"], "EmF1Metric needs [input_ids, labels], got ['input_ids']"),
        (["use_parallel=True", "parallel.device_num=3"], "= 1, but parallel.device_num is 3"),
        (["use_parallel=True", "parallel.pipeline_stages=2"], "does not agree with parallel_config.pipeline_stage 1"),
        (["use_parallel=True", "model.model_config.offset=[0,0]"], "has 2 entries for pipeline_stage 1"),
        (["runner_wrapper.scale_sense={loss_scale_value: 0.5}"], "must be at least 1, got 0.5"),
        (["optimizer.betas=[0.9,0.99]", "optimizer.beta1=0.8", "optimizer.beta2=1.5"], "must be below 1, got 1.5"),
    ],
)
def test_rules_between_keys(tmp_path, overrides, expected):
    found = problems(write(tmp_path, SMALL), overrides)
    assert len(found) == 1
    assert expected in found[0]


def test_ranks_must_all_be_used(tmp_path):
    path = write(tmp_path, SMALL + "use_parallel: True\nparallel_config: {data_parallel: 4}\n")
    load_config(path, ranks=4)
    found = problems(path, ranks=8)
    assert "4 * 1 * 1 = 4, but the number of processes (RANK_SIZE) is 8" in found[0]
    load_config(path, ["use_parallel=False"], ranks=8)
    load_config(path, ["parallel.parallel_mode=0"], ranks=8)


@pytest.mark.parametrize(
    ("given", "layout"),
    [
        ([], (4, 1, 1)),
        (["parallel_config.model_parallel=2"], (2, 2, 1)),
        (["run_mode=predict", "load_checkpoint=x"], (1, 4, 1)),
    ],
)
def test_ranks_left_over_are_used_and_said(tmp_path, given, layout):
    cfg = load_config(write(tmp_path, SMALL + "use_parallel: True\n"), given, ranks=4)
    found = cfg.parallel_config
    assert (found.data_parallel, found.model_parallel, found.pipeline_stage) == layout
    assert any("instead of 1, to use all 4 ranks" in warning for warning in cfg.warnings)
    assert not load_config(write(tmp_path, SMALL + "use_parallel: True\n"), ranks=1).warnings


def test_a_cache_is_not_split(tmp_path):
    given = ["run_mode=predict", "load_checkpoint=x", "model.model_config.use_past=True"]
    path = write(tmp_path, SMALL + "use_parallel: True\n")
    cfg = load_config(path, given, ranks=2)
    assert not cfg.model.config.use_past
    assert any("use_past: False instead of True" in warning for warning in cfg.warnings)
    assert load_config(path, given).model.config.use_past  # as it is written, when nothing is to run
    assert load_config(path, [*given, "use_parallel=False"], ranks=1).model.config.use_past
    given = ["run_mode=eval", "model.model_config.do_sample=False", *given[1:]]
    assert load_config(path, given, ranks=2).model.config.use_past
    answers = ["metric.type=EmF1Metric", "eval_dataset.input_columns=[input_ids, labels]"]
    assert not load_config(path, [*given, *answers], ranks=2).model.config.use_past


def test_ranks_that_do_not_divide_are_a_problem(tmp_path):
    path = write(tmp_path, SMALL + "use_parallel: True\nparallel_config: {model_parallel: 2}\n")
    assert "1 * 2 * 1 = 2, but the number of processes (RANK_SIZE) is 3" in problems(path, ranks=3)[0]


def test_a_wrong_value_does_not_hide_the_other_rules(tmp_path):
    path = write(tmp_path, SMALL + "seed: x\noptimizr: 3\n")
    found = problems(path, ["model.model_config.num_heads=5"])
    assert len(found) == 3
    assert "hidden_size: 64 is not divisible" in found[2]


def test_a_rule_about_a_wrong_value_is_not_reported_twice(tmp_path):
    assert len(problems(write(tmp_path, SMALL), ["model.model_config.num_heads=zero"])) == 1


def test_base_files(tmp_path):
    write(tmp_path, SMALL + "context: {mode: 1, device_id: 3}\ncallbacks: [{type: MFLossMonitor}]\n", "a.yaml")
    write(tmp_path, "seed: 7\ncontext: {device_id: 4}\n", "b.yaml")
    cfg = load_config(write(tmp_path, "base_config: [a.yaml, b.yaml]\ncallbacks: []\n"))
    assert (cfg.seed, cfg.context.mode, cfg.context.device_id, cfg.callbacks) == (7, 1, 4, [])


def test_problem_in_a_base_names_that_file(tmp_path):
    base = write(tmp_path, SMALL + "\nsede: 1\n", "a.yaml")
    found = problems(write(tmp_path, "base_config: a.yaml\nseed: x\n"))
    assert found[0].startswith("line 2: seed:")
    assert found[1].startswith(f"{base} line 12: sede: unknown key")


def test_cycle_of_bases(tmp_path):
    write(tmp_path, "base_config: run.yaml\n", "a.yaml")
    assert "run.yaml -> a.yaml -> run.yaml" in problems(write(tmp_path, SMALL + "base_config: a.yaml\n"))[0]


def test_missing_base_suggests(tmp_path):
    write(tmp_path, SMALL, "base_llama.yaml")
    assert "base_llama.yaml'" in problems(write(tmp_path, "base_config: base_lama.yaml\n"))[0]


def test_another_type_keeps_what_it_understands(tmp_path):
    write(
        tmp_path,
        SMALL + "lr_schedule: {type: cosine, learning_rate: 1e-3, num_cycles: 1, warmup_ratio: 0.1}\n",
        "a.yaml",
    )
    cfg = load_config(
        write(
            tmp_path, "base_config: a.yaml\nlr_schedule: {type: linear, warmup_steps: 5}\noptimizer: {type: Momentum}\n"
        ),
        ["optimizer.momentum=0.9"],
    )
    assert cfg.lr_schedule.options() == {
        "learning_rate": 1e-3, "warmup_steps": 5, "warmup_lr_init": 0.0, "total_steps": -1,
    }  # fmt: skip
    assert cfg.optimizer.options() == {"learning_rate": 1e-3, "momentum": 0.9}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "line 1: the file is empty"),
        ("# x\n", "line 1: the file is empty"),
        ("- 1\n", "must hold keys"),
        ("3", "one int"),
    ],
)
def test_files_without_keys(tmp_path, content, expected):
    assert expected in problems(write(tmp_path, content))[0]


def test_missing_file_and_folder(tmp_path):
    write(tmp_path, SMALL, "llama.yaml")
    with pytest.raises(ConfigError, match=r"llamma.yaml: no such file. Did you mean .*llama.yaml'\? .* mindformers ls"):
        load_config(tmp_path / "llamma.yaml")
    with pytest.raises(ConfigError, match=r"a folder, not a YAML file \(it holds: llama.yaml\)"):
        load_config(tmp_path)


def test_old_spellings(tmp_path):
    text = SMALL + (
        "anto_trans_ckpt: True\n"
        "processor: {type: LlamaProcessor, tokenizer: {type: LLaMATokenizer}}\n"
        "train_dataset: &t {data_loader: {type: MindDataset, dataset_dir: x}}\n"
        "train_dataset_task: {type: CausalLanguageModelDataset, dataset_config: *t}\n"
        "callbacks: [{type: CheckpointMointor, prefix: p}]\n"
    )
    path = write(tmp_path, text.replace("type: LlamaConfig", "type: LlamaConfig\n    theta: 5000"))
    cfg = load_config(path, ["train_dataset.data_loader.dataset_dir=y"])
    assert cfg.auto_trans_ckpt is True
    assert cfg.processor.tokenizer.type == "LlamaTokenizer"
    assert cfg.model.config.rope_theta == 5000
    assert cfg.train_dataset.data_loader.dataset_dir == "y"
    assert cfg.train_dataset_task.dataset_config is None
    assert [warning.partition(": ")[2] for warning in cfg.warnings] == [
        "anto_trans_ckpt: read as auto_trans_ckpt",
        "processor.tokenizer.type: LLaMATokenizer is read as LlamaTokenizer",
    ]
    found = problems(write(tmp_path, path.read_text() + "auto_trans_ckpt: False\n"))
    assert "an old spelling of auto_trans_ckpt" in found[0]


def test_a_task_with_its_own_data_is_refused(tmp_path):
    text = SMALL + "train_dataset: {repeat: 2}\ntrain_dataset_task: {type: X, dataset_config: {repeat: 3}}\n"
    assert "differs from train_dataset" in problems(write(tmp_path, text))[0]
    alone = SMALL + "train_dataset_task: {type: X, dataset_config: {repeat: 3}}\n"
    assert load_config(write(tmp_path, alone)).train_dataset.repeat == 3


def test_options_without_effect_warn_once(tmp_path):
    text = SMALL + "layer_decay: 0.5\nlr_scale_factor: 256\nparallel_config: {data_parallel: 8}\n"
    path = write(tmp_path, text)
    assert load_config(path).warnings == [
        f"{path} line 11: layer_decay: no effect: all layers have one learning rate",
        f"{path} line 13: parallel_config: no effect: use_parallel is False",
    ]
    assert len(load_config(path, ["use_parallel=True"]).warnings) == 1


def test_launch_checks(tmp_path):
    path = write(tmp_path, SMALL)
    assert "no data given: --train_dataset_dir FILE" in problems(path, launch=True)[0]
    assert "--eval_dataset_dir" in problems(path, ["run_mode=eval"], launch=True)[0]
    assert "--predict_data" in problems(path, ["run_mode=predict"], launch=True)[0]
    export = ["run_mode=export", "infer.infer_seq_length=2048", "infer.prefill_model_path=p"]
    assert "tools/export.py" in problems(path, export, launch=True)[0]
    data = tmp_path / "train.mindrecord"
    data.write_bytes(b"")
    good = [f"train_dataset.data_loader.dataset_dir={data}"]
    load_config(path, good, launch=True)
    wrong = problems(path, [f"train_dataset.data_loader.dataset_dir={tmp_path}/train.mindrecor"], launch=True)
    assert "no such file" in wrong[0]
    assert "Did you mean" in wrong[0]
    assert "no such file" in problems(path, [*good, f"load_checkpoint={tmp_path}/x.ckpt"], launch=True)[0]
    load_config(path, [*good, "load_checkpoint=llama2_7b"], launch=True)
    no_rate = SMALL.replace("  learning_rate: 1e-3\n", "")
    assert "needs a learning rate" in problems(write(tmp_path, no_rate), good, launch=True)[0]


def test_saved_config_loads_back_equal(tmp_path):
    text = SMALL + "input_data: [\"a\\nb\", 'null', '3', 'yes', \"it's\", ' x ', 'a\\nb\\n', '']\noutput_dir: '1e5'\n"
    cfg = load_config(write(tmp_path, text))
    again = load_config(save_config(cfg, tmp_path / "new" / "resolved.yaml"))
    assert again == cfg
    assert again.input_data == cfg.input_data
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["resolved.yaml"]
    again.seed = 5
    assert again != cfg


def test_saving_where_nothing_can_be_written(tmp_path):
    cfg = load_config(write(tmp_path, SMALL))
    with pytest.raises(ConfigError, match=r"cannot be written"):
        save_config(cfg, write(tmp_path, "", "file") / "x.yaml")


def test_configs_inside_an_installed_package(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "mindformers"
    (package / "_configs" / "llama2").mkdir(parents=True)
    file = write(package / "_configs" / "llama2", SMALL, "run_x.yaml")
    monkeypatch.setattr(files, "_PACKAGE", package)
    assert files.shipped_configs() == {"run_x": file}
    assert files.find_config("run_x") == files.find_config("configs/llama2/run_x.yaml") == file
    monkeypatch.setattr(files, "_PACKAGE", tmp_path)
    with pytest.raises(ConfigError, match="no shipped configs found"):
        files.configs_dir()
