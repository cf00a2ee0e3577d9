# SPDX-License-Identifier: Apache-2.0
"""Text to ids, with the token at which an answer starts found by its place in the text."""

from typing import Any

import numpy as np

from mindformers.tools.sentencepiece_model import load_sentencepiece

__all__ = ["SpanEncoder", "piece_spans"]

_SPACE_SIGN = "\u2581"  # SentencePiece's sign for a space


class SpanEncoder:
    """SentencePiece, and where in the text its tokens come from.

    Args:
        model_file: SentencePiece model.

    Asking SentencePiece for the places of all tokens costs more than tokenizing. A model that leaves text as it is
    (Llama's does; asked for each text) gives them for free: the tokens, written one behind the other, are the text.
    """

    def __init__(self, model_file: str) -> None:
        self._model = load_sentencepiece(model_file)
        self._unknown = self._model.unk_id()
        self._lead = _SPACE_SIGN if self._model.normalize("a").startswith(_SPACE_SIGN) else ""
        self._lengths = np.array([_written_bytes(self._model, i) for i in range(self._model.get_piece_size())])

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of every text, int32 arrays of shape (tokens,)."""
        return [np.array(row, np.int32) for row in self._model.encode(texts, num_threads=1)]

    def encode_from(self, texts: list[str], starts: list[int]) -> list[tuple[np.ndarray, int]]:
        """Ids of every text, and the number of tokens that lie wholly before a character.

        Args:
            texts: valid Unicode.
            starts: for each text an offset in characters. A token that begins before it and ends behind it counts as
                behind.

        Returns:
            For each text int32 ids of shape (tokens,) and a number from 0 to tokens.
        """
        rows = self.encode(texts)
        return [(ids, self._first(text, start, ids)) for text, start, ids in zip(texts, starts, rows, strict=True)]

    def end_offsets(self, text: str) -> np.ndarray:
        """For every token the offset in bytes (UTF-8) at which its part of the text ends."""
        return piece_spans(self._model.encode(text, out_type="serialized_proto"))[1]

    def _first(self, text: str, start: int, ids: np.ndarray) -> int:
        normal = self._lead + text.replace(" ", _SPACE_SIGN)
        if self._model.normalize(text) == normal and self._unknown not in ids:
            ends = self._lengths[ids].cumsum()
            return int(np.searchsorted(ends, len(normal[: len(self._lead) + start].encode()), side="right"))
        return self._first_by_spans(text, start)

    def _first_by_spans(self, text: str, start: int) -> int:
        """The same from SentencePiece's own account, for models that rewrite text or know no bytes."""
        begins, ends = piece_spans(self._model.encode(text, out_type="serialized_proto"))
        boundary = len(text[:start].encode())
        # all bytes of a character but the last have an empty place, at the character's beginning
        behind = np.where(begins == ends, begins >= boundary, ends > boundary)
        return int(behind.argmax()) if behind.any() else len(begins)


def _written_bytes(model: Any, index: int) -> int:
    return 1 if model.is_byte(index) else len(model.id_to_piece(index).encode())


def piece_spans(message: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Where the tokens of a text begin and end, in bytes (UTF-8) of the text.

    Args:
        message: what ``encode(text, out_type="serialized_proto")`` gives, a SentencePieceText of
            ``sentencepiece.proto``: field 2 repeats pieces, whose fields 4 and 5 are begin and end.

    Returns:
        Two int64 arrays of shape (tokens,).
    """
    begins, ends = [], []
    for number, piece in _fields(message):
        if number == 2:
            place = {4: 0, 5: 0}
            place.update((key, value) for key, value in _fields(piece) if key in place)
            begins.append(place[4])
            ends.append(place[5])
    return np.array(begins, np.int64), np.array(ends, np.int64)


def _fields(message: bytes) -> list[tuple[int, Any]]:
    """Number and value of the fields of a protocol buffer message: integers, bytes, and 4 or 8 raw bytes."""
    found, at = [], 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
        else:
            length, at = _varint(message, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = message[at : at + length], at + length
        found.append((key >> 3, value))
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of 7-bit groups, lowest first, and the place behind it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
