# SPDX-License-Identifier: Apache-2.0
"""Streamers: text that appears while it is generated."""

import queue
from collections.abc import Iterator
from typing import Any

import numpy as np

from mindformers.errors import ConfigError

__all__ = ["BaseStreamer", "TextIteratorStreamer", "TextStreamer"]


class BaseStreamer:
    """What ``generate`` calls: first the prompt, then each token, then the end."""

    def put(self, value: np.ndarray) -> None:
        """Take int32 ids: first the whole prompt (n,), then one id (1,) at a time."""
        raise NotImplementedError(f"{type(self).__name__} must define put(value)")

    def end(self) -> None:
        """The sequence is complete."""
        raise NotImplementedError(f"{type(self).__name__} must define end()")

    def fail(self, error: BaseException) -> None:
        """Generation stopped with an error, which ``generate`` raises to its own caller as well."""
        self.end()


class TextStreamer(BaseStreamer):
    """Prints text as soon as it is final; a character whose bytes are incomplete is held back.

    Args:
        tokenizer: has ``incremental_decoder(**decode_kwargs)`` giving an object with ``put(ids) -> str`` and
            ``flush() -> str``; None prints ids.
        skip_prompt: leave the prompt out.
        decode_kwargs: for the tokenizer's decoder, for example ``skip_special_tokens=True``.
    """

    def __init__(self, tokenizer: Any = None, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        if tokenizer is not None and not hasattr(tokenizer, "incremental_decoder"):
            raise ConfigError(f"{type(tokenizer).__name__} cannot stream: it has no method incremental_decoder")
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self._decoder = tokenizer.incremental_decoder(**decode_kwargs) if tokenizer is not None else _IdDecoder()
        self._prompt_is_next = True

    def put(self, value: np.ndarray) -> None:
        """See BaseStreamer.

        Raises:
            ConfigError: ids of more than one sequence.
        """
        ids = np.asarray(value)
        if ids.ndim > 1 and ids.shape[0] > 1:
            raise ConfigError(f"a text streamer follows one sequence, not {ids.shape[0]}: generate with batch size 1")
        prompt, self._prompt_is_next = self._prompt_is_next, False
        if not (prompt and self.skip_prompt):
            text = self._decoder.put([int(token) for token in ids.reshape(-1)])
            if text:
                self.on_finalized_text(text)

    def end(self) -> None:
        """Hand out what was held back, and be ready for the next sequence."""
        self._prompt_is_next = True
        self.on_finalized_text(self._decoder.flush(), stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print ``text``; override to send it elsewhere."""
        print(text, end="\n" if stream_end else "", flush=True)


class TextIteratorStreamer(TextStreamer):
    """An iterator over pieces of text, for a consumer in another thread than ``generate``.

    Args:
        tokenizer, skip_prompt, decode_kwargs: as in TextStreamer.
        timeout: seconds to wait for the next piece before ``queue.Empty`` is raised; None waits for ever.

    An error inside ``generate`` is raised in the consumer after the text that came before it.
    """

    def __init__(
        self, tokenizer: Any = None, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.timeout = timeout
        self._queue: queue.Queue[str | BaseException | None] = queue.Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Queue ``text``, and the stop signal at the end."""
        if text:
            self._queue.put(text)
        if stream_end:
            self._queue.put(None)

    def fail(self, error: BaseException) -> None:
        """Let the consumer raise ``error``."""
        self._prompt_is_next = True
        text = self._decoder.flush()
        if text:
            self._queue.put(text)
        self._queue.put(error)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = self._queue.get(timeout=self.timeout)
        if piece is None:
            raise StopIteration
        if isinstance(piece, BaseException):
            raise piece
        return piece


class _IdDecoder:
    """Ids as words, for a streamer without a tokenizer."""

    def __init__(self) -> None:
        self._started = False

    def put(self, ids: list[int]) -> str:
        text = " ".join(map(str, ids))
        text = " " + text if self._started and text else text
        self._started = self._started or bool(text)
        return text

    def flush(self) -> str:
        self._started = False
        return ""
