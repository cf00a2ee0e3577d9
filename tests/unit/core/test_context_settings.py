# SPDX-License-Identifier: Apache-2.0
"""Where each old context key arrives, on CPU and (recorded, not executed) on Ascend; parallel set-up."""

import logging
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest

from mindformers.config.schema.context import ContextSection
from mindformers.config.schema.parallel import ParallelSection
from mindformers.core import context
from mindformers.core.context import device_capabilities, init_context, set_seed
from mindformers.core.context_config import CONTEXT_KEYS, GONE, PARALLEL_KEYS, ContextConfig
from mindformers.errors import ConfigError, DeviceError
from mindformers.launch.hosts import reserve_port
from tests.helpers import REPO

CPU = {"device_target": "CPU"}


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict:
    """Calls that would change MindSpore, by name, instead of their effects; environment and once-table are private."""
    calls: dict = {}

    def recorder(name: str):
        def call(*args: object, **kwargs: object) -> None:
            value = kwargs or (args[0] if len(args) == 1 else args)
            calls[name] = {**calls[name], **value} if isinstance(calls.get(name), dict) and kwargs else value

        return call

    def tree(prefix: str, *names: str) -> SimpleNamespace:
        return SimpleNamespace(**{name: recorder(f"{prefix}.{name}") for name in names})

    ascend = SimpleNamespace(
        op_precision=tree("ascend", "precision_mode", "op_precision_mode", "matmul_allow_hf32", "conv_allow_hf32"),
        op_tuning=tree("ascend", "op_compile"),
        op_debug=tree("ascend", "debug_option"),
    )
    cpu = SimpleNamespace(op_tuning=tree("cpu", "threads_num"))
    fake = SimpleNamespace(
        set_device=recorder("set_device"),
        set_context=recorder("set_context"),
        set_recursion_limit=recorder("set_recursion_limit"),
        set_deterministic=recorder("set_deterministic"),
        runtime=tree("runtime", "set_memory", "dispatch_threads_num", "launch_blocking"),
        device_context=SimpleNamespace(ascend=ascend, cpu=cpu),
        get_current_device=lambda: ("Ascend", 0),
        reset_auto_parallel_context=recorder("reset_auto_parallel_context"),
        set_auto_parallel_context=recorder("set_auto_parallel_context"),
    )
    monkeypatch.setattr(context, "ms", fake)
    monkeypatch.setattr(context, "_applied", {})
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("DEVICE_ID", None)
    communication = SimpleNamespace(init=recorder("communication.init"), get_rank=lambda: 3, get_group_size=lambda: 8)
    monkeypatch.setattr(context, "communication", communication)
    return calls


def test_every_key_of_the_schema_is_known() -> None:
    assert set(ContextSection.model_fields) <= set(CONTEXT_KEYS)
    assert set(ParallelSection.model_fields) <= set(PARALLEL_KEYS)


def test_every_key_arrives_at_its_api_on_ascend(recorded: dict) -> None:
    options = {
        "mode": 1, "device_target": "Ascend", "device_id": 5, "max_device_memory": "58 GB", "mempool_block_size": "1GB",
        "memory_optimize_level": "O1", "max_call_depth": 777, "save_graphs": True, "save_graphs_path": "/graphs",
        "precompile_only": True, "enable_graph_kernel": True, "graph_kernel_flags": "--x", "save_compile_cache": True,
        "compile_cache_path": "/cache", "runtime_num_threads": 3, "inter_op_parallel_num": 4,
        "pynative_synchronize": True, "deterministic": "ON",
        "ascend_config": {
            "precision_mode": "must_keep_origin_dtype", "op_precision_mode": "file", "matmul_allow_hf32": True,
            "conv_allow_hf32": False, "jit_compile": False, "op_debug_option": "oom", "ge_options": {"global": {}},
        },
    }  # fmt: skip
    assert init_context(context_config=options) == (0, 1)
    assert recorded == {
        "set_device": ("Ascend", 5),
        "set_context": {"mode": 1, "jit_config": {"jit_level": "O1"}, "ascend_config": {"ge_options": {"global": {}}}},
        "set_recursion_limit": 777,
        "set_deterministic": True,
        "cpu.threads_num": 3,
        "runtime.dispatch_threads_num": 4,
        "runtime.launch_blocking": (),
        "runtime.set_memory": {"max_size": "58GB", "increase_size": "1GB", "optimize_level": "O1"},
        "ascend.precision_mode": "must_keep_origin_dtype",
        "ascend.op_precision_mode": "file",
        "ascend.matmul_allow_hf32": True,
        "ascend.conv_allow_hf32": False,
        "ascend.op_compile": False,
        "ascend.debug_option": "oom",
    }
    wanted = {
        "MS_DEV_SAVE_GRAPHS": "2", "MS_DEV_SAVE_GRAPHS_PATH": "/graphs", "MS_DEV_PRECOMPILE_ONLY": "1",
        "MS_COMPILER_CACHE_ENABLE": "1", "MS_COMPILER_CACHE_PATH": "/cache", "MS_DEV_GRAPH_KERNEL_FLAGS": "--x",
    }  # fmt: skip
    assert {key: os.environ.get(key) for key in wanted} == wanted


