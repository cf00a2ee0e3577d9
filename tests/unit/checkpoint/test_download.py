# SPDX-License-Identifier: Apache-2.0
"""Downloads that work, are cut, are shared by processes, and go on."""

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mindformers.checkpoint.download import fetch
from mindformers.checkpoint.load import resolve_checkpoint
from mindformers.errors import CheckpointError
from mindformers.model_zoo import MODELS, STORE
from tests.helpers import REPO
from tests.unit.checkpoint.http_server import FAST, FileServer, Handler, get, names, sha256

pytestmark = pytest.mark.usefixtures("folder")

# the good case


def test_downloads_once_and_leaves_only_the_file(publish, server, folder, vocabulary):
    publish(size=len(vocabulary), sha256=sha256(vocabulary))
    path = get()
    assert path == folder / "tokenizer.model"
    assert path.read_bytes() == vocabulary
    assert names(folder) == {"tokenizer.model", ".tokenizer.model.lock"}
    assert get() == path
    assert len(server.requests) == 1


def test_checkpoint_by_name(publish, server, folder, checkpoint_bytes):
    server.body = checkpoint_bytes
    path = resolve_checkpoint("llama2_7b")
    assert path == folder / "llama2_7b.ckpt"
    assert path.read_bytes() == checkpoint_bytes
    assert resolve_checkpoint("mindspore/llama2_7b") == path


def test_a_folder_of_that_name_wins(publish, server, tmp_path, monkeypatch, checkpoint_bytes):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama2_7b").mkdir()
    (tmp_path / "llama2_7b" / "mine.ckpt").write_bytes(checkpoint_bytes)
    assert resolve_checkpoint("llama2_7b") == Path("llama2_7b/mine.ckpt")
    assert not server.requests


def test_chunked_answer(publish, server, vocabulary):
    def chunked(handler: Handler) -> None:
        handler.head(200, {"Transfer-Encoding": "chunked"})
        for start in range(0, len(vocabulary), 1000):
            piece = vocabulary[start : start + 1000]
            handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        handler.wfile.write(b"0\r\n\r\n")

    server.behaviours = [chunked]
    assert get().read_bytes() == vocabulary


def test_mirror(server, folder, monkeypatch, vocabulary):
    original = MODELS["llama2_7b"].tokenizer
    entry = dataclasses.replace(
        MODELS["llama2_7b"], tokenizer=dataclasses.replace(original, size=len(vocabulary), sha256=sha256(vocabulary))
    )
    monkeypatch.setitem(MODELS, "llama2_7b", entry)
    monkeypatch.setenv("MINDFORMERS_DOWNLOAD_URL", server.url("/mirror/"))
    assert get().read_bytes() == vocabulary
    assert server.paths == ["/mirror" + original.url.removeprefix(STORE)]


# connections that break


