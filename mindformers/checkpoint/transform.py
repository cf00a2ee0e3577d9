# SPDX-License-Identifier: Apache-2.0
"""Checkpoints written anew for another layout: slices joined, a whole cut, or one layout turned into another.

MindSpore's ``transform_checkpoints`` does this with every slice of a stage in memory. Here one tensor at a time is read
by its parts and written by its parts: memory holds about three times the largest tensor, however big the model is.
Everything is written into a temporary folder inside the target and appears under its names when all of it is there.
"""

import contextlib
import hashlib
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mindformers.atomic import flush
from mindformers.checkpoint.cluster import rank_folders
from mindformers.checkpoint.foreign.arrays import Raw, nbytes
from mindformers.checkpoint.foreign.table import EMBEDDING, HEAD
from mindformers.checkpoint.layout import manifest_path
from mindformers.checkpoint.names import is_weight_name
from mindformers.checkpoint.sliced import ShardedSource, Source, open_file_by_parts
from mindformers.checkpoint.sources import Opened
from mindformers.checkpoint.strategy import Box, ClusterLayout, slices_record, whole_box
from mindformers.checkpoint.stream import CheckpointStream, Planned, check_space
from mindformers.errors import CheckpointError
from mindformers.tools.logger import get_logger

__all__ = ["Written", "transform"]

logger = get_logger(__name__)

_TEMP = ".tmp.transform."
_OPEN_FILES = 256  # ranks written in one pass


@dataclass
class Written:
    """What :func:`transform` did: files (in the order of ranks), tensors of the model, bytes, seconds."""

    files: list[Path]
    tensors: int
    nbytes: int
    seconds: float
    verified: int = 0


def transform(
    opened: Opened,
    target: str | Path,
    layout: ClusterLayout | None = None,
    *,
    prefix: str = "checkpoint_",
    fmt: str = "ckpt",
    workers: int = 2,
    with_optimizer: bool = False,
    verify: bool = False,
    overwrite: bool = False,
) -> Written:
    """Write a checkpoint for a layout, as ``target/rank_N/{prefix}{N}.{fmt}``.

    Args:
        opened: from :func:`~mindformers.checkpoint.sources.open_source`.
        target: folder to write into; made when absent.
        layout: of the result; None makes one whole file, in ``rank_0``.
        prefix: first part of the file names.
        fmt: ``ckpt`` or ``safetensors``.
        workers: threads that read and write.
        with_optimizer: also what is not a weight (moments, counters, loss scale), so that a run can be resumed.
        verify: read the result again and compare a checksum of each part with one of the same part of the source.
        overwrite: replace files of the same name.

    Raises:
        CheckpointError: the layout does not fit the weights, the target holds other checkpoints, or nothing can be
            written. Then nothing appears there.
    """
    begin = time.perf_counter()
    target = Path(target).expanduser()
    ranks = range(layout.ranks if layout else 1)
    files = [target / f"rank_{rank}" / f"{prefix}{rank}.{fmt}" for rank in ranks]
    _check_target(target, files, opened.files, overwrite)
    source = opened.source
    names = [name for name in source.facts if with_optimizer or is_weight_name(name)]
    if not names:
        raise CheckpointError(f"{source.path} holds no weights")
    _add_tied_head(source, names, layout)
    _check_layout(source, names, layout)
    work = _Work(source, names, layout, fmt, max(workers, 1), opened.fields)
    total = sum(item.nbytes for rank in ranks for item, _ in work.plan(rank))
    check_space(target, total)
    temporary = target / f"{_TEMP}{os.getpid()}"
    made = [folder for folder in (target, *target.parents) if not folder.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        inside = [temporary / file.relative_to(target) for file in files]
        work.write(inside)
        verified = work.verify(inside) if verify else 0
        _publish(inside, files)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only when nothing came of it
    return Written(files, len(names), total, time.perf_counter() - begin, verified)


def _check_target(target: Path, files: Sequence[Path], sources: Sequence[Path], overwrite: bool) -> None:
    """Refuse to mix with other checkpoints, and to write over the source."""
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target} is a file; a folder is needed for the result")
    own = {source.resolve() for source in sources}
    clash = next((file for file in files if file.resolve() in own), None)
    if clash is not None:
        raise CheckpointError(f"{clash} is part of the source and would be replaced: choose another folder")
    if not target.is_dir():
        return
    there = [file for folder in rank_folders(target).values() for file in folder.iterdir() if file.suffix != ".json"]
    foreign = [file for file in there if file not in files]
    if foreign:
        raise CheckpointError(
            f"{target} holds other checkpoints ({foreign[0].relative_to(target)}): a mixture could not be told apart. "
            "Choose an empty folder"
        )
    if there and not overwrite:
        raise CheckpointError(f"{there[0]} exists: choose another folder, or give --overwrite")
    for left in target.glob(f"{_TEMP}*"):
        logger.warning("%s is of a conversion under way, or of one that was killed: then remove it", left)


