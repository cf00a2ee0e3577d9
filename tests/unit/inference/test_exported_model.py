# SPDX-License-Identifier: Apache-2.0
"""Exported files generate what the model they come from generates."""

import json

import numpy as np
import pytest

from mindformers.errors import CheckpointError, ConfigError, DeviceError
from mindformers.inference import ExportedModel
from mindformers.inference.exporter import export_mindir
from mindformers.inference.mindir_files import description_path, existing_mindir, input_shapes

PROMPTS = [[5, 17, 230, 9, 41], [7, 300, 12]]
DRAWN = {"do_sample": True, "temperature": 0.8, "top_k": 12, "top_p": 0.9, "repetition_penalty": 1.3, "seed": 3}


def same(left, right) -> bool:
    return len(left) == len(right) and all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.5}, DRAWN], ids=["greedy", "penalty", "drawn"])
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["batch", "one"])
def test_pair_generates_what_the_model_does(network, exported, prompts, settings):
    settings = {"max_new_tokens": 20, "eos_token_id": [], **settings}
    assert same(exported.generate(prompts, **settings), network.generate(prompts, **settings))


def test_calls_do_not_disturb_each_other(network, exported):
    settings = {"max_length": 32, "eos_token_id": []}
    first = exported.generate(PROMPTS, **settings)
    exported.generate([[3, 4, 5, 6, 7, 8, 9, 10]], **settings)
    assert same(exported.generate(PROMPTS, **settings), first)
    assert max(map(len, first)) == 32


def test_one_graph_without_cache(network, tmp_path):
    (file,) = export_mindir(network, tmp_path / "all.mindir", batch_size=2)
    model = ExportedModel.open(file, backend="ms")
    settings = {"max_new_tokens": 8, "eos_token_id": []}
    assert same(model.generate(PROMPTS, **settings), network.generate(PROMPTS, **settings))


def test_interface_of_the_graphs(pair, network):
    assert input_shapes(pair[0]) == [(2, 32), (2,), (1,), (2,)]
    assert input_shapes(pair[1]) == [(2, 1), (2,), (1,), (2,)]
    description = json.loads(description_path(pair[0]).read_text(encoding="utf-8"))
    assert description["graphs"]["increment"]["outputs"] == {"logits": [2, 1, 400], "tokens": [2, 1], "mask": [2, 1]}
    assert description["model_config"]["hidden_size"] == network.config.hidden_size


def test_either_name_of_a_file_is_found(pair, tmp_path):
    assert [file.name for file in pair] == ["a_prefill.mindir", "a_mini.mindir"]  # no letters of .mindir stripped
    assert existing_mindir(str(pair[0]).replace(".mindir", "_graph.mindir"), "--x") == pair[0]
    with pytest.raises(CheckpointError, match=r"--x .*a_prefil.mindir: no such file. Did you mean .*a_prefill.mindir"):
        existing_mindir(pair[0].with_name("a_prefil.mindir"), "--x")


def test_large_weights_lie_outside_and_are_shared(network, tmp_path, monkeypatch):
    import mindspore.train.serialization as serialization

    monkeypatch.setattr(serialization, "TOTAL_SAVE", 1)  # in kB: over it, MindSpore writes weights into files
    files = export_mindir(network, tmp_path / "p.mindir", tmp_path / "i.mindir", batch_size=2)
    assert [file.name for file in files] == ["p_graph.mindir", "i_graph.mindir"]
    data = [tmp_path / name / "data_0" for name in ("p_variables", "i_variables")]
    assert data[0].stat().st_ino == data[1].stat().st_ino
    model = ExportedModel.open(tmp_path / "p.mindir", tmp_path / "i.mindir", backend="ms")
    settings = {"max_new_tokens": 8, "eos_token_id": []}
    assert same(model.generate(PROMPTS, **settings), network.generate(PROMPTS, **settings))


def test_a_failed_export_leaves_the_old_files(network, tmp_path, monkeypatch):
    import mindspore as ms

    (tmp_path / "p.mindir").write_text("old", encoding="utf-8")
    calls = []

    def fail_at_the_second(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        open(kwargs["file_name"], "wb").close()

    monkeypatch.setattr(ms, "export", fail_at_the_second)
    with pytest.raises(CheckpointError, match=r"cannot write .*i.mindir: No space left on device"):
        export_mindir(network, tmp_path / "p.mindir", tmp_path / "i.mindir")
    assert [file.name for file in tmp_path.iterdir()] == ["p.mindir"]
    assert (tmp_path / "p.mindir").read_text(encoding="utf-8") == "old"


def test_mistakes(pair, exported, network, tmp_path):
    with pytest.raises(ConfigError, match=r"3 prompts at once, but the exported files compute 2"):
        exported.generate([[1], [2], [3]], max_new_tokens=2)
    with pytest.raises(ConfigError, match=r"seq_length 64 is not that of .*exported with 32"):
        ExportedModel.open(*pair, backend="ms", seq_length=64)
    with pytest.raises(ConfigError, match=r"takes tokens of shape \[2, 32\]"):
        ExportedModel.open(pair[0], pair[0], backend="ms")
    with pytest.raises(ConfigError, match=r"are the same file"):
        export_mindir(network, tmp_path / "x.mindir", tmp_path / "x_graph.mindir")
    with pytest.raises(ConfigError, match=r"backend 'onnx' is not allowed: give one of ms, mslite"):
        ExportedModel.open(*pair, backend="onnx")
    (tmp_path / "rubbish.mindir").write_bytes(b"\x07rubbish" * 50)
    with pytest.raises(CheckpointError, match=r"rubbish.mindir cannot be loaded as MindIR"):
        ExportedModel.open(tmp_path / "rubbish.mindir", backend="ms")


def test_a_pair_without_description_needs_the_vocabulary(pair, tmp_path, network):
    for file in pair:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    names = [tmp_path / file.name for file in pair]
    with pytest.raises(CheckpointError, match=r"has no description"):
        ExportedModel.open(*names, backend="ms")
    model = ExportedModel.open(*names, backend="ms", vocab_size=400)
    settings = {"max_new_tokens": 6, "eos_token_id": []}
    assert same(model.generate(PROMPTS, **settings), network.generate(PROMPTS, **settings))
    description_path(names[0]).write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"a_prefill.json is damaged"):
        ExportedModel.open(*names, backend="ms")


def test_lite_that_is_not_installed(pair):
    with pytest.raises(DeviceError, match=r"backend mslite needs the package mindspore_lite"):
        ExportedModel.open(*pair, backend="mslite")
