# SPDX-License-Identifier: Apache-2.0
"""What belongs together among the files of ranks, what is refused, and ranks that wait for each other."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from mindformers.checkpoint.agree import common_saves, common_step
from mindformers.checkpoint.cluster import select_files
from mindformers.checkpoint.foreign.arrays import Raw
from mindformers.checkpoint.layout import OutputLayout, manifest_path
from mindformers.checkpoint.meeting import Meeting
from mindformers.checkpoint.resume import find_resume
from mindformers.checkpoint.sources import open_source
from mindformers.checkpoint.strategy import ClusterLayout, ParamLayout, read_strategy, slices_record
from mindformers.checkpoint.stream import CheckpointStream, Planned
from mindformers.checkpoint.transform import transform
from mindformers.errors import CheckpointError, ConfigError
from mindformers.tools.transform_ckpt import main
from tests.unit.checkpoint.helpers import LogLines, flip_bit

ROWS = ClusterLayout([{"model.w": ParamLayout((2,), ((0,), ()))}], 2, Path("rows"))  # the first axis over two ranks
W = np.arange(24, dtype=np.float32).reshape(6, 4)


def write(path: Path, value: np.ndarray, step: int = 1, **fields) -> None:
    """A checkpoint of one weight."""
    item = Planned("model.w", value.shape, "float32")
    with CheckpointStream(
        path, [item], path.suffix[1:], {"step": step, "epoch": 1, "step_in_epoch": step, **fields}
    ) as s:
        s.add(item, Raw(value, "float32"))


def save(root: Path, rank: int, step: int, record: bool = True, value: np.ndarray | None = None) -> Path:
    """What a rank of a run of two saves at a step."""
    path = OutputLayout(root, rank).step_file("m", 1, step)
    extra = {"slices": slices_record(ROWS, rank)} if record else {}
    write(path, W[3 * rank : 3 * rank + 3] + step if value is None else value, step, **extra)
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Two ranks with two steps."""
    for step in (1, 2):
        for rank in (0, 1):
            save(tmp_path / "output", rank, step)
    return tmp_path / "output"


def merged(source: Path, target: Path, **options) -> np.ndarray:
    done = transform(open_source(source), target, **options)
    return open_source(done.files[0]).source.read("model.w", ((0, 6), (0, 4))).data


def test_the_newest_step_of_all_ranks_is_taken(output: Path, tmp_path: Path) -> None:
    save(output, 0, 3)
    with LogLines() as log:
        np.testing.assert_array_equal(merged(output, tmp_path / "a"), W + 2)
    assert log.having("m_rank_0-1_3.ckpt: not all ranks have that step complete; step 2 is the newest")
    manifest_path(save(output, 1, 3)).unlink()  # killed between file and manifest
    np.testing.assert_array_equal(merged(output / "checkpoint", tmp_path / "b"), W + 2)
    save(output, 1, 3)
    np.testing.assert_array_equal(merged(output / "checkpoint", tmp_path / "c"), W + 3)


