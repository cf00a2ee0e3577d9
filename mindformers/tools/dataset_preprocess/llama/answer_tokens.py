# SPDX-License-Identifier: Apache-2.0
"""Text to ids, with the token at which an answer starts found by its place in the text."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from mindformers.tools.sentencepiece_model import load_sentencepiece

__all__ = ["SpanEncoder", "piece_spans"]

_SPACE = "\u2581"  # SentencePiece's sign for a space
_WORD = re.compile(f"{_SPACE}+[^{_SPACE}]*")
_LONGEST_KEPT, _MOST_KEPT = 32, 1 << 18  # characters of a word, words: some tens of megabytes at most


class SpanEncoder:
    """SentencePiece, word by word and with the places of its tokens.

    Args:
        model_file: SentencePiece model.

    Two properties that models have, Llama's too, save most of the work. Where no piece has a space behind a letter,
    what stands between two beginnings of words is tokenized by itself, so that frequent words need be tokenized only
    once. And where text is left as it is, the tokens, written one behind the other, are the text, which gives their
    places for free. The first is looked up in the vocabulary, the second asked for each text; without them
    SentencePiece does it all.
    """

    def __init__(self, model_file: str) -> None:
        self._model = load_sentencepiece(model_file)
        every = list(range(self._model.get_piece_size()))
        pieces, are_bytes = self._model.id_to_piece(every), self._model.is_byte(every)
        lengths = [1 if byte else len(piece.encode()) for byte, piece in zip(are_bytes, pieces, strict=True)]
        self._lengths = np.array(lengths)
        self._by_words = (
            self._model.normalize("a") == f"{_SPACE}a"
            and _SPACE in pieces
            and not any(_SPACE in piece.lstrip(_SPACE) for piece in pieces)
        )
        # a word, with the spaces before it -> its ids as int32 bytes; words with unknown characters
        self._words = {_SPACE: np.int32(self._model.piece_to_id(_SPACE)).tobytes()}
        self._odd: set[str] = set()

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of every text, int32 arrays of shape (tokens,)."""
        return [ids for ids, _ in self._encoded(texts)]

    def encode_from(self, texts: list[str], starts: list[int]) -> list[tuple[np.ndarray, int]]:
        """Ids of every text, and the number of tokens that lie wholly before a character.

        Args:
            texts: valid Unicode.
            starts: for each text an offset in characters. A token that begins before it and ends behind it counts as
                behind.

        Returns:
            For each text int32 ids of shape (tokens,) and a number from 0 to tokens.
        """
        found = []
        for text, start, (ids, normal) in zip(texts, starts, self._encoded(texts), strict=True):
            if normal is None:
                found.append((ids, self._first_by_spans(text, start)))
            else:
                ends = self._lengths[ids].cumsum()
                boundary = len(normal[: 1 + start].encode()) if start else 0
                found.append((ids, int(ends.searchsorted(boundary, side="right"))))
        return found

    def _encoded(self, texts: list[str]) -> Iterator[tuple[np.ndarray, str | None]]:
        """Ids of each text, and the text as the tokens write it; None when that is not known."""
        normals = [_SPACE + text.replace(" ", _SPACE) for text in texts]
        words = [
            _WORD.findall(normal) if self._by_words and self._model.normalize(text) == normal else None
            for text, normal in zip(texts, normals, strict=True)
        ]
        passing = self._learn(set().union(*filter(None, words)).difference(self._words))
        for text, normal, found in zip(texts, normals, words, strict=True):
            if found is None:
                yield np.array(self._model.encode(text), np.int32), None
            else:
                ids = np.frombuffer(b"".join(map(self._words.__getitem__, found)), np.int32)
                yield ids, normal if self._odd.isdisjoint(found) else None
        for word in passing:
            del self._words[word]
        self._odd.difference_update(passing)

    def _learn(self, words: set[str]) -> list[str]:
        """Tokenize words; gives those that are not to be kept. SentencePiece puts the first space there by itself."""
        new = list(words)
        rows = self._model.encode([word[1:].replace(_SPACE, " ") for word in new], num_threads=1) if new else []
        full = len(self._words) + len(new) > _MOST_KEPT
        self._words.update((word, np.array(row, np.int32).tobytes()) for word, row in zip(new, rows, strict=True))
        unknown = self._model.unk_id()
        self._odd.update(word for word, row in zip(new, rows, strict=True) if unknown in row)
        return new if full else [word for word in new if len(word) > _LONGEST_KEPT]

    def end_offsets(self, text: str) -> np.ndarray:
        """For every token the offset in bytes (UTF-8) at which its part of the text ends."""
        return piece_spans(self._model.encode(text, out_type="serialized_proto"))[1]

    def _first_by_spans(self, text: str, start: int) -> int:
        """Tokens wholly before a character, by SentencePiece's own account."""
        begins, ends = piece_spans(self._model.encode(text, out_type="serialized_proto"))
        boundary = len(text[:start].encode())
        # all bytes of a character but the last have an empty place, at the character's beginning
        behind = np.where(begins == ends, begins >= boundary, ends > boundary)
        return int(behind.argmax()) if behind.any() else len(begins)


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
