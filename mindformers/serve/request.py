# SPDX-License-Identifier: Apache-2.0
"""One sequence on its way through the engine: what was asked, what was generated, and when to stop."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mindformers.generation.generation_config import GenerationConfig
from mindformers.generation.logits_process import LogitNormalization, build_processors, draw

__all__ = ["Piece", "Sequence", "StopText"]

_BELOW_ONE = np.float32(1.0 - 2.0**-22)
_LOG_SOFTMAX = LogitNormalization()


@dataclass(frozen=True)
class Piece:
    """What one step adds to an answer.

    Attributes:
        text: text that became final, maybe empty.
        token: its id; None for the end.
        logprob: natural logarithm of its probability, when asked for.
        top: the likeliest tokens and their logarithms, when asked for.
        finish: ``stop``, ``length``, ``timeout``, ``cancelled`` or ``error`` in the last piece.
    """

    text: str = ""
    token: int | None = None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish: str | None = None


class StopText:
    """Passes text on until one of some strings appears; text that may be the beginning of one is held back."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def put(self, text: str) -> tuple[str, bool]:
        """Take text; returns what is final and whether a stop string was met (it and what follows is left out)."""
        if not self._stops:
            return text, False
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            return self._take(min(places)), True
        return self._take(len(self._held) - self._possible()), False

    def flush(self) -> str:
        """What is still held back when the text ends."""
        return self._take(len(self._held))

    def _possible(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max(map(len, self._stops)) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0

    def _take(self, size: int) -> str:
        text, self._held = self._held[:size], self._held[size:]
        return text


@dataclass
class Sequence:
    """A prompt and the answer to it.

    Args:
        prompt: int32 (n,).
        config: sampling settings; ``max_new_tokens`` is set.
        decoder: turns ids into text piece by piece.
        deliver: gets every :class:`Piece`; called from the engine's thread.
        stops: strings that end the answer and are not part of it.
        logprobs: how many of the likeliest tokens to report; None reports nothing, 0 the chosen token only.
        deadline: ``time.monotonic()`` after which the answer ends; None for none.
        presence_penalty: taken off the logits of tokens that the answer holds already.
        frequency_penalty: taken off once per occurrence.
    """

    prompt: np.ndarray
    config: GenerationConfig
    decoder: Any
    deliver: Callable[[Piece], None]
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    deadline: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.created = time.monotonic()
        self.finished = False
        self._cancelled = threading.Event()
        self._stop = StopText(self.stops)
        self._eos = self.config.eos_ids()
        own = [self._count_penalties] if self.presence_penalty or self.frequency_penalty else []
        self._processors = build_processors(self.config, own)
        entropy = self.config.seed if self.config.seed is not None else np.random.SeedSequence().entropy
        self._random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([entropy, 0])))

    @property
    def greedy(self) -> bool:
        """Whether the graph may choose: nothing but the likeliest token is asked for."""
        return not self.config.do_sample and not self._processors and self.logprobs is None

    @property
    def position(self) -> int:
        """Position of the last token, which the next step reads."""
        return len(self.prompt) + len(self.tokens) - 1

    def cancel(self) -> None:
        """Nobody waits for the answer any more; callable from any thread."""
        self._cancelled.set()

    def expired(self) -> str | None:
        """``cancelled`` or ``timeout`` when the answer must end, else None."""
        if self._cancelled.is_set():
            return "cancelled"
        return "timeout" if self.deadline is not None and time.monotonic() > self.deadline else None

    def choose(self, logits: np.ndarray) -> tuple[int, dict[str, Any]]:
        """The next token from fp32 (V,) logits, and what to report of it.

        The same settings and seed give the tokens of ``model.generate``.
        """
        raw = logits[None]
        row = np.concatenate([self.prompt, np.asarray(self.tokens, np.int32)])[None]
        scores = self._processors(row, raw)
        if self.config.do_sample:
            uniform = np.minimum(self._random.random(1, dtype=np.float32), _BELOW_ONE)
            token = int(draw(scores, uniform, self.config.top_k != 0 or self.config.top_p < 1.0)[0])
        else:
            token = int(scores.argmax())
        if self.logprobs is None:
            return token, {}
        logs = _LOG_SOFTMAX(row, raw)[0]
        best = np.argsort(-logs, kind="stable")[: self.logprobs]
        return token, {"logprob": float(logs[token]), "top": tuple((int(i), float(logs[i])) for i in best)}

    def _count_penalties(self, input_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """OpenAI's presence and frequency penalties, over the tokens of the answer."""
        ids, counts = np.unique(np.asarray(self.tokens, np.int64), return_counts=True)
        changed = logits.copy()
        changed[0, ids] -= (self.presence_penalty + self.frequency_penalty * counts).astype(np.float32)
        return changed

    def take(self, token: int, report: dict[str, Any] | None = None) -> bool:
        """Append a token and deliver its text; returns whether the answer goes on."""
        self.tokens.append(token)
        ended = token in self._eos
        text, stopped = ("", False) if ended else self._stop.put(self.decoder.put([token]))
        finish = "stop" if ended or stopped else None
        if finish is None and len(self.tokens) >= self.config.max_new_tokens:
            finish = "length"
        if finish and not stopped:
            rest, stopped = self._stop.put(self.decoder.flush())
            text += rest + ("" if stopped else self._stop.flush())
            finish = "stop" if stopped else finish
        self.finished = finish is not None
        self.deliver(Piece(text, token, finish=finish, **(report or {})))
        return not self.finished

    def end(self, reason: str) -> None:
        """Deliver the end of an answer that was cut short."""
        if not self.finished:
            self.finished = True
            self.deliver(Piece(self._stop.flush(), finish=reason))
