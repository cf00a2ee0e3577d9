# SPDX-License-Identifier: Apache-2.0
"""Samples of different lengths laid into records of one length: one to a record, or several."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

import numpy as np

__all__ = ["IGNORED", "Packer", "padded"]

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

    def add(self, ids: np.ndarray, labels: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Take a sample, int32 (tokens,) with at most ``length`` tokens; give the records this finishes, 0 or 1."""
        self._waiting[self._arrivals] = ids, labels
        insort(self._by_length, (len(ids), -self._arrivals))
        self._arrivals += 1
        if len(self._waiting) > self._window:
            yield self._record()

    def rest(self) -> Iterator[dict[str, np.ndarray]]:
        """Records of the samples that are still waiting."""
        while self._waiting:
            yield self._record()

    def _record(self) -> dict[str, np.ndarray]:
        """Columns of shape (1, length): input_ids, labels, segment_ids (1, 2, ... for the samples, 0 for padding)."""
        oldest = next(iter(self._waiting))
        chosen, room = [], self._length
        place = bisect_left(self._by_length, (len(self._waiting[oldest][0]), -oldest))
        while place >= 0:
            tokens, arrival = self._by_length.pop(place)
            chosen.append(self._waiting.pop(-arrival))
            room -= tokens
            place = self._next(room)
        numbers = np.repeat(np.arange(1, len(chosen) + 1, dtype=np.int32), [len(ids) for ids, _ in chosen])
        columns = {
            "input_ids": (np.concatenate([ids for ids, _ in chosen]), self._pad_id),
            "labels": (np.concatenate([labels for _, labels in chosen]), IGNORED),
            "segment_ids": (numbers, 0),
        }
        return {name: np.pad(row, (0, room), constant_values=fill)[None] for name, (row, fill) in columns.items()}

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
