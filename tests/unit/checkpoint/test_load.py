# SPDX-License-Identifier: Apache-2.0
"""Reading: damage is refused by name, names and shapes are compared, files are found."""

import os
import random

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn
from mindspore.train.checkpoint_pb2 import Checkpoint

from mindformers.checkpoint import digest as digest_module
from mindformers.checkpoint.layout import manifest_path
from mindformers.checkpoint.load import (
    LazyTensors,
    checkpoint_being_checked,
    get_last_checkpoint,
    load_into,
    read_checkpoint,
    resolve_checkpoint,
)
from mindformers.checkpoint.save import save_network, save_step
from mindformers.errors import CheckpointError
from tests.unit.checkpoint.helpers import FIELDS, LogLines, flip_bit, parameter, same, small_state

FORMATS = ("ckpt", "safetensors")


@pytest.fixture(params=FORMATS)
def two(request, tmp_path):
    """Two checkpoints, older and newer, of one format."""
    paths = [tmp_path / f"CKP_rank_0-1_{step}.{request.param}" for step in (1, 2)]
    for seed, path in enumerate(paths):
        save_step(small_state(seed), path, manifest_fields=FIELDS, fmt=request.param)
    return paths


def refused(path, *texts):
    """Reading fails with all of the texts in the message."""
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    for text in texts:
        assert text in str(error.value)


def test_bit_flips_anywhere_are_detected(two):
    older, newer = two
    clean = newer.read_bytes()
    rng = random.Random(1)
    for _ in range(25):
        newer.write_bytes(clean)
        flip_bit(newer, rng.randrange(len(clean)), rng.randrange(8))
        refused(newer, str(newer), f"--load_checkpoint {older} ")


def test_every_truncation_is_detected(two):
    older, newer = two
    clean = newer.read_bytes()
    for size in (1, 7, 8, 9, len(clean) // 3, len(clean) // 2, len(clean) - 1):
        newer.write_bytes(clean[:size])
        refused(newer, str(newer), f"--load_checkpoint {older} ")
    newer.write_bytes(b"")
    refused(newer, "empty (0 bytes)", str(older))


def test_truncation_is_detected_without_a_manifest(two):
    newer = two[1]
    manifest_path(newer).unlink()
    clean = newer.read_bytes()
    for size in (1, 9, len(clean) // 3, len(clean) // 2, len(clean) - 1):
        newer.write_bytes(clean[:size])
        refused(newer, str(newer), str(two[0]))


def test_the_offered_file_is_itself_checked(two, tmp_path):
    flip_bit(two[0], 100)
    flip_bit(two[1], 100)
    refused(two[1], "no older complete checkpoint")


def test_a_newer_file_is_not_offered_for_an_older_one(two):
    flip_bit(two[0], 100)
    refused(two[0], "no older complete checkpoint")


def test_truncated_manifest_is_refused_and_can_be_removed(two):
    newer = two[1]
    manifest = manifest_path(newer)
    manifest.write_text(manifest.read_text()[:100])
    refused(newer, "manifest is damaged", manifest.name, str(two[0]))
    manifest.unlink()
    assert same(read_checkpoint(newer), small_state(1))


@pytest.mark.parametrize("text", ["[]", "{}", '{"format_version": 99}', '{"format_version": 1, "step": "x"}', "null"])
def test_rubbish_manifest(two, text):
    manifest_path(two[1]).write_text(text)
    refused(two[1], "manifest")


def test_verify_can_be_switched_off(two):
    newer = two[1]
    flip_bit(newer, newer.stat().st_size - 1)
    assert set(small_state()) <= set(read_checkpoint(newer, verify=False))


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.ckpt", b"PK\x03\x04rest", "PyTorch"),
        ("a.ckpt", b"\x80\x02}q\x00.", "pickle"),
        ("a.ckpt", b'{"a": 1}', "JSON"),
        ("a.ckpt", b"hello world " * 9, "cut off or damaged"),
        ("a.ckpt", b"\x00" * 64, "damaged"),
        ("a.safetensors", b"hello world " * 9, "cannot be read"),
        ("a.safetensors", b"\xff" * 64, "cannot be read"),
    ],
)
def test_other_files_under_a_checkpoint_name(tmp_path, name, content, text):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, name, text)


def test_safetensors_under_a_ckpt_name(two, tmp_path):
    path = tmp_path / ("b.ckpt" if two[0].suffix == ".safetensors" else "b.safetensors")
    path.write_bytes(two[0].read_bytes())
    refused(path, "rename it to .safetensors" if path.suffix == ".ckpt" else "cannot be read")


