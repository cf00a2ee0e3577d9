# SPDX-License-Identifier: Apache-2.0
"""Answers as JSON: text completions and chat completions, whole and in pieces."""

import time
import uuid
from typing import Any

from mindformers.serve.answers import Answer
from mindformers.serve.request import Piece
from mindformers.serve.schema import ChatRequest, CompletionRequest, SamplingRequest

__all__ = ["ChatFormat", "TextFormat"]


class _Format:
    """What the two kinds share."""

    prefix = ""
    whole_object = ""
    chunk_object = ""

    def __init__(self, tokenizer: Any, body: SamplingRequest, prompts: list[list[int]], model: str) -> None:
        self.tokenizer = tokenizer
        self.body = body
        self.prompts = prompts
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def head(self, chunk: bool) -> dict[str, Any]:
        """Fields that every answer or chunk begins with."""
        return {**self._head, "object": self.chunk_object if chunk else self.whole_object}

    def usage(self, answers: list[Answer]) -> dict[str, int]:
        """Token counts; a prompt counts once however many answers it gets."""
        prompt = sum(map(len, self.prompts))
        completion = sum(answer.num_tokens for answer in answers)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def whole(self, answers: list[Answer]) -> dict[str, Any]:
        """The complete response."""
        return {
            **self.head(False),
            "choices": [self.choice(answer) for answer in answers],
            "usage": self.usage(answers),
        }

    def choice(self, answer: Answer) -> dict[str, Any]:
        """One entry of ``choices``."""
        raise NotImplementedError(f"{type(self).__name__} must define choice(answer)")

    def _token(self, token: int) -> str:
        """A token as text that shows white space."""
        return self.tokenizer.convert_ids_to_tokens(token).replace("\u2581", " ")


class TextFormat(_Format):
    """POST /v1/completions."""

    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"
    body: CompletionRequest

    @property
    def with_logprobs(self) -> bool:
        """Whether every token is reported, also one without text."""
        return self.body.logprobs is not None

    def first(self) -> list[dict[str, Any]]:
        """Chunks before the first token: the prompts, when they are echoed."""
        if not self.body.echo:
            return []
        prompts = enumerate(self._prompt_text(index) for index in range(len(self.prompts) * self.body.n))
        return [{**self.head(True), "choices": [self._entry(i, text, None, None)]} for i, text in prompts]

    def piece(self, answer: Answer, piece: Piece) -> dict[str, Any]:
        """One chunk."""
        logprobs = self._logprobs([piece], piece.text) if self.with_logprobs and piece.token is not None else None
        return {**self.head(True), "choices": [self._entry(answer.index, piece.text, logprobs, piece.finish)]}

    def choice(self, answer: Answer) -> dict[str, Any]:
        """One entry of ``choices``."""
        text = (self._prompt_text(answer.index) if self.body.echo else "") + answer.text
        pieces = [piece for piece in answer.received if piece.token is not None]
        logprobs = self._logprobs(pieces, answer.text) if self.with_logprobs else None
        return self._entry(answer.index, text, logprobs, answer.finish)

    def _prompt_text(self, index: int) -> str:
        return self.tokenizer.decode(self.prompts[index // self.body.n], skip_special_tokens=True)

    def _entry(self, index: int, text: str, logprobs: Any, finish: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, pieces: list[Piece], text: str) -> dict[str, Any]:
        offsets, place = [], 0
        for piece in pieces:
            offsets.append(place)
            place += len(piece.text)
        return {
            "tokens": [self._token(piece.token) for piece in pieces],
            "token_logprobs": [piece.logprob for piece in pieces],
            "top_logprobs": [{self._token(token): value for token, value in piece.top} for piece in pieces],
            "text_offset": offsets,
        }


class ChatFormat(_Format):
    """POST /v1/chat/completions."""

    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"
    body: ChatRequest

    @property
    def with_logprobs(self) -> bool:
        """Whether every token is reported, also one without text."""
        return self.body.logprobs

    def first(self) -> list[dict[str, Any]]:
        """Chunks before the first token: who speaks."""
        delta = {"role": "assistant", "content": ""}
        return [
            {**self.head(True), "choices": [self._entry(i, "delta", delta, None, None)]} for i in range(self.body.n)
        ]

    def piece(self, answer: Answer, piece: Piece) -> dict[str, Any]:
        """One chunk."""
        delta = {"content": piece.text} if piece.text else {}
        logprobs = self._logprobs([piece]) if self.with_logprobs and piece.token is not None else None
        return {**self.head(True), "choices": [self._entry(answer.index, "delta", delta, logprobs, piece.finish)]}

    def choice(self, answer: Answer) -> dict[str, Any]:
        """One entry of ``choices``."""
        message = {"role": "assistant", "content": answer.text.lstrip(), "refusal": None}
        pieces = [piece for piece in answer.received if piece.token is not None]
        logprobs = self._logprobs(pieces) if self.with_logprobs else None
        return self._entry(answer.index, "message", message, logprobs, answer.finish)

    def _entry(self, index: int, key: str, value: Any, logprobs: Any, finish: str | None) -> dict[str, Any]:
        return {"index": index, key: value, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, pieces: list[Piece]) -> dict[str, Any]:
        def entry(token: int, value: float) -> dict[str, Any]:
            text = self._token(token)
            return {"token": text, "logprob": value, "bytes": list(text.encode())}

        return {
            "content": [
                {**entry(piece.token, piece.logprob), "top_logprobs": [entry(*pair) for pair in piece.top]}
                for piece in pieces
            ]
        }
