# SPDX-License-Identifier: Apache-2.0
"""Samples of different lengths laid into records of one length: one to a record, or several."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

import numpy as np

__all__ = ["IGNORED", "PACKED_COLUMNS", "Packer", "padded"]

PACKED_COLUMNS = ("input_ids", "labels", "segment_ids")
IGNORED = -100  # label of a token that is not learned


class Packer:
    """Fills records with samples; a sample is never cut.

    Args:
        length: tokens of a record.
        pad_id: fills what remains.
        window: samples that are waiting to be chosen from. More leave less unused, and move samples further apart.

    A record starts with the sample that has waited longest. Then, as long as one fits, one is added: that which fills
    the record exactly, or else the longest that leaves room for another, or else the longest that fits. The result
    depends on the order of the samples only.
    """

    def __init__(self, length: int, pad_id: int, window: int = 1024) -> None:
        self._length = length
        self._pad_id = pad_id
        self._window = window
        self._waiting: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # by arrival
        self._by_length: list[tuple[int, int]] = []  # (tokens, - arrival), sorted
        self._arrivals = 0

    def add(self, ids: np.ndarray, labels: np.ndarray) -> Iterator[np.ndarray]:
        """Take a sample, int32 (tokens,) with at most ``length`` tokens.

        Yields:
            A record when one is full, int32 (3, length), in the order of ``PACKED_COLUMNS``: ids, labels, and the
            number of the sample, 1, 2, ..., 0 for padding.
        """
        self._waiting[self._arrivals] = ids, labels
        insort(self._by_length, (len(ids), -self._arrivals))
        self._arrivals += 1
        if len(self._waiting) > self._window:
            yield self._record()

    def rest(self) -> Iterator[np.ndarray]:
        """Records of the samples that are still waiting."""
        while self._waiting:
            yield self._record()

    def _record(self) -> np.ndarray:
        oldest = next(iter(self._waiting))
        chosen, room = [], self._length
        place = bisect_left(self._by_length, (len(self._waiting[oldest][0]), -oldest))
        while place >= 0:
            tokens, arrival = self._by_length.pop(place)
            chosen.append(self._waiting.pop(-arrival))
            room -= tokens
            place = self._next(room)
        record = np.array([[self._pad_id], [IGNORED], [0]], np.int32).repeat(self._length, 1)
        begin = 0
        for number, (ids, labels) in enumerate(chosen, 1):
            end = begin + len(ids)
            record[0, begin:end], record[1, begin:end], record[2, begin:end] = ids, labels, number
            begin = end
        return record

    def _next(self, room: int) -> int:
        """Place in ``_by_length`` of the sample to add, the oldest of its length; -1 when none fits."""
        place = bisect_right(self._by_length, (room, 0)) - 1
        if place < 0 or self._by_length[place][0] == room:
            return place
        before = bisect_right(self._by_length, (room - self._by_length[0][0], 0)) - 1
        return before if before >= 0 else place


def padded(flat: np.ndarray, lengths: np.ndarray, width: int, fill: int) -> np.ndarray:
    """Rows of different lengths, given one behind the other, as one array.

    Args:
        flat: int32 (sum of lengths,).
        lengths: (rows,), none above ``width``.
        width: columns of the result.
        fill: value behind the end of a row.

    Returns:
        int32 (rows, width).
    """
    rows = np.full((len(lengths), width), fill, np.int32)
    rows[np.arange(width) < lengths[:, None]] = flat
    return rows
