# SPDX-License-Identifier: Apache-2.0
"""The command line: flags, their precedence, free keys, typing by the schema, errors."""

import resource
import subprocess
import sys

import pytest

from mindformers.config.cli import FLAGS, build_parser, parse_command_line, read_flags
from mindformers.config.problems import Problem
from mindformers.config.schema.run import RunConfig
from mindformers.config.tree import find_spot
from mindformers.errors import ConfigError
from tests.helpers import REPO
from tests.unit.config.helpers import SMALL, write

TINY = "configs/llama2/run_llama2_tiny.yaml"


@pytest.fixture
def command(tmp_path):
    """Parse a command line over the small file with data that exists; returns the config."""
    data = tmp_path / "d.mindrecord"
    data.write_bytes(b"")
    text = SMALL + (
        f"train_dataset: {{data_loader: {{type: MindDataset, dataset_dir: {data}}}}}\n"
        "callbacks: [{type: MFLossMonitor}, {type: CheckpointMonitor, prefix: p}]\n"
        "lr_schedule: {type: cosine, learning_rate: 1e-3, warmup_ratio: 0.1}\n"
    )
    path = str(write(tmp_path, text))
    return lambda *words, ranks=None: parse_command_line(["--config", path, *words], ranks)


def lines_of(command, *words) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        command(*words)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_every_flag_sets_a_key_of_the_schema(flag):
    assert all(find_spot(RunConfig, tuple(key.split(".")), {}).known for key in flag.keys)


def test_flags(command, tmp_path):
    cfg = command(
        *("--mode", "1", "--device_id", "2", "--device_target", "CPU", "--do_eval", "false", "--seed", "5"),
        *("--use_parallel", "False", "--profile", "True", "--resume_training", "true", "--auto_trans_ckpt", "False"),
        *("--only_save_strategy", "False", "--load_checkpoint", "llama2_7b", "--epochs", "3", "--batch_size", "4"),
        *("--sink_mode", "False", "--num_samples", "9", "--predict_batch_size", "2", "--output_dir", "o"),
        *("--strategy_load_checkpoint", "s.ckpt", "--remote_save_url", "u", "--run_mode", "train"),
        *("--eval_dataset_dir", "e", "--predict_data", "a\\nb", "c"),
    )
    assert (cfg.context.mode, cfg.context.device_id, cfg.context.device_target) == (1, 2, "CPU")
    assert (cfg.do_eval, cfg.seed, cfg.use_parallel, cfg.profile, cfg.resume_training) == (False, 5, False, True, True)
    assert (cfg.runner_config.epochs, cfg.runner_config.batch_size, cfg.runner_config.sink_mode) == (3, 4, False)
    assert cfg.train_dataset.data_loader.num_samples == cfg.eval_dataset.data_loader.num_samples == 9
    assert (cfg.predict_batch_size, cfg.output_dir, cfg.load_checkpoint) == (2, "o", "llama2_7b")
    assert cfg.parallel.strategy_ckpt_load_file == "s.ckpt"
    assert cfg.eval_dataset.data_loader.dataset_dir == "e"
    assert cfg.input_data == ["a\nb", "c"]
    assert any("--remote_save_url u: remote_save_url: no effect" in line for line in cfg.warnings)


def test_one_prompt_is_a_text(command):
    assert command("--predict_data", "1.0").input_data == "1.0"
    assert command("--predict_data=--x y").input_data == "--x y"


def test_precedence(command):
    """file < plain flags < --options < data and length < free keys, whatever the order they are typed in."""
    assert command("--seed", "1").seed == 1
    assert command("--options", "seed=2", "--seed", "1").seed == 2
    assert command("--epochs", "4", "--options", "runner_config.epochs=3").runner_config.epochs == 4
    free = command("--runner_config.epochs", "5", "--epochs", "4", "--options", "runner_config.epochs=3")
    assert free.runner_config.epochs == 5
    assert command("--seed", "1", "--seed", "2").seed == 2


