# SPDX-License-Identifier: Apache-2.0
"""What the tests of downloads share: a server, a model that is published there, an empty download folder."""

import dataclasses
from pathlib import Path

import pytest

from mindformers.model_zoo import MODELS, RemoteFile
from tests.unit.checkpoint.http_server import FileServer, serving


@pytest.fixture(scope="session")
def vocabulary(tiny_model_file: Path) -> bytes:
    """A SentencePiece model."""
    return tiny_model_file.read_bytes()


@pytest.fixture(scope="session")
def checkpoint_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A MindSpore checkpoint of one small tensor."""
    import mindspore as ms
    import numpy as np

    path = tmp_path_factory.mktemp("published") / "small.ckpt"
    values = {"lm_head.weight": ms.Tensor(np.arange(24, dtype=np.float32).reshape(4, 6))}
    ms.save_checkpoint([{"name": name, "data": value} for name, value in values.items()], str(path))
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty download folder, and leave to use the network (of this machine)."""
    monkeypatch.setenv("CHECKPOINT_DOWNLOAD_FOLDER", str(tmp_path / "store"))
    monkeypatch.setenv("MINDFORMERS_OFFLINE", "0")
    return tmp_path / "store" / "llama2"


@pytest.fixture
def server(vocabulary: bytes):
    """A server with that vocabulary."""
    with serving(vocabulary) as running:
        yield running


@pytest.fixture
def publish(server: FileServer, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Let the names point to the server; size and sha256 as given."""

    def change(**known) -> None:
        tokenizer = RemoteFile(server.url("/tokenizer.model"), "tokenizer.model", **known)
        checkpoint = RemoteFile(server.url("/weights"), "llama2_7b.ckpt")
        entry = dataclasses.replace(MODELS["llama2_7b"], tokenizer=tokenizer, checkpoint=checkpoint)
        monkeypatch.setitem(MODELS, "llama2_7b", entry)

    change()
    return change
