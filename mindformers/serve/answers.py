# SPDX-License-Identifier: Apache-2.0
"""From a request to sequences of the engine, and from their pieces back to text, for asyncio."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mindformers.generation.generation_config import GenerationConfig
from mindformers.serve.engine import Engine, QueueFullError
from mindformers.serve.errors import ApiError
from mindformers.serve.request import Piece, Sequence
from mindformers.serve.schema import SamplingRequest

__all__ = ["Answer", "Service", "collect", "merged"]


@dataclass
class Answer:
    """One choice of a response, filled as its pieces arrive."""

    index: int
    sequence: Sequence
    pieces: asyncio.Queue[Piece] = field(default_factory=asyncio.Queue)
    text: str = ""
    received: list[Piece] = field(default_factory=list)
    finish: str | None = None

    async def stream(self) -> AsyncIterator[Piece]:
        """Pieces as they come, to the last."""
        while self.finish is None:
            piece = await self.pieces.get()
            self.received.append(piece)
            self.text += piece.text
            self.finish = piece.finish
            yield piece

    @property
    def num_tokens(self) -> int:
        """Tokens generated, the end token included."""
        return len(self.sequence.tokens)


class Service:
    """The engine, the tokenizer and the limits that requests are checked against.

    Args:
        engine: started.
        tokenizer: a LlamaTokenizer.
        eos_ids: ids that end an answer.
        length: positions of a sequence, prompt and answer.
        timeout: seconds a request may take; None for no limit.
    """

    def __init__(
        self, engine: Engine, tokenizer: Any, eos_ids: list[int], length: int, timeout: float | None = None
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.eos_ids = eos_ids
        self.length = length
        self.timeout = timeout

    def submit(
        self, prompts: list[list[int]], request: SamplingRequest, max_tokens: int | None, logprobs: int | None
    ) -> list[Answer]:
        """Queue ``request.n`` answers to each prompt.

        Raises:
            ApiError: 400 for a prompt that is empty or too long, 429 when the queue is full.
        """
        loop = asyncio.get_running_loop()
        answers: list[Answer] = []
        for prompt in prompts:
            ids = self._checked(prompt)
            for copy in range(request.n):
                config = self._config(request, copy, min(max_tokens or self.length, self.length - len(ids)))
                decoder = self.tokenizer.incremental_decoder(skip_special_tokens=True)
                decoder.put(ids)  # the text of an answer depends on the token before it
                answer = Answer(len(answers), None)  # type: ignore[arg-type]
                answer.sequence = Sequence(
                    ids, config, decoder, _deliverer(loop, answer.pieces), tuple(request.stop or ()), logprobs,
                    None if self.timeout is None else time.monotonic() + self.timeout,
                    request.presence_penalty, request.frequency_penalty,
                )  # fmt: skip
                answers.append(answer)
        try:
            self.engine.submit(*(answer.sequence for answer in answers))
        except QueueFullError as error:
            message = f"the service is busy ({error}): try again in a second"
            raise ApiError(429, message, "rate_limit_error", code="queue_full", headers={"Retry-After": "1"}) from error
        return answers

    def _checked(self, prompt: list[int]) -> np.ndarray:
        vocab = self.tokenizer.vocab_size
        if not prompt:
            raise ApiError(400, "the prompt is empty: give some text", param="prompt")
        if max(prompt) >= vocab:
            raise ApiError(400, f"token id {max(prompt)} is outside the vocabulary, 0 to {vocab - 1}", param="prompt")
        if len(prompt) >= self.length:
            message = (
                f"the prompt has {len(prompt)} tokens, which leaves no room for an answer: this model's context is "
                f"{self.length} tokens. Shorten it"
            )
            raise ApiError(400, message, param="prompt", code="context_length_exceeded")
        return np.asarray(prompt, np.int32)

    def _config(self, request: SamplingRequest, copy: int, max_new_tokens: int) -> GenerationConfig:
        drawn = request.temperature > 0
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=drawn,
            temperature=request.temperature if drawn else 1.0,
            top_p=request.top_p,
            top_k=request.top_k,
            repetition_penalty=request.repetition_penalty,
            eos_token_id=self.eos_ids,
            seed=None if request.seed is None else request.seed + copy,
        )


def _deliverer(loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[Piece]) -> Any:
    def deliver(piece: Piece) -> None:
        if not loop.is_closed():  # the service is being shut down; nobody reads any more
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

    return deliver


async def collect(answers: list[Answer]) -> None:
    """Wait until every answer is complete.

    Raises:
        ApiError: one was cut short.
    """
    for answer in answers:
        async for _ in answer.stream():
            pass
        refuse_cut(answer)


def refuse_cut(answer: Answer) -> None:
    """Raise an ApiError when an answer ended for a reason that is not the model's."""
    if answer.finish == "timeout":
        raise ApiError(504, "the request took too long and was stopped: ask for fewer tokens", "timeout_error")
    if answer.finish in ("error", "cancelled"):
        raise ApiError(500, "the service could not finish this answer; its log says why", "server_error")


async def merged(answers: list[Answer]) -> AsyncIterator[tuple[Answer, Piece]]:
    """Pieces of several answers in the order they come."""
    common: asyncio.Queue[tuple[Answer, Piece] | None] = asyncio.Queue()

    async def pump(answer: Answer) -> None:
        async for piece in answer.stream():
            await common.put((answer, piece))

    tasks = [asyncio.create_task(pump(answer)) for answer in answers]
    try:
        open_answers = len(answers)
        while open_answers:
            answer, piece = await common.get()
            open_answers -= piece.finish is not None
            yield answer, piece
    finally:
        for task in tasks:
            task.cancel()
