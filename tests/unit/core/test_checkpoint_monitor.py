# SPDX-License-Identifier: Apache-2.0
"""CheckpointMonitor: when it saves, what it writes, and what it leaves alone."""

import threading
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest

from mindformers.checkpoint import save as save_module
from mindformers.checkpoint.layout import OutputLayout
from mindformers.checkpoint.load import read_checkpoint
from mindformers.checkpoint.manifest import read_manifest
from mindformers.core.callback import CheckpointMointor, CheckpointMonitor
from mindformers.core.callback import checkpoint_monitor as monitor_module
from mindformers.core.progress import TrainProgress
from mindformers.errors import CheckpointError, ConfigError, TrainingError
from mindformers.registry import MindFormerModuleType, MindFormerRegister
from tests.unit.checkpoint.helpers import parameter, small_state


class Run:
    """Plays MindSpore's part: calls the callback around steps, each of which changes the state."""

    def __init__(self, root, *, start=0, accumulation=1, fields=None, steps_per_epoch=5, **options):
        self.layout = OutputLayout(root)
        self.state = small_state() | {"scale_sense": parameter("scale_sense", 8.0)}
        self.state["model.b.bias"].requires_grad = False
        self.args = SimpleNamespace(cur_step_num=0)
        self.context = SimpleNamespace(original_args=lambda: self.args)
        self.monitor = CheckpointMonitor(**options)
        self.progress = TrainProgress(steps_per_epoch, 3, 4, 8, accumulation, start)
        self.monitor.bind(self.progress, self.layout, lambda: self.state, fields or {"seed": 1})

    def steps(self, count, sink=1):
        """Run micro steps; with ``sink``, several per callback."""
        for _ in range(count):
            self.monitor.on_train_step_begin(self.context)
            self.args.cur_step_num += sink
            self.state["global_step"].set_data(ms.Tensor([self.args.cur_step_num], ms.int32))
            self.monitor.on_train_step_end(self.context)

    def saved(self):
        """Names of step files, without prefix, in order of saving."""
        files = self.layout.checkpoint_dir.glob("*.json")
        return [p.name.split("-")[1].split(".")[0] for p in sorted(files, key=lambda p: p.stat().st_mtime_ns)]


def test_saves_every_so_many_steps_and_the_last(tmp_path):
    run = Run(tmp_path, save_checkpoint_steps=3)
    run.monitor.on_train_begin(run.context)
    run.steps(7)
    assert run.saved() == ["1_3", "2_1"]
    run.monitor.on_train_end(run.context)
    assert run.saved() == ["1_3", "2_1", "2_2"]
    run.monitor.on_train_end(run.context)
    assert run.monitor.last_saved == run.layout.step_file("CKP", 2, 2)


def test_end_does_not_save_twice(tmp_path):
    run = Run(tmp_path, save_checkpoint_steps=2)
    run.steps(4)
    before = run.monitor.last_saved.stat().st_mtime_ns
    run.monitor.on_train_end(run.context)
    assert run.monitor.last_saved.stat().st_mtime_ns == before


def test_resume_does_not_shift_the_grid(tmp_path):
    run = Run(tmp_path, start=4, save_checkpoint_steps=3)
    run.steps(5)
    assert run.saved() == ["2_1", "2_4"]
    assert read_manifest(run.monitor.last_saved).step == 9


def test_nothing_done_nothing_saved(tmp_path):
    run = Run(tmp_path, start=4)
    run.monitor.on_train_end(run.context)
    assert run.saved() == []


def test_accumulation_saves_only_at_boundaries(tmp_path):
    run = Run(tmp_path, accumulation=3, save_checkpoint_steps=1)
    run.steps(8)
    assert run.saved() == ["1_1", "1_2"]


def test_sunk_steps_are_saved_when_they_cross_the_grid(tmp_path):
    run = Run(tmp_path, save_checkpoint_steps=3)
    run.steps(5, sink=2)
    assert run.saved() == ["1_4", "2_1", "2_5"]


def test_saves_by_seconds(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(monitor_module.time, "monotonic", lambda: now[0])
    run = Run(tmp_path, save_checkpoint_seconds=10)
    for _ in range(5):
        now[0] += 4
        run.steps(1)
    assert run.saved() == ["1_3"]


def test_manifest_tells_where_the_run_stands(tmp_path):
    calls = []
    fields = lambda: calls.append(1) or {"seed": 9, "shuffle": True, "config_hash": "abc"}  # noqa: E731
    run = Run(tmp_path, save_checkpoint_steps=7, fields=fields)
    run.steps(7)
    manifest = read_manifest(run.monitor.last_saved)
    assert (manifest.step, manifest.epoch, manifest.step_in_epoch) == (7, 2, 2)
    assert (manifest.global_batch_size, manifest.records_consumed) == (4, 28)
    assert (manifest.seed, manifest.loss_scale, manifest.config_hash) == (9, 8.0, "abc")
    assert manifest.extra == {"shuffle": True, "steps_per_epoch": 5}
    assert calls == [1]


@pytest.mark.parametrize("fmt", ["ckpt", "safetensors"])
def test_files_of_a_save(tmp_path, fmt):
    run = Run(tmp_path, checkpoint_format=fmt, save_trainable_params=True, prefix="llama")
    run.steps(2)
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob(f"*.{fmt}"))
    assert names == [
        f"checkpoint/rank_0/llama_rank_0-1_1.{fmt}",
        f"checkpoint/rank_0/llama_rank_0-1_2.{fmt}",
        f"checkpoint_network/rank_0/llama_rank_0-network.{fmt}",
        f"checkpoint_trainable/rank_0/llama_rank_0-trainable_params.{fmt}",
    ]
    full = read_checkpoint(run.monitor.last_saved)
    assert set(run.state) <= set(full)
    assert full["global_step"].asnumpy().tolist() == [2]
    assert set(read_checkpoint(run.layout.network_file("llama", fmt))) == {"model.a.weight", "model.b.bias"}
    assert set(read_checkpoint(run.layout.trainable_file("llama", fmt))) == {"model.a.weight"}