def _add_tied_head(source: Source, names: list[str], layout: ClusterLayout | None) -> None:
    """A model with an output layer of its own takes the embedding of foreign weights that have none."""
    if layout is not None and getattr(source, "tied", False) and any(HEAD in stage for stage in layout.stages):
        source.facts[HEAD] = source.facts[EMBEDDING]
        names.append(HEAD)


def _check_layout(source: Source, names: Sequence[str], layout: ClusterLayout | None) -> None:
    """Every weight the target's strategy names must be there."""
    if layout is None:
        return
    wanted = {name for stage in layout.stages for name in stage if is_weight_name(name)}
    missing, surplus = sorted(wanted - set(names)), [n for n in names if is_weight_name(n) and n not in wanted]
    if missing:
        raise CheckpointError(
            f"{source.path} lacks {len(missing)} weights that {layout.source} is for: {', '.join(missing[:5])}: it is "
            "of another model"
        )
    if surplus:
        logger.warning(
            "%s names no layout for %d weights, each rank gets them whole: %s", layout.source, len(surplus),
            ", ".join(surplus[:5]),
        )  # fmt: skip


def _publish(inside: Sequence[Path], files: Sequence[Path]) -> None:
    """Give complete files their names; each manifest after its file."""
    for temp, file in zip(inside, files, strict=True):
        file.parent.mkdir(exist_ok=True)
        manifest_path(file).unlink(missing_ok=True)
        os.replace(temp, file)
        os.replace(manifest_path(temp), manifest_path(file))
        flush(file.parent)