@pytest.mark.parametrize("stop", [1500, 4096, 5001])
def test_goes_on_where_the_connection_was_cut(publish, server, vocabulary, stop):
    server.behaviours = [lambda handler: handler.file(stop=stop)]
    assert get().read_bytes() == vocabulary
    assert len(server.requests) == -(-len(vocabulary) // stop)
    assert "range" not in server.requests[0]
    assert server.requests[1]["range"] == f"bytes={stop}-"
    assert server.requests[1]["if-range"] == '"one"'


def test_goes_on_in_another_call(publish, server, folder, vocabulary):
    server.behaviours = [lambda h: h.file(stop=2000), *[lambda h: h.head(500, {"Content-Length": 0})] * 3, Handler.file]
    with pytest.raises(CheckpointError, match="3 times in a row: HTTP 500"):
        get()
    assert (folder / "tokenizer.model.part").stat().st_size == 2000
    assert get().read_bytes() == vocabulary
    assert server.requests[-1]["range"] == "bytes=2000-"


def test_a_file_that_changed_starts_anew(publish, server, vocabulary, tmp_path):
    newer = vocabulary + b""  # the same vocabulary, but the server says it is another version
    server.body = bytes(reversed(vocabulary))
    server.behaviours = [lambda h: h.file(stop=3000), Handler.file]

    def swap(handler: Handler) -> None:
        server.body, server.etag = newer, '"two"'
        handler.file()

    server.behaviours[1] = swap
    assert get().read_bytes() == vocabulary
    assert server.requests[1]["if-range"] == '"one"'


def test_a_range_of_another_version_is_not_joined(publish, server, vocabulary):
    server.body = bytes(reversed(vocabulary))

    def ignores_if_range(handler: Handler) -> None:
        server.body, server.etag = vocabulary, '"two"'
        del handler.headers["If-Range"]
        handler.file()

    server.behaviours = [lambda h: h.file(stop=3000), ignores_if_range, Handler.file]
    assert get().read_bytes() == vocabulary
    assert [r.get("range") for r in server.requests] == [None, "bytes=3000-", None]


def test_server_without_ranges(publish, server, vocabulary):
    server.behaviours = [lambda h: h.file(stop=3000), lambda h: h.file(ranges=False)]
    assert get().read_bytes() == vocabulary


def test_server_without_ranges_that_always_cuts_is_given_up(publish, server, folder):
    server.behaviours = [lambda handler: handler.file(ranges=False, stop=3000)]
    with pytest.raises(CheckpointError, match="the connection ended after 3000 of") as error:
        get()
    assert len(server.requests) <= 1 + FAST.tries
    assert str(folder / "tokenizer.model") in str(error.value)
    assert "tokenizer.model" not in names(folder)


def test_without_a_validator_parts_are_joined_only_under_a_checksum(publish, server, vocabulary):
    server.etag = None
    server.behaviours = [lambda h: h.file(stop=3000), lambda h: h.file(stop=9000), Handler.file]
    assert get().read_bytes() == vocabulary
    assert all("range" not in request for request in server.requests)
    get().unlink()
    server.requests.clear()
    publish(sha256=sha256(vocabulary))
    assert get().read_bytes() == vocabulary
    assert server.requests[1]["range"] == "bytes=3000-"


def test_refused_connection_is_an_error_with_the_place(publish, server, folder):
    server.shutdown()
    server.server_close()
    with pytest.raises(CheckpointError, match="Connection refused") as error:
        get()
    assert f"Put the file at {folder / 'tokenizer.model'}" in str(error.value)


def test_silence_and_a_trickle_end_a_connection(publish, server, vocabulary):
    def silent(handler: Handler) -> None:
        handler.file(stop=2000)
        server.release.wait(5)

    def trickle(handler: Handler) -> None:
        handler.head(206, {"Content-Range": f"bytes 2000-{len(vocabulary) - 1}/{len(vocabulary)}", "ETag": '"one"'})
        for byte in vocabulary[2000:2040]:
            handler.wfile.write(bytes([byte]))
            if server.release.wait(0.02):
                break

    server.behaviours = [silent, trickle, Handler.file]
    patience = dataclasses.replace(FAST, slow_window=0.2, slow_rate=1000)
    assert fetch("llama2_7b", "tokenizer", patience=patience).read_bytes() == vocabulary
    third = int(server.requests[2]["range"].removeprefix("bytes=").rstrip("-"))
    assert 2000 < third < 2040


# several processes

CHILD = """
import dataclasses, sys
from mindformers.checkpoint.download import fetch
from mindformers.checkpoint.transfer import Patience
from mindformers.model_zoo import MODELS, RemoteFile
remote = RemoteFile(sys.argv[1], "tokenizer.model")
MODELS["llama2_7b"] = dataclasses.replace(MODELS["llama2_7b"], tokenizer=remote)
print(fetch("llama2_7b", "tokenizer", patience=Patience(silence=60)))
"""


def child(server: FileServer) -> subprocess.Popen:
    words = [sys.executable, "-c", CHILD, server.url("/tokenizer.model")]
    return subprocess.Popen(words, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what the test waits for does not happen"
        time.sleep(0.02)


def first_line(process: subprocess.Popen, text: str) -> str:
    for line in process.stderr:
        if text in line:
            return line
    raise AssertionError(f"{text!r} was never logged")


def held(handler: Handler) -> None:
    """Half of the file, and the rest when the test says so."""
    body = handler.server.body
    handler.head(200, {"Content-Length": len(body), "ETag": '"one"'})
    handler.wfile.write(body[:3000])
    handler.wfile.flush()
    handler.server.release.wait(60)
    handler.wfile.write(body[3000:])


def test_two_processes_download_once(server, folder, vocabulary):
    server.behaviours = [held]
    first = child(server)
    wait_until(lambda: server.requests)
    second = child(server)
    assert f"process {first.pid} downloads it; waiting" in first_line(second, "waiting")
    server.release.set()
    outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert [out for out, _ in outputs] == [f"{folder / 'tokenizer.model'}\n"] * 2, outputs
    assert len(server.requests) == 1
    assert (folder / "tokenizer.model").read_bytes() == vocabulary


def test_a_waiting_process_takes_over_from_a_killed_one(server, folder, vocabulary):
    server.behaviours = [held, Handler.file]
    part = folder / "tokenizer.model.part"
    first = child(server)
    wait_until(lambda: server.requests)
    second = child(server)
    first_line(second, "waiting")
    wait_until(lambda: part.exists() and part.stat().st_size == 3000)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    out, err = second.communicate(timeout=60)
    assert out == f"{folder / 'tokenizer.model'}\n", err
    assert (folder / "tokenizer.model").read_bytes() == vocabulary
    assert not part.exists()
    assert [request.get("range") for request in server.requests] == [None, "bytes=3000-"]
