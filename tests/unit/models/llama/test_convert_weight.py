# SPDX-License-Identifier: Apache-2.0
"""The command convert_weight: every direction bit for bit, and every way to call it wrongly."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from mindformers.checkpoint.ckpt_file import CkptFile
from mindformers.checkpoint.foreign.arrays import Raw, to_tensor
from mindformers.checkpoint.foreign.table import permute
from mindformers.checkpoint.load import read_checkpoint
from mindformers.checkpoint.manifest import damage, read_manifest
from mindformers.checkpoint.save import save_step
from mindformers.checkpoint.stream import CheckpointStream, Planned, SafetensorsWriter
from mindformers.errors import CheckpointError, ConfigError, MindFormersError
from mindformers.models.llama import conversion, convert_weight
from mindformers.models.llama.convert_weight import main
from tests.foreign_models import HEADS, KV_HEADS, hf_folder, meta_folder
from tests.helpers import REPO


def run(*words):
    """The command in this process."""
    return main([str(word) for word in words])


def refused(*words, texts, kind=MindFormersError):
    """The command fails with all of the texts."""
    with pytest.raises(kind) as error:
        run(*words)
    for text in texts:
        assert text in str(error.value), str(error.value)


def files_below(folder):
    """Every file of a folder, hidden ones too."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("fmt", ["ckpt", "safetensors"])
@pytest.mark.parametrize("tied", [False, True])
def test_huggingface_there_and_back(tmp_path, capsys, fmt, tied):
    weights = hf_folder(tmp_path / "hf", shards=3, tied=tied)
    (tmp_path / "hf" / "tokenizer.model").write_bytes(b"pieces")
    ours = tmp_path / "out" / f"m.{fmt}"
    assert run("--torch_ckpt_dir", tmp_path / "hf", "--mindspore_ckpt_path", ours) == 0
    assert "Hugging Face" in capsys.readouterr().out
    assert files_below(ours.parent) == sorted([ours.name, f"{ours.name}.json", "m.yaml", "tokenizer.model"])
    manifest = read_manifest(ours)
    assert not damage(ours, manifest)
    assert {p["name"] for p in manifest.parameters} == set(read_checkpoint(ours))
    assert run("--mindspore_ckpt_path", ours, "--to_hf", tmp_path / "back", "--max_shard_size", "4KB") == 0
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index) == set(weights)
    assert len(set(index.values())) > 3
    for name, value in weights.items():
        back = load_file(tmp_path / "back" / index[name])[name]
        assert back.dtype == value.dtype
        np.testing.assert_array_equal(back, value)
    old, new = (json.loads((tmp_path / d / "config.json").read_text()) for d in ("hf", "back"))
    assert {key: new[key] for key in old} == old
    assert (tmp_path / "back" / "tokenizer.model").read_bytes() == b"pieces"


@pytest.mark.parametrize("shards", [1, 2])
def test_meta_there_and_back(tmp_path, shards):
    torch = pytest.importorskip("torch", reason="extra `convert` brings torch")
    written = meta_folder(tmp_path / "meta", shards)
    ours = tmp_path / "m.safetensors"
    run("--torch_ckpt_dir", tmp_path / "meta", "--mindspore_ckpt_path", ours)
    run("--mindspore_ckpt_path", ours, "--to_meta", tmp_path / "back", "--shards", shards)
    assert files_below(tmp_path / "back") == [f"consolidated.{i:02d}.pth" for i in range(shards)] + ["params.json"]
    for number, shard in enumerate(written):
        back = torch.load(tmp_path / "back" / f"consolidated.{number:02d}.pth", weights_only=True)
        assert set(shard) - set(back) == {"rope.freqs"}
        assert all(torch.equal(back[name], shard[name]) and back[name].dtype == shard[name].dtype for name in back)
    params = [json.loads((tmp_path / d / "params.json").read_text()) for d in ("meta", "back")]
    assert params[1] == {**params[0], "vocab_size": 40}


def test_tied_huggingface_becomes_meta_directly(tmp_path):
    torch = pytest.importorskip("torch", reason="extra `convert` brings torch")
    weights = hf_folder(tmp_path / "hf", tied=True)
    run("--torch_ckpt_dir", tmp_path / "hf", "--to_meta", tmp_path / "meta", "--dtype", "bfloat16")
    shard = torch.load(tmp_path / "meta" / "consolidated.00.pth", weights_only=True)
    want = torch.from_numpy(weights["model.embed_tokens.weight"]).bfloat16()
    assert torch.equal(shard["output.weight"], want)
    assert torch.equal(shard["tok_embeddings.weight"], want)