@pytest.mark.parametrize("size", [0, 32, 63, 65, 128])
def test_record_whose_content_does_not_fit_its_shape(tmp_path, size):
    """MindSpore would read or write memory that is not the tensor's."""
    message = Checkpoint()
    value = message.value.add()
    value.tag = "w"
    value.tensor.dims.extend([4, 4])
    value.tensor.tensor_type = "Float32"
    value.tensor.tensor_content = b"\1" * size
    (tmp_path / "w.ckpt").write_bytes(message.SerializeToString())
    refused(tmp_path / "w.ckpt", f"w [4, 4] has {size} bytes, its shape needs 64")


def test_files_made_by_mindspore_itself_pass(tmp_path):
    state = {"s": parameter("s", 1.0), "big": parameter("big", np.ones((300, 300)))}
    items = [{"name": n, "data": p} for n, p in state.items()]
    for options in ({}, {"crc_check": True}, {"append_dict": {"epoch": 3, "text": "abc"}}):
        path = tmp_path / "made.ckpt"
        ms.save_checkpoint(items, str(path), **options)
        assert same(read_checkpoint(path), state)


def test_values_are_read_one_by_one(two):
    params = read_checkpoint(two[0])
    assert isinstance(params, LazyTensors)
    assert params.shape("model.a.weight") == (3, 5)
    params["model.a.weight"].asnumpy()[:] = 0
    assert params["model.a.weight"].asnumpy().any()
    assert "nothing" not in params
    with pytest.raises(KeyError):
        params["nothing"]


def test_damage_found_while_values_are_in_use(two):
    older, newer = two
    with checkpoint_being_checked(newer) as params:
        assert same(params, small_state(1))
    flip_bit(newer, newer.stat().st_size - 60)
    text = "checksum is not the one in its manifest"
    with pytest.raises(CheckpointError, match=text) as error, checkpoint_being_checked(newer) as params:
        assert set(small_state(1)) <= set(params)
    assert f"--load_checkpoint {older} " in str(error.value)
    with pytest.raises(CheckpointError, match="checksum is not"), checkpoint_being_checked(newer):
        raise ValueError("a consequence of the damage")
    with pytest.raises(ValueError, match="of its own"), checkpoint_being_checked(older):
        raise ValueError("an error of its own")


def test_many_large_values_arrive_in_their_order_in_memory_of_their_own(tmp_path):
    rng = np.random.default_rng(0)
    state = {f"w{i}": parameter(f"w{i}", rng.standard_normal((1100, 1000), np.float32)) for i in range(12)}
    for fmt in FORMATS:
        save_network(state, tmp_path / f"large.{fmt}", fmt=fmt)
        net = {name: parameter(name, np.zeros((1100, 1000))) for name in reversed(state)}
        load_into(net, read_checkpoint(tmp_path / f"large.{fmt}"))
        assert same(net, state)
        net["w0"].asnumpy()[:] = 7
        assert same({**net, "w0": state["w0"]}, read_checkpoint(tmp_path / f"large.{fmt}"))


def network(**shapes):
    return {n: parameter(n, np.zeros(s)) for n, s in shapes.items()}


def given(**shapes):
    return {n: ms.Tensor(np.ones(s, np.float32)) for n, s in shapes.items()}


def named(**pairs):
    return {n.replace("__", "."): v for n, v in pairs.items()}


def test_load_reports_and_logs_one_line(two):
    net = {n: parameter(n, p.asnumpy() * 0) for n, p in small_state().items() if n.startswith("model")}
    with LogLines() as log:
        report = load_into(net, read_checkpoint(two[1]))
    assert (report.loaded, report.missing, report.unexpected, report.cast) == (2, [], [], 0)
    assert same(net, {n: p for n, p in small_state(1).items() if n in net})
    assert log.having(f"loaded 2 weights from {two[1]} (missing 0, unexpected 0)")


def test_load_into_a_cell_does_not_share_memory(two):
    params = read_checkpoint(two[0])
    values = {"weight": params["model.a.weight"], "bias": ms.Tensor(np.ones(3, np.float32))}
    first, second = nn.Dense(5, 3), nn.Dense(5, 3)
    for net in (first, second):
        load_into(net, values)
    first.weight.asnumpy()[:] = 77
    assert not (second.weight.asnumpy() == 77).any()
    assert not (values["weight"].asnumpy() == 77).any()