def test_values_are_typed_by_the_schema(command):
    cfg = command(
        *(
            "--options",
            "profile=True",
            "use_parallel=False",
            "register_path=null",
            "trainer.model_name=123",
            "save_file=a=b",
        ),
        *("--train_dataset.input_columns", "[input_ids,labels]", "--eval_dataset.input_columns=input_ids,labels"),
        *("--model.model_config.extend_method", "null", "--optimizer.eps", "1e-7", "--context.mode", "GRAPH_MODE"),
        *(
            "--runner_wrapper.scale_sense",
            "128",
            "--model.model_config.eos_token_id",
            "[2,3]",
            "--lr_schedule.lr_end=0",
        ),
        *("--eval_step_interval", "-1", "--context.ascend_config.precision_mode", "x"),
        *("--model.model_config.n_kv_heads", "null"),
    )
    assert (cfg.profile, cfg.use_parallel, cfg.trainer.model_name, cfg.save_file) == (True, False, "123", "a=b")
    assert cfg.train_dataset.input_columns == cfg.eval_dataset.input_columns == ["input_ids", "labels"]
    assert (cfg.model.config.extend_method, cfg.optimizer.eps, cfg.context.mode) == ("None", 1e-7, "GRAPH_MODE")
    assert (cfg.runner_wrapper.scale_sense, cfg.model.config.eos_token_id) == (128, [2, 3])
    assert (cfg.eval_step_interval, cfg.context.ascend_config) == (-1, {"precision_mode": "x"})


def test_list_entries_by_number_and_by_type(command):
    cfg = command("--callbacks.0.per_print_times", "7", "--callbacks.CheckpointMointor.keep_checkpoint_max", "2")
    assert cfg.callbacks[0].per_print_times == 7
    assert (cfg.callbacks[1].keep_checkpoint_max, cfg.callbacks[1].prefix) == (2, "p")


def test_one_of_two_linked_keys(command):
    cfg = command("--optimizer.learning_rate", "2e-3")
    assert (cfg.optimizer.learning_rate, cfg.lr_schedule.learning_rate) == (2e-3, 2e-3)
    assert command("--lr_schedule.learning_rate", "3e-3").optimizer.learning_rate == 3e-3
    assert len(lines_of(command, "--lr_schedule.learning_rate", "1", "--optimizer.learning_rate", "2")) == 1


def test_warm_up_keys_replace_each_other(command):
    assert command("--lr_schedule.warmup_steps", "3").lr_schedule.warmup_ratio is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--runner_config.epoch", "3"], "--runner_config.epoch 3: unknown key. Did you mean 'epochs'?"),
        (["--train_dataset", "x"], "Did you mean '--train_dataset_dir'?"),
        (["--sedd", "3"], "--sedd: unknown flag. Did you mean '--seed'?"),
        (["--seed"], "--seed: needs a value: --seed INT"),
        (["--seed", "1", "2"], "--seed: takes one value, got 2: '1' '2'"),
        (["--do_eval", "1x"], "--do_eval 1x: must be True or False, got '1x'"),
        (["--epochs", "2.5"], "--epochs 2.5: runner_config.epochs: must be a whole number, got 2.5"),
        (["--options", "seed"], "--options: expected key=value, got 'seed'"),
        (["--options"], "--options: needs KEY=VALUE"),
        (["--options", "a.b=1"], "--options a.b=1: unknown key"),
        (["--predict_data"], "--predict_data: needs a value"),
        (["--callbacks.Foo.prefix", "x"], "no such entry. (allowed: 0, 1, MFLossMonitor, CheckpointMonitor)"),
        (["--callbacks.7.prefix", "x"], "no such entry"),
        (["--callbacks.1.prefx", "x"], "Did you mean 'prefix'?"),
        (["--seed.x", "1"], "seed holds a single value, no keys below it"),
        (["--optimizer.betas", "[0.9"], "cannot be read: not valid YAML"),
        (["--optimizer", "3"], "a section, not a single value"),
        (["--load_checkpoint", "./no.ckpt"], "--load_checkpoint ./no.ckpt: ./no.ckpt: no such file"),
        (["--a..b", "1"], "unknown key"),
        (["--context.ascend_config.a.b", ""], None),
    ],
)
def test_wrong_words(command, words, expected):
    if expected is None:
        command(*words)
        return
    found = lines_of(command, *words)
    assert len(found) == 1
    assert expected in found[0]


