# SPDX-License-Identifier: Apache-2.0
"""Foreign weights: detection, names, joined shards, refusals of what is damaged, malicious or unknown."""

import os
import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

from mindformers.checkpoint.foreign import foreign_kind, open_foreign
from mindformers.checkpoint.foreign.arrays import Raw, cast
from mindformers.checkpoint.foreign.table import TABLE, expected_shapes, foreign_name, our_name, permute
from mindformers.checkpoint.load import LazyTensors, load_into, read_checkpoint, resolve_checkpoint
from mindformers.errors import CheckpointError
from mindformers.models.llama.llama import LlamaForCausalLM
from mindformers.models.llama.llama_config import LlamaConfig
from tests.foreign_models import (
    CONFIG,
    FFN,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    VOCAB,
    hf_folder,
    hf_weights,
    meta_folder,
    write_json,
)
from tests.unit.checkpoint.helpers import parameter

FIELDS = {"hidden_size": HIDDEN, "num_layers": LAYERS, "num_heads": HEADS, "n_kv_heads": KV_HEADS, "vocab_size": VOCAB}
FIELDS |= {"intermediate_size": FFN, "seq_length": 32, "param_init_type": "float32", "compute_dtype": "float32"}


def refused(path, *texts):
    """Opening fails with all of the texts in the message."""
    with pytest.raises(CheckpointError) as error:
        open_foreign(path)
    for text in texts:
        assert text in str(error.value), str(error.value)


def test_the_table_is_invertible_and_names_every_weight_of_the_model():
    shapes = expected_shapes(LlamaConfig(**FIELDS))
    network = LlamaForCausalLM(LlamaConfig(**FIELDS))
    assert shapes == {p.name: p.shape for p in network.get_parameters()}
    for kind in ("huggingface", "meta"):
        theirs = {foreign_name(name, kind) for name in shapes}
        assert len(theirs) == len(shapes)
        assert {our_name(name, kind) for name in theirs} == set(shapes)
    assert len(TABLE) == 12
    for name in (
        "model.layers.01.input_layernorm.weight",
        "model.layers.x.input_layernorm.weight",
        "xmodel.norm.weight",
    ):
        assert our_name(name, "huggingface") is None


