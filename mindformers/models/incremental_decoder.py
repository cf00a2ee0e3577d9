# SPDX-License-Identifier: Apache-2.0
"""Turning token ids into text piece by piece: the one decoder behind ``decode`` and behind streaming.

The rules for spaces around special tokens are those of the slow, legacy LlamaTokenizer of transformers 4.x.
"""

import codecs
from collections.abc import Iterable
from typing import Any

__all__ = ["IncrementalDecoder"]

WORD_START = "\u2581"  # SentencePiece writes a space as this character


class IncrementalDecoder:
    """Decodes a stream of ids; every string handed out is final.

    The strings returned by :meth:`put` and the last one from :meth:`flush`, joined, equal
    ``tokenizer.decode(all_ids, skip_special_tokens, clean_up_tokenization_spaces=False)``. Work per id is
    constant: text that was handed out is never decoded again. Bytes of an unfinished UTF-8 character are held
        back.

    Args:
        tokenizer: a :class:`~mindformers.models.base_tokenizer.BaseTokenizer` on SentencePiece.
        skip_special_tokens: leave special tokens out of the text.
        legacy_spaces: keep the old rule that a special token puts a space in front of the text *before* it
            (``<s>`` + text is ``<s>text``, but ``<s>`` + text + ``</s>`` is ``<s> text</s>``). With that rule
            and ``skip_special_tokens=False`` no text is final before the next special token, so ``put`` holds
            it back until then. False drops the rule and streams at once.
    """

    def __init__(self, tokenizer: Any, skip_special_tokens: bool = True, legacy_spaces: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._legacy = legacy_spaces
        self._hold = legacy_spaces and not skip_special_tokens
        self._reset()

    def _reset(self) -> None:
        self._parts_done = 0  # parts of the text that end at an added token; parts are joined by one space
        self._start_part()

    def _start_part(self) -> None:
        self._index = 0  # tokens seen in this part
        self._part_has_text = False
        self._after_special = False
        self._pieces: list[str] = []  # of the open segment, not yet given to the segment decoder
        self._held = ""  # final text of the open segment that waits for the legacy space
        self._segment = _SegmentDecoder(self._tokenizer)

    def put(self, ids: int | Iterable[int]) -> str:
        """Take one id or several (ints or an array); return the text that became final, maybe empty."""
        out: list[str] = []
        tokenizer = self._tokenizer
        special = tokenizer.special_id_to_token
        for token_id in tokenizer.to_id_list(ids):
            if token_id not in special:
                self._add_piece(tokenizer.id_to_piece(token_id), out)
            elif self._skip:
                continue
            elif tokenizer.is_separate_token(token_id):
                self._close_part(out, last=False)
                out.append((" " if self._parts_done else "") + special[token_id])
                self._parts_done += 1
            else:
                self._add_special(special[token_id], out)
        self._drain(out)
        return "".join(out)

    def flush(self) -> str:
        """Return what was held back, and start afresh."""
        out: list[str] = []
        self._close_part(out, last=True)
        self._reset()
        return "".join(out)

    def _add_piece(self, piece: str, out: list[str]) -> None:
        if self._index == 0 and piece.startswith(WORD_START):
            piece = piece[1:]
        elif self._after_special and self._index == 1 and not piece.startswith(WORD_START):
            self._emit(" ", out)
        self._pieces.append(piece)
        self._index += 1
        self._after_special = False

    def _add_special(self, token: str, out: list[str]) -> None:
        space = " " if self._legacy and self._index and not self._after_special else ""
        self._emit(space + self._end_segment() + token, out)
        self._index += 1
        self._after_special = True

    def _drain(self, out: list[str]) -> None:
        """Decode the open segment's pieces; hand the text out unless a legacy space may come."""
        text = self._segment.put(self._pieces)
        self._pieces = []
        if self._hold:
            self._held += text
        else:
            self._emit(text, out)

    def _end_segment(self) -> str:
        text = self._held + self._segment.put(self._pieces) + self._segment.flush()
        self._pieces, self._held = [], ""
        return text

    def _close_part(self, out: list[str], last: bool) -> None:
        self._emit(self._end_segment(), out)
        if self._part_has_text:
            self._parts_done += 1
        elif last and self._index and self._parts_done:
            out.append(" ")  # the last part counts even when it decodes to nothing
        self._start_part()

    def _emit(self, text: str, out: list[str]) -> None:
        if not text:
            return
        if not self._part_has_text and self._parts_done:
            out.append(" ")
        self._part_has_text = True
        out.append(text)


class _SegmentDecoder:
    """SentencePiece decoding of one run of ordinary pieces, in instalments.

    SentencePiece drops one leading space of the text it decodes. So once the run has produced text, further
    pieces are decoded behind an anchor piece of known text, which is cut off again.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._decode = tokenizer.sp_model.decode
        self._byte_of_piece = tokenizer.byte_pieces
        self._anchor, self._anchor_text = tokenizer.anchor_piece
        self._reset()

    def _reset(self) -> None:
        self._pending: list[str] = []
        self._opening: list[str] = []  # pieces that gave no text so far (a dropped leading space)
        self._started = False

    def put(self, pieces: list[str]) -> str:
        """Text that no later piece can change."""
        if not pieces:
            return ""
        self._pending += pieces
        cut = len(self._pending) - self._unfinished()
        ready, self._pending = self._pending[:cut], self._pending[cut:]
        return self._text(ready)

    def flush(self) -> str:
        """The rest, unfinished bytes as U+FFFD; then ready for another run."""
        text = self._text(self._pending)
        self._reset()
        return text

    def _text(self, pieces: list[str]) -> str:
        if not pieces:
            return ""
        if self._started:
            return self._decode([self._anchor] + pieces)[len(self._anchor_text) :]
        text = self._decode(self._opening + pieces)
        self._started = bool(text)
        spaces = (piece for piece in self._opening + pieces if piece.startswith(WORD_START))
        self._opening = [] if self._started else list(spaces)[:1]
        return text

    def _unfinished(self) -> int:
        """How many byte pieces at the end begin a UTF-8 character that is not complete (0 to 3)."""
        tail: list[int] = []
        for piece in reversed(self._pending[-3:]):
            if piece not in self._byte_of_piece:
                break
            tail.append(self._byte_of_piece[piece])
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(bytes(reversed(tail)))
        return len(decoder.getstate()[0])
