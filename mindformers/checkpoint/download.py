# SPDX-License-Identifier: Apache-2.0
"""The files behind a model's name: found on disk, or downloaded once per host and checked."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from mindformers.atomic import flush
from mindformers.checkpoint.ckpt_index import ckpt_problem
from mindformers.checkpoint.digest import file_digest
from mindformers.checkpoint.transfer import Patience, part_path, readable, state_path, transfer
from mindformers.errors import CheckpointError, ConfigError, DataError
from mindformers.model_zoo import MODELS, STORE, MindFormerBook, ModelEntry, RemoteFile, known_name
from mindformers.tools.logger import get_logger
from mindformers.tools.sentencepiece_model import load_sentencepiece
from mindformers.tools.utils import did_you_mean

__all__ = ["KINDS", "fetch", "is_offline", "location"]

logger = get_logger(__name__)

KINDS = ("checkpoint", "tokenizer")
MIRROR_VARIABLE = "MINDFORMERS_DOWNLOAD_URL"
OFFLINE_VARIABLES = ("MINDFORMERS_OFFLINE", "HF_HUB_OFFLINE")  # the first one that is set decides

_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_SMALL = 1 << 26  # files up to this size are hashed each time they are used
_POLL = 0.2  # seconds between looks at a lock
_REMIND = 60.0  # seconds between log lines of somebody who waits


def is_offline() -> bool:
    """Whether the environment forbids downloads: MINDFORMERS_OFFLINE, or else HF_HUB_OFFLINE.

    Raises:
        ConfigError: a value that is neither yes nor no.
    """
    for name in OFFLINE_VARIABLES:
        value = os.environ.get(name, "").strip().lower()
        if value and value not in _SWITCH:
            raise ConfigError(f"environment variable {name}={value!r}: give one of {', '.join(_SWITCH)}")
        if value:
            return _SWITCH[value]
    return False


def location(name: str, kind: str) -> Path:
    """Where the file of a model has to lie, as an absolute path; nothing is created.

    Raises:
        ConfigError: an unknown name or kind.
    """
    entry = _entry(name, kind)
    remote = _remote(entry, kind)
    ending = ".ckpt" if kind == "checkpoint" else ".tokenizer.model"
    filename = remote.filename if remote else f"{known_name(name)}{ending}"
    return _absolute(MindFormerBook.get_default_checkpoint_download_folder()) / entry.family / filename


def fetch(name: str, kind: str, *, offline: bool | None = None, patience: Patience | None = None) -> Path:
    """The weights or the vocabulary of a named model; downloaded when they are not there yet.

    The file lies in ``<CHECKPOINT_DOWNLOAD_FOLDER or ./checkpoint_download>/<family>/`` and gets its name only when it
    is complete and of the right kind, so a file of that name that was put there by hand is used as well. Of several
    processes of a host one downloads and the others wait; when it dies, the next one goes on where it stopped.

    Args:
        name: a name of ``model_zoo.MODELS``; a leading ``mindspore/`` is accepted.
        kind: ``checkpoint`` or ``tokenizer``.
        offline: never use the network; None asks :func:`is_offline`.
        patience: waits and tries of the transfer.

    Returns:
        Absolute path of the file.

    Raises:
        ConfigError: an unknown name or kind.
        CheckpointError: the file is not there and cannot be had, or the one that is there is not the published one.
            The message says which file belongs where.
    """
    entry, target = _entry(name, kind), location(name, kind)
    remote = _remote(entry, kind)
    found = _on_disk(target, remote, kind)
    if found is not None:
        return found
    if remote is None:
        raise _missing(name, kind, entry, target, "no address to download it from is known")
    if is_offline() if offline is None else offline:
        raise _missing(name, kind, entry, target, "downloads are switched off (offline)")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(target):
            return _on_disk(target, remote, kind) or _download(remote, target, kind, patience or Patience())
    except CheckpointError as error:
        raise _missing(name, kind, entry, target, str(error)) from error
    except OSError as error:
        raise _missing(name, kind, entry, target, _disk_reason(error, target)) from error


def _absolute(folder: str) -> Path:
    return Path(folder).expanduser().absolute()


def _entry(name: str, kind: str) -> ModelEntry:
    if kind not in KINDS:
        raise ConfigError(f"no kind of file is called {kind!r}.{did_you_mean(str(kind), KINDS, 'kinds')}")
    known = known_name(name)
    if known is None:
        raise ConfigError(f"no model is called {name!r}.{did_you_mean(str(name), MODELS, 'known')}")
    return MODELS[known]


def _remote(entry: ModelEntry, kind: str) -> RemoteFile | None:
    return entry.checkpoint if kind == "checkpoint" else entry.tokenizer


def _missing(name: str, kind: str, entry: ModelEntry, target: Path, reason: str) -> CheckpointError:
    """The error of a file that is not there: why, which file, where to put it, where it is to be had."""
    advice = entry.weights_advice if kind == "checkpoint" else entry.tokenizer_advice
    remote = _remote(entry, kind)
    source = f" {_url(remote)}, or:" if remote else ""
    return CheckpointError(
        f"{name}: the {kind} is not here: {reason}\nPut the file at {target}\nWhere to get it:{source} {advice}"
    )


def _on_disk(target: Path, remote: RemoteFile | None, kind: str) -> Path | None:
    """The file when it is there already: as published, converted to safetensors, or in the folder that r0.8 used for
    ``mindspore/NAME``.
    """
    old = _absolute(MindFormerBook.get_xihe_checkpoint_download_folder()) / target.parent.name / target.name
    places = [(target, remote), (old, remote)]
    if kind == "checkpoint":
        places += [(target.with_suffix(".safetensors"), None)]
    for path, published in places:
        if path.is_file():
            small = path.stat().st_size <= _SMALL
            problem = _problem(path, published, kind) if published and small else _wrong_size(path, published)
            if problem:
                raise CheckpointError(
                    f"{path} is not the published file: {problem}. Delete it and the next call downloads it anew; "
                    "to use a file of your own, give its path instead of a model's name"
                )
            return path
    return None


def _wrong_size(path: Path, remote: RemoteFile | None) -> str:
    """Why a file cannot be the published one, by its length; empty when it can."""
    size = path.stat().st_size
    if not size:
        return "it is empty (0 bytes)"
    if remote and remote.size not in (None, size):
        return f"it has {size} bytes, not {remote.size}"
    return ""


def _problem(path: Path, remote: RemoteFile, kind: str) -> str:
    """Why a file is not what it should be, by length, checksum and structure; empty when it is."""
    problem = _wrong_size(path, remote)
    if problem:
        return problem
    if remote.sha256:
        digest = file_digest(path, "sha256")
        return "" if digest == remote.sha256 else f"its sha256 is {digest}, not {remote.sha256}"
    if kind == "checkpoint":
        return ckpt_problem(path)
    try:
        load_sentencepiece(path)
    except DataError as error:
        return str(error)
    return ""


def _download(remote: RemoteFile, target: Path, kind: str, patience: Patience) -> Path:
    """Bring the file and give it its name; the caller holds the lock."""
    url, part = _url(remote), part_path(target)
    logger.info("downloading %s to %s", url, target)
    again = True
    while True:
        resumed = transfer(url, target, size=remote.size, trusted=remote.sha256 is not None, patience=patience)
        problem = _problem(part, remote, kind)
        if not problem:
            break
        part.unlink(missing_ok=True)
        state_path(target).unlink(missing_ok=True)
        if not (resumed and again):
            raise CheckpointError(f"what came from {url} is not usable and was deleted: {problem}")
        again = False  # the part of an earlier call may have been of another version: once more, from the start
        logger.warning("%s: %s; downloading it anew", target.name, problem)
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, target)
    flush(target.parent)
    state_path(target).unlink(missing_ok=True)
    logger.info("%s is complete (%s)", target, readable(target.stat().st_size))
    return target


def _url(remote: RemoteFile) -> str:
    """The file's address, or the same file on the mirror that the environment names."""
    mirror = os.environ.get(MIRROR_VARIABLE, "").rstrip("/")
    return mirror + remote.url.removeprefix(STORE) if mirror and remote.url.startswith(STORE) else remote.url


@contextmanager
def _only_one(target: Path) -> Iterator[None]:
    """Wait until no other process downloads ``target``; the kernel frees the lock of a process that dies."""
    with open(target.with_name(f".{target.name}.lock"), "a+", encoding="utf-8") as lock:
        told = -_REMIND
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                now = time.monotonic()
                if now - told >= _REMIND:
                    told = now
                    logger.info("%s: process %s downloads it; waiting", target, _owner(lock))
                time.sleep(_POLL)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _owner(lock: TextIO) -> str:
    lock.seek(0)
    return lock.read(20) or "another"


def _disk_reason(error: OSError, target: Path) -> str:
    """What to do about a file system that refuses."""
    text = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        part = part_path(target)
        here = readable(part.stat().st_size) if part.exists() else "nothing"
        return f"the disk is full ({text}); {here} kept in {part}: make room and the same command goes on from there"
    return f"{error.filename or target.parent}: {text}; CHECKPOINT_DOWNLOAD_FOLDER names another folder"
