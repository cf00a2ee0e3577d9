# SPDX-License-Identifier: Apache-2.0
"""Choosing the checkpoint to continue from, comparing settings, restoring every value."""

import os

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from mindformers.checkpoint.layout import OutputLayout, manifest_path
from mindformers.checkpoint.resume import check_settings, find_resume, restore
from mindformers.checkpoint.save import save_step
from mindformers.errors import CheckpointError
from tests.unit.checkpoint.helpers import FIELDS, LogLines, flip_bit, parameter, same, small_state

CONFIG = {"optimizer.learning_rate": 0.1, "runner_config.epochs": 2}
SETTINGS = {**FIELDS, "dataset_records": 100, "shuffle": True, "steps_per_epoch": 25, "config": CONFIG}


@pytest.fixture
def layout(tmp_path):
    """An output folder with the checkpoints of steps 1 to 3."""
    layout = OutputLayout(tmp_path)
    for step in (1, 2, 3):
        save_step(small_state(step), layout.step_file("CKP", 1, step), manifest_fields={**SETTINGS, "step": step})
    return layout


def test_newest_complete_is_found_from_layout_folder_and_file(layout, tmp_path):
    newest = layout.step_file("CKP", 1, 3)
    for where in (layout, tmp_path, layout.checkpoint_root, layout.checkpoint_dir, newest, str(newest)):
        point = find_resume(where)
        assert point.path == newest
        assert point.manifest.step == 3


def test_explicit_older_file_is_honoured(layout):
    assert find_resume(layout.step_file("CKP", 1, 1)).manifest.step == 1


def test_incomplete_ones_are_passed_over_with_a_warning(layout):
    manifest_path(layout.step_file("CKP", 1, 3)).unlink()
    manifest_path(layout.step_file("CKP", 1, 4)).write_text("{}")
    cut = layout.step_file("CKP", 1, 5)
    save_step(small_state(5), cut, manifest_fields=FIELDS)
    manifest_path(cut).write_text(manifest_path(cut).read_text()[:50])
    (layout.checkpoint_dir / ".tmp.CKP_rank_0-1_6.ckpt").write_bytes(b"half")
    with LogLines() as log:
        assert find_resume(layout).manifest.step == 2
    for name, why in (("1_3", "no manifest"), ("1_4", "the file is not"), ("1_5", "not a readable"), ("1_6", "finish")):
        assert any(why in line for line in log.having(f"CKP_rank_0-{name}.ckpt")), (name, log.lines)


def test_old_foreign_files_are_not_mentioned(layout):
    foreign = layout.checkpoint_dir / "CKP_rank_0-0_1.ckpt"
    foreign.write_bytes(b"x")
    os.utime(foreign, (1, 1))
    with LogLines() as log:
        assert find_resume(layout).manifest.step == 3
    assert not log.having("passed over")


