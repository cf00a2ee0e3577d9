# SPDX-License-Identifier: Apache-2.0
"""``plan``: what it prints of a small cluster is what the compiler made, and its memory is what a run takes."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mindformers.commands.plan import configured, plan_arguments
from mindformers.config import RunConfig, load_config
from mindformers.errors import ConfigError, DeviceError
from mindformers.simulate.memory import activation_bytes, in_flight, stage_memory, weights_of
from mindformers.simulate.plan import _as_stage, advice, compile_stages, fits, parse_memory, worst
from mindformers.simulate.plan_report import report
from mindformers.tools.rank_table import Device, RankTable, Server, write_table
from tests.helpers import REPO

CLUSTER = [
    "use_parallel=True", "context.device_target=Ascend", "parallel.enable_parallel_optimizer=True",
    "parallel.parallel_optimizer_config.parallel_optimizer_threshold=0", "parallel_config.data_parallel=2",
    "parallel_config.model_parallel=2", "parallel_config.pipeline_stage=2", "parallel_config.micro_batch_num=4",
    "parallel_config.vocab_emb_dp=False", "runner_config.batch_size=1", "model.model_config.hidden_size=64",
    "model.model_config.num_layers=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A small layout with everything in it, compiled; its configuration, plans and strategy folder."""
    folder = tmp_path_factory.mktemp("strategy")
    cfg = load_config("run_llama2_tiny", CLUSTER)
    lines: list[str] = []
    plans = compile_stages(cfg, 2, folder, lines.append)
    assert lines == ["compiling 2 of 8 ranks, 2 at a time"]
    return cfg, plans, folder


def test_memory_of_parameters_is_what_the_compiler_sliced(cluster: tuple) -> None:
    cfg, plans, _ = cluster
    for stage, plan in enumerate(plans):
        expected = stage_memory(cfg, stage)
        assert plan.weight_bytes == expected.parameters > 0
        assert plan.state_bytes == expected.optimizer == 2 * expected.parameters
    assert plans[0].compiled["parameters"]["model.layers.0.attention.wq.weight"] == [64 * 64 * 4 // 2 // 2, 2]


def test_every_message_of_a_step_is_counted_with_its_ranks(cluster: tuple) -> None:
    cfg, plans, _ = cluster
    rows, hidden, micro = cfg.model.config.seq_length, 64, 4
    sent = [{(m["operation"], tuple(m["ranks"])): (m["count"], m["bytes"]) for m in p.compiled["communication"]}
            for p in plans]  # fmt: skip
    activations = micro * rows * hidden * 4
    assert sent[0]["Send", (4,)] == sent[0]["Receive", (4,)] == (micro, activations)
    assert sent[1]["Send", (0,)] == sent[1]["Receive", (0,)] == (micro, activations)
    # per micro batch at least: forward wo, w2 and the split embedding; backward the inputs of both halves of a layer
    count, size = sent[0]["AllReduce", (0, 1)]
    assert count >= micro * 5
    assert (count % micro, size) == (0, count * rows * hidden * 4)
    assert sent[0]["ReduceScatter", (0, 2)][0] == sent[0]["AllGather", (0, 2)][0] == 8  # seven matrices, one table


def test_strategy_files_of_all_ranks_are_left(cluster: tuple) -> None:
    import mindspore as ms

    _, _, folder = cluster
    files = sorted(path.name for path in folder.iterdir())
    assert files == [f"ckpt_strategy_rank_{rank}.ckpt" for rank in range(8)]
    ms.merge_pipeline_strategys(str(folder), str(folder.parent / "merged.ckpt"))
    assert (folder.parent / "merged.ckpt").stat().st_size > 0


def test_report_says_what_fits_and_what_would(cluster: tuple) -> None:
    cfg, plans, _ = cluster
    text = report(cfg, plans, 1 << 30)
    for line in (
        "8 devices = data 2 x model 2 x pipeline 2",
        "pipeline bubble  20.0%",
        "layers           1, 1",
        "\nfits: ",
    ):
        assert line in text
    tight = report(cfg, plans, int(worst(cfg).total * 0.95))
    assert "does not fit" in tight
    assert "cheapest change: set recompute_config.recompute True" in tight


def test_a_layout_mindspore_refuses_is_an_error_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = (
        "Traceback (most recent call last):\n  File x\nRuntimeError: strategy (3, 1) does not divide\n- C++ Call Stack"
    )
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, "", trace))
    with pytest.raises(
        DeviceError, match=r"rank \d of 8 does not compile:\n  RuntimeError: strategy \(3, 1\) does not"
    ):
        compile_stages(load_config("run_llama2_tiny", CLUSTER), 1, None, lambda line: None)


