# SPDX-License-Identifier: Apache-2.0
"""Continuing a run: which checkpoint, whether the settings still fit, and every value put back."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindformers.checkpoint.cluster import common_steps
from mindformers.checkpoint.layout import OutputLayout, manifest_path, temp_files
from mindformers.checkpoint.load import (
    LoadReport,
    damaged_error,
    load_into,
    named_parameters,
    read_checkpoint,
    resolve_checkpoint,
)
from mindformers.checkpoint.manifest import Candidate, Manifest, damage, read_manifest, scan
from mindformers.checkpoint.names import is_setting_name
from mindformers.errors import CheckpointError
from mindformers.tools.logger import get_logger

__all__ = ["EXACT_FIELDS", "ResumePoint", "check_settings", "find_resume", "rank_folder", "restore", "resume_at"]

logger = get_logger(__name__)

EXACT_FIELDS = ("seed", "global_batch_size", "dataset_records", "steps_per_epoch", "shuffle")
"""Manifest values that fix which record comes next; when one differs, the data order would not continue."""

_COUNTERS = ("epoch_num", "step_num", "loss_scale")  # written for other readers; the manifest is what we read


@dataclass
class ResumePoint:
    """A checkpoint to continue from: its file, proven whole, its manifest, and the tensors when they come otherwise."""

    path: Path
    manifest: Manifest
    tensors: Mapping[str, Any] | None = None


def find_resume(
    where: OutputLayout | str | Path, prefix: str | None = None, rank: int = 0, ranks: int = 1
) -> ResumePoint:
    """Choose the checkpoint to resume from.

    Args:
        where: layout of the run, a folder, or one checkpoint file.
        prefix: take only checkpoints of this prefix; None takes all.
        rank: rank of this process, when ``where`` is a folder.
        ranks: processes of the run; a step counts as complete when all of them have it.

    Returns:
        The newest complete checkpoint. Incomplete ones (killed saves, foreign files) are passed over with a
        warning.

    Raises:
        CheckpointError: there is none, or the newest is damaged; then the message names the older one to use.
    """
    if isinstance(where, OutputLayout):
        folder = where.checkpoint_dir
    elif Path(where).is_dir():
        folder = rank_folder(Path(where), rank)
    else:
        return _proven(resolve_checkpoint(where, rank))
    for temp in temp_files(folder):
        logger.warning("passed over %s: its save did not finish", temp)
    found = scan(folder, prefix)
    complete = [c for c in found if c.manifest]
    if ranks > 1:
        complete = _on_all_ranks(folder, prefix, rank, ranks)
    newest = complete[-1] if complete else None
    for skipped in found:
        if skipped.manifest is None and (newest is None or _newer(skipped.path, newest.path)):
            logger.warning("passed over %s: %s", skipped.path, skipped.reason)
    if newest is None:
        reasons = "".join(f"\n  {c.path.name}: {c.reason}" for c in found)
        kind = f"checkpoint of prefix {prefix!r}" if prefix else "checkpoint"
        raise CheckpointError(
            f"nothing to resume from: no complete {kind} in {folder}{reasons}\n"
            "Name a file with --load_checkpoint FILE, or start anew without --resume_training."
        )
    furthest = max(complete, key=lambda c: (c.epoch, c.step))
    if (furthest.epoch, furthest.step) != (newest.epoch, newest.step):
        logger.warning(
            "resuming from %s, the last one written; %s is of a later step, but of an earlier run in this "
            "folder (to use it: --load_checkpoint %s)",
            newest.path,
            furthest.path.name,
            furthest.path,
        )
    return _proven(newest.path)


def resume_at(folder: Path, prefix: str | None, step: int) -> ResumePoint:
    """The complete checkpoint of a step, the one written last if there are several.

    Args:
        folder: a ``rank_N`` folder.
        prefix: take only checkpoints of this prefix; None takes all.
        step: optimizer steps done.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    found = [c for c in scan(folder, prefix) if c.manifest is not None and c.manifest.step == step]
    if not found:
        raise CheckpointError(f"{folder}: no complete checkpoint of step {step}")
    return _proven(found[-1].path)