def test_an_older_step_can_be_asked_for(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["--src_ckpt_dir", str(output), "--dst_ckpt_dir", str(tmp_path / "one"), "--prefix", "m", "--step"]
    assert main([*command, "1"]) == 0
    assert "m_rank_1-1_1.ckpt" in capsys.readouterr().out
    found = open_source(tmp_path / "one/rank_0/m0.ckpt").source.read("model.w", ((0, 6), (0, 4))).data
    np.testing.assert_array_equal(found, W + 1)
    save(output, 0, 3)
    with pytest.raises(CheckpointError, match=r"step 3 is not complete on all 2 ranks; complete steps: 1, 2"):
        main([*command, "3"])
    with pytest.raises(CheckpointError, match=r"no rank_N folders to look for step 1"):
        open_source(output / "checkpoint/rank_0/m_rank_0-1_1.ckpt", step=1)


def test_one_rule_for_what_all_ranks_have() -> None:
    assert common_saves([[1, 2, 3, 2], [2, 1, 3]]) == [1, 3, 2]  # step 2 was saved again, after step 3
    assert common_step([[1, 2, 3, 2], [3, 2, 1]]) == 2
    assert common_saves([["a"], []]) == []
    assert common_step([[4], [5]]) is None


def test_resume_takes_the_newest_step_of_all_ranks(output: Path) -> None:
    save(output, 0, 3)
    for rank in (0, 1):
        with LogLines() as log:
            assert find_resume(OutputLayout(output, rank), "m", rank, 2).manifest.step == 2
        assert len(log.having("passed over")) == (rank == 0)
    assert find_resume(OutputLayout(output, 0), "m", 0, 1).manifest.step == 3
    with pytest.raises(CheckpointError, match=r"no folder of rank 2, 3, but 4 ranks run.*auto_trans_ckpt True"):
        find_resume(OutputLayout(output, 0), "m", 0, 4)


def test_no_common_step_lists_what_there_is(tmp_path: Path) -> None:
    for rank, steps in ((0, (1, 2)), (1, (3, 4))):
        for step in steps:
            save(tmp_path, rank, step)
    with pytest.raises(
        CheckpointError, match=r"no step has a complete.*\n.*rank_0: m_rank_0-1_1.*\n.*rank_1: m_rank_1-1_3"
    ):
        select_files(tmp_path)


def test_files_without_manifests_go_by_name_or_stand_alone(tmp_path: Path) -> None:
    for rank in (0, 1):
        for step in (1, 2 + rank):
            manifest_path(save(tmp_path / "named", rank, step)).unlink()
        write(tmp_path / f"single/rank_{rank}/x{rank}.ckpt", W)
        write(tmp_path / f"mixed/rank_{rank}/x{rank}.ckpt", W, step=rank + 1)
        for name in "ab":
            file = tmp_path / f"many/rank_{rank}/{name}.ckpt"
            write(file, W)
            manifest_path(file).unlink()
    assert {p.name for p in select_files(tmp_path / "named").values()} == {"m_rank_0-1_1.ckpt", "m_rank_1-1_1.ckpt"}
    assert [p.name for p in select_files(tmp_path / "single").values()] == ["x0.ckpt", "x1.ckpt"]
    with pytest.raises(CheckpointError, match=r"is of step 1, .* of 2: they do not belong together"):
        select_files(tmp_path / "mixed")
    with pytest.raises(CheckpointError, match=r"which files belong together"):
        select_files(tmp_path / "many")


def test_without_a_strategy_many_ranks_are_refused(output: Path, tmp_path: Path) -> None:
    for rank in (0, 1):
        save(output, rank, 5, record=False)
    (output / "strategy").mkdir()
    with pytest.raises(CheckpointError, match=r"2 ranks: say how they were cut .*probably .*strategy"):
        open_source(output)
    with pytest.raises(CheckpointError, match=r"has no rank_N folders.* leave that out"):
        open_source(output / "checkpoint/rank_0/m_rank_0-1_5.ckpt", tmp_path)


def test_damage_and_missing_slices_are_named(output: Path, tmp_path: Path) -> None:
    file = output / "checkpoint/rank_1/m_rank_1-1_2.ckpt"
    flip_bit(file, file.stat().st_size - 3)
    with pytest.raises(CheckpointError, match=r"m_rank_1-1_2.ckpt cannot be used.*checksum"):
        open_source(output)
    for path in (output / "checkpoint/rank_1").iterdir():
        path.unlink()
    with pytest.raises(
        CheckpointError, match=r"of model.w only 12 of 24 values are there.*rank 1, whose checkpoint is miss"
    ):
        open_source(output)
    assert main_error(["--src_ckpt_dir", str(output), "--dst_ckpt_dir", str(tmp_path / "x")]).endswith("is missing")
    assert not (tmp_path / "x").exists()


def main_error(arguments: list[str]) -> str:
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        main(arguments)
    return str(caught.value)


def test_copies_that_differ_fail_the_verification(tmp_path: Path) -> None:
    both = ClusterLayout([{"model.w": ParamLayout((2,), ((), ()))}], 2, Path("copies"))
    for rank in (0, 1):
        extra = {"slices": slices_record(both, rank)}
        write(OutputLayout(tmp_path / "run", rank).step_file("m", 1, 1), W + rank, 1, **extra)
    np.testing.assert_array_equal(merged(tmp_path / "run", tmp_path / "a"), W)
    with pytest.raises(CheckpointError, match=r"ranks 0 and 1 should hold the same part of model.w"):
        merged(tmp_path / "run", tmp_path / "b", verify=True)
    assert not (tmp_path / "b").exists()
    (tmp_path / "run/checkpoint/rank_0").rename(tmp_path / "gone")
    np.testing.assert_array_equal(merged(tmp_path / "run", tmp_path / "c", verify=True), W + 1)


def test_a_wrong_write_fails_the_verification(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add = CheckpointStream.add
    monkeypatch.setattr(CheckpointStream, "add", lambda s, i, v: add(s, i, Raw(v.data + 1, v.dtype)))
    with pytest.raises(CheckpointError, match=r"verification failed: model.w of rank 0"):
        merged(output, tmp_path / "a", verify=True)
    assert not (tmp_path / "a").exists()


def test_targets_are_not_mixed_and_sources_not_replaced(output: Path, tmp_path: Path) -> None:
    target = tmp_path / "t"
    cut = transform(open_source(output), target, ROWS)
    with pytest.raises(CheckpointError, match=r"exists: choose another folder, or give --overwrite"):
        transform(open_source(output), target, ROWS)
    again = transform(open_source(output), target, ROWS, overwrite=True)
    assert again.files == cut.files
    with pytest.raises(CheckpointError, match=r"holds other checkpoints \(rank_1"):
        transform(open_source(output), target, overwrite=True)
    with pytest.raises(CheckpointError, match=r"is part of the source and would be replaced"):
        transform(open_source(target), target, overwrite=True)
    assert not list(target.rglob(".tmp*"))


def test_strategies_of_other_runs_and_rubbish_are_refused(output: Path, tmp_path: Path) -> None:
    rubbish = tmp_path / "ckpt_strategy_rank_0.ckpt"
    for content in (b"\xff\xfe rubbish", b"", b"\x00" * 64):
        rubbish.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"strategy file"):
            read_strategy(rubbish)
    (tmp_path / "s.json").write_text('{"parallel_layout_item": {"w": {"dev_matrix": [2]}}}')
    with pytest.raises(CheckpointError, match=r"is no strategy file"):
        read_strategy(tmp_path / "s.json")
    with pytest.raises(CheckpointError, match=r"holds no strategy files"):
        read_strategy(output)
    with pytest.raises(CheckpointError, match=r"does not exist"):
        read_strategy(tmp_path / "nothing")
    item = '"opt_weight_shard_step": 0, "opt_weight_shard_size": 0'
    (tmp_path / "other.json").write_text(
        '{"parallel_strategy_item": {"n": {"stage": 0}}, "parallel_layout_item": {"model.w": {"dev_matrix": [2], '
        f'"tensor_map": [-1, 0], {item}}}}}}}'
    )
    with pytest.raises(CheckpointError, match=r"is not how .* was cut \(1 parameters differ\)"):
        open_source(output, tmp_path / "other.json")
    with pytest.raises(CheckpointError, match=r"model.w of shape \[6, 4\] cannot be split into \[4, 1\]"):
        transform(
            open_source(output), tmp_path / "x", ClusterLayout([{"model.w": ParamLayout((4,), ((0,), ()))}], 4, rubbish)
        )
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("prefix", ["", "a/b", ".hidden"])
def test_bad_prefixes_are_refused(prefix: str, tmp_path: Path) -> None:
    assert "--prefix" in main_error(["--src_ckpt_dir", "x", "--dst_ckpt_dir", str(tmp_path), "--prefix", prefix])


def test_ranks_wait_for_the_last_and_hear_of_failures(tmp_path: Path) -> None:
    order: list[str] = []

    def late() -> None:
        with Meeting(tmp_path, 1, 2, "7", 30).step("load"):
            order.append("second")

    (tmp_path / "6.load.rank_0").touch()  # of an earlier run
    first = Meeting(tmp_path, 0, 2, "7", 30)
    assert not (tmp_path / "6.load.rank_0").exists()
    timer = threading.Timer(0.3, late)
    timer.start()
    with first.step("load"):
        pass
    order.append("first")
    timer.join()
    assert order == ["second", "first"]
    with pytest.raises(CheckpointError, match=r"full disk"), first.step("find"):
        raise CheckpointError("full disk")
    with (
        pytest.raises(CheckpointError, match=r"rank 0 could not find the checkpoint: full disk"),
        Meeting(tmp_path, 1, 2, "7", 30).step("find"),
    ):
        pass
    with (
        pytest.raises(CheckpointError, match=r"waited 0 s for rank 1, 2 to x the checkpoint: .* log of rank 1"),
        Meeting(tmp_path, 0, 3, "8", 0.01).step("x"),
    ):
        pass
    with Meeting(tmp_path, 0, 3, "8", 0).step("x"):
        pass


def test_alone_nothing_is_written(tmp_path: Path) -> None:
    with Meeting(tmp_path / "events", 0, 1, "1", 5).step("load"):
        pass
    assert not os.path.exists(tmp_path / "events")


def test_a_strategy_alone_needs_a_network_that_is_split(tmp_path: Path) -> None:
    from mindformers.trainer.slices import report_strategy

    with pytest.raises(ConfigError, match=r"nothing is split.*use_parallel True and parallel.parallel_mode 1"):
        report_strategy(OutputLayout(tmp_path))