@pytest.mark.parametrize("harm", ["flip", "cut", "empty"])
def test_damaged_newest_is_refused_and_the_older_named(layout, harm):
    newest = layout.step_file("CKP", 1, 3)
    data = newest.read_bytes()
    if harm == "flip":
        flip_bit(newest, len(data) // 2)
    else:
        newest.write_bytes(data[: len(data) // 2 if harm == "cut" else 0])
    with pytest.raises(CheckpointError) as error:
        find_resume(layout)
    older = layout.step_file("CKP", 1, 2)
    assert str(newest) in str(error.value)
    assert f"--load_checkpoint {older} --resume_training True" in str(error.value)
    assert find_resume(older).manifest.step == 2


def test_prefix_is_honoured(layout):
    save_step(small_state(), layout.step_file("OTHER", 1, 9), manifest_fields={"step": 9})
    assert find_resume(layout, "CKP").manifest.step == 3
    assert find_resume(layout, "OTHER").manifest.step == 9
    with pytest.raises(CheckpointError, match="prefix 'NONE'"):
        find_resume(layout, "NONE")


def test_nothing_to_resume_from(tmp_path):
    with pytest.raises(CheckpointError, match=r"(?s)nothing to resume from.*--load_checkpoint"):
        find_resume(OutputLayout(tmp_path))
    ms.save_checkpoint([{"name": "a", "data": parameter("a", [1.0])}], str(tmp_path / "a.ckpt"))
    with pytest.raises(CheckpointError, match=r"(?s)no manifest.*--resume_training False"):
        find_resume(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="nothing to resume from"):
        find_resume(tmp_path)


def test_restart_in_the_same_folder_resumes_the_newer_run(layout):
    save_step(small_state(9), layout.step_file("CKP", 1, 1), manifest_fields={**SETTINGS, "step": 1})
    with LogLines() as log:
        assert find_resume(layout).manifest.step == 1
    assert log.having("CKP_rank_0-1_3.ckpt is of a later step")


def test_restore_puts_every_value_back(layout):
    state = small_state(3) | {"scale_sense": parameter("scale_sense", 64.0)}
    path = layout.step_file("CKP", 1, 4)
    save_step(state, path, manifest_fields={**SETTINGS, "step": 4})
    target = {n: parameter(n, p.asnumpy() * 0, p.dtype) for n, p in state.items()}
    network = {n: target[n] for n in target if n.startswith("model")}
    scale = {"scale_sense": target["scale_sense"]}
    optimizer = {n: p for n, p in target.items() if n not in network and n not in scale}
    report = restore(network, find_resume(layout), SETTINGS, optimizer=optimizer, scale=scale)
    assert report.missing == report.unexpected == []
    assert same(target, state)


@pytest.mark.parametrize("lost", ["adam_m.model.a.weight", "global_step", "model.b.bias"])
def test_restore_fails_when_any_part_is_missing(layout, lost):
    state = small_state(3)
    del state[lost]
    path = layout.step_file("CKP", 1, 4)
    save_step(state, path, manifest_fields=SETTINGS)
    with pytest.raises(CheckpointError, match=lost):
        restore(small_state(), find_resume(path))


def test_restore_keeps_the_present_constant_learning_rate(layout):
    path = layout.step_file("CKP", 1, 4)
    save_step(small_state(3) | {"learning_rate": parameter("learning_rate", 0.5)}, path, manifest_fields=SETTINGS)
    target = small_state() | {"learning_rate": parameter("learning_rate", 0.1)}
    restore(target, find_resume(path))
    assert target["learning_rate"].asnumpy() == np.float32(0.1)


def test_equal_settings_say_nothing(layout):
    with LogLines() as log:
        check_settings(find_resume(layout), {**SETTINGS, "config": dict(CONFIG)})
    assert log.lines == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 8), ("global_batch_size", 8), ("dataset_records", 99), ("steps_per_epoch", 24), ("shuffle", False)],
)
def test_settings_that_break_the_data_order_are_errors(layout, name, value):
    point, current = find_resume(layout), {**SETTINGS, name: value}
    with pytest.raises(CheckpointError) as error:
        check_settings(point, current)
    assert f"{name} {SETTINGS[name]} -> {value}" in str(error.value)
    assert "--resume_training False" in str(error.value)
    with LogLines() as log:
        check_settings(point, current, allow_mismatch=True)
    assert log.having(f"{name} {SETTINGS[name]} -> {value}")


def test_harmless_changes_are_one_warning(layout):
    config = {"optimizer.learning_rate": 0.2, "runner_config.sink_size": 2, "runner_config.epochs": 2}
    with LogLines() as log:
        check_settings(find_resume(layout), {**SETTINGS, "config": config})
    assert len(log.lines) == 1
    assert "optimizer.learning_rate 0.1 -> 0.2" in log.lines[0]
    assert "runner_config.sink_size None -> 2" in log.lines[0]
    assert "epochs" not in log.lines[0]


def test_losses_after_restore_equal_those_without_a_break(tmp_path):
    """Momentum-like state included: five steps, or two, a save, a restore into another net, and three."""
    x, y = (ms.Tensor(np.random.default_rng(i).normal(size=(8, 4)).astype(np.float32)) for i in (1, 2))

    def make():
        ms.set_seed(3)
        net = nn.WithLossCell(nn.Dense(4, 4), nn.MSELoss())
        cell = nn.TrainOneStepCell(net, nn.Adam(net.trainable_params(), 0.05))
        return cell.set_train()

    whole = make()
    expected = [float(whole(x, y).asnumpy()) for _ in range(5)]
    first = make()
    losses = [float(first(x, y).asnumpy()) for _ in range(2)]
    state = {p.name: p for p in first.get_parameters()}
    save_step(state, OutputLayout(tmp_path).step_file("CKP", 1, 2), manifest_fields={"step": 2})
    second = make()
    restore(second, find_resume(OutputLayout(tmp_path)))
    losses += [float(second(x, y).asnumpy()) for _ in range(3)]
    assert losses == expected
