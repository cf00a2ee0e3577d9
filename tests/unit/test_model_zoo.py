# SPDX-License-Identifier: Apache-2.0
"""The table of named models, and the old interface to it."""

from pathlib import Path

import pytest

from mindformers import MindFormerBook
from mindformers.checkpoint.download import location
from mindformers.config.files import find_config
from mindformers.errors import ConfigError
from mindformers.model_zoo import MODELS, STORE, known_name
from tests.helpers import REPO

# the table and its book


def test_every_entry_is_complete():
    for name, entry in MODELS.items():
        assert known_name(name) == known_name(f"mindspore/{name}") == name
        assert find_config(entry.config).parent.name == entry.family
        for remote in (entry.checkpoint, entry.tokenizer):
            if remote:
                assert remote.url.startswith(f"{STORE}/")
                assert remote.sha256 is None or len(bytes.fromhex(remote.sha256)) == 32
    assert known_name("mindspore/llama2_7c") is None


def test_book_is_derived_from_the_table(capsys, tmp_path):
    for name in (name for name in dir(MindFormerBook) if name.startswith("get_")):
        assert getattr(MindFormerBook, name)(), name
        getattr(MindFormerBook, name.replace("get_", "show_", 1))()
    assert "llama2: llama2_7b, llama2_13b, llama2_70b, llama2_tiny" in capsys.readouterr().out
    MindFormerBook.show_trainer_support_model_list("text_generation")
    with pytest.raises(ConfigError, match="Did you mean 'text_generation'"):
        MindFormerBook.show_pipeline_support_model_list("text-generation")
    for file in MindFormerBook.get_model_config_url_list().values():
        assert (REPO / file).is_file()


def test_folders_of_the_book(tmp_path, monkeypatch):
    monkeypatch.delenv("CHECKPOINT_DOWNLOAD_FOLDER", raising=False)
    monkeypatch.setattr(MindFormerBook, "_folders", {})
    assert location("llama2_7b", "checkpoint") == Path.cwd() / "checkpoint_download/llama2/llama2_7b.ckpt"
    MindFormerBook.set_default_checkpoint_download_folder(tmp_path)
    assert location("llama2_7b", "checkpoint") == tmp_path / "llama2/llama2_7b.ckpt"
    with pytest.raises(ConfigError, match="not an existing folder"):
        MindFormerBook.set_default_checkpoint_save_folder(tmp_path / "absent")
