# SPDX-License-Identifier: Apache-2.0
"""The words of the scripts: which forms there are, which files they mean, what each process gets."""

import os
from pathlib import Path

import pytest

from mindformers.errors import ConfigError, DeviceError
from mindformers.launch.environment import rank_specs, scheduler_spec
from mindformers.launch.plan import ROOT, Plan, check_target, make_plan
from mindformers.tools.rank_table import Device, RankTable, Server, write_table


def servers(*counts: int, cpu: bool = False, first_device: int = 0, address: str = "127.0.0.{}") -> RankTable:
    """A table of servers with so many devices each."""
    found, rank = [], 0
    for number, count in enumerate(counts, 1):
        name = address.format(number)
        ips = [name if cpu else f"10.{number}.0.{i + 1}" for i in range(count)]
        devices = tuple(Device(first_device + i, ip, rank + i) for i, ip in enumerate(ips))
        found.append(Server(name, devices))
        rank += count
    return RankTable(tuple(found))


@pytest.fixture
def folder(tmp_path):
    """A folder of a user with tables and a config."""
    write_table(servers(8), tmp_path / "8.json")
    write_table(servers(8, 8), tmp_path / "16.json")
    write_table(servers(2, cpu=True), tmp_path / "cpu.json")
    write_table(servers(4, first_device=4), tmp_path / "upper.json")
    (tmp_path / "run.yaml").write_text("run_mode: train\n")
    return tmp_path


def plan(folder: Path, *words: str) -> Plan:
    """The plan of a command given in the folder."""
    return make_plan("distribute", words, folder)


def test_four_arguments(folder):
    made = plan(folder, "8.json", "run.yaml", "[0,8]", "train")
    assert (made.ranks, made.size, made.mode) == (range(8), 8, "train")
    assert made.config == str(folder / "run.yaml")
    assert made.run_dir == folder
    assert made.program == ROOT / "run_mindformer.py"
    assert made.program_flags() == ["--config", made.config, "--run_mode", "train", "--use_parallel", "True"]


def test_five_arguments_on_two_servers(folder):
    made = plan(folder, "16.json", "run.yaml", "[8,16]", "train", "16")
    assert (made.ranks, made.size, made.is_head, made.address) == (range(8, 16), 16, False, "127.0.0.1")
    assert plan(folder, "16.json", "run.yaml", "[0,8)", "finetune", "16").is_head


def test_five_and_six_arguments_of_predict(folder):
    made = plan(folder, "8.json", "run.yaml", "[0,8]", "predict", "I love  it\nvery")
    assert made.program_flags()[-2:] == ["--predict_data", "I love  it\nvery"]
    assert plan(folder, "16.json", "run.yaml", "[0,8]", "predict", "16", "42").predict_data == "42"
    assert plan(folder, "8.json", "run.yaml", "[0,8]", "predict", "8").predict_data == "8"
    (folder / "prompts.txt").write_text("a\n")
    assert plan(folder, "8.json", "run.yaml", "[0,8]", "predict", "prompts.txt").predict_data == str(
        folder / "prompts.txt"
    )
    assert plan(folder, "8.json", "run.yaml", "[0,8]", "predict", "x" * 5000).predict_data == "x" * 5000


def test_devices_or_ranks_of_the_only_server(folder):
    for numbers in ("[4,8]", "[0,4]"):
        devices = plan(folder, "upper.json", "run.yaml", numbers, "train").server.devices
        assert [device.device_id for device in devices] == [4, 5, 6, 7]


def test_standalone(folder):
    made = make_plan("standalone", ["run.yaml", "3", "predict", "hello"], folder)
    assert made.ranks == range(1)
    assert made.program_flags() == [
        "--config", str(folder / "run.yaml"), "--run_mode", "predict", "--use_parallel", "False", "--device_id", "3",
        "--predict_data", "hello",
    ]  # fmt: skip
    (spec,) = rank_specs(made, folder / "output", "Ascend", 1, [])
    assert spec.env["DEVICE_ID"] == "3"
    assert spec.env["RANK_ID"] is None
    assert spec.log == folder / "output" / "log" / "rank_0" / "mindformer.log"


def test_paths_of_the_model_card_lead_to_the_checkout(folder):
    card = "configs/llama2/run_llama2_7b.yaml"
    assert plan(folder, "8.json", card, "[0,8]", "train").config == str(ROOT / card)
    assert plan(folder, "8.json", "run_llama2_7b", "[0,8]", "train").config == "run_llama2_7b"
    made = make_plan("distribute", [str(folder / "8.json"), f"../{card}", "[0,8]", "train"], ROOT / "scripts")
    assert made.config == str(ROOT / card)
    assert made.run_dir == ROOT
    made = make_plan(
        "standalone", ["run_llama2_7b", "0", "train", "--register_path", "../scripts/env.sh", "--output_dir=./x"],
        ROOT / "scripts",
    )  # fmt: skip
    assert made.flags == ["--register_path", str(ROOT / "scripts" / "env.sh"), "--output_dir=./x"]


