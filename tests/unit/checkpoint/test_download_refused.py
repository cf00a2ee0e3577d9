# SPDX-License-Identifier: Apache-2.0
"""Answers, redirects, certificates and disks that a download must not accept."""

import dataclasses
import errno
import io
import json
import os
import shutil

import pytest

from mindformers.checkpoint import transfer
from mindformers.errors import CheckpointError
from mindformers.model_zoo import MODELS, RemoteFile
from tests.unit.checkpoint.http_server import Handler, get, names, serving, sha256

pytestmark = pytest.mark.usefixtures("folder")

# answers that are no file, or the wrong one


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 204, 304])
def test_final_answers_are_not_repeated(publish, server, folder, code):
    server.behaviours = [lambda handler: handler.head(code, {"Content-Length": 0})]
    with pytest.raises(CheckpointError, match=f"HTTP {code}"):
        get()
    assert len(server.requests) == 1
    assert "tokenizer.model" not in names(folder)


def test_busy_server_is_asked_again(publish, server, vocabulary):
    busy = [lambda h: h.head(503, {"Retry-After": "1", "Content-Length": 0}), lambda h: h.head(429, {})]
    server.behaviours = [*busy, Handler.file]
    assert get().read_bytes() == vocabulary
    server.behaviours = [lambda handler: handler.head(500, {"Content-Length": 0})]
    get().unlink()
    with pytest.raises(CheckpointError, match=r"failed 3 times in a row: HTTP 500"):
        get()


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/json", "binary/octet-stream"])
def test_a_page_is_not_a_file(publish, server, folder, kind):
    page = b"\n<!DOCTYPE html><html>log in</html>"
    server.behaviours = [lambda handler: handler.file(body=page, Content_Type=kind)]
    with pytest.raises(CheckpointError, match="answered with a page"):
        get()
    assert names(folder) <= {".tokenizer.model.lock"}


def test_length_other_than_published_is_refused_before_the_first_byte(publish, server, folder, vocabulary):
    publish(size=len(vocabulary) + 1)
    with pytest.raises(CheckpointError, match=f"has {len(vocabulary)} bytes, the published file has"):
        get()
    assert "tokenizer.model.part" not in names(folder)


def test_server_that_promises_too_much(publish, server, vocabulary):
    server.behaviours = [lambda h: h.file(Content_Length=len(vocabulary) + 10), Handler.file]
    assert get().read_bytes() == vocabulary  # 416 of the second answer: nothing is missing


@pytest.mark.parametrize("kind", ["tokenizer", "checkpoint"])
def test_server_that_promises_too_little(publish, server, folder, checkpoint_bytes, kind):
    server.body = checkpoint_bytes if kind == "checkpoint" else server.body
    cut = len(server.body) - 7
    server.behaviours = [lambda handler: handler.file(stop=cut, Content_Length=cut)]
    with pytest.raises(CheckpointError, match="not usable and was deleted"):
        get(kind)
    assert all(name.startswith(".") for name in names(folder))


def test_wrong_checksum(publish, server, folder, vocabulary):
    publish(size=len(vocabulary), sha256="0" * 64)
    with pytest.raises(CheckpointError, match=f"sha256 is {sha256(vocabulary)}, not 0000"):
        get()
    assert len(server.requests) == 1
    assert all(name.startswith(".") for name in names(folder))


def test_wrong_checksum_of_a_resumed_file_starts_anew_once(publish, server, folder, vocabulary):
    publish(sha256=sha256(vocabulary))
    folder.mkdir(parents=True)
    (folder / "tokenizer.model.part").write_bytes(b"?" * 1000)
    state = {"url": server.url("/tokenizer.model"), "validator": '"one"', "total": len(vocabulary)}
    (folder / "tokenizer.model.part.json").write_text(json.dumps(state))
    assert get().read_bytes() == vocabulary
    assert [request.get("range") for request in server.requests] == ["bytes=1000-", None]