def test_permute_is_the_rotation_of_pairs_and_its_own_inverse_way_back():
    rng = np.random.default_rng(0)
    heads, size = 3, 8
    weight, x = rng.standard_normal((heads * size, 5)), rng.standard_normal(5)
    angle = rng.standard_normal(size // 2)
    turn = np.exp(1j * angle)
    pairs = (weight @ x).reshape(heads, size // 2, 2)
    meta = (pairs[..., 0] + 1j * pairs[..., 1]) * turn  # Meta: neighbours are real and imaginary part
    halves = (permute(weight, heads) @ x).reshape(heads, 2, size // 2)
    ours = (halves[:, 0] + 1j * halves[:, 1]) * turn  # ours: first and second half are
    np.testing.assert_allclose(ours, meta, rtol=1e-12)
    np.testing.assert_array_equal(permute(permute(weight, heads), heads, to_meta=True), weight)


@pytest.mark.parametrize("shards", [1, 3])
def test_huggingface_folder_under_our_names(tmp_path, shards):
    weights = hf_folder(tmp_path, shards)
    assert foreign_kind(tmp_path) == "huggingface"
    opened = open_foreign(tmp_path)
    assert set(opened) == set(expected_shapes(LlamaConfig(**FIELDS)))
    for name in opened:
        value = weights[foreign_name(name, "huggingface")]
        assert opened.shape(name) == value.shape
        np.testing.assert_array_equal(opened[name].asnumpy(), value)
    with pytest.raises(KeyError):
        opened["none"]


def test_detection(tmp_path):
    write_json(tmp_path / "only_config" / "config.json", CONFIG)
    hf_folder(tmp_path / "hf")
    assert foreign_kind(tmp_path / "hf" / "model.safetensors") == "huggingface"
    assert foreign_kind(tmp_path / "only_config") is None
    refused(tmp_path / "only_config", "config.json is there, but neither model.safetensors")
    refused(tmp_path / "none", "does not exist")
    with pytest.raises(CheckpointError, match=r"config\.json is there"):
        resolve_checkpoint(tmp_path / "only_config")
    (tmp_path / "x.bin").write_text("text")
    assert foreign_kind(tmp_path / "x.bin") is None
    save_file({"model.norm_out.weight": np.ones(3, np.float32)}, tmp_path / "ours.safetensors")
    assert foreign_kind(tmp_path / "ours.safetensors") is None
    assert isinstance(read_checkpoint(tmp_path / "ours.safetensors"), LazyTensors)
    for name in ("ours.safetensors", "empty.safetensors", "empty.bin", "a b \u4f60.pth"):
        (tmp_path / name).touch()
        assert foreign_kind(tmp_path / name) is None


def test_damaged_shards_are_named(tmp_path):
    hf_folder(tmp_path, 3)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    clean = shard.read_bytes()
    refused(shard, "one of 3 shards", str(tmp_path))
    for size in (0, 4, 100, len(clean) - 1):
        shard.write_bytes(clean[:size])
        refused(tmp_path, shard.name, "cut off")
    shard.unlink()
    refused(tmp_path, "1 of 3 files", shard.name)
    save_file({"model.norm.weight": np.ones(HIDDEN, np.float32)}, shard)
    refused(tmp_path, shard.name, "lacks weights its index promises")


@pytest.mark.parametrize("weight_map", [{}, "x", {"model.norm.weight": "../a.safetensors"}, {"model.norm.weight": 3}])
def test_rubbish_index(tmp_path, weight_map):
    write_json(tmp_path / "config.json", CONFIG)
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": weight_map})
    refused(tmp_path, "index.json")


def test_unknown_names_are_listed_and_rotary_tables_dropped(tmp_path):
    weights = hf_weights()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    save_file(weights, tmp_path / "a.safetensors")
    assert open_foreign(tmp_path / "a.safetensors").dropped == ["model.layers.0.self_attn.rotary_emb.inv_freq"]
    weights["model.layers.0.self_attn.q_proj.bias"] = np.ones(HIDDEN, np.float32)
    save_file(weights, tmp_path / "b.safetensors")
    refused(tmp_path / "b.safetensors", "1 of 23 names", "q_proj.bias")


def test_quantised_weights_are_refused(tmp_path):
    header = b'{"model.norm.weight":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}'
    file = tmp_path / "a" / "model.safetensors"
    write_json(tmp_path / "a" / "config.json", CONFIG)
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    refused(tmp_path / "a", "F8_E4M3", "quantised")


def test_tied_source_fills_an_untied_model(tmp_path):
    weights = hf_folder(tmp_path, tied=True)
    network = LlamaForCausalLM(LlamaConfig(**FIELDS, checkpoint_name_or_path=str(tmp_path)))
    for p in (network.lm_head.weight, network.model.tok_embeddings.embedding_weight):
        np.testing.assert_array_equal(p.asnumpy(), weights["model.embed_tokens.weight"])
    network.lm_head.weight.set_data(network.lm_head.weight + 1)
    assert not np.array_equal(network.model.tok_embeddings.embedding_weight.asnumpy(), network.lm_head.weight.asnumpy())


def test_a_lost_output_layer_is_not_taken_for_a_tied_one(tmp_path):
    weights = hf_folder(tmp_path)
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks 1 of the model's 21 weights: lm_head\.weight"):
        LlamaForCausalLM(LlamaConfig(**FIELDS, checkpoint_name_or_path=str(tmp_path)))


def test_untied_source_into_a_tied_model():
    embedding = np.arange(6, dtype=np.float32).reshape(2, 3)
    names = ("model.tok_embeddings.embedding_weight", "lm_head.weight")
    target = parameter(names[0], np.zeros((2, 3), np.float32))
    report = load_into({names[0]: target}, {names[0]: embedding, names[1]: embedding.copy()})
    assert (report.unexpected, report.loaded) == ([], 1)
    with pytest.raises(CheckpointError, match="tie_word_embeddings to False"):
        load_into({names[0]: target}, {names[0]: embedding, names[1]: embedding + 1})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_cast_rounds_to_nearest_even_and_keeps_nan(dtype):
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal(1000) * 100, [0.0, -0.0, np.inf, -np.inf, 1.00390625, 1.01171875]])
    values = values.astype(np.float32)
    back = cast(cast(Raw(values, "float32"), dtype, "x"), "float32", "x").data
    step = 2.0 ** -(11 if dtype == "float16" else 8)
    finite = np.isfinite(values)
    assert np.all(np.abs(back[finite] - values[finite]) <= np.abs(values[finite]) * step + 1e-7)
    np.testing.assert_array_equal(back[~finite], values[~finite])
    if dtype == "bfloat16":
        np.testing.assert_array_equal(back[-2:], [1.0, 1.015625])  # both lie in the middle: to the even one
    hidden = np.array([0x7F800001, 0x7FFFFFFF], np.uint32).view(np.float32)  # NaN whose upper bits alone are infinity
    assert np.isnan(cast(cast(Raw(hidden, "float32"), dtype, "x"), "float32", "x").data).all()


def test_cast_refuses_overflow_by_name():
    with pytest.raises(CheckpointError, match=r"w: 1 values do not fit float16 \(largest 70000"):
        cast(Raw(np.array([1.0, 7e4, np.inf], np.float32), "float32"), "float16", "w")
    with pytest.raises(CheckpointError, match="bfloat16"):
        cast(Raw(np.array([3.4e38], np.float32), "float32"), "bfloat16", "w")


def test_bfloat16_safetensors_without_torch(tmp_path):
    bits = np.array([[0x3FC0, 0xC040]], np.uint16)
    header = b'{"lm_head.weight":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}}'
    file = tmp_path / "x.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bits.tobytes())
    value = read_checkpoint(file)["lm_head.weight"]
    assert str(value.dtype) == "BFloat16"
    np.testing.assert_array_equal(value.float().asnumpy(), [[1.5, -3.0]])


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class TestTorch:
    """Files that need torch to be read."""

    @pytest.fixture(autouse=True)
    def _torch(self):
        self.torch = pytest.importorskip("torch", reason="extra `convert` brings torch")

    @pytest.mark.parametrize("shards", [1, 2])
    def test_meta_shards_are_joined(self, tmp_path, shards):
        written = meta_folder(tmp_path, shards)
        assert foreign_kind(tmp_path) == foreign_kind(tmp_path / "consolidated.00.pth") == "meta"
        opened = open_foreign(tmp_path)
        assert opened.dropped == ["rope.freqs"]
        assert {n: opened.shape(n) for n in opened} == expected_shapes(LlamaConfig(**FIELDS))
        axes = {"tok_embeddings": 1, "wo": 1, "w2": 1, "wv": 0, "w1": 0, "output": 0}
        for name in opened:
            theirs = foreign_name(name, "meta")
            axis = next((a for part, a in axes.items() if part in theirs), None)
            if axis is not None:
                whole = self.torch.cat([shard[theirs] for shard in written], axis).numpy()
                np.testing.assert_array_equal(opened[name].asnumpy(), whole)

    def test_meta_shards_that_do_not_fit(self, tmp_path):
        shards = meta_folder(tmp_path)
        (tmp_path / "consolidated.01.pth").unlink()
        refused(tmp_path, "is a shard missing?")
        self.torch.save(shards[1], tmp_path / "consolidated.02.pth")
        refused(tmp_path, "gaps")
        (tmp_path / "consolidated.02.pth").rename(tmp_path / "consolidated.01.pth")
        assert open_foreign(tmp_path)
        write_json(tmp_path / "params.json", {"dim": HIDDEN, "n_layers": 2, "n_heads": 3})
        refused(tmp_path, "do not fit")
        write_json(tmp_path / "params.json", {"dim": "16"})
        refused(tmp_path, "dim '16'")
        write_json(tmp_path / "params.json", {"dim": HIDDEN, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4})
        refused(tmp_path, "n_kv_heads")
        (tmp_path / "params.json").unlink()
        refused(tmp_path, "but not params.json")

    def test_norms_must_agree(self, tmp_path):
        shards = meta_folder(tmp_path)
        shards[1]["norm.weight"] = shards[1]["norm.weight"] + 1
        self.torch.save(shards[1], tmp_path / "consolidated.01.pth")
        with pytest.raises(CheckpointError, match=r"norm\.weight must be equal"):
            open_foreign(tmp_path)["model.norm_out.weight"]

    @pytest.mark.parametrize("old_format", [False, True])
    def test_bin_file_in_both_formats(self, tmp_path, old_format):
        weights = {n: self.torch.from_numpy(v).bfloat16() for n, v in hf_weights().items()}
        write_json(tmp_path / "config.json", CONFIG)
        file = tmp_path / "pytorch_model.bin"
        self.torch.save(weights, file, _use_new_zipfile_serialization=not old_format)
        opened = open_foreign(tmp_path)
        for name in opened:
            theirs = weights[foreign_name(name, "huggingface")]
            assert opened.dtype(name) == "bfloat16"
            np.testing.assert_array_equal(opened[name].float().asnumpy(), theirs.float().numpy())
        assert set(read_checkpoint(resolve_checkpoint(file))) == set(opened)

    @pytest.mark.parametrize("form", ["pickle", "torch", "old torch"])
    def test_malicious_pickle_is_refused_and_not_run(self, tmp_path, form):
        file, trace = tmp_path / "pytorch_model.bin", tmp_path / "trace"
        write_json(tmp_path / "config.json", CONFIG)
        content = {"model.norm.weight": Bomb(trace)}
        if form == "pickle":
            file.write_bytes(pickle.dumps(content))
        else:
            self.torch.save(content, file, _use_new_zipfile_serialization=form == "torch")
        refused(tmp_path, str(file), "was refused", "malicious", "" if form == "pickle" else "mkdir")
        assert not trace.exists()

    def test_torch_files_that_hold_something_else(self, tmp_path):
        file = tmp_path / "x.bin"
        for content, text in (
            ([1, 2], "one list"),
            ({}, "an empty dict"),
            ({"model": {"a": self.torch.ones(1)}}, "state_dict"),
            ({"a": self.torch.ones(1).to_sparse()}, "sparse"),
        ):
            self.torch.save(content, file)
            refused(file, str(file), text)

    def test_truncated_torch_file(self, tmp_path):
        file = tmp_path / "x.bin"
        self.torch.save({n: self.torch.from_numpy(v) for n, v in hf_weights().items()}, file)
        clean = file.read_bytes()
        for size in (4, 100, len(clean) // 2, len(clean) - 1):
            file.write_bytes(clean[:size])
            refused(file, str(file), "damaged")
