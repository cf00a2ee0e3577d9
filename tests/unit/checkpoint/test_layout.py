# SPDX-License-Identifier: Apache-2.0
"""Names of files and folders."""

import subprocess
import sys
from pathlib import Path

import pytest

from mindformers.checkpoint.layout import (
    OutputLayout,
    StepName,
    default_root,
    manifest_path,
    parse_step_file,
    temp_path,
)
from mindformers.errors import CheckpointError


def test_folders_of_a_rank():
    layout = OutputLayout("out", rank=3)
    assert layout.checkpoint_dir == Path("out/checkpoint/rank_3")
    assert layout.network_dir == Path("out/checkpoint_network/rank_3")
    assert layout.trainable_dir == Path("out/checkpoint_trainable/rank_3")
    assert layout.log_dir == Path("out/log/rank_3")
    assert layout.strategy_file == Path("out/strategy/ckpt_strategy_rank_3.ckpt")
    assert layout.metrics_file == Path("out/log/rank_3/metrics.jsonl")
    assert OutputLayout("out").metrics_file == Path("out/metrics.jsonl")


def test_layout_creates_nothing(tmp_path):
    layout = OutputLayout(tmp_path / "new")
    assert not layout.step_file("CKP", 1, 1).parent.exists()
    assert list(tmp_path.iterdir()) == []


def test_file_names():
    layout = OutputLayout("out", rank=1)
    assert layout.step_file("llama", 2, 30, "ckpt").name == "llama_rank_1-2_30.ckpt"
    assert layout.step_file("llama", 2, 30, "safetensors").suffix == ".safetensors"
    assert layout.network_file("llama", "ckpt").name == "llama_rank_1-network.ckpt"
    assert layout.trainable_file("llama").name == "llama_rank_1-trainable_params.ckpt"
    assert manifest_path("x/a.ckpt") == Path("x/a.ckpt.json")
    with pytest.raises(CheckpointError, match="ckpt, safetensors"):
        layout.step_file("llama", 1, 1, "bin")


@pytest.mark.parametrize("prefix", ["CKP", "my.model_v-2", "a_rank_0-1_2", "x y"])
def test_parse_is_the_inverse_of_step_file(prefix):
    path = OutputLayout("out", rank=12).step_file(prefix, 4, 56, "safetensors")
    assert parse_step_file(path) == StepName(prefix, 12, 4, 56, "safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "CKP_rank_0-network.ckpt",
        "CKP_rank_0-1_2.bin",
        "CKP_rank_0-1_2.ckpt.json",
        "CKP-1_2.ckpt",
        "_rank_0-1_2.ckpt",
    ]
    + [".tmp.CKP_rank_0-1_2.ckpt", "CKP_rank_x-1_2.ckpt", ""],
)
def test_other_names_are_not_step_files(name):
    assert parse_step_file(name) is None


def test_temporary_name_is_in_the_same_folder_with_the_same_extension():
    assert temp_path("a/b.ckpt") == Path("a/.tmp.b.ckpt")


def test_default_root():
    assert default_root({}) == Path("output")
    assert default_root({"LOCAL_DEFAULT_PATH": ""}) == Path("output")
    assert default_root({"LOCAL_DEFAULT_PATH": "/data/run"}) == Path("/data/run")


def test_layout_does_not_import_mindspore():
    code = "import sys, mindformers.checkpoint.layout; assert 'mindspore' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