def test_network_file_can_be_switched_off_and_directory_replaces_the_root(tmp_path):
    run = Run(tmp_path / "run", directory=str(tmp_path / "else"), save_network_params=False)
    run.steps(1)
    assert not (tmp_path / "run").exists()
    assert [p.name for p in (tmp_path / "else").iterdir()] == ["checkpoint"]


def test_rotation_keeps_the_newest(tmp_path):
    run = Run(tmp_path, keep_checkpoint_max=2)
    run.steps(5)
    assert run.saved() == ["1_4", "1_5"]


def test_failed_save_keeps_the_older_ones(tmp_path, monkeypatch):
    run = Run(tmp_path, keep_checkpoint_max=1)
    run.steps(1)
    first = run.monitor.last_saved

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save_module.ms, "save_checkpoint", full)
    with pytest.raises(CheckpointError, match="No space left"):
        run.steps(1)
    assert run.saved() == ["1_1"]
    assert run.monitor.last_saved == first


def test_async_save_writes_the_values_of_its_own_step(tmp_path, monkeypatch):
    gate, real = threading.Event(), monitor_module.save_step

    def slow(*args, **kwargs):
        assert gate.wait(10)
        return real(*args, **kwargs)

    monkeypatch.setattr(monitor_module, "save_step", slow)
    run = Run(tmp_path, async_save=True, save_checkpoint_steps=1)
    run.steps(1)
    assert run.saved() == []
    assert run.monitor.last_saved is None
    run.state["model.a.weight"].set_data(ms.Tensor(np.zeros((3, 5), np.float32)))
    gate.set()
    run.monitor.on_train_end(run.context)
    params = read_checkpoint(run.layout.step_file("CKP", 1, 1))
    np.testing.assert_array_equal(params["model.a.weight"].asnumpy(), small_state()["model.a.weight"].asnumpy())
    assert run.saved() == ["1_1"]


def test_async_failure_is_raised_at_the_next_save_or_the_end(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise CheckpointError("disk full")

    monkeypatch.setattr(monitor_module, "save_step", broken)
    run = Run(tmp_path, async_save=True, save_checkpoint_steps=1)
    run.steps(1)
    with pytest.raises(CheckpointError, match="disk full"):
        run.monitor.on_train_end(run.context)


@pytest.mark.parametrize(
    ("error", "in_step", "expected"),
    [(ValueError, False, ["1_2"]), (ValueError, True, []), (TrainingError, False, []), (None, False, [])],
)
def test_exception_save(tmp_path, error, in_step, expected):
    run = Run(tmp_path, save_checkpoint_steps=100, exception_save=True)
    run.steps(2)
    if in_step:
        run.monitor.on_train_step_begin(run.context)
    run.monitor.__exit__(error, error and error("x"), None)
    assert run.saved() == expected


def test_without_exception_save_nothing_is_written(tmp_path):
    run = Run(tmp_path, save_checkpoint_steps=100)
    run.steps(2)
    run.monitor.__exit__(ValueError, ValueError("x"), None)
    assert run.saved() == []


def test_unbound_monitor_refuses_to_train():
    with pytest.raises(ConfigError, match=r"bind"):
        CheckpointMonitor().on_train_begin(None)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"prefix": "a/b"}, "prefix"),
        ({"prefix": ""}, "prefix"),
        ({"prefix": ".tmp"}, "dot"),
        ({"save_checkpoint_steps": 0}, "save_checkpoint_steps 0"),
        ({"save_checkpoint_steps": True}, "save_checkpoint_steps True"),
        ({"save_checkpoint_seconds": -1}, "save_checkpoint_seconds -1"),
        ({"save_checkpoint_seconds": float("nan")}, "save_checkpoint_seconds nan"),
        ({"keep_checkpoint_max": -1}, "keep_checkpoint_max -1"),
        ({"checkpoint_format": "pt"}, "ckpt, safetensors"),
    ],
)
def test_bad_arguments(options, text):
    with pytest.raises(ConfigError, match=text):
        CheckpointMonitor(**options)


def test_all_bad_arguments_at_once():
    with pytest.raises(ConfigError, match=r"prefix .*; keep_checkpoint_max"):
        CheckpointMonitor(prefix="", keep_checkpoint_max=-2)


def test_several_ranks_cannot_save_by_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(monitor_module.GlobalComm, "INITED", True)
    monkeypatch.setattr(monitor_module, "get_group_size", lambda: 2)
    with pytest.raises(ConfigError, match="2 ranks"):
        Run(tmp_path, save_checkpoint_seconds=5)


@pytest.mark.parametrize("name", ["CheckpointMonitor", "CheckpointMointor"])
def test_both_spellings_are_registered(name):
    made = MindFormerRegister.get_instance_from_cfg(
        {"type": name, "prefix": "llama", "integrated_save": True}, MindFormerModuleType.CALLBACK
    )
    assert isinstance(made, CheckpointMonitor)
    assert made.prefix == "llama"
    assert issubclass(CheckpointMointor, CheckpointMonitor)