def test_defaults_touch_little(recorded: dict) -> None:
    before = dict(os.environ)
    init_context(context_config=CPU)
    assert recorded == {"set_device": ("CPU", 0), "set_context": {"mode": 0}}
    assert dict(os.environ) == before


def test_graphs_without_a_path_go_below_the_output_folder(recorded: dict, tmp_path: Path) -> None:
    init_context(context_config=CPU | {"save_graphs": 1}, output_dir=tmp_path)
    assert os.environ["MS_DEV_SAVE_GRAPHS"] == "1"
    assert os.environ["MS_DEV_SAVE_GRAPHS_PATH"] == str(tmp_path / "debug" / "graphs_info")


@pytest.mark.parametrize(
    ("options", "environ", "parallel", "wanted"),
    [
        ({}, {"DEVICE_ID": "3"}, False, 3),
        ({"device_id": 1}, {"DEVICE_ID": "3"}, False, 1),
        ({"device_id": 1}, {"DEVICE_ID": "3"}, True, 3),
        ({"device_id": 2}, {}, True, 2),
    ],
)
def test_which_device_id_wins(recorded: dict, options: dict, environ: dict, parallel: bool, wanted: int) -> None:
    os.environ.update(environ)
    assert context._device_id(options, parallel) == wanted


def test_broken_device_id(recorded: dict) -> None:
    os.environ["DEVICE_ID"] = "zero"
    with pytest.raises(ConfigError, match="DEVICE_ID"):
        init_context()


@pytest.fixture
def messages() -> list[tuple[int, str]]:
    seen: list[tuple[int, str]] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append((record.levelno, record.getMessage()))
    context.logger.addHandler(handler)
    level = context.logger.level
    context.logger.setLevel(logging.DEBUG)
    yield seen
    context.logger.setLevel(level)
    context.logger.removeHandler(handler)


def test_keys_without_effect_are_told_once_and_only_when_given(recorded: dict, messages: list) -> None:
    init_context(context_config=ContextSection(device_target="CPU"))
    assert messages == []
    given = {"max_device_memory": "58GB", "ascend_config": {"precision_mode": "x"}, "check_bprop": True}
    init_context(context_config=ContextSection(device_target="CPU", **given))
    assert [level for level, _ in messages] == [logging.INFO, logging.DEBUG]
    assert "no effect: ascend_config, max_device_memory" in messages[0][1]
    assert "check_bprop" in messages[1][1]


def test_every_retired_key_is_accepted(recorded: dict) -> None:
    assert init_context(context_config=CPU | dict.fromkeys(GONE, "x")) == (0, 1)


def test_what_is_set_once_stays_and_a_change_is_told(recorded: dict, messages: list) -> None:
    init_context(context_config=CPU | {"runtime_num_threads": 2})
    recorded.clear()
    init_context(context_config=CPU | {"runtime_num_threads": 2})
    assert messages == []
    init_context(context_config=CPU | {"runtime_num_threads": 1})
    assert "runtime_num_threads stays 2: it cannot change to 1" in messages[0][1]
    assert "cpu.threads_num" not in recorded


