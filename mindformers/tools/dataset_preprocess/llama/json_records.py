# SPDX-License-Identifier: Apache-2.0
"""Records of a JSON list or of JSON Lines, one after the other: a file of any size is read in little memory."""

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mindformers.errors import DataError

__all__ = ["BadRecordError", "Skipped", "batches", "read_json_records"]

_CHUNK_BYTES = 1 << 20
_LARGEST_RECORD = 1 << 28  # characters; a list that is not closed would otherwise be held in memory
_SPACE = " \t\r\n"


class BadRecordError(ValueError):
    """One record cannot be used; the message is the reason. It is counted and left out, and the others go on."""


class Skipped:
    """Counts the records that were left out, and keeps the first of them to be shown.

    Args:
        shown: how many to keep.
    """

    def __init__(self, shown: int = 20) -> None:
        self.count = 0
        self.first: list[str] = []
        self._shown = shown

    def add(self, where: str, reason: str) -> None:
        """Count one, ``where`` names the file and the number of the record."""
        self.count += 1
        if len(self.first) < self._shown:
            self.first.append(f"{where}: {reason}")

    def lines(self) -> list[str]:
        """What to print."""
        more = [f"... and {self.count - len(self.first)} more"] if self.count > len(self.first) else []
        return [*self.first, *more]


def read_json_records(path: Path, advance: Callable[[int], Any]) -> Iterator[Any]:
    """The elements of a JSON list, or the lines of a JSON Lines file (found by the first character).

    Args:
        path: the file, UTF-8.
        advance: called with the number of bytes read.

    Yields:
        A decoded record, or a :class:`BadRecordError` in place of a line that is no JSON.

    Raises:
        DataError: the file is not UTF-8, is neither of the two, or its list is broken (what follows cannot be read).
    """
    pieces = _text(path, advance)
    start = ""
    for piece in pieces:
        start += piece
        if start.strip(_SPACE):
            break
    start = start.lstrip(_SPACE)
    if not start:
        raise DataError(f"{path} is empty; it must hold a JSON list of records, or one JSON record per line")
    if start[0] == "[":
        yield from _list_elements(path, start, pieces)
    elif start[0] == "{":
        yield from _lines(start, pieces)
    else:
        raise DataError(
            f"{path} starts with {start[:20]!r}; it must hold a JSON list of records ('[') or one JSON record per line"
        )


def batches(records: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of ``size`` records, the last one shorter."""
    stream = iter(records)
    while batch := list(islice(stream, size)):
        yield batch


def _text(path: Path, advance: Callable[[int], Any]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    done = 0
    with path.open("rb") as file:
        while block := file.read(_CHUNK_BYTES):
            try:
                yield decoder.decode(block)
            except UnicodeDecodeError as error:
                raise DataError(f"{path} is not UTF-8 (near byte {done + error.start}): {error.reason}") from error
            done += len(block)
            advance(len(block))
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: it ends inside a character") from error


def _lines(start: str, pieces: Iterator[str]) -> Iterator[Any]:
    rest, number = start, 1
    while True:
        piece = next(pieces, None)
        parts = rest.split("\n")
        rest = parts.pop() if piece is not None else ""
        for line in parts:
            if line.strip():
                yield _decoded(line, number)
            number += 1
        if piece is None:
            return
        rest += piece
        if len(rest) > _LARGEST_RECORD:
            raise DataError(f"line {number} is longer than {_LARGEST_RECORD} characters: not a JSON Lines file")


def _decoded(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRecordError(f"line {number} is not JSON ({error})")


def _list_elements(path: Path, start: str, pieces: Iterator[str]) -> Iterator[Any]:
    """Elements of a list whose text is ``start`` and then ``pieces``."""
    decode = json.JSONDecoder().raw_decode
    text, at, count, behind = start, 1, 0, True  # behind: a '[' or ',' stands before
    while True:
        while at < len(text) and text[at] in _SPACE:
            at += 1
        ahead = text[at : at + 1]
        if ahead == "]" and (not behind or not count):
            return
        if ahead == "," and not behind:
            at, behind = at + 1, True
            continue
        error: Exception | None = None
        if ahead:
            if not behind:
                raise DataError(f"{path}: expected ',' or ']' after record {count - 1}, found {text[at : at + 20]!r}")
            try:
                value, end = decode(text, at)
            except (ValueError, RecursionError) as found:
                error, end = found, len(text)
            if error is None and end < len(text):  # a number at the end of the text could go on
                yield value
                at, count, behind = end, count + 1, False
                continue
        piece = next(pieces, None)
        if piece is None or len(text) - at > _LARGEST_RECORD:
            what = "the list is not closed: the file was cut" if not ahead or error is None else f"{error}"
            raise DataError(f"{path}: record {count} (counted from 0) cannot be read: {what}. Mend the file")
        # at least doubling: a record over many pieces is not decoded once for each of them
        more = [piece]
        while sum(map(len, more)) < len(text) - at and (piece := next(pieces, None)) is not None:
            more.append(piece)
        text, at = text[at:] + "".join(more), 0
