# SPDX-License-Identifier: Apache-2.0
"""Writing checkpoints so that a crash, a full disk or a kill at any instant leaves the older ones loadable.

A file is written under a temporary name in its folder, flushed to the disk and renamed; its manifest follows
in the same way. A checkpoint without a manifest is not complete. One process at a time may write into a
``rank_N`` folder.
"""

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from safetensors import SafetensorError

from mindformers.atomic import flush
from mindformers.checkpoint.digest import ALGORITHM, Pieces, file_digests
from mindformers.checkpoint.layout import check_format, manifest_path, parse_step_file, temp_files, temp_path
from mindformers.checkpoint.manifest import Candidate, Manifest, damage, scan, write_manifest
from mindformers.checkpoint.names import is_unsaved_name
from mindformers.errors import CheckpointError
from mindformers.tools.logger import get_logger
from mindformers.version import __version__

__all__ = ["host_copy", "rotate", "save_network", "save_step", "try_save"]

logger = get_logger(__name__)

_STALE_SECONDS = 600.0
_FOLDER_TRIES = 100


def save_step(
    params: Mapping[str, Any], path: str | Path, *, manifest_fields: Mapping[str, Any], fmt: str = "ckpt"
) -> Manifest:
    """Save a full training state and, once it is safe on the disk, its manifest.

    Args:
        params: name to Parameter, Tensor, array or Python number: weights, optimizer state, counters.
            Key/value caches are left out. ``epoch_num``, ``step_num`` and ``loss_scale`` are added from the
            manifest fields for older readers when absent.
        path: the file to make; its folder is created.
        manifest_fields: values for :class:`~mindformers.checkpoint.manifest.Manifest`; unknown names go to
            ``extra``.
        fmt: ``ckpt`` or ``safetensors``.

    Returns:
        The manifest as written.

    Raises:
        CheckpointError: the file could not be written (disk full, no permission). Nothing half-written
            remains, and other checkpoints are untouched.
    """
    path = Path(path)
    manifest = Manifest.from_fields(manifest_fields)
    tensors = _as_tensors(params)
    for name, value in _scalars(manifest).items():
        tensors.setdefault(name, value)
    _write(tensors, path, check_format(fmt), manifest)
    return manifest


def save_network(
    params: Mapping[str, Any],
    path: str | Path,
    *,
    manifest_fields: Mapping[str, Any] | None = None,
    fmt: str = "ckpt",
) -> Manifest:
    """Save weights only, replacing the file of the save before; arguments and errors as :func:`save_step`."""
    manifest = Manifest.from_fields(manifest_fields or {})
    _write(_as_tensors(params), Path(path), check_format(fmt), manifest)
    return manifest


