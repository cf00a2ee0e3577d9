# SPDX-License-Identifier: Apache-2.0
"""Weights read by parts, whatever form they have: one file, foreign files, or the slices of a cluster's ranks.

A part is a box of the whole tensor. Only the files that hold some of it are touched, and what a part does not need is
read in small blocks at most, so that memory holds the part and little more.
"""

import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from mindformers.checkpoint.ckpt_file import CkptFile
from mindformers.checkpoint.foreign import ForeignTensors, foreign_kind, open_foreign
from mindformers.checkpoint.foreign.arrays import Raw, numpy_dtype
from mindformers.checkpoint.foreign.files import Facts, SafetensorsFile
from mindformers.checkpoint.names import is_unsaved_name, modern_name
from mindformers.checkpoint.strategy import Box, ClusterLayout, whole_box
from mindformers.errors import CheckpointError

__all__ = ["Piece", "ShardedSource", "Source", "WholeSource", "open_file_by_parts"]

_BLOCK = 16 << 20  # bytes read at once where only a part of each row is wanted


class PartFile(Protocol):
    """A file whose values can be read from any byte on."""

    path: Path
    facts: dict[str, Facts]

    def read_into(self, name: str, offset: int, target: np.ndarray) -> None:
        """Fill ``target`` with the bytes of a value from ``offset`` on."""


class Piece(NamedTuple):
    """A slice in a file: the box it is of the whole, the rank whose file it is, and its name there."""

    box: Box
    rank: int
    name: str


class Source(Protocol):
    """Named tensors that can be read by parts."""

    facts: dict[str, Facts]

    def read(self, name: str, box: Box) -> Raw:
        """One part, contiguous, in memory of its own."""


def open_file_by_parts(path: Path) -> PartFile:
    """Open a file of ours that ``load.sound_checkpoint`` has found whole."""
    return SafetensorsFile(path) if path.suffix == ".safetensors" else CkptFile(path)


def _shape(box: Box) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in box)


def _common(one: Box, other: Box) -> Box | None:
    """What two boxes share; None when that is nothing."""
    both = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    return None if any(start >= stop for start, stop in both) else both


def _within(box: Box, origin: Box) -> tuple[slice, ...]:
    """A box as slices of the array that holds ``origin``."""
    return tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(box, origin, strict=True))


