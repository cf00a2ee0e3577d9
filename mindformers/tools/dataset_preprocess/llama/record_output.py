# SPDX-License-Identifier: Apache-2.0
"""Writing a dataset so that the old one stays until the new one is complete."""

import glob
import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mindformers.dataset.mindrecord import MindRecordWriter, mindrecord_names
from mindformers.errors import DataError
from mindformers.tools.logger import get_logger

__all__ = ["DatasetOutput", "check_output", "fixed_length_records", "repeated"]

logger = get_logger(__name__)
_MOST_WAITING = 64  # writes that may wait for MindSpore's import or for the disk


def check_output(path: str | Path, flag: str) -> None:
    """Raise a DataError when nothing can be written there; make missing folders."""
    target = Path(path)
    if not target.name or target.is_dir():
        raise DataError(f"{flag} {path} is a folder; give the name of a file in it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {target.parent}: {error.strerror}") from error
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise DataError(f"no permission to write in the folder {target.parent}")
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        logger.warning("%s was left behind by a run that was killed; delete it when no other run uses it", left)


class DatasetOutput:
    """A MindRecord file (or several), its index and its description, moved into place when all are complete.

    MindSpore refuses renamed files, so they are written under their final names in a hidden folder beside the
    target; other files that the caller puts into ``folder`` are moved along. Writing happens in a thread, which also
    imports MindSpore: both run beside the tokenizing.

    Args:
        path: the output file.
        columns: name -> record length.
        num_files: files to spread the records over.
    """

    def __init__(self, path: str | Path, columns: dict[str, int], num_files: int = 1) -> None:
        self.path = Path(path)
        self._columns = columns
        self._num_files = num_files
        self._waiting: deque[Future[Any]] = deque()

    def __enter__(self) -> "DatasetOutput":
        folder = tempfile.mkdtemp(prefix=f".{self.path.name}.", suffix=".tmp", dir=self.path.parent)
        self.folder = Path(folder)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._opened = self._thread.submit(
            MindRecordWriter, self.folder / self.path.name, self._columns, self._num_files
        )
        return self

    def write(self, **arrays: np.ndarray) -> None:
        """Append records, see :meth:`MindRecordWriter.write`."""
        self._waiting.append(self._thread.submit(lambda: self._opened.result().write(**arrays)))
        while self._waiting and (len(self._waiting) > _MOST_WAITING or self._waiting[0].done()):
            self._waiting.popleft().result()

    def commit(self, description: dict[str, Any]) -> list[str]:
        """Finish the files, add ``NAME.json`` with the description, and put all in the place of the old ones.

        Returns:
            The MindRecord files.
        """
        while self._waiting:
            self._waiting.popleft().result()
        self._thread.submit(lambda: self._opened.result().close()).result()
        described = self.folder / f"{self.path.name}.json"
        described.write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for file in self.folder.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        paths = mindrecord_names(self.path, self._num_files)
        for path in paths:  # a new file beside an old index would be read wrongly; without an index it is refused
            Path(f"{path}.db").unlink(missing_ok=True)
            os.replace(self.folder / Path(path).name, path)
            os.replace(self.folder / f"{Path(path).name}.db", f"{path}.db")
        for file in self.folder.iterdir():  # the description, and what else the caller put there
            os.replace(file, self.path.parent / file.name)
        return paths

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def fixed_length_records(streams: Iterable[np.ndarray], length: int, rest: list[int]) -> Iterator[np.ndarray]:
    """Cut a stream of tokens into consecutive records.

    Args:
        streams: int32 arrays of shape (any,).
        length: tokens per record.
        rest: receives the number of tokens at the end that do not fill a record.

    Yields:
        Arrays of shape (records, length).
    """
    carry = np.empty(0, np.int32)
    for part in streams:
        carry = np.concatenate([carry, part])
        count = len(carry) // length
        if count:
            yield carry[: count * length].reshape(count, length)
            carry = carry[count * length :]
    rest.append(len(carry))


def repeated(parts: Iterable[np.ndarray], times: int, folder: Path) -> Iterator[np.ndarray]:
    """A stream of int32 arrays ``times`` times over; the first pass is kept in a file for the others."""
    if times == 1:
        yield from parts
        return
    spill = folder / "tokens.bin"
    with spill.open("wb") as file:
        for part in parts:
            part.tofile(file)
            yield part
    for _ in range(times - 1):
        with spill.open("rb") as file:
            while len(part := np.fromfile(file, np.int32, 1 << 20)):
                yield part
    spill.unlink()