def test_dtype_is_that_of_file_and_config(tmp_path):
    hf_folder(tmp_path / "hf")
    ours = tmp_path / "m"
    run(
        "--torch_ckpt_dir",
        tmp_path / "hf",
        "--mindspore_ckpt_path",
        ours,
        "--dtype",
        "bfloat16",
        "--format",
        "safetensors",
    )
    values = read_checkpoint(tmp_path / "m.safetensors")
    assert {str(values[name].dtype) for name in values} == {"BFloat16"}
    config = yaml.safe_load((tmp_path / "m.yaml").read_text())["model"]["model_config"]
    assert config["param_init_type"] == config["compute_dtype"] == "bfloat16"
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    weights["lm_head.weight"][3, 3] = 1e6
    save_file(weights, tmp_path / "hf" / "model.safetensors")
    before = files_below(tmp_path)
    refused("--torch_ckpt_dir", tmp_path / "hf", "--mindspore_ckpt_path", tmp_path / "n.ckpt", "--dtype", "float16",
            texts=["lm_head.weight: 1 values do not fit float16", "1e+06"])  # fmt: skip
    assert files_below(tmp_path) == before


def test_old_interleaved_checkpoint(tmp_path):
    hf_folder(tmp_path / "hf")
    run("--torch_ckpt_dir", tmp_path / "hf", "--mindspore_ckpt_path", tmp_path / "new.ckpt")
    new = CkptFile(tmp_path / "new.ckpt")
    heads = {"wq": HEADS, "wk": KV_HEADS}
    old = {}
    for name in new.facts:
        value = new.read(name)
        count = heads.get(name.split(".")[-2])
        old[name] = to_tensor(Raw(permute(value.data, count, to_meta=True), value.dtype) if count else value)
    ms.save_checkpoint([{"name": n, "data": v} for n, v in old.items()], str(tmp_path / "old.ckpt"))
    run("--pre_ckpt_path", tmp_path / "old.ckpt", "--config_path", tmp_path / "new.yaml")
    result = CkptFile(tmp_path / "old_hf.ckpt")
    assert set(result.facts) == set(new.facts)
    assert all(np.array_equal(result.read(n).data, new.read(n).data) for n in new.facts)


