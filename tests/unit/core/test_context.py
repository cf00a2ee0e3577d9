# SPDX-License-Identifier: Apache-2.0
"""The device context: old keys on the current API, absent devices, mistakes."""

import os
import subprocess
import sys

import mindspore as ms
import pytest

from mindformers.core.context import ContextConfig, ParallelContextConfig, device_capabilities, init_context
from mindformers.errors import ConfigError, DeviceError, MindFormersError
from tests.helpers import REPO

EVERY_KEY = """
from mindformers.config.schema.context import ContextSection
from mindformers.core.context import init_context
section = ContextSection(
    mode=0, device_target="CPU", device_id=0, max_device_memory="31GB", mempool_block_size="1GB",
    memory_optimize_level="O1", max_call_depth=2000, save_graphs=False, save_graphs_path="./graph",
    enable_graph_kernel=True, graph_kernel_flags="x", save_compile_cache=True, load_compile_cache=True,
    runtime_num_threads=1, inter_op_parallel_num=2, pynative_synchronize=True, deterministic="ON", jit_level="O0",
    ascend_config={"precision_mode": "must_keep_origin_dtype", "parallel_speed_up_json_path": "x"},
)
assert init_context(False, section, None) == (0, 1)
import mindspore as ms, numpy as np
assert (ms.Tensor(np.ones(3)) + 1).asnumpy().sum() == 6
import sys
assert sys.getrecursionlimit  # the interpreter survived
print("done")
"""


def test_every_key_is_set_without_a_deprecation_warning() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EVERY_KEY], env=os.environ | {"PYTHONPATH": str(REPO)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "done" in done.stdout
    for word in ("deprecat", "will be removed", "not be supported"):
        assert word not in done.stdout.lower(), done.stdout


def test_defaults_of_a_mapping_and_no_change_to_it() -> None:
    options = {"device_target": "CPU", "mode": "GRAPH_MODE", "max_device_memory": "30GB"}
    before = dict(options)
    assert init_context(context_config=options) == (0, 1)
    assert init_context(context_config=options) == (0, 1)  # a second call is fine
    assert options == before
    assert ms.get_context("mode") == ms.GRAPH_MODE


@pytest.mark.parametrize("target", ["Ascend", "GPU"])
def test_absent_device_names_the_way_out(target: str) -> None:
    with pytest.raises(DeviceError, match="--device_target CPU"):
        init_context(context_config={"device_target": target})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"device_target": "TPU"}, "TPU"), ({"device_target": "CPU", "mode": 7}, "mode"),
     ({"device_target": "CPU", "mode": True}, "mode")],
)  # fmt: skip
def test_wrong_values(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        init_context(context_config=options)


def test_parallel_without_a_launcher_says_how_to_launch() -> None:
    with pytest.raises(DeviceError, match=r"run_distribute\.sh"):
        init_context(True, {"device_target": "CPU"}, {"parallel_mode": 0})


def test_config_objects_know_their_keys() -> None:
    assert ContextConfig(device_target="CPU", ascend_config={"precision_mode": "x"}).ascend_config
    assert init_context(context_config=ContextConfig(device_target="CPU")) == (0, 1)
    assert ParallelContextConfig(parallel_mode=1, full_batch=True).full_batch is True
    with pytest.raises(MindFormersError, match="max_device_memory"):
        ContextConfig(max_device_memry="1GB")
    with pytest.raises(MindFormersError, match="full_batch"):
        ParallelContextConfig(ful_batch=True)


def test_bfloat16_is_no_cpu_type() -> None:
    assert "bfloat16" not in device_capabilities("CPU").compute_dtypes
    assert "bfloat16" in device_capabilities("Ascend").compute_dtypes
