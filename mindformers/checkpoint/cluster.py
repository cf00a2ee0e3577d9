# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of several ranks as one: which files belong together, and the newest step that all ranks have."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mindformers.checkpoint.agree import common_saves
from mindformers.checkpoint.layout import FORMATS, OutputLayout, manifest_path, parse_step_file
from mindformers.checkpoint.manifest import Candidate, read_manifest, scan
from mindformers.errors import CheckpointError
from mindformers.tools.logger import get_logger

__all__ = ["common_steps", "rank_folders", "select_files"]

logger = get_logger(__name__)

_STEPS_LISTED = 16
_RANK = re.compile(r"rank_(\d+)")
_SUFFIXES = tuple(f".{fmt}" for fmt in FORMATS)


class _Step(NamedTuple):
    """What makes the files of several ranks belong together."""

    epoch: int
    step: int


def rank_folders(path: Path) -> dict[int, Path]:
    """Rank -> its ``rank_N`` folder with checkpoints: below ``path``, or below ``path/checkpoint``; empty without."""
    for root in (path, OutputLayout(path).checkpoint_root):
        if root.is_dir():
            found = {int(m[1]): p for p in sorted(root.iterdir()) if (m := _RANK.fullmatch(p.name)) and p.is_dir()}
            found = {rank: folder for rank, folder in sorted(found.items()) if _checkpoints(folder)}
            if found:
                return found
    return {}


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES and not p.name.startswith(".") and p.is_file())


def common_steps(folders: Mapping[int, Path], prefix: str | None = None) -> list[dict[int, Candidate]]:
    """Steps whose checkpoint is complete on every rank, oldest first, as rank -> its file.

    Args:
        folders: the folder of each rank.
        prefix: only files of this prefix; None takes all.

    The order is that in which the lowest rank saved; see :func:`~mindformers.checkpoint.agree.common_saves`.
    """
    complete = {rank: _complete(folders[rank], prefix) for rank in sorted(folders)}
    common = common_saves(list(complete.values()))
    return [{rank: found[key] for rank, found in complete.items()} for key in common]


def _complete(folder: Path, prefix: str | None) -> dict[tuple, Candidate]:
    """(prefix, epoch, step) -> complete checkpoint of one rank, oldest first."""
    result: dict[tuple, Candidate] = {}
    for candidate in scan(folder, prefix):
        if candidate.manifest is not None:
            key = (parse_step_file(candidate.path).prefix, candidate.epoch, candidate.step)
            result.pop(key, None)
            result[key] = candidate
    return result


def select_files(path: Path, prefix: str | None = None, step: int | None = None) -> dict[int, Path]:
    """The file of each rank to use together.

    Args:
        path: a folder with ``rank_N`` folders, or the output folder of a run.
        prefix: only step checkpoints of this prefix; None takes all.
        step: the optimizer step to take; None takes the newest.

    Returns:
        Rank -> file: those of the step, or of the newest step that is complete on all ranks. Without manifests (files
        of another program): of the newest step by name that all ranks have, or the one file that each rank has.

    Raises:
        CheckpointError: no such folders, or no step that all ranks have; the message lists what each rank has.
    """
    folders = rank_folders(path)
    if not folders:
        raise CheckpointError(f"{path} has no rank_N folders with checkpoints (*.ckpt, *.safetensors)")
    common = common_steps(folders, prefix)
    if step is not None:
        return _of_step(path, common, step, folders)
    if common:
        chosen = common[-1]
        _report_newer(folders, chosen, prefix)
        return {rank: candidate.path for rank, candidate in chosen.items()}
    return _without_manifests(path, folders, prefix)


def _of_step(
    path: Path, common: Sequence[Mapping[int, Candidate]], step: int, folders: Mapping[int, Path]
) -> dict[int, Path]:
    """The files of one step; of one saved twice the last."""
    for chosen in reversed(common):
        if next(iter(chosen.values())).manifest.step == step:
            return {rank: candidate.path for rank, candidate in chosen.items()}
    complete = [str(next(iter(chosen.values())).manifest.step) for chosen in common]
    raise CheckpointError(
        f"{path}: step {step} is not complete on all {len(folders)} ranks; complete steps: "
        f"{', '.join(complete[-_STEPS_LISTED:]) or 'none'}"
    )


def _report_newer(folders: Mapping[int, Path], chosen: Mapping[int, Candidate], prefix: str | None) -> None:
    """Say that some ranks have a newer checkpoint, which others lack."""
    ahead = []
    for rank, folder in folders.items():
        newest = scan(folder, prefix)[-1]
        if newest.manifest is not None and newest.manifest.created > chosen[rank].manifest.created:
            ahead.append(newest.path)
    if ahead:
        step = next(iter(chosen.values())).manifest.step
        logger.warning(
            "passed over %s%s: not all ranks have that step complete; step %d is the newest that all have",
            ahead[0], f" and {len(ahead) - 1} more" if len(ahead) > 1 else "", step,
        )  # fmt: skip


def _without_manifests(path: Path, folders: Mapping[int, Path], prefix: str | None) -> dict[int, Path]:
    files = {rank: _checkpoints(folder) for rank, folder in folders.items()}
    if prefix is not None:
        files = {rank: [p for p in found if p.name.startswith(prefix)] for rank, found in files.items()}
    if all(len(found) == 1 for found in files.values()):
        chosen = {rank: found[0] for rank, found in files.items()}
        _check_same_save(chosen)
        return chosen
    if any(manifest_path(p).exists() and parse_step_file(p) for found in files.values() for p in found):
        raise CheckpointError(
            f"{path}: no step has a complete checkpoint on all ranks:\n{_described(files)}\n"
            "A checkpoint is complete with its manifest (.json). Remove the folders of ranks that are of another run"
        )
    steps = {rank: {_Step(n.epoch, n.step): p for p in found if (n := parse_step_file(p))} for rank, found in
             files.items()}  # fmt: skip
    shared = set.intersection(*(set(found) for found in steps.values()))
    if not shared:
        raise CheckpointError(
            f"{path}: which files belong together? Each rank_N folder must hold one checkpoint, or all the same "
            f"step:\n{_described(files)}"
        )
    newest = max(shared)
    logger.warning("%s: the checkpoints have no manifests; taking epoch %d, step %d, the newest by name", path, *newest)
    return {rank: found[newest] for rank, found in steps.items()}


def _check_same_save(chosen: Mapping[int, Path]) -> None:
    """Files of one save have the same step in their manifests."""
    steps = {rank: read_manifest(p).step for rank, p in chosen.items() if manifest_path(p).exists()}
    if len(set(steps.values())) > 1:
        rank, step = next(iter(steps.items()))
        other = next(number for number, value in steps.items() if value != step)
        raise CheckpointError(
            f"{chosen[rank]} is of step {step}, {chosen[other]} of {steps[other]}: they do not belong together"
        )


def _described(files: Mapping[int, Sequence[Path]], limit: int = 8) -> str:
    lines = [f"  rank_{rank}: {', '.join(p.name for p in found) or 'nothing'}" for rank, found in files.items()]
    return "\n".join(lines[:limit] + ([f"  ... and {len(lines) - limit} more ranks"] if len(lines) > limit else []))
