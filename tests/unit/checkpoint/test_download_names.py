# SPDX-License-Identifier: Apache-2.0
"""From a model's name to its files: what is used, what the errors say, who asks."""

import pytest

from mindformers.__main__ import main
from mindformers.checkpoint.download import fetch, is_offline, location
from mindformers.checkpoint.load import resolve_checkpoint
from mindformers.config import load_config
from mindformers.errors import CheckpointError, ConfigError
from mindformers.trainer.predict import build_tokenizer
from tests.unit.checkpoint.http_server import get

pytestmark = pytest.mark.usefixtures("folder")

# no network, no file


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [("", "", False), ("1", "", True), ("True", "", True), ("", "1", True), ("0", "1", False), ("off", "yes", False)],
)
def test_offline_switch(monkeypatch, ours, theirs, expected):
    monkeypatch.setenv("MINDFORMERS_OFFLINE", ours)
    monkeypatch.setenv("HF_HUB_OFFLINE", theirs)
    assert is_offline() is expected


def test_offline_switch_must_be_readable(monkeypatch):
    monkeypatch.setenv("MINDFORMERS_OFFLINE", "maybe")
    with pytest.raises(ConfigError, match=r"MINDFORMERS_OFFLINE='maybe'.*true"):
        is_offline()


def test_offline_names_the_place_and_uses_what_lies_there(publish, server, folder, monkeypatch, vocabulary):
    monkeypatch.setenv("MINDFORMERS_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=r"switched off \(offline\)") as error:
        get()
    assert f"Put the file at {folder / 'tokenizer.model'}\n" in str(error.value)
    assert not folder.exists()
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(vocabulary)
    assert get() == folder / "tokenizer.model"
    assert not server.requests


def test_weights_that_are_published_nowhere(folder, checkpoint_bytes):
    with pytest.raises(CheckpointError, match=r"(?s)no address.*convert_weight.py") as error:
        resolve_checkpoint("llama2_70b")
    assert f"Put the file at {folder / 'llama2_70b.ckpt'}" in str(error.value)
    with pytest.raises(CheckpointError, match="quickstart"):
        fetch("llama2_tiny", "tokenizer")
    folder.mkdir(parents=True)
    (folder / "llama2_70b.safetensors").write_bytes(b"converted")
    assert fetch("llama2_70b", "checkpoint") == folder / "llama2_70b.safetensors"


def test_the_small_model_does_not_take_the_vocabulary_of_the_large_ones():
    assert location("llama2_tiny", "tokenizer") != location("llama2_7b", "tokenizer")
    assert location("llama2_70b", "tokenizer") == location("llama2_7b", "tokenizer")


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_rubbish_that_lies_there_is_named(publish, server, folder, content):
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"not the published file.*Delete it"):
        get()
    assert not server.requests


def test_file_of_the_old_mirror_folder_is_used(publish, server, folder, vocabulary):
    old = folder.parent / "mindspore" / "llama2"
    old.mkdir(parents=True)
    (old / "tokenizer.model").write_bytes(vocabulary)
    assert fetch("mindspore/llama2_7b", "tokenizer") == old / "tokenizer.model"


@pytest.mark.parametrize(("name", "kind"), [("llama2_7c", "checkpoint"), ("llama2_7b", "checkpiont")])
def test_unknown_names(name, kind):
    with pytest.raises(ConfigError, match=r"Did you mean '(llama2_7b|checkpoint)'"):
        fetch(name, kind)


# who uses it


def test_tokenizer_of_a_run(publish, server, vocabulary, folder):
    tokenizer = build_tokenizer(load_config("run_llama2_7b"))
    assert tokenizer.vocab_file == str(folder / "tokenizer.model")
    assert len(server.requests) == 1


def test_tokenizer_of_a_run_offline(monkeypatch, folder):
    monkeypatch.setenv("MINDFORMERS_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"--processor.tokenizer.vocab_file") as error:
        build_tokenizer(load_config("run_llama2_7b"))
    assert f"Put the file at {folder / 'tokenizer.model'}" in str(error.value)


def test_command(publish, server, folder, checkpoint_bytes, capsys, monkeypatch):
    assert main(["download", "llama2_7b", "--kind", "tokenizer"]) == 0
    assert capsys.readouterr().out == f"{folder / 'tokenizer.model'}\n"
    requests = len(server.requests)
    assert main(["download", "llama2_7b", "--offline"]) == 2
    shown = capsys.readouterr()
    assert shown.out == f"{folder / 'tokenizer.model'}\n"
    assert f"Put the file at {folder / 'llama2_7b.ckpt'}" in shown.err
    assert len(server.requests) == requests
