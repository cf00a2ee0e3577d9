# SPDX-License-Identifier: Apache-2.0
"""Conversations as records hold them, and as the templates of FastChat write them down."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from mindformers.errors import DataError
from mindformers.tools.dataset_preprocess.llama.json_records import BadRecordError
from mindformers.tools.utils import did_you_mean

__all__ = ["Dialogue", "Segment", "Template", "checked_text", "dialogue_of"]

BOS, EOS = "<s>", "</s>"
# What data sets in the wild call the speakers.
_ROLES = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "chatgpt": "gpt",
    "bing": "gpt",
    "bard": "gpt",
    "model": "gpt",
    "system": "system",
}


class Segment(NamedTuple):
    """A stretch of text that ends with the end of an answer.

    Args:
        bos: a beginning-of-sequence token stands before it.
        text: what is tokenized; an end-of-sequence token follows.
        answer_start: offset in characters from which on the model has to write the text itself.
    """

    bos: bool
    text: str
    answer_start: int


@dataclass(frozen=True)
class Dialogue:
    """Questions and answers in turn, and the system message if the record has one."""

    turns: tuple[tuple[str, str], ...]
    system: str | None = None


def checked_text(value: Any, what: str) -> str:
    """The text of one field.

    Raises:
        BadRecordError: it is no text, is empty, or holds half a surrogate pair, which no tokenizer can encode.
    """
    if not isinstance(value, str):
        raise BadRecordError(f"{what} must be text, got {type(value).__name__}")
    if not value.strip():
        raise BadRecordError(f"{what} is empty")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadRecordError(f"{what} is not valid Unicode (lone surrogate at character {error.start})") from error
    return value


def dialogue_of(record: Any) -> Dialogue:
    """The conversation of a record, ``{"conversations": [{"from": "human", "value": ...}, ...]}`` (as ShareGPT).

    ``messages``, ``role`` and ``content`` are taken as well. Answers before the first question, and a last question
    without an answer, teach nothing and are left out.

    Raises:
        BadRecordError: no such list, a turn that cannot be used, or two turns of one speaker in a row.
    """
    if isinstance(record, BadRecordError):
        raise record
    if not isinstance(record, dict):
        raise BadRecordError(f"must be an object, got {type(record).__name__}")
    messages = record.get("conversations", record.get("messages"))
    if not isinstance(messages, list):
        raise BadRecordError(f"has no list 'conversations' (keys: {', '.join(map(repr, list(record)[:8])) or 'none'})")
    system: str | None = None
    speakers: list[tuple[str, str]] = []
    for number, message in enumerate(messages, 1):
        role, text = _turn(message, number)
        if role == "system":
            if number > 1:
                raise BadRecordError(f"turn {number} is a system message; only the first may be one")
            system = text
        elif role == "gpt" and not speakers:
            continue
        elif speakers and speakers[-1][0] == role:
            raise BadRecordError(f"turn {number} is the second of {role!r} in a row")
        else:
            speakers.append((role, text))
    texts = [text for _, text in speakers]
    turns = tuple(zip(texts[::2], texts[1::2], strict=False))
    if not turns:
        raise BadRecordError("holds no answer to a question")
    return Dialogue(turns, system)


def _turn(message: Any, number: int) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise BadRecordError(f"turn {number} must be an object, got {type(message).__name__}")
    name = message.get("from", message.get("role"))
    role = _ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise BadRecordError(f"turn {number} is from {name!r}, not one of: {', '.join(_ROLES)}")
    return role, checked_text(message.get("value", message.get("content")), f"turn {number} ({name})")


class Template:
    """How FastChat writes a conversation down.

    Args:
        name: of a template of ``fastchat.conversation``, whose answers end with ``</s>``.

    An answer is everything that the template adds behind the prompt it gives for generating that answer, up to the
    ``</s>``: what a model has to write by itself. ``</s>`` and ``<s>`` become tokens where the template puts them,
    never where a message holds these letters.

    Raises:
        DataError: FastChat is not installed, has no such template, or the template cannot teach where an answer ends.
    """

    def __init__(self, name: str) -> None:
        module = _fastchat()
        if name not in module.conv_templates:
            known = [known for known in sorted(module.conv_templates) if _endings(module, known) is not None]
            raise DataError(f"--template {name!r} is not known.{did_you_mean(name, known, 'usable')}")
        endings = _endings(module, name)
        if endings is None:
            known = [known for known in sorted(module.conv_templates) if _endings(module, known) is not None]
            raise DataError(
                f"--template {name}: its answers do not end with {EOS}, so that a model could not learn to stop. "
                f"Use one of: {', '.join(known)}"
            )
        self.name = name
        self._lead, self._close, self._next = endings
        self._conversation = module.get_conv_template(name)

    def segments(self, dialogue: Dialogue) -> list[Segment]:
        """The texts to tokenize, one for each answer.

        Raises:
            BadRecordError: the template changes the text of a message.
        """
        conversation = self._conversation.copy()
        if dialogue.system is not None:
            conversation.set_system_message(dialogue.system)
        asks, answers = conversation.roles[:2]
        segments, written, bos, lead = [], 0, True, ""
        for question, answer in dialogue.turns:
            conversation.append_message(asks, question)
            conversation.append_message(answers, None)
            prompt = lead + conversation.get_prompt()[written:]
            conversation.update_last_message(answer)
            if question not in prompt:
                raise BadRecordError(f"template {self.name} changes the text of a question")
            if not segments and dialogue.system and dialogue.system not in prompt:
                raise BadRecordError(f"template {self.name} has no place for a system message")
            segments.append(Segment(bos, prompt + self._lead + answer + self._close, len(prompt)))
            written = len(conversation.get_prompt())
            bos = self._next.startswith(BOS)
            lead = self._next.removeprefix(BOS)
        return segments


def _fastchat() -> Any:
    try:
        import fastchat.conversation
    except ImportError as error:
        raise DataError(f"--dataset_type qa needs FastChat for its templates: pip install fschat ({error})") from error
    return fastchat.conversation


def _endings(module: Any, name: str) -> tuple[str, str, str] | None:
    """What a template puts before an answer, between it and ``</s>``, and behind; None when it cannot be used."""
    conversation = module.get_conv_template(name)
    question, answer = "QUESTION", "ANSWER"
    try:
        conversation.append_message(conversation.roles[0], question)
        conversation.append_message(conversation.roles[1], None)
        before = conversation.get_prompt()
        conversation.update_last_message(answer)
        after = conversation.get_prompt()
    except (ValueError, TypeError, AttributeError):  # a template for images or for an API has no written form
        return None
    added = after[len(before) :]
    if not after.startswith(before) or question not in before or BOS in before or EOS in before:
        return None
    lead, found, ending = added.partition(answer)
    close, eos, following = ending.partition(EOS)
    if not found or not eos or EOS in following or BOS in following.removeprefix(BOS) or BOS in lead + close:
        return None
    return lead, close, following