def test_beside_native_kernels_operators_of_mindspore_take_one_thread(recorded: dict, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(context.library, "configure", lambda *values: asked.append(values))
    monkeypatch.setattr(context.library, "usable", lambda: True)
    monkeypatch.setattr(context.library, "has_onednn", lambda: True)
    init_context(context_config=CPU | {"runtime_num_threads": 3, "native_kernels": True})
    assert recorded["cpu.threads_num"] == 1
    assert asked == [(True, 3)]


def test_operators_keep_their_threads_where_linear_layers_stay_theirs(recorded: dict, monkeypatch) -> None:
    monkeypatch.setattr(context.library, "usable", lambda: True)
    monkeypatch.setattr(context.library, "has_onednn", lambda: False)
    init_context(context_config=CPU | {"runtime_num_threads": 3, "native_kernels": True})
    assert recorded["cpu.threads_num"] == 3


def test_what_the_caller_set_before_is_kept(recorded: dict, messages: list) -> None:
    def again(_: int) -> None:
        raise RuntimeError("The 'threads_num' can not be set repeatedly.")

    context.ms.device_context.cpu.op_tuning.threads_num = again
    init_context(context_config=CPU | {"runtime_num_threads": 2})
    assert "runtime_num_threads was set before" in messages[0][1]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_device_memry": "1GB"}, "context: unknown key 'max_device_memry'. Did you mean 'max_device_memory'"),
        ({"device_target": "cpu"}, "context.device_target is 'cpu'; allowed: Ascend, GPU, CPU"),
        ({"device_target": ["CPU"]}, "device_target"),
        (CPU | {"mode": "graph"}, "context.mode is 'graph'"),
        (CPU | {"save_graphs": 4}, "save_graphs is 4"),
        (CPU | {"deterministic": "maybe"}, "deterministic"),
        (CPU | {"max_call_depth": -1}, "context.max_call_depth is -1"),
        (CPU | {"runtime_num_threads": "two"}, "context.runtime_num_threads is 'two'"),
        (CPU | {"jit_level": "O9"}, "context.jit_level is 'O9'"),
        ("CPU", "context must be a mapping"),
    ],
)
def test_mistakes_are_named(config: object, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "_applied", {})
    with pytest.raises(ConfigError, match=message):
        init_context(context_config=config)


def test_unknown_ascend_key_is_named(recorded: dict) -> None:
    with pytest.raises(ConfigError, match=r"context\.ascend_config: unknown key 'precision_mod'"):
        init_context(context_config={"device_target": "Ascend", "ascend_config": {"precision_mod": "x"}})


def test_config_objects_drop_none() -> None:
    assert ContextConfig(device_target="CPU", max_device_memory=None).model_dump() == {
        "mode": 0, "device_target": "CPU", "save_graphs": False,
    }  # fmt: skip


def test_seed_makes_all_generators_repeat() -> None:
    def draw() -> tuple:
        return (
            random.random(),
            np.random.rand(),
            float(ms.ops.uniform((1,), ms.Tensor(0.0), ms.Tensor(1.0)).asnumpy()[0]),
        )

    set_seed(5)
    first = draw()
    set_seed(5)
    assert draw() == first
    for wrong in (-1, 2**32, 1.0, True, "0"):
        with pytest.raises(ConfigError, match="seed"):
            set_seed(wrong)


def test_capabilities() -> None:
    assert device_capabilities("Ascend").fused_kernels
    assert not device_capabilities("CPU").fused_kernels
    with pytest.raises(ConfigError, match="TPU"):
        device_capabilities("TPU")


