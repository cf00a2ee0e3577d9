# SPDX-License-Identifier: Apache-2.0
"""A conversation as token ids: the prompt format of the Llama 2 chat models, and plain text that is continued.

The chat format is that of ``chat_completion`` in Meta's reference code (github.com/meta-llama/llama,
``llama/generation.py``): each finished turn is ``<s>[INST] question [/INST] answer </s>``, the open one ends after
``[/INST]``, a system prompt stands between ``<<SYS>>`` lines at the head of the first question, and text that holds one
of these marks is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mindformers.errors import DataError

__all__ = ["MARKS", "Conversation"]

MARKS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")


@dataclass(frozen=True)
class _Turn:
    """What the user wrote and what came back.

    Args:
        text: the user's words.
        answer: the reply as text.
        ids: the same two as ids, without begin and end tokens; for text that is continued.
    """

    text: str
    answer: str
    ids: tuple[int, ...]


class Conversation:
    """Turns so far, and the ids to generate from.

    Args:
        tokenizer: has ``encode_texts``, ``bos_token_id``, ``eos_token_id``, ``add_bos_token`` and
            ``special_token_to_id`` (see LlamaTokenizer).
        chat: use the format of the chat models; False continues the text, of which every turn is a part.
        system: system prompt of a chat; empty for none.

    Raises:
        DataError: a system prompt without chat, or one that holds a mark of the format.
    """

    def __init__(self, tokenizer: Any, chat: bool, system: str = "") -> None:
        self.tokenizer = tokenizer
        self.chat = chat
        self.system = ""
        self.turns: list[_Turn] = []
        self.set_system(system)

    def set_system(self, text: str) -> None:
        """Replace the system prompt, from the next turn on.

        Raises:
            DataError: see the class.
        """
        if text and not self.chat:
            raise DataError(
                "a system prompt needs the chat format: this model continues text (--chat forces the format)"
            )
        self._check(text)
        self.system = text

    def reset(self) -> None:
        """Forget all turns; the system prompt stays."""
        self.turns.clear()

    def prompt(self, text: str, longest: int) -> tuple[list[int], int]:
        """The ids to generate a reply to ``text`` from.

        Args:
            text: what the user wrote.
            longest: most ids there may be. The oldest turns are dropped, for good, until they fit.

        Returns:
            The ids, and how many turns were dropped.

        Raises:
            DataError: ``text`` alone is longer than that, is empty, or holds a mark of the format.
        """
        self._check(text)
        for dropped in range(len(self.turns) + 1):
            ids = self._ids(self.turns[dropped:], text)
            if len(ids) <= longest:
                del self.turns[:dropped]
                if not ids:
                    raise DataError("nothing to continue: write some text")
                return ids, dropped
        raise DataError(f"this text alone makes {len(ids)} tokens, but the model has room for {longest}: shorten it")

    def add(self, text: str, answer: str, new_ids: Sequence[int]) -> None:
        """Record a reply.

        Args:
            text: as given to :meth:`prompt`.
            answer: the reply as text.
            new_ids: the reply as ids. In continued text an end token among them ends the text: the next begins anew.
        """
        if not self.chat and self.tokenizer.eos_token_id in new_ids:
            self.turns.clear()
            return
        ids = () if self.chat else (*self._encode(text), *new_ids)
        self.turns.append(_Turn(text, answer, ids))

    def _ids(self, turns: Sequence[_Turn], text: str) -> list[int]:
        tokenizer = self.tokenizer
        if not self.chat:
            begin = [tokenizer.bos_token_id] if tokenizer.add_bos_token else []
            return begin + [token for turn in turns for token in turn.ids] + self._encode(text)
        ids: list[int] = []
        questions = [turn.text.strip() for turn in turns] + [text.strip()]
        if self.system:
            questions[0] = f"<<SYS>>\n{self.system}\n<</SYS>>\n\n{questions[0]}"
        for question, turn in zip(questions, turns, strict=False):
            words = self._encode(f"[INST] {question} [/INST] {turn.answer.strip()} ")
            ids += [tokenizer.bos_token_id, *words, tokenizer.eos_token_id]
        return [*ids, tokenizer.bos_token_id, *self._encode(f"[INST] {questions[-1]} [/INST]")]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode_texts([text])[0] if text else []

    def _check(self, text: str) -> None:
        """No text may look like the frame around it, or like a token that ends it."""
        reserved = [*(MARKS if self.chat else ()), *self.tokenizer.special_token_to_id]
        found = [mark for mark in reserved if mark in text]
        if found:
            raise DataError(f"{', '.join(found)} cannot be part of a text: the format uses it")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError("this text holds bytes that are not UTF-8") from error