def test_training_state_is_left_out(tmp_path):
    weights = hf_folder(tmp_path / "hf")
    run("--torch_ckpt_dir", tmp_path / "hf", "--mindspore_ckpt_path", tmp_path / "m.ckpt")
    state = dict(read_checkpoint(tmp_path / "m.ckpt"))
    moments = {f"adam_m.{n}": v for n, v in state.items()}
    path = tmp_path / "run" / "checkpoint" / "rank_0" / "CKP_rank_0-1_3.ckpt"
    save_step({**state, **moments, "global_step": np.int32([3])}, path, manifest_fields={"step": 3, "epoch": 1})
    (tmp_path / "m.yaml").rename(tmp_path / "run" / "config.yaml")  # where a run leaves it
    run("--mindspore_ckpt_path", tmp_path / "run", "--to_hf", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert set(back) == set(weights)


def test_what_does_not_fit_the_config_is_listed_and_nothing_written(tmp_path):
    weights = hf_folder(tmp_path / "hf", num_hidden_layers=3, intermediate_size=28)
    out = tmp_path / "out" / "m.ckpt"
    source = ("--torch_ckpt_dir", tmp_path / "hf", "--mindspore_ckpt_path", out)
    refused(*source, kind=CheckpointError, texts=[
        "9 weights are missing", "model.layers.2.attention_norm.weight", "nothing was written",
        "model.layers.0.feed_forward.w1.weight has shape [44, 16], the config says [28, 16]", "intermediate_size",
    ])  # fmt: skip
    hf_folder(tmp_path / "hf", num_hidden_layers=1)
    refused(*source, texts=["9 names are unknown", "model.layers.1."])
    hf_folder(tmp_path / "hf", tie_word_embeddings=True)
    refused(*source, texts=["lm_head.weight is not equal to the embedding"])
    del weights["lm_head.weight"]
    hf_folder(tmp_path / "hf")
    save_file(weights, tmp_path / "hf" / "model.safetensors")
    refused(*source, texts=["1 weights are missing: lm_head.weight", "tie_word_embeddings"])
    save_file({n: v.astype(np.int8) for n, v in weights.items()}, tmp_path / "hf" / "model.safetensors")
    refused(*source, texts=["int8"])
    assert not out.parent.exists()


def test_equal_output_layer_of_a_tied_model_is_dropped(tmp_path):
    weights = hf_folder(tmp_path / "hf", tied=True)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    save_file(weights, tmp_path / "hf" / "model.safetensors")
    run("--torch_ckpt_dir", tmp_path / "hf", "--mindspore_ckpt_path", tmp_path / "m.ckpt")
    assert "lm_head.weight" not in CkptFile(tmp_path / "m.ckpt").facts


def test_adapters_must_be_merged_first(tmp_path):
    hf_folder(tmp_path / "hf")
    run("--torch_ckpt_dir", tmp_path / "hf", "--mindspore_ckpt_path", tmp_path / "m.ckpt")
    state = dict(read_checkpoint(tmp_path / "m.ckpt"))
    state["model.layers.0.attention.wq.mindpet_delta_lora_a"] = ms.Tensor(np.ones((2, 16), np.float32))
    ms.save_checkpoint([{"name": n, "data": v} for n, v in state.items()], str(tmp_path / "lora.ckpt"))
    refused("--mindspore_ckpt_path", tmp_path / "lora.ckpt", "--config", tmp_path / "m.yaml", "--to_hf", tmp_path / "x",
            texts=["1 names are unknown", "merge them"])  # fmt: skip


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        ([], ["no source"]),
        (["--torch_ckpt_dir", "hf"], ["no result: give --mindspore_ckpt_path FILE, --to_hf"]),
        (["--mindspore_ckpt_path", "m.ckpt"], ["no result: give --to_hf DIR or --to_meta DIR"]),
        (["--torch_ckpt_dir", "hf", "--mindspore_ckpt_path", "x", "--shards", "2"], ["--shards belongs to --to_meta"]),
        (["--torch_ckpt_dir", "hf", "--to_hf", "x", "--format", "ckpt"], ["--format belongs"]),
        (["--torch_ckpt_dir", "hf", "--to_meta", "x", "--max_shard_size", "1GB"], ["--max_shard_size belongs"]),
        (["--torch_ckpt_dir", "hf", "--pre_ckpt_path", "m.ckpt", "--config_path", "c"], ["both sources"]),
        (["--pre_ckpt_path", "m.ckpt"], ["needs --config_path"]),
        (["--torch_ckpt_dir", "hf", "--to_hf", "x", "--config_path", "c"], ["--config_path belongs"]),
        (["--torch_ckpt_dir", "hf", "--mindspore_ckpt_path", "x", "--overwrite"], ["--overwrite belongs"]),
        (["--torch_ckpt_dir", "hf", "--to_hf", "x", "--to_meta", "./x"], ["same folder"]),
        (["--torch_ckpt_dir", "hf", "--mindspore_ckpt_path", "x.ckpt", "--format", "safetensors"], ["disagree"]),
        (["--torch_ckpt_dir", "hf", "--mindspore_ckpt_path", "hf"], ["is a folder"]),
        (["--torch_ckpt_dir", "none", "--mindspore_ckpt_path", "x"], ["none", "does not exist"]),
        (["--mindspore_ckpt_path", "hf", "--to_hf", "x"], ["give it as --torch_ckpt_dir"]),
        (["--torch_ckpt_dir", "hf", "--to_meta", "x", "--shards", "3"], ["--shards 3 does not divide", "num_heads 4"]),
        (["--torch_ckpt_dir", "hf", "--to_hf", "full"], ["exists and is not empty"]),
        (["--torch_ckpt_dir", "hf", "--to_hf", "hf", "--overwrite"], ["is the source"]),
        (["--torch_ckpt_dir", "hf", "--to_hf", "full", "--overwrite"], ["holds other things"]),
        (
            ["--torch_ckpt_dir", "hf/model.safetensors", "--mindspore_ckpt_path", "hf/model.safetensors"],
            ["is the source"],
        ),
    ],
)
def test_flags_that_do_not_fit(tmp_path, monkeypatch, words, texts):
    monkeypatch.chdir(tmp_path)
    hf_folder(tmp_path / "hf")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    (tmp_path / "m.ckpt").write_bytes(b"x")
    before = files_below(tmp_path)
    refused(*words, texts=texts, kind=(ConfigError, CheckpointError))
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    "words", [["--max_shard_size", "0GB"], ["--max_shard_size", "big"], ["--shards", "0"], ["--dtype", "int8"]]
)
def test_values_that_do_not_parse(words, capsys):
    with pytest.raises(SystemExit) as error:
        run("--torch_ckpt_dir", "x", "--to_hf", "y", *words)
    assert error.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_a_checkpoint_without_config_and_a_damaged_one(tmp_path):
    hf_folder(tmp_path / "hf")
    ours = tmp_path / "m.ckpt"
    run("--torch_ckpt_dir", tmp_path / "hf", "--mindspore_ckpt_path", ours)
    (tmp_path / "m.yaml").rename(tmp_path / "away.yaml")
    refused("--mindspore_ckpt_path", ours, "--to_hf", tmp_path / "x", texts=["m.yaml is not beside it", "--config"])
    content = bytearray(ours.read_bytes())
    content[len(content) // 2] ^= 1
    ours.write_bytes(content)
    refused("--mindspore_ckpt_path", ours, "--config", tmp_path / "away.yaml", "--to_hf", tmp_path / "x",
            texts=["checksum"])  # fmt: skip


def test_overwrite_replaces_the_whole_folder(tmp_path):
    hf_folder(tmp_path / "hf")
    hf_folder(tmp_path / "old", shards=3)
    run("--torch_ckpt_dir", tmp_path / "hf", "--to_hf", tmp_path / "old", "--overwrite")
    assert files_below(tmp_path / "old") == ["config.json", "generation_config.json", "model.safetensors"]
    assert not list(tmp_path.glob(".tmp*"))


def test_another_tokenizer_stays(tmp_path, capsys):
    hf_folder(tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.model").write_bytes(b"new")
    (tmp_path / "tokenizer.model").write_bytes(b"old")
    run("--torch_ckpt_dir", tmp_path / "hf", "--mindspore_ckpt_path", tmp_path / "m.ckpt")
    assert (tmp_path / "tokenizer.model").read_bytes() == b"old"
    assert "was left as it is" in capsys.readouterr().out


@pytest.mark.parametrize("result", ["--mindspore_ckpt_path", "--to_hf", "--to_meta"])
def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch, result):
    if result == "--to_meta":
        pytest.importorskip("torch", reason="extra `convert` brings torch")
    hf_folder(tmp_path / "hf")
    before, read = files_below(tmp_path), conversion.Checked.raw

    def stops(self, name):
        if "layers.1" in name:
            raise KeyboardInterrupt
        return read(self, name)

    monkeypatch.setattr(conversion.Checked, "raw", stops)
    with pytest.raises(KeyboardInterrupt):
        run("--torch_ckpt_dir", tmp_path / "hf", result, tmp_path / "out" / "x.ckpt")
    assert files_below(tmp_path) == before


def test_full_disk_is_told_before_writing(tmp_path, monkeypatch):
    hf_folder(tmp_path / "hf")
    monkeypatch.setattr("mindformers.checkpoint.stream.shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    for result in ("--mindspore_ckpt_path", "--to_hf"):
        refused(
            "--torch_ckpt_dir", tmp_path / "hf", result, tmp_path / "x.ckpt", texts=["bytes are needed, 100 are free"]
        )


def test_relative_paths_and_exit_codes_of_the_command(tmp_path):
    hf_folder(tmp_path / "a b" / "hf")
    words = [sys.executable, convert_weight.__file__, "--torch_ckpt_dir", "a b/hf", "--mindspore_ckpt_path"]
    env = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run([*words, "\u4f60 m.ckpt"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "\u4f60 m.ckpt").is_file()
    assert (tmp_path / "\u4f60 m.yaml").is_file()
    done = subprocess.run([*words, "a b"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_streamed_files_are_those_mindspore_and_safetensors_write(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.standard_normal((30, 50)).astype(np.float32),
        "\u00e9": rng.standard_normal(7).astype(np.float16),
    }
    values = {name: Raw(value, str(value.dtype)) for name, value in arrays.items()}
    values["s"] = Raw(np.float32(3).reshape(()), "float32")
    values["b"] = Raw(rng.integers(0, 2**16, (3, 4)).astype(np.uint16), "bfloat16")
    plan = [Planned(name, value.data.shape, value.dtype) for name, value in values.items()]
    ms.save_checkpoint([{"name": n, "data": to_tensor(v)} for n, v in values.items()], str(tmp_path / "ms.ckpt"))
    for limit in (1 << 20, 1000):  # the second spreads the first tensor over records
        monkeypatch.setattr("mindformers.checkpoint.stream._SLICE_BYTES", limit)
        for fmt in ("ckpt", "safetensors"):
            path = tmp_path / f"{limit}.{fmt}"
            with CheckpointStream(path, plan, fmt) as stream:
                for item in plan:
                    stream.add(item, values[item.name])
            loaded = ms.load_checkpoint(str(path), format=fmt)
            for name, value in values.items():
                assert loaded[name].asnumpy().tobytes() == value.data.tobytes()
    assert (tmp_path / f"{1 << 20}.ckpt").read_bytes() == (tmp_path / "ms.ckpt").read_bytes()
    file = CkptFile(tmp_path / "1000.ckpt")
    assert all(file.read(n).data.tobytes() == v.data.tobytes() for n, v in values.items())
    writer = SafetensorsWriter(tmp_path / "x.safetensors", plan[:2], {"format": "pt"})
    for item in plan[:2]:
        writer.add(item, values[item.name])
    writer.finish()
    loaded = load_file(tmp_path / "x.safetensors")
    assert all(np.array_equal(loaded[name], arrays[name]) for name in arrays)
