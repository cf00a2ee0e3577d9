# SPDX-License-Identifier: Apache-2.0
"""Writing: round trips, manifests, atomicity, full disks, rotation."""

import errno
import hashlib
import json
import os
import resource
import stat
import subprocess
import sys
import time
import zlib
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from safetensors import safe_open

from mindformers.checkpoint import save as save_module
from mindformers.checkpoint.layout import OutputLayout, manifest_path
from mindformers.checkpoint.load import read_checkpoint
from mindformers.checkpoint.manifest import config_hash, flatten_config, read_manifest
from mindformers.checkpoint.save import host_copy, rotate, save_network, save_step
from mindformers.errors import CheckpointError
from tests.unit.checkpoint.helpers import FIELDS, parameter, same, small_state

FORMATS = ("ckpt", "safetensors")


@pytest.fixture(params=FORMATS)
def fmt(request):
    """Each file format."""
    return request.param


def every_dtype():
    values = np.array([[0.1, -2.5, 3.0], [1e-3, 0.0, 60000.0]])
    state = {f"w.{d}": parameter(f"w.{d}", values, d) for d in (ms.float32, ms.float16, ms.bfloat16)}
    state["counts"] = parameter("counts", [1, -2, 2**31 - 1], ms.int32)
    state["flags"] = parameter("flags", [True, False, True], ms.bool_)
    state["scalar"] = parameter("scalar", 3.25)
    state["step"] = parameter("step", 7, ms.int32)
    return state


def test_round_trip_of_every_dtype(tmp_path, fmt):
    state = every_dtype()
    path = tmp_path / f"CKP_rank_0-1_3.{fmt}"
    save_step(state, path, manifest_fields=FIELDS, fmt=fmt)
    assert same(read_checkpoint(path), state)


def test_arrays_and_numbers_are_saved_too(tmp_path, fmt):
    state = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "n": 5, "x": 0.5, "t": True}
    path = tmp_path / f"CKP_rank_0-1_3.{fmt}"
    save_step(state, path, manifest_fields=FIELDS, fmt=fmt)
    params = read_checkpoint(path)
    np.testing.assert_array_equal(params["a"].asnumpy(), state["a"])
    assert params["n"].asnumpy() == 5
    assert params["x"].dtype == ms.float32
    assert bool(params["t"].asnumpy()) is True


def test_host_copy_is_private_and_saves_the_same(tmp_path, fmt):
    state = every_dtype()
    expected = {n: p.asnumpy().copy() for n, p in state.items()}
    copies = host_copy(state)
    state["scalar"].set_data(ms.Tensor(0.0, ms.float32))
    state["counts"].asnumpy()[0] = 99
    path = tmp_path / f"CKP_rank_0-1_3.{fmt}"
    save_step(copies, path, manifest_fields=FIELDS, fmt=fmt)
    params = read_checkpoint(path)
    assert all(params[n].asnumpy().tobytes() == v.tobytes() for n, v in expected.items())


def test_manifest_describes_the_file(tmp_path, fmt):
    path = tmp_path / f"CKP_rank_0-1_3.{fmt}"
    given = save_step(small_state(), path, manifest_fields={**FIELDS, "shuffle": True}, fmt=fmt)
    assert read_manifest(path) == given
    values = json.loads(manifest_path(path).read_text())
    assert values["size"] == path.stat().st_size
    assert values["checksum"] == hashlib.new(values["algorithm"], path.read_bytes()).hexdigest()
    assert values["pieces"]["checksums"] == [f"{zlib.crc32(path.read_bytes()):08x}"]
    assert (values["step"], values["seed"], values["loss_scale"]) == (3, 7, 1024.0)
    assert values["extra"] == {"shuffle": True}
    assert {"name": "model.a.weight", "shape": [3, 5], "dtype": "float32"} in values["parameters"]
    assert abs(values["created"] - time.time()) < 60


def test_counters_for_older_readers_are_in_the_file(tmp_path, fmt):
    path = tmp_path / f"CKP_rank_0-1_3.{fmt}"
    save_step(small_state(), path, manifest_fields={**FIELDS, "epoch": 2, "step": 13}, fmt=fmt)
    params = read_checkpoint(path)
    assert [params[n].asnumpy().item() for n in ("epoch_num", "step_num", "loss_scale")] == [2, 13, 1024.0]


def test_caches_are_left_out(tmp_path):
    state = small_state() | {"model.layers.0.key_past": parameter("k", np.zeros((2, 2)))}
    path = tmp_path / "CKP_rank_0-1_3.ckpt"
    save_step(state, path, manifest_fields=FIELDS)
    assert "model.layers.0.key_past" not in read_checkpoint(path)