def test_missing_fails_before_anything_is_written():
    net = network(a=(2,), b=(2,))
    with pytest.raises(CheckpointError, match=r"x\.ckpt lacks 1 of the model's 2 weights: b"):
        load_into(net, given(a=(2,)), source="x.ckpt")
    assert not net["a"].asnumpy().any()
    with LogLines() as log:
        report = load_into(net, given(a=(2,), c=(1,)), strict=False)
    assert (report.missing, report.unexpected, report.loaded) == (["b"], ["c"], 1)
    assert log.having("missing: b; unexpected: c")


def test_nothing_in_common_fails_even_when_not_strict():
    with pytest.raises(CheckpointError, match="lacks 1"):
        load_into(network(a=(2,)), given(b=(2,)), strict=False)


def test_state_caches_and_ignored_names_do_not_count():
    state = ["adam_m.a", "adam_v.a", "global_step", "scale_sense", "accu_grads.a", "epoch_num", "learning_rate"]
    params = given(a=(2,)) | {n: ms.Tensor(1.0) for n in [*state, "l.key_past", "extra.one"]}
    net = network(a=(2,)) | {n: parameter(n, 0.0) for n in ("l.value_past", "adam_m.z", "lora.one")}
    report = load_into(net, params, ignore=["extra.*", "lora.*"])
    assert (report.missing, report.unexpected) == ([], [])
    assert net["lora.one"].asnumpy() == 0


def test_old_lora_names_are_renamed():
    net = {n: parameter(n, [0.0]) for n in ("wq.mindpet_delta_lora_a",)}
    assert load_into(net, {"wq.tk_delta_lora_a": ms.Tensor([2.0])}).loaded == 1
    assert net["wq.mindpet_delta_lora_a"].asnumpy() == 2


def test_casts_are_counted_and_logged_once():
    net = {"a": parameter("a", [0.0, 0.0], ms.float16), "b": parameter("b", [0.0]), "c": parameter("c", [0], ms.int32)}
    params = {"a": ms.Tensor([1.5, 2]), "b": ms.Tensor([0.5], ms.bfloat16), "c": ms.Tensor([4], ms.int64)}
    with LogLines() as log:
        report = load_into(net, params)
    assert report.cast == 3
    assert [net[n].dtype for n in "abc"] == [ms.float16, ms.float32, ms.int32]
    assert [net[n].asnumpy().tolist() for n in "abc"] == [[1.5, 2.0], [0.5], [4]]
    assert len(log.having("3 converted")) == 1


def test_cast_between_kinds_is_refused():
    with pytest.raises(CheckpointError, match="cannot become"):
        load_into({"a": parameter("a", [1], ms.int32)}, {"a": ms.Tensor([1.5])})


def test_one_element_shapes_are_the_same():
    net = {"step": parameter("step", [0], ms.int32)}
    load_into(net, {"step": ms.Tensor(5, ms.int32)})
    assert net["step"].asnumpy().tolist() == [5]


LAYER = "model.layers.0."


@pytest.mark.parametrize(
    ("name", "old", "new", "hint"),
    [
        ("model.tok_embeddings.embedding_weight", (32000, 8), (100, 8), "vocab_size (checkpoint 32000, model 100)"),
        ("lm_head.weight", (9, 8), (9, 16), "hidden_size (checkpoint 8, model 16)"),
        (LAYER + "attention.wk.weight", (4, 8), (8, 8), "n_kv_heads * head_dim (checkpoint 4, model 8)"),
        (LAYER + "feed_forward.w2.weight", (8, 11), (8, 12), "intermediate_size (checkpoint 11, model 12)"),
        (LAYER + "attention.wq.mindpet_delta_lora_a", (8, 16), (4, 16), "lora_rank (checkpoint 8, model 4)"),
    ],
)
def test_shape_mismatch_says_which_setting_to_check(name, old, new, hint):
    with pytest.raises(CheckpointError) as error:
        load_into({name: parameter(name, np.zeros(new))}, {name: ms.Tensor(np.zeros(old, np.float32))}, strict=False)
    text = str(error.value)
    assert f"{name}: checkpoint {list(old)}, model {list(new)}" in text
    assert hint in text