class TestParallel:
    LAUNCHED = {"RANK_TABLE_FILE": "t.json", "RANK_ID": "3", "DEVICE_ID": "3"}

    def test_semi_auto_on_ascend(self, recorded: dict, tmp_path: Path) -> None:
        os.environ.update(self.LAUNCHED)
        section = ParallelSection(
            parallel_mode=1,
            full_batch=True,
            enable_parallel_optimizer=True,
            strategy_ckpt_save_file="./my_strategy.ckpt",
        )
        assert init_context(True, {"device_target": "Ascend"}, section, output_dir=tmp_path) == (3, 8)
        assert recorded["set_device"] == ("Ascend", 3)
        given = recorded["set_auto_parallel_context"]
        assert given["strategy_ckpt_config"] == {"save_file": str(tmp_path / "strategy" / "my_strategy_rank_3.ckpt")}
        assert (tmp_path / "strategy").is_dir()
        wanted = {"parallel_mode": "semi_auto_parallel", "device_num": 8, "global_rank": 3, "full_batch": True}
        assert wanted.items() <= given.items()
        assert given["parallel_optimizer_config"] == {
            "gradient_accumulation_shard": False, "parallel_optimizer_threshold": 64,
        }  # fmt: skip
        assert not {"strategy_ckpt_save_file", "grad_accumulation_step"} & given.keys()

    def test_data_parallel_never_reads_the_full_batch(self, recorded: dict, tmp_path: Path) -> None:
        os.environ.update(self.LAUNCHED)
        section = {"parallel_mode": "DATA_PARALLEL", "full_batch": True, "gradients_mean": True}
        init_context(True, {"device_target": "Ascend"}, section, output_dir=tmp_path)
        assert recorded["set_auto_parallel_context"] == {
            "parallel_mode": "data_parallel", "device_num": 8, "global_rank": 3, "gradients_mean": True,
        }  # fmt: skip
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("target", "section", "error", "message"),
        [
            (
                "Ascend",
                {"parallel_mode": 9},
                ConfigError,
                "parallel.parallel_mode is 9; allowed: 0, 1, 2, 3, STAND_ALONE",
            ),
            ("Ascend", {"paralel_mode": 0}, ConfigError, "Did you mean 'parallel_mode'"),
            ("Ascend", {"parallel_mode": 0, "device_num": 4}, ConfigError, "device_num is 4, but 8 processes"),
            ("CPU", {"parallel_mode": 1, "pipeline_stages": 2}, DeviceError, "pipeline stages cannot run on CPU"),
            ("Ascend", {"parallel_mode": 1, "gradients_mean": True}, ConfigError, "would be divided once more"),
            ("CPU", {"enable_parallel_optimizer": True}, ConfigError, "enable_parallel_optimizer does not work"),
        ],
    )
    def test_refusals(self, recorded: dict, target: str, section: dict, error: type, message: str) -> None:
        os.environ.update(self.LAUNCHED)
        with pytest.raises(error, match=message):
            init_context(True, {"device_target": target}, section)

    def test_ranks_that_cannot_connect(self, recorded: dict) -> None:
        def refused() -> None:
            raise RuntimeError("connection refused\nlong trace")

        os.environ.update(self.LAUNCHED)
        context.communication.init = refused
        with pytest.raises(DeviceError, match="could not be connected: connection refused"):
            init_context(True, {"device_target": "Ascend"}, {"parallel_mode": 0})

    @pytest.mark.slow
    def test_two_processes_on_cpu(self, tmp_path: Path) -> None:
        script = tmp_path / "rank.py"
        script.write_text(
            "import numpy as np, mindspore as ms\n"
            "from mindspore import ops\n"
            "from mindformers.core.context import init_context\n"
            "rank, size = init_context(True, {'device_target': 'CPU'}, {'parallel_mode': 0, 'gradients_mean': True})\n"
            "total = ops.AllReduce()(ms.Tensor([float(rank + 1)], ms.float32))\n"
            "print('rank', rank, 'of', size, 'sum', float(total.asnumpy()[0]),\n"
            "      ms.get_auto_parallel_context('parallel_mode'), flush=True)\n",
            encoding="utf-8",
        )
        reserved = reserve_port("127.0.0.1")
        port = reserved.getsockname()[1]
        shared = os.environ | {
            "PYTHONPATH": str(REPO), "MS_WORKER_NUM": "2", "MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": str(port),
        }  # fmt: skip
        roles = [{"MS_ROLE": "MS_SCHED"}, *({"MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(rank)} for rank in range(2))]
        processes = [
            subprocess.Popen(
                [sys.executable, str(script)], env=shared | role, cwd=tmp_path, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            for role in roles
        ]  # fmt: skip
        try:
            outputs = [process.communicate(timeout=900)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
            reserved.close()
        for rank in range(2):
            assert f"rank {rank} of 2 sum 3.0 data_parallel" in outputs[rank + 1], outputs[rank + 1]
