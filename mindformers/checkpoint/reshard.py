# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of any layout, as this rank of this run needs it; nothing is written in between.

Each rank reads the parts that it holds, straight from the source, whatever that is: slices of another layout, one whole
file, foreign weights. Memory holds one tensor beside the model, and no rank waits for another to convert anything.

A checkpoint says in its manifest how it was cut (``extra["slices"]``), so that strategy files, which the next run into
the same folder replaces, are only needed for checkpoints of other programs.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mindspore as ms

from mindformers.checkpoint.foreign.arrays import to_tensor
from mindformers.checkpoint.load import LoadReport, load_into, named_parameters
from mindformers.checkpoint.manifest import Manifest
from mindformers.checkpoint.resume import ResumePoint
from mindformers.checkpoint.sources import Opened, open_source
from mindformers.checkpoint.strategy import ClusterLayout, read_own_strategy, slices_record, whole_box
from mindformers.checkpoint.tied import HEAD
from mindformers.errors import CheckpointError, ConfigError
from mindformers.tools.logger import get_logger

__all__ = [
    "RankTensors",
    "load_slices",
    "own_layout",
    "own_parameters",
    "resume_slices",
    "slices_fields",
]

logger = get_logger(__name__)


class RankTensors(Mapping[str, ms.Tensor]):
    """What one rank holds of a source: name to tensor, each read when asked for, into memory of its own.

    Args:
        opened: the source.
        layout: of this run; None where each process holds everything.
        rank: this process.
    """

    def __init__(self, opened: Opened, layout: ClusterLayout | None, rank: int) -> None:
        self.path, self._opened = opened.source.path, opened
        self.source, self._layout, self._rank = opened.source, layout, rank

    @property
    def tied(self) -> bool:
        """Whether the output layer is the embedding (foreign weights only)."""
        return getattr(self.source, "tied", False)

    def _box(self, name: str) -> tuple[tuple[int, int], ...]:
        shape = self.source.facts[name].shape
        return whole_box(shape) if self._layout is None else self._layout.box(name, self._rank, shape)

    def __getitem__(self, name: str) -> ms.Tensor:
        return to_tensor(self.source.read(name, self._box(name)))

    def __iter__(self) -> Iterator[str]:
        """All names; without an output layer that another stage has, or this stage would pass for a tied model."""
        there = self._layout is None or self._layout.holds(HEAD, self._rank)
        return (name for name in self.source.facts if there or name != HEAD)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of this rank's part, without reading it."""
        return tuple(stop - start for start, stop in self._box(name))

    def of(self, layout: ClusterLayout | None) -> "RankTensors":
        """The same source for a layout that has become known."""
        return RankTensors(self._opened, layout, self._rank)


def own_layout(rank: int, since: float = 0.0) -> ClusterLayout:
    """How the compiled network of this rank is split, from the strategy that compilation has just written.

    Args:
        rank: this process.
        since: a time before the compilation; an older file is of another run.

    Raises:
        CheckpointError: there is no such file.
    """
    path = Path(ms.get_auto_parallel_context("strategy_ckpt_config")["save_file"])
    if not path.is_file() or path.stat().st_mtime < since - 2:  # file systems round
        raise CheckpointError(
            f"compilation did not write the strategy {path}, so the slices of rank {rank} are unknown"
        )
    return read_own_strategy(path, ms.get_auto_parallel_context("pipeline_stages"))


def slices_fields(layout: ClusterLayout, rank: int) -> dict[str, Any]:
    """The manifest entry that says how the checkpoints of a rank are cut."""
    return {"slices": slices_record(layout, rank)}


def load_slices(
    network: Any, path: str | Path, *, strategy: str | None = None, layout: ClusterLayout | None = None, rank: int = 0,
    strict: bool = True, output_strategies: Path | None = None,
) -> LoadReport:  # fmt: skip
    """Load this rank's part of a checkpoint of any layout into a network (compiled, when it is split).

    Args:
        network: a Cell, or a mapping of name to Parameter.
        path: anything :func:`~mindformers.checkpoint.sources.open_source` takes.
        strategy: how ``path`` was cut, when its manifests do not say.
        layout: of this run, from :func:`own_layout`; None where each process holds the whole model.
        rank: this process.
        strict: a weight that the source lacks is an error.
        output_strategies: where this run writes its own strategies; ``strategy`` cannot lie there.

    Raises:
        CheckpointError: as ``open_source`` and ``load_into``.
        ConfigError: ``strategy`` is being overwritten by this run.
    """
    opened = _open(path, strategy, output_strategies)
    targets = own_parameters(network, layout, rank)
    report = load_into(targets, RankTensors(opened, layout, rank), strict=strict)
    logger.info("rank %d: %d weights from %s", rank, report.loaded, path)
    return report


def resume_slices(
    path: str | Path, rank: int, *, strategy: str | None = None, prefix: str | None = None,
    output_strategies: Path | None = None,
) -> ResumePoint:  # fmt: skip
    """The newest step that is complete on all ranks of any layout, to continue from; arguments as load_slices.

    ``tensors`` of the result are whole; ``tensors.of(layout)`` are the parts of this rank.

    Raises:
        CheckpointError: there is none, or it holds weights only.
    """
    opened = _open(path, strategy, output_strategies, prefix)
    if not opened.fields.get("step"):
        raise CheckpointError(
            f"nothing to resume from: {opened.files[0]} has no manifest that says at which step it was saved. "
            "Its weights can be used: --resume_training False"
        )
    tensors = RankTensors(opened, None, rank)
    point = ResumePoint(opened.files[0], Manifest.from_fields(opened.fields), tensors)
    logger.info("resuming from step %d of %s", point.manifest.step, path)
    return point


def own_parameters(network: Any, layout: ClusterLayout | None, rank: int) -> dict[str, ms.Parameter]:
    """The parameters of this rank's pipeline stage; those of other stages stay in the network without being used."""
    everything = named_parameters(network)
    return everything if layout is None else {n: p for n, p in everything.items() if layout.holds(n, rank)}


def _open(path: str | Path, strategy: str | None, output_strategies: Path | None, prefix: str | None = None) -> Opened:
    opened = open_source(path, strategy or None, prefix)
    inside = output_strategies is not None and strategy and output_strategies.resolve() in (
        Path(strategy).resolve(), *Path(strategy).resolve().parents
    )  # fmt: skip
    if inside and not opened.recorded:
        raise ConfigError(
            f"src_strategy_path_or_dir {strategy} is where this run writes its own strategies, over those of the "
            "source: copy them to another folder, or choose another output_dir"
        )
    return opened