class WholeSource:
    """One file of ours, or weights of Hugging Face or Meta under our names.

    Args:
        path: what ``load.resolve_checkpoint`` gives; a file of ours has been found whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._foreign: ForeignTensors | None = None
        self._lock = threading.Lock()
        if foreign_kind(path):
            self._foreign = open_foreign(path)
            self.facts = {n: Facts(self._foreign.shape(n), self._foreign.dtype(n)) for n in self._foreign}
            return
        self._file = open_file_by_parts(path)
        self._names = {modern_name(name): name for name in self._file.facts if not is_unsaved_name(name)}
        self.facts = {name: self._file.facts[own] for name, own in self._names.items()}

    @property
    def tied(self) -> bool:
        """Whether the output layer is the embedding (foreign weights only)."""
        return self._foreign is not None and self._foreign.tied

    def read(self, name: str, box: Box) -> Raw:
        """One part, contiguous, in memory of its own."""
        shape, dtype = self.facts[name]
        if self._foreign is not None:
            with self._lock:  # PyTorch's files are mapped anew while they are read
                value = self._foreign.raw(name)
            part = value.data[_within(box, whole_box(shape))]
            return value if part.shape == shape else Raw(np.array(part, order="C"), dtype)
        target = np.empty(_shape(box), numpy_dtype(dtype))
        _copy_from(self._file, self._names[name], whole_box(shape), box, target, box)
        return Raw(target, dtype)


class ShardedSource:
    """The slices of a cluster's ranks as whole tensors.

    Args:
        layout: how they were cut.
        files: the file of each rank that is there. A rank may be absent when others hold the same slices.

    Raises:
        CheckpointError: slices are missing, or have shapes that the strategy does not give.
    """

    def __init__(self, layout: ClusterLayout, files: Mapping[int, Path]) -> None:
        self.layout = layout
        self.path = next(iter(files.values())).parent.parent
        self.files: dict[int, PartFile] = {rank: open_file_by_parts(path) for rank, path in sorted(files.items())}
        self.facts: dict[str, Facts] = {}
        self.pieces: dict[str, list[Piece]] = {}
        for rank, file in self.files.items():
            for own, facts in file.facts.items():
                # a stage's file may hold parameters of other stages, as they were before training
                if not is_unsaved_name(own) and layout.holds(modern_name(own), rank):
                    self._add(modern_name(own), own, rank, facts)
        self._check_complete()
        self._distinct = {name: list({p.box: p for p in reversed(ps)}.values()) for name, ps in self.pieces.items()}

    def _add(self, name: str, own: str, rank: int, facts: Facts) -> None:
        """Note one slice."""
        found = self.layout.layout(name, rank)
        if found is not None and found.axes and len(found.axes) != len(facts.shape):
            raise CheckpointError(
                f"{self.files[rank].path}: {name} has shape {list(facts.shape)}, the strategy {self.layout.source} "
                f"is for {len(found.axes)} axes"
            )
        whole = Facts(found.whole_shape(facts.shape) if found else facts.shape, facts.dtype)
        if self.facts.setdefault(name, whole) != whole:
            other = self.pieces[name][0].rank
            raise CheckpointError(
                f"the slices of {name} do not fit each other: by {self.layout.source} rank {other} makes it "
                f"{list(self.facts[name].shape)} {self.facts[name].dtype}, "
                f"rank {rank} {list(whole.shape)} {whole.dtype}. "
                "Is the strategy that of this run, and are all slices of one run?"
            )
        self.pieces.setdefault(name, []).append(Piece(self.layout.box(name, rank, whole.shape), rank, own))

    def _check_complete(self) -> None:
        """The distinct slices of each tensor must add up to the whole; they never overlap."""
        for name, pieces in self.pieces.items():
            have = sum(math.prod(_shape(box)) for box in {piece.box for piece in pieces})
            whole = math.prod(self.facts[name].shape)
            if have == whole:
                continue
            present = {piece.box for piece in pieces}
            lost = [rank for rank in range(self.layout.ranks) if self.layout.holds(name, rank) and
                    self.layout.box(name, rank, self.facts[name].shape) not in present]  # fmt: skip
            raise CheckpointError(
                f"{self.path}: of {name} only {have:,} of {whole:,} values are there; the rest is on "
                f"rank {' or '.join(map(str, lost)) or '?'}, whose checkpoint is missing"
            )

    def read(self, name: str, box: Box) -> Raw:
        """One part, contiguous, in memory of its own."""
        dtype = self.facts[name].dtype
        target = np.empty(_shape(box), numpy_dtype(dtype))
        for piece in self._distinct[name]:
            common = _common(piece.box, box)
            if common is not None:
                _copy_from(self.files[piece.rank], piece.name, piece.box, common, target, box)
        return Raw(target, dtype)

    def read_piece(self, piece: Piece) -> Raw:
        """One slice as it is in its file."""
        shape, dtype = self.files[piece.rank].facts[piece.name]
        target = np.empty(shape, numpy_dtype(dtype))
        self.files[piece.rank].read_into(piece.name, 0, target)
        return Raw(target, dtype)


def _copy_from(file: PartFile, name: str, have: Box, wanted: Box, target: np.ndarray, origin: Box) -> None:
    """Copy ``wanted`` from a stored array that is box ``have`` into ``target``, which is box ``origin``."""
    if not target.ndim:
        file.read_into(name, 0, target)
        return
    (first, last), inner = wanted[0], _shape(have)[1:]
    row_bytes = math.prod(inner) * target.itemsize
    place = target[_within(wanted, origin)]
    offset = (first - have[0][0]) * row_bytes
    if place.flags.c_contiguous and place.shape[1:] == inner:
        file.read_into(name, offset, place)
        return
    columns = (slice(None), *_within(wanted, have)[1:])
    rows = max(1, _BLOCK // max(row_bytes, 1))
    for start in range(0, last - first, rows):
        block = np.empty((min(rows, last - first - start), *inner), target.dtype)
        file.read_into(name, offset + start * row_bytes, block)
        place[start : start + len(block)] = block[columns]