def test_all_problems_at_once(command):
    found = lines_of(command, "--sedd", "1", "--seed", "x", "--do_eval", "--options", "q=1")
    assert len(found) == 4


def test_without_config():
    with pytest.raises(ConfigError, match="--config: FILE is needed"):
        parse_command_line([])
    with pytest.raises(ConfigError, match="stands before any flag"):
        read_flags(["x.yaml"], [])
    with pytest.raises(ConfigError, match="--config: needs a value"):
        parse_command_line(["--config"])


def test_config_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (TINY, "run_llama2_tiny"):
        with pytest.raises(ConfigError, match=r"run_llama2_tiny.yaml: 1 problem\n.*no such file"):
            parse_command_line(["--config", name])
    (tmp_path / "configs/llama2").mkdir(parents=True)
    write(tmp_path / "configs/llama2", "sed: 1\n", "run_llama2_tiny.yaml")
    with pytest.raises(ConfigError, match="sed: unknown key"):
        parse_command_line(["--config", TINY])


def test_ranks_come_from_the_launcher(command, monkeypatch):
    monkeypatch.setenv("RANK_SIZE", "2")
    assert "RANK_SIZE) is 2" in lines_of(command, "--use_parallel", "True", "--parallel_config.data_parallel", "3")[0]
    monkeypatch.setenv("RANK_SIZE", "")
    command("--use_parallel", "True")


def test_words_become_overrides_in_order():
    problems: list[Problem] = []
    config, overrides = read_flags(["--a.b", "1", "--config", "f", "--seed=3", "--options", "x=1", "y=2"], problems)
    assert (config, [item.key for item in overrides], problems) == ("f", ["seed", "x", "y", "a.b"], [])


def run(*words: str) -> tuple[subprocess.CompletedProcess, float]:
    """Run Python in the checkout: the result, and the processor time it took (the clock also counts other work)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([sys.executable, *words], cwd=REPO, capture_output=True, text=True, timeout=900)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return result, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_a_typo_ends_before_mindspore_is_imported():
    wrong = ("run_mindformer.py", "--config", TINY, "--runner_config.epoch", "3")
    result, _ = run("-X", "importtime", *wrong)
    assert result.returncode == 2
    assert "Did you mean 'epochs'?" in result.stderr
    assert "Traceback" not in result.stderr
    modules = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time")}
    assert "pydantic" in modules
    assert not modules & {"mindspore", "numpy", "torch", "sentencepiece"}
    assert min(run(*wrong)[1] for _ in range(3)) < 15.0


def test_help_is_grouped():
    text = build_parser().format_help()
    assert all(flag.name in text for flag in FLAGS)
    assert "device and ranks:" in text
    result, _ = run("run_mindformer.py", "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("usage: run_mindformer.py")


def test_main_runs_the_verb(monkeypatch, command, tmp_path):
    """run_mindformer hands the config to Trainer and calls the verb of run_mode, nothing else."""
    import run_mindformer

    calls = []

    class Recorder:
        def __init__(self, cfg):
            calls.append(cfg.run_mode)

        def __getattr__(self, verb):
            return lambda: calls.append(verb)

    monkeypatch.setattr("mindformers.trainer.Trainer", Recorder)
    path, data = str(tmp_path / "run.yaml"), str(tmp_path / "d.mindrecord")
    for mode, verb in {"train": "train", "finetune": "finetune", "eval": "evaluate", "predict": "predict"}.items():
        extra = ["--load_checkpoint", "llama2_7b", "--eval_dataset_dir", data, "--predict_data", "hello"]
        assert run_mindformer.main(["--config", path, "--run_mode", mode, *extra]) == 0
        assert calls[-2:] == [mode, verb]