@pytest.mark.parametrize("state", ["", "{", "[]", "7", '{"url": 1}', '{"url": "http://elsewhere/x", "total": 9}'])
def test_a_part_of_unknown_origin_is_not_used(publish, server, folder, vocabulary, state):
    folder.mkdir(parents=True)
    (folder / "tokenizer.model.part").write_bytes(b"?" * 1000)
    (folder / "tokenizer.model.part.json").write_text(state)
    assert get().read_bytes() == vocabulary
    assert "range" not in server.requests[0]


def test_encoded_or_endless_answers_are_refused(publish, server):
    server.behaviours = [lambda handler: handler.file(Content_Encoding="gzip")]
    with pytest.raises(CheckpointError, match="gzip"):
        get()
    server.behaviours = [lambda handler: handler.file(Content_Length=None)]
    with pytest.raises(CheckpointError, match="does not say how long"):
        get()


# redirects and certificates


def redirect(goal: str):
    return lambda handler: handler.head(302, {"Location": goal, "Content-Length": 0})


def test_redirect_is_followed_with_its_range(publish, server, vocabulary):
    cut = [redirect("/b"), lambda h: h.file(stop=3000)]
    server.behaviours = [*cut, redirect(server.url("/c")), Handler.file]
    assert get().read_bytes() == vocabulary
    assert server.requests[3]["range"] == "bytes=3000-"
    assert server.paths == ["/tokenizer.model", "/b", "/tokenizer.model", "/c"]


@pytest.mark.parametrize("goal", ["file:///etc/hostname", "ftp://localhost/x", "data:,x"])
def test_redirect_to_another_scheme_is_refused(publish, server, folder, goal):
    server.behaviours = [redirect(goal)]
    with pytest.raises(CheckpointError, match="not followed"):
        get()
    assert len(server.requests) == 1


def test_endless_redirects(publish, server):
    server.behaviours = [redirect("/again")]
    with pytest.raises(CheckpointError, match="more than 8 redirects"):
        get()


def test_https_is_verified_and_not_left(vocabulary, monkeypatch, tmp_path, server):
    import ssl

    import trustme

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with serving(vocabulary, context) as secure:
        remote = RemoteFile(secure.url("/tokenizer.model", "https"), "tokenizer.model")
        monkeypatch.setitem(MODELS, "llama2_7b", dataclasses.replace(MODELS["llama2_7b"], tokenizer=remote))
        with pytest.raises(CheckpointError, match=r"certificate is not valid.*REQUESTS_CA_BUNDLE"):
            get()
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        secure.behaviours = [redirect(server.url())]
        with pytest.raises(CheckpointError, match="from https to http"):
            get()
        secure.behaviours = [Handler.file]
        assert get().read_bytes() == vocabulary
    assert not server.requests


# disks


def test_too_little_space_is_noticed_first(publish, server, monkeypatch, folder):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 100, 100))
    with pytest.raises(CheckpointError, match=r"needs .* more, 100 bytes are free"):
        get()
    assert "tokenizer.model.part" not in names(folder)


class FullDisk(io.FileIO):
    """Takes 2000 bytes."""

    def write(self, data: bytes) -> int:
        if self.tell() + len(data) > 2000:
            super().write(data[: 2000 - self.tell()])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_disk_that_fills_up_keeps_what_is_there(publish, server, monkeypatch, folder, vocabulary):
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "open", lambda path, mode: FullDisk(path, mode.replace("b", "")), raising=False)
        with pytest.raises(CheckpointError, match=r"disk is full .*2.0 kB kept in"):
            get()
    assert len(server.requests) == 1
    assert get().read_bytes() == vocabulary
    assert server.requests[1]["range"] == "bytes=2000-"


def test_unwritable_folder(publish, tmp_path, monkeypatch):
    (tmp_path / "a file").write_text("x")
    monkeypatch.setenv("CHECKPOINT_DOWNLOAD_FOLDER", str(tmp_path / "a file"))
    with pytest.raises(CheckpointError, match="Not a directory; CHECKPOINT_DOWNLOAD_FOLDER names another"):
        get()