def test_options_of_the_launcher_are_kept_from_the_program(folder):
    words = [
        "--epochs",
        "3",
        "--max_restarts",
        "2",
        "--port=0",
        "--grace",
        "1.5",
        "--script",
        "run.yaml",
        "--a.b",
        "-1",
    ]
    made = plan(folder, "8.json", "run.yaml", "[0,8]", "train", *words)
    assert made.flags == ["--epochs", "3", "--a.b", "-1"]
    assert (made.options.max_restarts, made.options.port, made.options.grace) == (2, 0, 1.5)
    assert made.program == folder / "run.yaml"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "4, 5 or 6 arguments are needed, got 0\nusage: bash run_distribute.sh"),
        (("8.json", "run.yaml", "[0,8]"), "got 3"),
        (("8.json", "run.yaml", "[0,8]", "train", "8", "x", "y"), "got 7"),
        (("8.json", "run.yaml", "[0,8]", "fit"), "MODE is 'fit'; allowed: train"),
        (("8.json", "run.yaml", "0", "train"), r'the device range is .0.*\(in quotes: "\[0,8\]"\)'),
        (("8.json", "run.yaml", "[8,8]", "train"), "is empty"),
        (("8.json", "run.yaml", "[0,8]", "train", "eight"), "RANK_SIZE is 'eight'"),
        (("8.json", "run.yaml", "[0,8]", "train", "16"), "RANK_SIZE is 16, but .*8 NPU ranks on 1 server"),
        (("8.json", "run.yaml", "[0,8]", "train", "8", "text"), "'text' is one argument too many for MODE train"),
        (("8.json", "run.yaml", "[0,8]", "predict"), "needs PREDICT_DATA"),
        (("8.json", "run.yaml", "[0,4]", "train"), r'asks for 0-3, (.|\n)*\[0,8\] train(.|\n)*--device_num "\[0,4\)"'),
        (("16.json", "run.yaml", "[0,8]", "train"), r"RANK_SIZE is needed(.|\n)*127.0.0.2: .*\[8,16\] train 16"),
        (("16.json", "run.yaml", "[4,12]", "train", "16"), r"asks for 4-11(.|\n)*\[8,16\] train 16"),
        (("none.json", "run.yaml", "[0,8]", "train"), r"RANK_TABLE none\.json: no such file \(looked in"),
        (("run.yaml", "run.yaml", "[0,8]", "train"), "not JSON"),
        (("8.json", "my/none.yaml", "[0,8]", "train"), r"CONFIG my/none\.yaml: no such file"),
        (("8.json", "run.yaml", "[0,8]", "train", "--max_restarts", "-1"), "--max_restarts is '-1'"),
        (("8.json", "run.yaml", "[0,8]", "train", "--port", "http"), "--port is 'http'; a number"),
        (("8.json", "run.yaml", "[0,8]", "train", "--grace", "nan"), "--grace is 'nan'"),
        (("8.json", "run.yaml", "[0,8]", "train", "--port"), "--port needs a value"),
        (("8.json", "run.yaml", "[0,8]", "train", "--script", "x.py"), r"--script x\.py: no such file"),
    ],
)
def test_mistakes(folder, words, message):
    with pytest.raises(ConfigError, match=message):
        plan(folder, *words)


@pytest.mark.parametrize("words", [["run.yaml", "0"], ["run.yaml", "zero", "train"], ["run.yaml", "0", "train", "x"]])
def test_mistakes_of_standalone(folder, words):
    with pytest.raises(ConfigError, match=r"usage: bash run_standalone.sh"):
        make_plan("standalone", words, folder)


def test_environment_on_npus(folder, monkeypatch):
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    monkeypatch.setenv("RANK_TABLE_FILE", "other.json")
    monkeypatch.setenv("CHECKPOINT_SAVE_FOLDER", "/mine")
    made = plan(folder, "16.json", "run.yaml", "[8,16]", "train", "16")
    specs = rank_specs(made, folder / "out", "Ascend", 1, ["--resume_training", "True"])
    assert [spec.name for spec in specs] == [f"rank {i}" for i in range(8, 16)]
    env = specs[1].env
    assert {key: env[key] for key in ("RANK_ID", "RANK_SIZE", "DEVICE_ID", "RANK_TABLE_FILE")} == {
        "RANK_ID": "9", "RANK_SIZE": "16", "DEVICE_ID": "1", "RANK_TABLE_FILE": str(folder / "16.json"),
    }  # fmt: skip
    assert env["LOCAL_DEFAULT_PATH"] == str(folder / "out")
    assert env["CHECKPOINT_DOWNLOAD_FOLDER"] == str(folder / "checkpoint_download")
    assert env["CHECKPOINT_SAVE_FOLDER"] == "/mine"
    assert env["MS_ROLE"] is None
    assert env["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)
    assert specs[1].words[-4:] == ("--use_parallel", "True", "--resume_training", "True")
    assert specs[1].log == folder / "out" / "log" / "rank_9" / "mindformer.log"


def test_environment_on_cpu(folder):
    made = plan(folder, "cpu.json", "run.yaml", "[0,2]", "train")
    spec = rank_specs(made, folder / "out", "CPU", 9000, [])[1]
    wanted = {"MS_WORKER_NUM": "2", "MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": "9000", "MS_ROLE": "MS_WORKER",
              "MS_NODE_ID": "1", "RANK_ID": "1", "RANK_SIZE": "2", "RANK_TABLE_FILE": None}  # fmt: skip
    assert {key: spec.env[key] for key in wanted} == wanted
    scheduler = scheduler_spec(made, folder / "out", 9000)
    assert scheduler.env["MS_ROLE"] == "MS_SCHED"
    assert scheduler.env["RANK_ID"] is None
    assert scheduler.log == folder / "out" / "log" / "scheduler.log"


def test_the_table_must_fit_device_and_machine(folder):
    cpu = plan(folder, "cpu.json", "run.yaml", "[0,2]", "train")
    assert check_target(cpu, "CPU") == []
    with pytest.raises(ConfigError, match=r"describes CPU ranks, but context.device_target is Ascend"):
        check_target(cpu, "Ascend")
    write_table(servers(2, address="192.0.2.{}"), folder / "far.json")
    far = plan(folder, "far.json", "run.yaml", "[0,2]", "train")
    with pytest.raises(DeviceError, match=r"192\.0\.2\.1 .* not an address of this machine.*--cpu"):
        check_target(far, "CPU")
    (note,) = check_target(far, "Ascend")
    assert "container" in note