def host_copy(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Private copies in host memory, so that training may go on while they are written."""
    return {name: np.array(t.asnumpy(), copy=True) for name, t in _as_tensors(params).items()}


def rotate(directory: str | Path, prefix: str, keep: int, rank: int | None = None) -> list[Path]:
    """Delete the oldest complete step checkpoints of ``prefix`` until ``keep`` are left.

    Args:
        directory: the ``rank_N`` folder.
        prefix: only files of this prefix are looked at.
        keep: how many to leave; 0 or less keeps all.
        rank: only files of this rank; None takes all.

    Returns:
        The deleted files. Files without a manifest, or not as their manifest says, are neither counted nor
        deleted.
    """
    if keep <= 0:
        return []
    complete = [c for c in scan(Path(directory), prefix) if _is_ours(c, rank)]
    deleted = [c.path for c in complete[:-keep]]
    for path in deleted:
        manifest_path(path).unlink(missing_ok=True)  # first: a file without a manifest is never resumed from
        path.unlink(missing_ok=True)
    return deleted


def _is_ours(candidate: Candidate, rank: int | None) -> bool:
    """True when the candidate is complete, of the size we wrote, and of the rank asked for."""
    name = parse_step_file(candidate.path)
    if candidate.manifest is None or name is None or (rank is not None and name.rank != rank):
        return False
    return not damage(candidate.path, candidate.manifest, checksum=False)


def _as_tensors(params: Mapping[str, Any]) -> dict[str, ms.Tensor]:
    """Tensors (sharing memory where they can) of everything that is saved."""
    tensors = {}
    for name, value in params.items():
        if is_unsaved_name(name):
            continue
        if isinstance(value, bool | int | float):
            value = np.asarray(value, np.float32 if isinstance(value, float) else None)
        if isinstance(value, np.ndarray | np.generic):
            value = ms.Tensor.from_numpy(np.require(np.asarray(value), requirements=["C", "W"]))
        if not isinstance(value, ms.Tensor):
            raise TypeError(f"cannot save {name!r} of type {type(value).__name__}")
        tensors[name] = value
    return tensors


def _scalars(manifest: Manifest) -> dict[str, ms.Tensor]:
    """The counters that checkpoints have always held beside the parameters."""
    values = {"epoch_num": np.int32(manifest.epoch), "step_num": np.int32(manifest.step)}
    if manifest.loss_scale is not None:
        values["loss_scale"] = np.float32(manifest.loss_scale)
    return _as_tensors(values)


def _write(tensors: dict[str, ms.Tensor], path: Path, fmt: str, manifest: Manifest) -> None:
    """Write data, then manifest; complete ``manifest`` with what is known only now."""
    needed = sum(t.nbytes for t in tensors.values())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale_temps(path.parent)
        _check_content(tensors, path, fmt)
        _check_space(path, needed)
        manifest.size, manifest.checksum, manifest.pieces = _write_file(tensors, path, fmt)
        manifest.algorithm = ALGORITHM
        manifest.mindformers_version = __version__
        manifest.created = _creation_time(path)
        manifest.parameters = [
            {"name": name, "shape": list(t.shape), "dtype": str(t.dtype).lower()} for name, t in tensors.items()
        ]
        write_manifest(path, manifest)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(_failure(path, needed, error)) from error
    finally:
        for temp in _temps(path):
            if temp.exists():
                temp.unlink()


def try_save(params: Mapping[str, Any], path: str | Path, fmt: str = "ckpt", sample: int = 256 << 20) -> None:
    """Write like :func:`save_step`, then remove what was written: no file and no new folder remains.

    Of the folders that ranks beside each other share, an empty one may remain.

    Args:
        params: the training state; of a large one only the first parameters, up to ``sample`` bytes, are written.
        path: a file in the folder of later saves.
        fmt: ``ckpt`` or ``safetensors``.
        sample: bytes to write at most, one parameter at least.

    Raises:
        CheckpointError: it cannot be written.
    """
    path, temp = Path(path), temp_path(path)
    tensors: dict[str, ms.Tensor] = {}
    size = 0
    for name, tensor in _as_tensors(params).items():
        if tensors and size + tensor.nbytes > sample:
            break
        tensors[name] = tensor
        size += tensor.nbytes
    made = [folder for folder in path.absolute().parents if not folder.exists()]
    try:
        _make_folder(path.parent)
        _check_content(tensors, path, check_format(fmt))
        _check_space(path, size)
        _write_temp(tensors, temp, fmt)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(_failure(path, size, error)) from error
    finally:
        for file in _temps(path):
            if file.exists():
                file.unlink()
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: another rank's is there
                folder.rmdir()


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, again when another rank has just removed one of these because it was empty."""
    for _ in range(_FOLDER_TRIES):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            folder.mkdir(parents=True, exist_ok=True)
            return
    folder.mkdir(parents=True, exist_ok=True)


def _write_file(tensors: dict[str, ms.Tensor], path: Path, fmt: str) -> tuple[int, str, Pieces]:
    """Write, flush and rename the data file; returns its size, its checksum and those of its pieces."""
    temp = temp_path(path)
    written = _write_temp(tensors, temp, fmt)
    # An old manifest must never stand beside new data: it would call a good file damaged.
    manifest_path(path).unlink(missing_ok=True)
    os.replace(temp, path)
    flush(path.parent)
    return written


def _write_temp(tensors: dict[str, ms.Tensor], temp: Path, fmt: str) -> tuple[int, str, Pieces]:
    """Write and flush the data under its temporary name; size, checksum, and checksums of the pieces."""
    temp.unlink(missing_ok=True)
    temp.touch(exist_ok=False)
    mode = temp.stat().st_mode  # what the user's umask allows; MindSpore leaves files read-only
    ms.save_checkpoint([{"name": n, "data": t} for n, t in tensors.items()], str(temp), format=fmt)
    temp.chmod(mode)
    flushing = _Background(lambda: flush(temp))  # the disk and the checksums work at the same time
    checksum, pieces = file_digests(temp)
    flushing.join()
    return temp.stat().st_size, checksum, pieces


class _Background:
    """Run one function in a thread and hand its exception to whoever joins."""

    def __init__(self, function: Callable[[], None]):
        self._function = function
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._function()
        except BaseException as error:  # handed over in join
            self._error = error

    def join(self) -> None:
        """Wait for the end; raise what the function raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error


def _check_content(tensors: dict[str, ms.Tensor], path: Path, fmt: str) -> None:
    """Refuse what the format would lose without a word."""
    if not tensors:
        raise CheckpointError(f"nothing to save into {path}: no parameters were given")
    empty = [name for name, t in tensors.items() if 0 in t.shape]
    if empty and fmt == "ckpt":
        raise CheckpointError(f"{path}: .ckpt cannot hold empty tensors ({', '.join(empty[:5])}); use safetensors")


def _check_space(path: Path, needed: int) -> None:
    """Fail before writing when the disk is known to be too full."""
    if shutil.disk_usage(path.parent).free < needed:
        raise CheckpointError(_failure(path, needed, "not enough space on the disk"))


def _failure(path: Path, needed: int, reason: object) -> str:
    """The message of a failed save."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    return (
        f"could not save {path}: {reason}; {needed:,} bytes are needed, {free:,} are free. "
        "Older checkpoints are untouched. Free space, lower keep_checkpoint_max, or change output_dir."
    )


def _temps(path: Path) -> tuple[Path, ...]:
    """Every temporary name used while writing ``path``: ours and MindSpore's own."""
    temp = temp_path(path)
    return temp, temp.with_suffix(".tmp")


def _remove_stale_temps(directory: Path) -> None:
    """Remove what killed saves left behind; a name that changed lately may belong to a save under way."""
    for entry in temp_files(directory):
        try:
            if time.time() - entry.stat().st_mtime > _STALE_SECONDS:
                entry.unlink()
                logger.info("removed %s, left by a save that did not finish", entry)
        except FileNotFoundError:
            continue  # that save has just finished


def _creation_time(path: Path) -> float:
    """Now, but later than every checkpoint in the folder, also when the clock was set back."""
    newest = max((c.manifest.created for c in scan(path.parent) if c.manifest), default=0.0)
    return max(time.time(), newest + 0.001)