class _Work:
    """Writing and proving one result."""

    def __init__(
        self, source: Source, names: list[str], layout: ClusterLayout | None, fmt: str, workers: int,
        fields: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.source, self.names, self.layout, self.fmt, self.workers = source, names, layout, fmt, workers
        self.fields = fields

    def plan(self, rank: int) -> list[tuple[Planned, Box]]:
        """What a rank gets: the parts, and where they are in the whole."""
        result = []
        for name in self.names:
            shape, dtype = self.source.facts[name]
            if self.layout is None:
                result.append((Planned(name, shape, dtype), whole_box(shape)))
            elif self.layout.holds(name, rank):
                box = self.layout.box(name, rank, shape)
                result.append((Planned(name, tuple(stop - start for start, stop in box), dtype), box))
        return result

    def write(self, files: Sequence[Path]) -> None:
        """Write the files of all ranks, no more at once than may be open."""
        for start in range(0, len(files), _OPEN_FILES):
            self._write_ranks(range(start, min(start + _OPEN_FILES, len(files))), files)

    def _write_ranks(self, ranks: Sequence[int], files: Sequence[Path]) -> None:
        """Write the files of some ranks, tensor by tensor."""
        plans = {rank: self.plan(rank) for rank in ranks}
        parts: dict[str, list[tuple[int, Planned, Box]]] = {}
        for rank, plan in plans.items():
            for item, box in plan:
                parts.setdefault(item.name, []).append((rank, item, box))
        total = sum(item.nbytes for plan in plans.values() for item, _ in plan)
        label = f"ranks {ranks[0]}-{ranks[-1]}" if len(ranks) > 1 else f"rank {ranks[0]}"
        with contextlib.ExitStack() as stack:
            streams = {
                rank: stack.enter_context(
                    CheckpointStream(files[rank], [item for item, _ in plan], self.fmt, self._manifest(rank))
                )
                for rank, plan in plans.items()
            }
            pool = stack.enter_context(ThreadPoolExecutor(self.workers))
            bar = stack.enter_context(tqdm(total=total, unit="B", unit_scale=True, desc=label, disable=None))

            def put(part: tuple[int, Planned, Box], whole: Raw) -> None:
                rank, item, box = part
                streams[rank].add(item, Raw(whole.data[tuple(slice(*axis) for axis in box)], whole.dtype))

            for name, whole in self._whole_tensors([name for name in self.names if name in parts]):
                list(pool.map(lambda part, value=whole: put(part, value), parts[name]))
                bar.update(sum(item.nbytes for _, item, _ in parts[name]))

    def _manifest(self, rank: int) -> dict[str, Any]:
        """What is known of the run, and how this rank's file is cut."""
        if self.layout is None:
            return dict(self.fields)
        return {**self.fields, "slices": slices_record(self.layout, rank)}

    def _whole_tensors(self, names: Sequence[str]) -> Iterator[tuple[str, Raw]]:
        """Each tensor, read ahead by the workers while no more than the largest one's bytes wait."""
        sizes = {name: nbytes(*self.source.facts[name]) for name in names}
        largest, rest = max(sizes.values()), deque(names)
        waiting: deque[tuple[str, Future]] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                while rest or waiting:
                    while rest and len(waiting) < 2 * self.workers and (
                        not waiting or sum(sizes[n] for n, _ in waiting) + sizes[rest[0]] <= largest
                    ):  # fmt: skip
                        name = rest.popleft()
                        waiting.append((name, pool.submit(self._read, name)))
                    name, value = waiting.popleft()
                    yield name, value.result()
            finally:
                for _, value in waiting:
                    value.cancel()

    def _read(self, name: str, box: Box | None = None) -> Raw:
        shape = self.source.facts[name].shape
        stored = EMBEDDING if name == HEAD and getattr(self.source, "tied", False) else name
        return self.source.read(stored, whole_box(shape) if box is None else box)

    def verify(self, files: Sequence[Path]) -> int:
        """Compare every part of the result with the source by checksum, and copies in the source with each other.

        Returns:
            Parts compared.

        Raises:
            CheckpointError: one differs.
        """
        outputs = [(rank, open_file_by_parts(file), dict(self._boxes(rank))) for rank, file in enumerate(files)]
        count = 0
        with ThreadPoolExecutor(self.workers) as pool:
            for name in tqdm(self.names, desc="verify", unit="tensor", disable=None):
                digests: dict[Box, str] = {}
                for box in {boxes[name] for _, _, boxes in outputs if name in boxes}:
                    digests[box] = _digest(self._read(name, box).data)
                holders = [(rank, file, boxes[name]) for rank, file, boxes in outputs if name in boxes]
                written = pool.map(lambda h, n=name: _digest(_read_all(h[1], n)), holders)
                for (rank, _, box), found in zip(holders, written, strict=True):
                    count += 1
                    if found != digests[box]:
                        raise CheckpointError(
                            f"verification failed: {name} of rank {rank} is not what the source holds there"
                        )
                if isinstance(self.source, ShardedSource):
                    self._check_copies(self.source, name)
        return count

    def _boxes(self, rank: int) -> Iterator[tuple[str, Box]]:
        return ((item.name, box) for item, box in self.plan(rank))

    @staticmethod
    def _check_copies(source: ShardedSource, name: str) -> None:
        """Slices that several ranks hold must be equal; only one of them was used."""
        first: dict[Box, tuple[int, str]] = {}
        shared = [piece.box for piece in source.pieces[name]]
        for piece in source.pieces[name]:
            if shared.count(piece.box) == 1:
                continue
            digest = _digest(source.read_piece(piece).data)
            rank, expected = first.setdefault(piece.box, (piece.rank, digest))
            if digest != expected:
                raise CheckpointError(
                    f"verification failed: ranks {rank} and {piece.rank} should hold the same part of {name}, but "
                    "their values differ: are all ranks of the same step?"
                )


def _read_all(file: Any, name: str) -> np.ndarray:
    return file.read(name).data


def _digest(data: np.ndarray) -> str:
    return hashlib.sha256(memoryview(np.ascontiguousarray(data).reshape(-1).view(np.uint8))).hexdigest()
