# SPDX-License-Identifier: Apache-2.0
"""The compile cache: a folder for each configuration, because MindSpore would mix them up."""

import os
from dataclasses import replace
from typing import Any

import pytest
from mindspore import nn

from mindformers.config import load_config
from mindformers.core.progress import TrainProgress
from mindformers.trainer.compile_cache import compile_cache, without_compile_cache

PROGRESS = TrainProgress(steps_per_epoch=10, epochs=2, global_batch_size=4, seq_length=16)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of this process stay as they are."""
    monkeypatch.setattr(os, "environ", dict(os.environ))


def config(tmp_path: Any, *changes: str) -> Any:
    words = ["context.save_compile_cache=True", f"output_dir={tmp_path}", "do_eval=False", *changes]
    return load_config("run_llama2_tiny", words)


def folder_of(cfg: Any, progress: TrainProgress = PROGRESS, cell: nn.Cell | None = None, described: bool = True) -> Any:
    """The folder, and that MindSpore is told of it for as long as it should."""
    with compile_cache(cfg, progress, cell or nn.Dense(2, 3), described) as folder:
        told = os.environ.get("MS_COMPILER_CACHE_PATH"), os.environ.get("MS_COMPILER_CACHE_ENABLE")
        assert told == ((None, None) if folder is None else (str(folder), "1"))
    assert "MS_COMPILER_CACHE_ENABLE" not in os.environ
    return folder


def test_off_unless_asked_for(tmp_path):
    assert folder_of(config(tmp_path, "context.save_compile_cache=False")) is None


def test_the_folder_follows_from_what_is_in_the_graph(tmp_path):
    folder = folder_of(config(tmp_path))
    assert folder.parent == tmp_path / "compile_cache"
    assert folder_of(config(tmp_path, "load_checkpoint=elsewhere", "resume_training=True")) == folder
    for change in ("model.model_config.rms_norm_eps=1e-4", "optimizer.weight_decay=0.3", "runner_config.batch_size=3"):
        assert folder_of(config(tmp_path, change)) != folder
    assert folder_of(config(tmp_path), replace(PROGRESS, steps_per_epoch=11)) != folder
    elsewhere = folder_of(config(tmp_path, f"context.compile_cache_path={tmp_path / 'here'}"))
    assert elsewhere.parent == tmp_path / "here"


def test_what_no_config_says_counts_too(tmp_path, monkeypatch):
    """A checkpoint may tie the output layer, and a variable may switch kernels on."""
    cfg = config(tmp_path)
    folder = folder_of(cfg)
    assert folder_of(cfg, cell=nn.Dense(2, 3, has_bias=False)) != folder
    frozen = nn.Dense(2, 3)
    frozen.weight.requires_grad = False
    assert folder_of(cfg, cell=frozen) != folder
    monkeypatch.setattr("mindformers.trainer.compile_cache.use_native_kernels", lambda: True)
    assert folder_of(cfg) != folder


def test_objects_of_a_script_keep_nothing(tmp_path, caplog):
    assert folder_of(config(tmp_path), described=False) is None
    assert "objects given to the Trainer" in caplog.text


@pytest.mark.parametrize("change", ["do_eval=True", "use_parallel=True"])
def test_not_where_other_graphs_come_first(tmp_path, change, caplog):
    assert folder_of(config(tmp_path, change)) is None
    assert "is not used" in caplog.text


def test_the_context_of_a_run_leaves_it_out(tmp_path):
    cfg = config(tmp_path)
    assert not without_compile_cache(cfg.context).save_compile_cache
    assert cfg.context.save_compile_cache
