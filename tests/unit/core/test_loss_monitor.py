# SPDX-License-Identifier: Apache-2.0
"""The progress line, metrics.jsonl, and the guard against NaN."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor

from mindformers.core.callback.loss_monitor import MFLossMonitor
from mindformers.core.progress import TrainProgress
from mindformers.errors import ConfigError, TrainingError


def context(number: int, loss: float, overflow: bool = False, scale: float = 1.0) -> SimpleNamespace:
    values = (np.float32(loss), np.array(overflow), np.float32(scale), np.float32(1e-3), np.float32(0.5))
    params = SimpleNamespace(cur_step_num=number, batch_num=100, epoch_num=1, net_outputs=tuple(map(Tensor, values)))
    return SimpleNamespace(original_args=lambda: params)


@pytest.fixture
def lines() -> list[str]:
    """What the monitor logs."""
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    logger = logging.getLogger("mindformers.core.callback.loss_monitor")
    logger.addHandler(handler)
    yield seen
    logger.removeHandler(handler)


def monitor(path: Path, start: int = 0, accumulation: int = 1, **options: object) -> MFLossMonitor:
    callback = MFLossMonitor(**options)
    progress = TrainProgress(5, 2, 8, 16, accumulation=accumulation, start_step=start)
    callback.bind(progress, path / "metrics.jsonl", lambda: "good.ckpt")
    callback.on_train_begin(context(0, 0.0))
    return callback


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_line_has_the_old_fields_and_the_new(tmp_path: Path, lines: list[str]) -> None:
    callback = monitor(tmp_path)
    for step in range(1, 8):
        callback.on_train_step_end(context(step, 3.25 - step / 10))
    assert lines[0].startswith("first step done, compilation included, in ")
    assert "{ Epoch:[  2/  2], step:[    2/    5], loss: 2.550, per_step_time: " in lines[-1]
    for part in ("lr: 0.001", "overflow cond: False", "loss_scale: 1", "grad_norm: 0.500", "tokens/s", "ETA", "70.0%"):
        assert part in lines[-1]


def test_interval_first_and_last_step_are_reported_with_full_digits(tmp_path: Path) -> None:
    callback = monitor(tmp_path, per_print_times=4)
    for step in range(1, 11):
        callback.on_train_step_end(context(step, 1 / 3))
    found = records(tmp_path)
    assert [record["step"] for record in found] == [1, 4, 8, 10]
    assert found[0]["loss"] == float(np.float32(1 / 3))
    assert {"lr", "grad_norm", "loss_scale", "overflow", "tokens_per_second"} <= found[0].keys()


def test_resume_drops_lines_that_are_done_again_and_half_lines(tmp_path: Path) -> None:
    kept = [{"step": step, "loss": 1.0} for step in range(1, 8)]
    text = "\n".join(map(json.dumps, kept)) + '\n{"step": 8, "lo'
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    callback = monitor(tmp_path, start=5)
    callback.on_train_step_end(context(1, 2.0))
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_fresh_run_starts_a_fresh_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 9}\n', encoding="utf-8")
    monitor(tmp_path)
    assert records(tmp_path) == []


def test_micro_steps_are_not_reported(tmp_path: Path) -> None:
    callback = monitor(tmp_path, accumulation=2)
    for number in range(1, 7):
        callback.on_train_step_end(context(number, 1.0))
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, loss: float) -> None:
    callback = monitor(tmp_path, per_print_times=100)
    callback.on_train_step_end(context(1, 1.0))
    with pytest.raises(TrainingError, match=r"step 2\. The last good checkpoint is good\.ckpt\. Try"):
        callback.on_train_step_end(context(2, loss, overflow=True, scale=1.0))


def test_an_overflow_under_a_loss_scale_is_not_an_error(tmp_path: Path) -> None:
    callback = monitor(tmp_path)
    callback.on_train_step_end(context(1, float("inf"), overflow=True, scale=65536.0))
    assert records(tmp_path)[0]["overflow"] == 1.0


def test_other_ranks_write_nothing(tmp_path: Path, lines: list[str]) -> None:
    callback = MFLossMonitor()
    callback.bind(TrainProgress(5, 2, 8, 16), tmp_path / "metrics.jsonl", rank=1)
    callback.on_train_begin(context(0, 0.0))
    callback.on_train_step_end(context(1, 1.0))
    assert not (tmp_path / "metrics.jsonl").exists()
    assert not any("Epoch" in line for line in lines)


def test_tensorboard_gets_the_values(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="extra `tensorboard`")
    callback = monitor(tmp_path, tensorboard=True)
    callback.on_train_step_end(context(1, 1.0))
    callback.on_train_end(context(1, 1.0))
    written = list((tmp_path / "tensorboard").iterdir())
    assert len(written) == 1
    assert b"train/loss" in written[0].read_bytes()


def test_interval_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="per_print_times"):
        MFLossMonitor(per_print_times=0)