def test_advice_takes_the_cheapest_change_that_is_enough() -> None:
    cfg = load_config("run_llama2_7b")
    need = worst(cfg).total
    assert fits(worst(cfg), 31 << 30)
    assert "parallel_optimizer_comm_recompute True" in advice(cfg, int(need * 1.06))
    assert "devices" in advice(cfg, 8 << 30)
    assert "more devices" in advice(cfg, 1 << 30)


@pytest.mark.parametrize(("text", "size"), [("64GB", 64 << 30), ("31 GiB", 31 << 30), ("500MB", 500 << 20)])
def test_sizes(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "64", "0GB", "-1GB", "64TB", "GB"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(ConfigError, match="a size such as 64GB"):
        parse_memory(text)


def test_rank_table_is_counted_with_the_schema_of_the_launcher(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    servers = [
        Server(f"10.0.0.{s}", tuple(Device(d, f"192.168.{s}.{d}", 8 * s + d) for d in range(8))) for s in range(2)
    ]
    write_table(RankTable(tuple(servers)), path)
    parser = argparse.ArgumentParser()
    plan_arguments(parser)
    cfg = configured(parser.parse_args(["run_llama2_7b", "--rank-table", str(path)]))
    assert cfg.parallel_config.ranks == 16
    path.write_text(path.read_text(encoding="utf-8").replace("10.0.0.1", "10.0.0.0"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"10\.0\.0\.0"):
        configured(parser.parse_args(["run_llama2_7b", "--rank-table", str(path)]))


def test_messages_of_equal_stages_and_of_all_ranks() -> None:
    """A group of all ranks stays that of all ranks, whatever its name; the same ranks make one line."""
    common = {"operation": "AllReduce", "count": 2, "bytes": 10, "everybody": False}
    messages = [
        common | {"ranks": [2, 3], "per_micro_batch": True},
        common | {"ranks": [2, 3], "per_micro_batch": False},
        common | {"ranks": list(range(8)), "per_micro_batch": False},
        common | {"ranks": list(range(8)), "per_micro_batch": False, "everybody": True},
    ]
    assert _as_stage({"communication": messages}, 2, 3.0, 8)["communication"] == [
        {"operation": "AllReduce", "ranks": [4, 5], "count": 8, "bytes": 40},
        {"operation": "AllReduce", "ranks": list(range(8)), "count": 4, "bytes": 20},
    ]


@pytest.fixture(scope="module")
def adapted() -> tuple:
    """The same layout with adapters on layers cut by outputs and by inputs, and its plans."""
    cfg = load_config("run_llama2_tiny_lora", [*CLUSTER, "model.model_config.pet_config.target_modules=wk|w2"])
    return cfg, compile_stages(cfg, 2, None, lambda line: None)


def test_adapters_alone_have_gradients_and_moments(adapted: tuple) -> None:
    cfg, plans = adapted
    for stage, plan in enumerate(plans):
        expected = stage_memory(cfg, stage)
        assert plan.weight_bytes == expected.parameters
        assert plan.state_bytes == expected.optimizer > 0
        trained = [weight for weight in weights_of(cfg, stage) if weight.trained]
        assert {weight.name for weight in trained} == {
            name for name in plan.compiled["parameters"] if name.startswith("model.") and "lora" in name
        }
        assert expected.gradients < expected.parameters


@pytest.mark.parametrize("name", [f"run_llama2_{name}" for name in (
    "7b", "7b_910b", "7b_910b_finetune", "7b_lora_910b", "13b", "13b_910b", "13b_910b_finetune", "13b_lora_910b", "70b",
    "70b_910b", "70b_910b_finetune")])  # fmt: skip
def test_shipped_layouts_fit_their_devices(name: str) -> None:
    cfg = load_config(name)
    assert fits(worst(cfg), parse_memory(cfg.context.max_device_memory))


def test_recomputed_gathering_keeps_one_layer_beside_embedding_and_head() -> None:
    cfg = load_config("run_llama2_7b_910b")
    layer, ends = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096, 2 * 32000 * 4096 + 4096
    expected = (layer + ends) * 2 * 7 // 8
    small = 2 * (2 * 4096 + 4096) * 7 // 8  # norms are below the threshold and stay whole
    assert expected - small <= stage_memory(cfg, 0).gathered <= expected


def test_first_stages_hold_more_micro_batches() -> None:
    cfg = load_config("run_llama2_7b")
    assert [in_flight(cfg, stage) for stage in range(4)] == [4, 3, 2, 1]
    assert activation_bytes(cfg, 0) > activation_bytes(cfg, 1) > activation_bytes(cfg, 2)


def run_plan(*words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "mindformers", "plan", *words], cwd=REPO, text=True, capture_output=True, timeout=300
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run_llama2_7b", "--devices", "6"], r"6 devices cannot be divided by .* = 4. Take 4 or 8 devices"),
        (["run_llama2_7b", "--memory", "lots"], r"memory must be a size such as 64GB"),
        (["run_llama2_7b", "--workers", "0"], r"--workers must be at least 1"),
        (["no_such_config"], r"no_such_config"),
    ],
)
def test_user_mistakes_end_with_code_2(words: list[str], message: str) -> None:
    code, output = run_plan(*words)
    assert code == 2
    assert re.search(message, output)
    assert "Traceback" not in output


_MEASURE = """
import sys
import mindspore as ms, numpy as np
from mindformers.config import load_config
from mindformers.core.progress import TrainProgress
from mindformers.simulate.memory import stage_memory
from mindformers.trainer.build import build_optimizer, build_train_cell
from mindformers.trainer.network import build_network
def train(cfg):
    network = build_network(cfg).set_train()
    cell = build_train_cell(cfg, network, build_optimizer(cfg, network, TrainProgress(100, 1, 1, 1, 1, 0)))
    config = cfg.model.config
    shape = (cfg.runner_config.batch_size, config.seq_length + 1)
    batch = ms.Tensor(np.random.randint(1, config.vocab_size, shape), ms.int32)
    for _ in range(2):
        cell(batch)[0].asnumpy()
ms.set_device("CPU"); ms.set_context(mode=0)
train(load_config(sys.argv[1]))  # what MindSpore itself takes
def kilobytes(name):  # getrusage would count the process that started this one, too
    return int(open("/proc/self/status").read().split(name + ":")[1].split()[0])
before = kilobytes("VmRSS")
train(load_config(sys.argv[2]))
print("BYTES", (kilobytes("VmHWM") - before) * 1024)
"""


def small(folder: Path, name: str, batch: int, **model: int) -> tuple[Path, RunConfig]:
    """A single-process CPU configuration written to a file, and as read back."""
    values = {"base_config": str(REPO / "configs/llama2/run_llama2_tiny.yaml"), "runner_config": {"batch_size": batch}}
    length = model["seq_length"]
    values["model"] = {"model_config": model | {"pretrain_seqlen": length, "max_decode_length": length}}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path, load_config(path)


@pytest.mark.parametrize(
    ("batch", "model"),
    [
        (
            8,
            {
                "hidden_size": 256,
                "num_layers": 4,
                "num_heads": 8,
                "n_kv_heads": 4,
                "vocab_size": 4096,
                "seq_length": 256,
            },
        ),
        (
            4,
            {
                "hidden_size": 256,
                "num_layers": 6,
                "num_heads": 8,
                "n_kv_heads": 2,
                "vocab_size": 512,
                "seq_length": 512,
            },
        ),
    ],
)
def test_memory_on_cpu_is_within_15_percent_of_a_run(tmp_path: Path, batch: int, model: dict) -> None:
    tiny, _ = small(tmp_path, "tiny", 1, hidden_size=32, num_layers=2, num_heads=2, n_kv_heads=2, vocab_size=512,
                    seq_length=16)  # fmt: skip
    path, cfg = small(tmp_path, "measured", batch, **model)
    done = subprocess.run([sys.executable, "-c", _MEASURE, str(tiny), str(path)], text=True, capture_output=True,
                          timeout=300, cwd=REPO)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    measured = int(done.stdout.split("BYTES")[1])
    assert stage_memory(cfg, 0).total == pytest.approx(measured, rel=0.15)