def test_mindspore_and_safetensors_read_our_files(tmp_path):
    state = every_dtype()
    for fmt in FORMATS:
        path = tmp_path / f"CKP_rank_0-1_3.{fmt}"
        save_step(state, path, manifest_fields=FIELDS, fmt=fmt)
        assert same(ms.load_checkpoint(str(path), format=fmt), state)
    with safe_open(str(tmp_path / "CKP_rank_0-1_3.safetensors"), "np") as file:
        np.testing.assert_array_equal(file.get_tensor("counts"), state["counts"].asnumpy())


def test_file_mode_follows_the_umask(tmp_path, fmt):
    path = tmp_path / f"CKP_rank_0-1_3.{fmt}"
    old = os.umask(0o027)
    try:
        save_step(small_state(), path, manifest_fields=FIELDS, fmt=fmt)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_saving_again_replaces_file_and_manifest(tmp_path, fmt):
    path = tmp_path / f"CKP_rank_0-1_3.{fmt}"
    save_step(small_state(1), path, manifest_fields=FIELDS, fmt=fmt)
    save_step(small_state(2), path, manifest_fields=FIELDS, fmt=fmt)
    assert same(read_checkpoint(path), small_state(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, path.name + ".json"]


def test_network_file_has_exactly_the_given_names(tmp_path, fmt):
    path = OutputLayout(tmp_path).network_file("CKP", fmt)
    weights = {"model.a.weight": small_state()["model.a.weight"]}
    save_network(weights, path, fmt=fmt)
    assert set(read_checkpoint(path)) == set(weights)


def test_created_grows_although_the_clock_goes_back(tmp_path, monkeypatch):
    first = save_step(small_state(), tmp_path / "CKP_rank_0-1_1.ckpt", manifest_fields=FIELDS)
    monkeypatch.setattr(save_module.time, "time", lambda: 1000.0)
    second = save_step(small_state(), tmp_path / "CKP_rank_0-1_2.ckpt", manifest_fields=FIELDS)
    assert second.created > first.created


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_failed_write_names_path_and_bytes_and_leaves_nothing(tmp_path, fmt, kind, monkeypatch):
    older = tmp_path / f"CKP_rank_0-1_1.{fmt}"
    save_step(small_state(1), older, manifest_fields=FIELDS, fmt=fmt)
    before = sorted(tmp_path.iterdir())
    real = ms.save_checkpoint

    def broken(*args, **kwargs):
        real(*args, **kwargs)
        raise OSError(kind, os.strerror(kind))

    monkeypatch.setattr(save_module.ms, "save_checkpoint", broken)
    path = tmp_path / f"CKP_rank_0-1_2.{fmt}"
    with pytest.raises(CheckpointError) as error:
        save_step(small_state(2), path, manifest_fields=FIELDS, fmt=fmt)
    text = str(error.value)
    assert str(path) in text
    assert "bytes are needed" in text
    assert "are free" in text
    assert os.strerror(kind) in text
    assert sorted(tmp_path.iterdir()) == before
    assert same(read_checkpoint(older), small_state(1))


def test_full_disk_is_seen_before_writing(tmp_path, monkeypatch):
    usage = save_module.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(save_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"not enough space.*10 are free"):
        save_step(small_state(), tmp_path / "CKP_rank_0-1_1.ckpt", manifest_fields=FIELDS)
    assert list(tmp_path.iterdir()) == []


_LIMITED = """
import resource, sys
import numpy as np
from mindformers.checkpoint.save import save_step
from mindformers.errors import CheckpointError
fmt, folder = sys.argv[1:]
state = {"w": np.ones(1 << 18, np.float32)}
save_step({"w": np.ones(4, np.float32)}, f"{folder}/CKP_rank_0-1_1.{fmt}", manifest_fields={}, fmt=fmt)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))
try:
    save_step(state, f"{folder}/CKP_rank_0-1_2.{fmt}", manifest_fields={}, fmt=fmt)
except CheckpointError as error:
    assert "could not save" in str(error), error
    sys.exit(7)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no file size limit on this system")
def test_real_write_failure_half_way(tmp_path, fmt):
    """The kernel refuses the file after 256 kB, as a full disk would."""
    done = subprocess.run([sys.executable, "-c", _LIMITED, fmt, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 7, done.stderr[-2000:]
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [f"CKP_rank_0-1_1.{fmt}", f"CKP_rank_0-1_1.{fmt}.json"]


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="could not save"):
        save_step(small_state(), tmp_path / "file" / "sub" / "CKP_rank_0-1_1.ckpt", manifest_fields=FIELDS)


@pytest.mark.parametrize("step", ["write_manifest", "flush", "file_digests"])
def test_crash_at_any_later_stage_leaves_no_complete_wrong_file(tmp_path, step, monkeypatch):
    """Python-level failure after the data were written; kills are in tests/integration."""
    path = tmp_path / "CKP_rank_0-1_1.ckpt"
    save_step(small_state(1), path, manifest_fields=FIELDS)

    def fail(place, *_):
        if step != "flush" or Path(place).is_dir():  # the flush of the folder follows the rename
            raise OSError(errno.EIO, "stop")

    with monkeypatch.context() as patch:
        patch.setattr(save_module, step, fail)
        with pytest.raises(CheckpointError, match="stop"):
            save_step(small_state(2), path, manifest_fields=FIELDS)
    assert not list(tmp_path.glob(".tmp*"))
    expected = small_state(1) if step == "file_digests" else small_state(2)
    assert same(read_checkpoint(path), expected)
    assert manifest_path(path).exists() == (step == "file_digests")


def test_nothing_to_save_and_values_that_cannot_be_saved(tmp_path):
    with pytest.raises(CheckpointError, match="nothing to save"):
        save_network({}, tmp_path / "x.ckpt")
    with pytest.raises(TypeError, match="'s' of type str"):
        save_step({"s": "text"}, tmp_path / "x.ckpt", manifest_fields={})
    with pytest.raises(CheckpointError, match="empty tensors"):
        save_step({"e": np.zeros((0, 3), np.float32)}, tmp_path / "x.ckpt", manifest_fields={})
    with pytest.raises(CheckpointError, match="unknown checkpoint format"):
        save_step(small_state(), tmp_path / "x.ckpt", manifest_fields={}, fmt="pt")


def test_rotation_deletes_only_our_oldest_complete_files(tmp_path):
    for step in range(1, 5):
        save_step(small_state(step), tmp_path / f"CKP_rank_0-1_{step}.ckpt", manifest_fields=FIELDS)
    foreign = ["model.ckpt", "OTHER_rank_0-1_1.ckpt", "CKP_rank_0-0_1.ckpt", "CKP_rank_0-0_2.ckpt.json", "notes.txt"]
    for name in foreign:
        (tmp_path / name).write_text("mine")
    save_step(small_state(9), tmp_path / "OTHER_rank_0-0_9.ckpt", manifest_fields=FIELDS)
    save_step(small_state(9), tmp_path / "CKP_rank_1-0_9.ckpt", manifest_fields=FIELDS)
    resized = tmp_path / "CKP_rank_0-1_2.ckpt"
    resized.write_bytes(resized.read_bytes() + b"x")
    deleted = rotate(tmp_path, "CKP", keep=2, rank=0)
    assert [p.name for p in deleted] == ["CKP_rank_0-1_1.ckpt"]
    left = {p.name for p in tmp_path.iterdir()}
    assert left >= {*foreign, "OTHER_rank_0-0_9.ckpt", "CKP_rank_1-0_9.ckpt", "CKP_rank_0-1_2.ckpt"}
    assert left >= {"CKP_rank_0-1_3.ckpt", "CKP_rank_0-1_4.ckpt"}
    assert "CKP_rank_0-1_1.ckpt.json" not in left
    assert rotate(tmp_path, "CKP", keep=0) == []


def test_rotation_in_a_folder_of_an_older_run_keeps_the_new_files(tmp_path):
    save_step(small_state(), tmp_path / "CKP_rank_0-9_9.ckpt", manifest_fields=FIELDS)
    save_step(small_state(), tmp_path / "CKP_rank_0-1_1.ckpt", manifest_fields=FIELDS)
    assert [p.name for p in rotate(tmp_path, "CKP", keep=1)] == ["CKP_rank_0-9_9.ckpt"]


def test_leftovers_of_killed_saves_are_removed_once_they_are_old(tmp_path):
    old, fresh, other = (tmp_path / f".tmp.{n}" for n in ("CKP_rank_0-1_1.ckpt", "CKP_rank_0-1_2.tmp", "user"))
    for path in (old, fresh, other):
        path.write_text("half")
    for path in (old, other):
        os.utime(path, (time.time() - 3600,) * 2)
    save_step(small_state(), tmp_path / "CKP_rank_0-1_3.ckpt", manifest_fields=FIELDS)
    assert (old.exists(), fresh.exists(), other.exists()) == (False, True, True)


def test_config_hash_ignores_order_and_sees_values():
    first, second = {"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [1, 2], "b": 1}}
    assert flatten_config(first) == {"a.b": 1, "a.c": [1, 2]}
    assert config_hash(first) == config_hash(second) != config_hash({"a": {"b": 2, "c": [1, 2]}})
