# SPDX-License-Identifier: Apache-2.0
"""Real ranks on the CPU through run_distribute.sh: equal losses, a rank killed and resumed, two servers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from mindformers.launch.hosts import birth
from mindformers.tools import hccl_tools, merge_hccl
from tests.helpers import REPO, free_port

STEPS_PER_EPOCH, EPOCHS, SAVE_EVERY = 8, 8, 5
TOTAL = STEPS_PER_EPOCH * EPOCHS
ENV = os.environ | {"MINDFORMERS_PYTHON": sys.executable}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of unequal numbers of labels, rank tables, and a config of a model that trains in seconds."""
    from mindformers.dataset.mindrecord import MindRecordWriter

    folder = tmp_path_factory.mktemp("launch")
    rng = np.random.default_rng(0)
    for name, count in (("train", 4 * STEPS_PER_EPOCH + 3), ("valid", 7)):
        records = (rng.integers(3, 60, (count, 1)) + np.arange(17)).astype(np.int32)
        for index, row in enumerate(records):
            row[5 + index % 12 :] = 0  # padding: no label
        writer = MindRecordWriter(folder / f"{name}.mindrecord", {"input_ids": 17})
        writer.write(input_ids=records)
        writer.close()
    config = yaml.safe_load((REPO / "configs/llama2/run_llama2_tiny.yaml").read_text(encoding="utf-8"))
    config["base_config"] = str(REPO / "configs/llama2/_base.yaml")
    config["runner_config"] |= {"epochs": EPOCHS, "batch_size": 2}
    config["parallel"]["parallel_mode"] = 0
    config["model"]["model_config"] |= {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "n_kv_heads": 2, "vocab_size": 300, "seq_length": 16,
        "pretrain_seqlen": 16, "max_decode_length": 16,
    }  # fmt: skip
    config["train_dataset"]["data_loader"]["dataset_dir"] = "train.mindrecord"
    config["eval_dataset"]["data_loader"]["dataset_dir"] = "valid.mindrecord"
    config["callbacks"][0]["per_print_times"] = 1
    config["callbacks"][1]["save_checkpoint_steps"] = SAVE_EVERY
    (folder / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    one = {}
    for server in ("127.0.0.1", "127.0.0.2"):
        one[server] = str(folder / f"{server}.json")
        hccl_tools.main(["--cpu", "--device_num", "[0,1)", "--server_ip", server, "--output", one[server]])
    merge_hccl.main([*one.values(), "--output", str(folder / "servers.json")])
    hccl_tools.main(["--cpu", "--device_num", "[0,2)", "--output", str(folder / "two.json")])
    return folder


def start(folder: Path, script: str, *words: str) -> subprocess.Popen:
    return subprocess.Popen(
        ["bash", str(REPO / "scripts" / script), *words], cwd=folder, env=ENV, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def end(process: subprocess.Popen, code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, (out, err)
    return out, err


def metrics(folder: Path, output: str, name: str = "loss") -> list[tuple[int, float]]:
    lines = (folder / output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(record["step"], record[name]) for record in map(json.loads, lines)]


def processes(folder: Path, output: str) -> dict[str, int]:
    """Name -> pid of what a launcher says it has running; empty while it writes that down."""
    try:
        record = json.loads((folder / output / "log" / "launch_rank_0.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {entry["name"]: entry["pid"] for entry in record["processes"]}


def kill_at(
    folder: Path, step: int, name: str, process: subprocess.Popen, not_pid: int | None = None, output: str = "killed"
) -> dict:
    """Kill -9 a rank of the run in ``output`` as soon as it has logged a step; all pids of the job.

    Args:
        folder: the workplace.
        step: when.
        name: which.
        process: the launcher.
        not_pid: the process of the attempt before, which is not meant.
        output: the run's output folder.
    """
    file, deadline = folder / output / "metrics.jsonl", time.monotonic() + 600
    while True:
        pids = processes(folder, output)
        if pids.get(name, not_pid) != not_pid and file.exists() and f'"step": {step},' in file.read_text():
            os.kill(pids[name], signal.SIGKILL)
            return pids
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def two(workplace: Path) -> str:
    """An uninterrupted run of two ranks on two servers, each started by a command of its own; its output folder."""
    port = ["--port", str(free_port()), "--output_dir", "two"]
    second = start(workplace, "run_distribute.sh", "servers.json", "run.yaml", "[1,2]", "train", "2", *port)
    first = start(workplace, "run_distribute.sh", "servers.json", "run.yaml", "[0,1]", "train", "2", *port)
    assert "all 1 rank(s) finished well" in end(first)[0]
    assert "all 1 rank(s) finished well" in end(second)[0]
    return "two"


def test_two_ranks_train_as_one_process_with_the_whole_batch(workplace: Path, two: str) -> None:
    end(start(workplace, "run_standalone.sh", "run.yaml", "0", "train", "--batch_size", "4", "--output_dir", "one"))
    for name in ("loss", "grad_norm"):
        both, alone = metrics(workplace, two, name), metrics(workplace, "one", name)
        assert [step for step, _ in both] == list(range(1, TOTAL + 1))
        np.testing.assert_allclose([v for _, v in both], [v for _, v in alone], rtol=2e-5)
    assert metrics(workplace, two)[0][1] == pytest.approx(metrics(workplace, "one")[0][1], abs=2e-6)


def test_logs_and_checkpoints_of_each_rank(workplace: Path, two: str) -> None:
    root = workplace / two
    assert "Epoch:[" in (root / "log" / "rank_0" / "mindformer.log").read_text()
    for rank in (0, 1):
        assert "saved step 5 " in (root / "log" / f"rank_{rank}" / "mindformer.log").read_text()
        newest = f"llama2_tiny_rank_{rank}-{EPOCHS}_{STEPS_PER_EPOCH}.ckpt"
        assert (root / "checkpoint" / f"rank_{rank}" / newest).exists()
    weights = [(root / "checkpoint" / f"rank_{rank}").glob(f"*-{EPOCHS}_{STEPS_PER_EPOCH}.ckpt") for rank in (0, 1)]
    first, second = (next(found).read_bytes() for found in weights)
    assert first == second
    assert not list((root / "log").glob("launch_*"))


def test_a_killed_rank_restarts_then_ends_all_and_the_losses_go_on(workplace: Path, two: str) -> None:
    words = ["two.json", "run.yaml", "[0,2]", "train", "--port", "0", "--output_dir", "killed"]
    process = start(workplace, "run_distribute.sh", *words, "--max_restarts", "1")
    old = kill_at(workplace, SAVE_EVERY + 2, "rank 1", process)
    pids = kill_at(workplace, TOTAL // 2, "rank 0", process, old["rank 0"])
    out, err = end(process, 128 + signal.SIGKILL)
    assert "rank 1 failed first: killed by SIGKILL" in err
    assert "restart 1 of 1, from the last complete checkpoint" in out
    assert "error: rank 0 failed first: killed by SIGKILL" in err
    assert [pid for pid in pids.values() if birth(pid) is not None] == []
    end(start(workplace, "run_distribute.sh", *words, "--resume_training", "True"))
    assert metrics(workplace, "killed") == metrics(workplace, two)
    log = (workplace / "killed" / "log" / "rank_1" / "mindformer.log").read_text()
    assert log.count("the newest that all 2 ranks have") == 2


def test_two_ranks_evaluate_as_one(workplace: Path, two: str) -> None:
    weights = ["--load_checkpoint", f"{two}/checkpoint", "--output_dir", "evaluated"]
    out, _ = end(start(workplace, "run_distribute.sh", "two.json", "run.yaml", "[0,2]", "eval", *weights))
    alone, _ = end(start(workplace, "run_standalone.sh", "run.yaml", "0", "eval", *weights))
    both, one = (json.loads(text.partition("'PerplexityMetric': ")[2].partition("}")[0].replace("'", '"') + "}")
                 for text in (out, alone))  # fmt: skip
    assert both["PPL"] == pytest.approx(one["PPL"], rel=1e-6)
