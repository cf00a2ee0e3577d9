# SPDX-License-Identifier: Apache-2.0
"""Which step all ranks of a job can resume from."""

import pytest

from mindformers.checkpoint.agree import common_step, complete_steps, saving_options
from mindformers.checkpoint.layout import OutputLayout
from mindformers.checkpoint.manifest import Manifest, write_manifest
from mindformers.checkpoint.resume import resume_at
from mindformers.config import RunConfig
from mindformers.errors import CheckpointError


@pytest.mark.parametrize(
    ("steps", "common"),
    [
        ([[5, 10], [5]], 5),
        ([[5, 10], [10, 5]], 10),
        ([[40, 5], [40, 5]], 5),  # a run begun anew in the folder: written last counts, not the larger number
        ([[5], []], None),
        ([[]], None),
        ([[5, 10, 15], [10, 15, 20], [5, 10]], 10),
    ],
)
def test_common_step(steps, common):
    assert common_step(steps) == common


def save(folder, step, created, manifest=True):
    """A checkpoint file of a step of epoch 1, with or without its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"m_rank_0-1_{step}.ckpt"
    path.write_bytes(b"x")
    if manifest:
        write_manifest(path, Manifest(step=step, epoch=1, step_in_epoch=step, created=created, size=1, checksum="00"))


def test_complete_steps_are_in_the_order_of_writing(tmp_path):
    folder = OutputLayout(tmp_path).checkpoint_dir
    assert complete_steps(folder, None) == []
    for step, created in ((40, 1.0), (5, 2.0), (10, 3.0)):
        save(folder, step, created)
    save(folder, 15, 4.0, manifest=False)
    assert complete_steps(folder, "m") == [40, 5, 10]
    assert complete_steps(folder, "m", since=2.0) == [5, 10]
    assert complete_steps(folder, "other") == []


def test_resume_at_a_step_that_is_absent_or_damaged(tmp_path):
    folder = OutputLayout(tmp_path).checkpoint_dir
    save(folder, 5, 1.0)
    with pytest.raises(CheckpointError, match="no complete checkpoint of step 6"):
        resume_at(folder, "m", 6)
    with pytest.raises(CheckpointError, match="checksum"):
        resume_at(folder, "m", 5)


def test_saving_options():
    monitor = {"type": "CheckpointMonitor", "prefix": "mine", "directory": "there"}
    assert saving_options(RunConfig.model_validate({"callbacks": [monitor]})) == ("mine", "there")
    assert saving_options(RunConfig.model_validate({"callbacks": []})) == (None, None)