def test_shape_mismatches_are_listed_up_to_ten():
    names = [f"w{i}" for i in range(13)]
    net = network(**dict.fromkeys(names, (2,)), ok=(1,))
    with pytest.raises(CheckpointError, match="13 shapes differ") as error:
        load_into(net, given(**dict.fromkeys(names, (3,)), ok=(1,)))
    assert str(error.value).count("checkpoint [3], model [2]") == 10
    assert "and 3 more" in str(error.value)
    assert not net["ok"].asnumpy().any()


@pytest.mark.parametrize(
    ("theirs", "hint"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "Hugging Face checkpoint; run mindformers/models/llama/"),
        ("layers.0.attention.wq.weight", "Meta's layout"),
        ("network.model.norm_out.weight", "network.model.norm_out.weight may be meant for model.norm"),
        ("model.norm_outt.weight", "may be meant for"),
    ],
)
def test_names_of_other_libraries_are_recognised(theirs, hint):
    ours = "model.norm_out.weight"
    with pytest.raises(CheckpointError) as error:
        load_into({ours: parameter(ours, [1.0])}, {theirs: ms.Tensor([1.0])})
    assert hint in str(error.value)


def test_missing_layers_and_missing_lora_are_explained():
    net = {n: parameter(n, [1.0]) for n in ("model.layers.0.w", "model.layers.1.w", "model.layers.1.mindpet_delta_a")}
    with pytest.raises(CheckpointError, match="num_layers"):
        load_into(net, {"model.layers.0.w": ms.Tensor([1.0])})
    with pytest.raises(CheckpointError, match="only LoRA weights are missing"):
        load_into(net, {n: ms.Tensor([1.0]) for n in ("model.layers.0.w", "model.layers.1.w")})


def test_resolve_file_folder_and_output_folder(tmp_path):
    rank = tmp_path / "out" / "checkpoint" / "rank_1"
    for step in (9, 10):
        save_step(small_state(), rank / f"CKP_rank_1-1_{step}.ckpt", manifest_fields=FIELDS)
    newest = rank / "CKP_rank_1-1_10.ckpt"
    os.utime(newest, (1, 1))
    (rank / "CKP_rank_1-1_11.ckpt").write_bytes(b"half")
    for value in (newest, rank, rank.parent, tmp_path / "out", str(rank)):
        assert resolve_checkpoint(value, rank=1) == newest


def test_resolve_foreign_files_by_time(tmp_path):
    for time, name in ((300, "b.ckpt"), (200, "c.safetensors"), (400, "d.txt"), (500, ".tmp.e.ckpt")):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (time, time))
    assert resolve_checkpoint(tmp_path) == tmp_path / "b.ckpt"
    assert get_last_checkpoint(tmp_path) == str(tmp_path / "b.ckpt")


def test_get_last_checkpoint_of_nothing(tmp_path):
    assert get_last_checkpoint(tmp_path) is None
    with pytest.raises(NotADirectoryError):
        get_last_checkpoint(tmp_path / "none")


def test_resolve_errors_show_what_is_there(tmp_path):
    save_network(small_state(), tmp_path / "llama2_7b.ckpt")
    (tmp_path / "sub").mkdir()
    (tmp_path / "text.bin").write_text("x")
    cases = {
        "llama_7b.ckpt": ["Did you mean", "llama2_7b.ckpt", "sub/"],
        "none/x.ckpt": ["nor does its folder"],
        "sub": ["no checkpoint for rank 0", "rank_0/"],
        "text.bin": [".ckpt or .safetensors"],
    }
    for name, texts in cases.items():
        with pytest.raises(CheckpointError) as error:
            resolve_checkpoint(tmp_path / name)
        assert all(t in str(error.value) for t in texts), str(error.value)
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path / "sub")


def test_foreign_file_without_manifest_is_loaded_with_a_note(tmp_path):
    ms.save_checkpoint([{"name": "a", "data": parameter("a", [1.0])}], str(tmp_path / "a.ckpt"))
    with LogLines() as log:
        assert set(read_checkpoint(tmp_path / "a.ckpt")) == {"a"}
    assert log.having("has no manifest")


def test_a_disk_that_fails_while_the_sum_is_computed(tmp_path, monkeypatch):
    """An error of the disk is one of the file, also when it comes up in the thread that computes the sum."""

    def broken(*_):
        raise OSError(5, "Input/output error")

    path = tmp_path / "CKP_rank_0-1_1.ckpt"
    save_step(small_state(), path, manifest_fields=FIELDS)
    monkeypatch.setattr(digest_module, "_chunks", broken)
    with pytest.raises(CheckpointError, match="Input/output error"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match="Input/output error"), checkpoint_being_checked(path):
        pass
