# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of any form as one source of tensors: a file, foreign weights, or the ranks of a cluster."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindformers.checkpoint.cluster import rank_folders, select_files
from mindformers.checkpoint.foreign import foreign_kind
from mindformers.checkpoint.layout import manifest_path
from mindformers.checkpoint.load import resolve_checkpoint, sound_checkpoint
from mindformers.checkpoint.manifest import read_manifest
from mindformers.checkpoint.sliced import ShardedSource, WholeSource
from mindformers.checkpoint.strategy import ClusterLayout, from_records, read_strategy
from mindformers.errors import CheckpointError
from mindformers.tools.logger import get_logger

__all__ = ["Opened", "open_source"]

logger = get_logger(__name__)

_KEPT_FIELDS = ("step", "epoch", "step_in_epoch", "global_batch_size", "records_consumed", "seed", "loss_scale",
                "config_hash", "extra")  # fmt: skip


@dataclass
class Opened:
    """A source, the files it reads, what their manifest says of the run, and whether it says how they were cut."""

    source: WholeSource | ShardedSource
    files: list[Path]
    fields: dict[str, Any] = field(default_factory=dict)
    recorded: bool = False


def open_source(
    path: str | Path,
    strategy: str | Path | None = None,
    prefix: str | None = None,
    workers: int = 2,
    check: bool = True,
    step: int | None = None,
) -> Opened:
    """Open a checkpoint of any form.

    Args:
        path: a file; weights of Hugging Face or Meta; a folder with ``rank_N`` folders, or the output folder of a run.
        strategy: how a folder of ranks was cut, see :func:`~mindformers.checkpoint.strategy.read_strategy`; None for a
            whole checkpoint, also one in ``rank_0``.
        prefix, step: of a folder, only checkpoints of this prefix; this optimizer step, by default the newest.
        workers: files proven to be whole at the same time.
        check: compare files with the checksums in their manifests.

    Raises:
        CheckpointError: nothing there, files are damaged or do not belong together, or the strategy does not fit.
    """
    path = Path(path).expanduser()
    folders = rank_folders(path) if path.is_dir() and not foreign_kind(path) else {}
    if not folders:
        if strategy is not None:
            raise CheckpointError(
                f"{path} has no rank_N folders, so it is one whole checkpoint, but a strategy is given for it "
                f"({strategy}): leave that out"
            )
        if step is not None:
            raise CheckpointError(f"{path} has no rank_N folders to look for step {step} in: name the file itself")
        found = resolve_checkpoint(path)
        if not foreign_kind(found):
            sound_checkpoint(found, check)
        return Opened(WholeSource(found), [found], _run_fields(found))
    files = select_files(path, prefix, step)
    recorded = _recorded_layout(files)
    if strategy is None and recorded is None and len(files) > 1:
        raise CheckpointError(
            f"{path} holds checkpoints of {len(files)} ranks: say how they were cut (the strategy files of that run, "
            f"{_strategy_beside(path)})"
        )
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        list(pool.map(lambda file: sound_checkpoint(file, check), files.values()))
    first = files[min(files)]
    if strategy is None and recorded is None:
        return Opened(WholeSource(first), [first], _run_fields(first))
    layout = recorded or read_strategy(strategy, list(files))
    if recorded and strategy is not None:
        _check_given(read_strategy(strategy, list(files)), recorded)
    surplus = [rank for rank in files if rank >= layout.ranks]
    if surplus:
        raise CheckpointError(
            f"{path} has rank_{surplus[0]}, but {layout.source} is for {layout.ranks} ranks: they are of different runs"
        )
    absent = sorted(set(range(layout.ranks)) - set(files))
    source = ShardedSource(layout, files)
    if absent:
        logger.warning("%s lacks rank %s; other ranks hold the same slices", path, ", ".join(map(str, absent)))
    return Opened(source, list(files.values()), _run_fields(first), recorded is not None)


def _recorded_layout(files: Mapping[int, Path]) -> ClusterLayout | None:
    """How the files were cut, by their manifests; None when not all of them say it."""
    records = {}
    for file in files.values():
        record = read_manifest(file).extra.get("slices") if manifest_path(file).exists() else None
        if record is None:
            return None
        records[file] = record
    return from_records(records)


def _check_given(given: ClusterLayout, recorded: ClusterLayout) -> None:
    """A strategy that the user names must be that of the checkpoints."""
    for one, other in zip(given.stages, recorded.stages, strict=False):
        differs = [name for name in one.keys() & other.keys() if one[name] != other[name]]
        if differs or len(given.stages) != len(recorded.stages):
            raise CheckpointError(
                f"{given.source} is not how {recorded.source} was cut ({len(differs) or 'all'} parameters differ): "
                "it is of another run. The checkpoints say themselves how they were cut: leave the strategy out"
            )


def _strategy_beside(path: Path) -> str:
    """Where the strategies of a run probably are."""
    for folder in (path / "strategy", path.parent / "strategy", path.parent.parent / "strategy"):
        if folder.is_dir():
            return f"probably {folder}"
    return "output/strategy"


def _run_fields(file: Path) -> dict[str, Any]:
    """What a manifest says of the run; empty without one."""
    if not file.is_file() or not manifest_path(file).exists():
        return {}
    manifest = read_manifest(file)
    fields = {name: getattr(manifest, name) for name in _KEPT_FIELDS}
    return fields | {"extra": {key: value for key, value in manifest.extra.items() if key != "slices"}}
