# SPDX-License-Identifier: Apache-2.0
"""Streamers: text as it comes, threads, errors."""

import codecs
import queue
import threading
from pathlib import Path

import numpy as np
import pytest

from mindformers.errors import ConfigError
from mindformers.generation import BaseStreamer, TextIteratorStreamer, TextStreamer


class ByteTokenizer:
    """Ids are bytes of UTF-8."""

    def incremental_decoder(self, skip_special_tokens: bool = True) -> "ByteDecoder":
        """A fresh decoder."""
        return ByteDecoder()


class ByteDecoder:
    """Holds back incomplete characters."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def put(self, ids: list[int]) -> str:
        """Text that became final."""
        return self._decoder.decode(bytes(ids))

    def flush(self) -> str:
        """The rest."""
        return self._decoder.decode(b"", final=True)


def feed(streamer: BaseStreamer, prompt: str, text: str) -> None:
    """What generate does."""
    streamer.put(np.frombuffer(prompt.encode(), np.uint8).astype(np.int32))
    for byte in text.encode():
        streamer.put(np.array([byte], np.int32))
    streamer.end()


TEXT = "caf\u00e9 \u4f60\u597d \U0001f600!"


def test_prints_whole_characters(capsys: pytest.CaptureFixture[str]) -> None:
    feed(TextStreamer(ByteTokenizer()), "say ", TEXT)
    assert capsys.readouterr().out == "say " + TEXT + "\n"


def test_skips_the_prompt_of_every_sequence(capsys: pytest.CaptureFixture[str]) -> None:
    streamer = TextStreamer(ByteTokenizer(), skip_prompt=True, skip_special_tokens=True)
    feed(streamer, "say ", "one")
    feed(streamer, "say ", "two")
    assert capsys.readouterr().out == "one\ntwo\n"


def test_without_tokenizer_prints_ids(capsys: pytest.CaptureFixture[str]) -> None:
    streamer = TextStreamer()
    for ids in ([1, 2], [3], [4]):
        streamer.put(np.array(ids))
    streamer.end()
    assert capsys.readouterr().out == "1 2 3 4\n"


def test_refuses_batches_and_unfit_tokenizers() -> None:
    with pytest.raises(ConfigError, match="batch size 1"):
        TextStreamer().put(np.zeros((2, 3), np.int32))
    with pytest.raises(ConfigError, match="incremental_decoder"):
        TextStreamer(object())


def test_iterator_in_a_thread() -> None:
    streamer = TextIteratorStreamer(ByteTokenizer(), timeout=600)
    thread = threading.Thread(target=feed, args=(streamer, "say ", TEXT))
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == "say " + TEXT
    assert all("\ufffd" not in piece for piece in pieces)


def test_error_reaches_the_consumer_after_the_text() -> None:
    streamer = TextIteratorStreamer(ByteTokenizer(), timeout=600)
    streamer.put(np.array([65]))
    streamer.fail(ValueError("broken"))
    assert next(streamer) == "A"
    with pytest.raises(ValueError, match="broken"):
        next(streamer)


def test_timeout() -> None:
    with pytest.raises(queue.Empty):
        next(TextIteratorStreamer(timeout=0.01))


def test_with_the_tokenizer(tiny_model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mindformers.models.llama.llama_tokenizer import LlamaTokenizer

    tokenizer = LlamaTokenizer(str(tiny_model_file))
    ids = tokenizer("the quick \U0001f600 fox \u4f60\u597d")["input_ids"]
    streamer = TextStreamer(tokenizer, skip_special_tokens=True)
    streamer.put(np.array(ids[:3]))
    for token in ids[3:]:
        streamer.put(np.array([token]))
    streamer.end()
    assert capsys.readouterr().out == tokenizer.decode(ids, skip_special_tokens=True) + "\n"
