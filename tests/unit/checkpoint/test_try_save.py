# SPDX-License-Identifier: Apache-2.0
"""The trial save before training, and the space a run's checkpoints take."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Parameter, Tensor

from mindformers.checkpoint import save as save_module
from mindformers.checkpoint import space
from mindformers.checkpoint.layout import OutputLayout
from mindformers.checkpoint.save import save_step, try_save
from mindformers.checkpoint.space import SavePlan, check_run_space
from mindformers.core.callback import CheckpointMonitor
from mindformers.core.progress import TrainProgress
from mindformers.errors import CheckpointError


def state(count: int = 3) -> dict[str, Parameter]:
    return {f"w{i}": Parameter(Tensor(np.full((4, 8), i, np.float32)), name=f"w{i}") for i in range(count)}


@pytest.mark.parametrize("fmt", ["ckpt", "safetensors"])
def test_a_trial_leaves_nothing(tmp_path: Path, fmt: str) -> None:
    try_save(state(), tmp_path / "a" / "b" / f"x_rank_0-trial.{fmt}", fmt)
    assert list(tmp_path.iterdir()) == []
    kept = tmp_path / "c" / f"x_rank_0-1_1.{fmt}"
    save_step(state(), kept, manifest_fields={"step": 1}, fmt=fmt)
    before = {path.name: path.stat().st_mtime_ns for path in kept.parent.iterdir()}
    try_save(state(), kept.parent / f"x_rank_0-trial.{fmt}", fmt)
    assert {path.name: path.stat().st_mtime_ns for path in kept.parent.iterdir()} == before


def test_ranks_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They make and remove the folders they share under one another."""
    monkeypatch.setattr(save_module, "_write_temp", lambda tensors, temp, fmt: temp.touch())

    def trials(rank: int) -> None:
        for _ in range(300):
            try_save(state(1), tmp_path / "out" / "checkpoint" / f"rank_{rank}" / f"x_rank_{rank}-trial.ckpt")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(trials, range(4)))
    assert {path.name for path in tmp_path.rglob("*")} <= {"out", "checkpoint"}


def test_a_large_state_is_tried_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(save_module, "_write_temp", lambda tensors, *rest: written.append(list(tensors)))
    for sample in (1, 128, 129, 256, 1 << 20):
        try_save(state(), tmp_path / "x_rank_0-trial.ckpt", "ckpt", sample)
    assert written == [["w0"], ["w0"], ["w0"], ["w0", "w1"], ["w0", "w1", "w2"]]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"file/rank_0/x_rank_0-trial\.ckpt"):
        try_save(state(), tmp_path / "file" / "rank_0" / "x_rank_0-trial.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def simulate(saves: int, keep: int, present: int, step: int, sides: tuple[int, ...]) -> int:
    """Most bytes on the disk beyond those there at the start, save by save."""
    files, worst = [step] * present, 0
    side_files = [0] * len(sides)

    def used() -> int:
        return sum(files) + sum(side_files) - present * step

    for _ in range(saves):
        files.append(step)
        worst = max(worst, used())
        if keep:
            del files[:-keep]
        for i, size in enumerate(sides):
            worst = max(worst, used() + size)  # the new one beside the old
            side_files[i] = size
            worst = max(worst, used())
    return worst


@pytest.mark.parametrize("sides", [(), (30,), (30, 5), (200,)])
@pytest.mark.parametrize("keep", [0, 1, 3])
@pytest.mark.parametrize("present", [0, 2, 3])
def test_the_plan_is_an_upper_bound_and_close(keep: int, present: int, sides: tuple[int, ...]) -> None:
    for saves in (1, 2, 3, 4, 9):
        plan = SavePlan(saves, keep, present, 100, sides)
        exact = simulate(saves, keep, present, 100, sides)
        assert exact <= plan.needed_bytes <= exact + sum(sides) + 100 * (present > keep > 0)
    assert SavePlan(0, keep, present, 100, sides).needed_bytes == 0


def test_too_little_room_is_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: SimpleNamespace(free=399))
    check_run_space(SavePlan(1, 5, 0, 100, (30,)), tmp_path / "not" / "yet")
    with pytest.raises(CheckpointError, match=r"460 bytes[\s\S]*399 are free[\s\S]*keep_checkpoint_max"):
        check_run_space(SavePlan(4, 5, 0, 100, (30,)), tmp_path / "not" / "yet")


@pytest.mark.parametrize(
    ("every", "start", "seconds", "saves"), [(5, 0, 0, 5), (5, 10, 0, 3), (4, 0, 0, 6), (5, 0, 9, None)]
)
def test_the_monitor_counts_the_saves_to_come(tmp_path, monkeypatch, every, start, seconds, saves) -> None:
    plans = []
    monkeypatch.setattr(
        "mindformers.core.callback.checkpoint_monitor.check_run_space", lambda plan, _: plans.append(plan)
    )
    monitor = CheckpointMonitor(
        "p", save_checkpoint_steps=every, save_checkpoint_seconds=seconds, keep_checkpoint_max=2
    )
    monitor.bind(TrainProgress(8, 3, 1, 4, start_step=start), OutputLayout(tmp_path), state)
    monitor.try_save()
    assert plans == [SavePlan(saves, 2, 0, 3 * 128, (3 * 128,))]
    assert list(tmp_path.iterdir()) == []
    assert monitor.last_saved is None
