# SPDX-License-Identifier: Apache-2.0
"""One reply of ``chat``: generated, shown while it comes, timed, and put into the conversation."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindformers.commands.chat_model import Partner
from mindformers.generation.conversation import Conversation
from mindformers.generation.streamers import TextStreamer

__all__ = ["Outcome", "Replier"]

# What a terminal would obey rather than show; line breaks and tabs are text.
_CONTROL = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


@dataclass(frozen=True)
class Outcome:
    """What is to be said about a reply.

    Args:
        tokens: new tokens.
        first: seconds until the first one, compilation included.
        rate: tokens per second after the second one (the second still compiles at times); None for fewer than three.
        stopped: the user ended it.
        cut: it ended for want of room, not with an end token.
    """

    tokens: int
    first: float
    rate: float | None
    stopped: bool
    cut: str

    def describe(self) -> str:
        """One line."""
        parts = [f"{self.tokens} token{'s' * (self.tokens != 1)}"]
        parts += [f"{self.rate:.1f} tokens/s"] if self.rate else []
        parts += [f"first after {self.first:.2f} s"] if self.tokens else []
        parts += ["stopped"] if self.stopped else []
        parts += [self.cut] if self.cut else []
        return ", ".join(parts)


class _StopError(Exception):
    """The user wants no more."""


class _Reply(TextStreamer):
    """Shows the text, and keeps ids, text and times.

    Args:
        tokenizer: see TextStreamer.
        stop: asked after each token.
    """

    def __init__(self, tokenizer: Any, stop: Callable[[], bool]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.stop = stop
        self.ids: list[int] = []
        self.times: list[float] = []
        self.text: list[str] = []
        self.plain = not sys.stdout.isatty()

    def put(self, value: np.ndarray) -> None:
        """Take the prompt, or one token."""
        prompt = self._prompt_is_next
        super().put(value)
        if not prompt:
            self.ids += [int(token) for token in np.asarray(value).reshape(-1)]
            self.times.append(time.perf_counter())
        if self.stop():
            raise _StopError

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print at once; at the end, go to the next line."""
        self.text.append(text)
        shown = text if self.plain else text.translate(_CONTROL)
        print(shown, end="\n" if stream_end else "", flush=True)


class Replier:
    """Generates replies and remembers them.

    Args:
        partner: model and tokenizer.
        conversation: what was said so far.
        chosen: arguments of ``generate``.
        max_new_tokens: longest reply.
        seed: reply number n draws with seed + n; None is fresh randomness each time.
    """

    def __init__(
        self,
        partner: Partner,
        conversation: Conversation,
        chosen: dict[str, Any],
        max_new_tokens: int,
        seed: int | None,
    ) -> None:
        self.partner = partner
        self.conversation = conversation
        self.chosen = chosen
        self.max_new_tokens = max_new_tokens
        self.seed = seed
        self.seq_length = partner.model.config.seq_length
        self.replies = 0

    def reset(self) -> None:
        """A new conversation, which draws the same random numbers as the first."""
        self.conversation.reset()
        self.replies = 0

    def reply(self, text: str, note: Callable[[str], None], stop: Callable[[], bool] = lambda: False) -> Outcome:
        """Show the reply to ``text`` on stdout, and add both to the conversation.

        Args:
            text: what the user wrote.
            note: tells that turns were dropped.
            stop: asked after each token; True ends the reply.

        Raises:
            DataError: the text cannot be answered; nothing was added.
        """
        # a quarter of the context, or all that may be asked for, is kept free for the answer
        room = max(1, min(self.max_new_tokens, self.seq_length // 4))
        ids, dropped = self.conversation.prompt(text, self.seq_length - room)
        if dropped:
            turns = "turn was" if dropped == 1 else "turns were"
            note(f"the {dropped} oldest {turns} dropped: the model sees at most {self.seq_length} tokens")
        limit = min(self.max_new_tokens, self.seq_length - len(ids))
        seed = {} if self.seed is None else {"seed": self.seed + self.replies}
        streamer = _Reply(self.partner.tokenizer, stop)
        begin, stopped = time.perf_counter(), False
        try:
            self.partner.model.generate(ids, streamer=streamer, max_new_tokens=limit, **self.chosen, **seed)
        except _StopError:
            stopped = True
        self.replies += 1
        self.conversation.add(text, "".join(streamer.text), streamer.ids)
        full = not stopped and len(streamer.ids) == limit and streamer.ids[-1] != self.partner.tokenizer.eos_token_id
        why = "--max_new_tokens" if limit == self.max_new_tokens else f"the model's {self.seq_length} tokens are full"
        times = streamer.times
        rate = (len(times) - 2) / (times[-1] - times[1]) if len(times) > 2 else None
        first = times[0] - begin if times else 0.0
        return Outcome(len(times), first, rate, stopped, f"cut: {why}" if full else "")