def restore(
    network: Any,
    point: ResumePoint,
    current: Mapping[str, Any] | None = None,
    *,
    optimizer: Any = None,
    scale: Any = None,
    allow_mismatch: bool = False,
) -> LoadReport:
    """Put a saved training state back: weights, moments, counters, loss scale, accumulated gradients.

    A constant ``learning_rate`` kept as a parameter is a setting, not state: the present one stays, and a
    change is among the differences that :func:`check_settings` reports.

    Args:
        network: train network or model (Cell or mapping of name to Parameter).
        point: from :func:`find_resume`.
        current: present values under the names of the manifest, see :func:`check_settings`; None compares
            nothing.
        optimizer: optimizer, when it is not part of ``network``.
        scale: loss-scale cell or mapping, when it is not part of ``network``.
        allow_mismatch: go on although the data order will not continue exactly.

    Returns:
        What was loaded; ``missing`` is always empty.

    Raises:
        CheckpointError: the file lacks a parameter, a shape differs, or the settings do not allow an exact
            resume.
    """
    if current is not None:
        check_settings(point, current, allow_mismatch)
    targets: dict[str, Any] = {}
    for part in (network, optimizer, scale):
        if part is not None:
            targets.update(named_parameters(part))
    params = point.tensors
    if params is None:
        params = read_checkpoint(point.path, verify=False)  # find_resume has verified it
    counters = [name for name in _COUNTERS if name not in targets]
    return load_into(targets, params, ignore=counters, wanted=lambda name: not is_setting_name(name))


def check_settings(point: ResumePoint, current: Mapping[str, Any], allow_mismatch: bool = False) -> None:
    """Compare the settings of a checkpoint with the present ones.

    Args:
        point: the checkpoint.
        current: present values under the names of the manifest: those of :data:`EXACT_FIELDS`, and
            ``config``, a flat mapping of the whole configuration. Names that either side does not give are
            not compared.
        allow_mismatch: only warn where the data order is concerned.

    Raises:
        CheckpointError: a value that fixes the data order differs.
    """
    exact = _differences({n: point.manifest.value(n) for n in EXACT_FIELDS}, current)
    harmless = _differences(point.manifest.extra.get("config") or {}, current.get("config") or {}, both=False)
    if harmless:
        logger.warning("settings changed since %s was saved: %s", point.path.name, "; ".join(harmless))
    if exact and allow_mismatch:
        logger.warning("the data order will not continue exactly: %s", "; ".join(exact))
    elif exact:
        raise CheckpointError(
            f"cannot resume exactly from {point.path}: {'; '.join(exact)}. The data order depends on these. "
            f"Set them back, or start a new run from these weights: --load_checkpoint {point.path} "
            "--resume_training False"
        )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], both: bool = True) -> list[str]:
    """``name old -> new`` for every value that differs; with ``both``, only where both sides have one."""
    names = [n for n in old if n in new] if both else list(dict.fromkeys((*old, *new)))
    texts = []
    for name in names:
        before, after = old.get(name), new.get(name)
        if both and (before is None or after is None):
            continue
        if _plain(before) != _plain(after):
            texts.append(f"{name} {before} -> {after}")
    return texts


def _plain(value: Any) -> Any:
    """A value as JSON would give it back."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _on_all_ranks(folder: Path, prefix: str | None, rank: int, ranks: int) -> list[Candidate]:
    """This rank's checkpoints of steps that every rank has, oldest first."""
    folders = {number: folder.parent / f"rank_{number}" for number in range(ranks)}
    absent = [number for number, path in folders.items() if not path.is_dir()]
    if absent:
        raise CheckpointError(
            f"nothing to resume from: {folder.parent} has no folder of rank {', '.join(map(str, absent[:8]))}, but "
            f"{ranks} ranks run. With --auto_trans_ckpt True a checkpoint of another layout can be continued"
        )
    common = common_steps(folders, prefix)
    own = [c for c in scan(folder, prefix) if c.manifest]
    if own and (not common or common[-1][rank].path != own[-1].path):
        logger.warning("passed over %s: not all ranks have that step complete", own[-1].path)
    return [step[rank] for step in common]


def rank_folder(path: Path, rank: int) -> Path:
    """The folder of ``rank``: below an output folder, below ``checkpoint``, or ``path`` itself."""
    for folder in (OutputLayout(path, rank).checkpoint_dir, path / f"rank_{rank}"):
        if folder.is_dir():
            return folder
    return path


def _newer(path: Path, other: Path) -> bool:
    """True unless ``path`` is certainly older than ``other``; a file that is not there counts as older."""
    source = path if path.exists() else manifest_path(path)
    return source.stat().st_mtime_ns >= other.stat().st_mtime_ns


def _proven(path: Path) -> ResumePoint:
    """Read the manifest and verify the file against it."""
    if not manifest_path(path).exists():
        raise CheckpointError(
            f"{path} has no manifest ({manifest_path(path).name}), so a run cannot be resumed from it. "
            f"Its weights can be used: --load_checkpoint {path} --resume_training False"
        )
    manifest = read_manifest(path)
    reason = damage(path, manifest)
    if reason:
        raise damaged_error(path, reason)
    return ResumePoint(path, manifest)
