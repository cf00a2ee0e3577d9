# SPDX-License-Identifier: Apache-2.0
"""MindRecord files without the pipeline: finding, inspecting, checking and writing them.

Inspecting reads the JSON header of each file and the SQLite index beside it, so it takes milliseconds and
does not
import MindSpore; writing and reading records does.
"""

import json
import os
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindformers.errors import DataError
from mindformers.tools.utils import listing

__all__ = ["MindRecordWriter", "RecordInfo", "find_mindrecord_files", "inspect_mindrecord", "read_records"]

# MindSpore's defaults (16 MB header, 32 MB pages) make the smallest file 50 MB long; these allow 90 GB.
HEADER_BYTES = 1 << 22
PAGE_BYTES = 1 << 22
_LARGEST_HEADER = 1 << 28


@dataclass(frozen=True)
class RecordInfo:
    """What MindRecord files hold.

    Args:
        paths: the files, in reading order.
        num_records: records in all of them.
        columns: name -> (dtype, shape); -1 in a shape where the header leaves the length open.
        record_length: tokens per record (last axis of ``input_ids``, else of the first column), None when open.
        meta: content of the ``.json`` file that ``llama_preprocess.py`` writes beside its output, or None.
    """

    paths: tuple[str, ...]
    num_records: int
    columns: dict[str, tuple[str, tuple[int, ...]]]
    record_length: int | None
    meta: dict[str, Any] | None


def find_mindrecord_files(
    dataset_dir: str | Path | None = None, dataset_files: str | Path | Sequence[str | Path] | None = None
) -> list[str]:
    """The MindRecord files that a config names.

    Args:
        dataset_dir: one file of any name, or a folder: then its ``*.mindrecord*`` files and every file that has
            an index (``NAME.db``) beside it, in natural order (2 before 10).
        dataset_files: a file or list of files; used instead of ``dataset_dir``.

    Raises:
        DataError: neither is given, a path does not exist, or a folder holds no MindRecord file.
    """
    if dataset_files:
        files = [dataset_files] if isinstance(dataset_files, str | Path) else list(dataset_files)
        return [_existing_file(Path(file)) for file in files]
    if not dataset_dir:
        raise DataError(
            "no dataset is given: set data_loader.dataset_dir (--train_dataset_dir, --eval_dataset_dir) "
            "to a MindRecord file or to a folder with such files"
        )
    path = Path(dataset_dir)
    if not path.is_dir():
        return [_existing_file(path)]
    entries = [entry for entry in path.iterdir() if entry.is_file() and not entry.name.endswith((".db", ".json"))]
    found = [entry for entry in entries if ".mindrecord" in entry.name or Path(f"{entry}.db").is_file()]
    if not found:
        names = sorted(entry.name for entry in path.iterdir())
        shown = ", ".join(names[:20]) + (f", ... ({len(names)} entries)" if len(names) > 20 else "")
        raise DataError(f"no MindRecord file (*.mindrecord) in the folder {path}. It holds: {shown or 'nothing'}")
    return [str(entry) for entry in sorted(found, key=lambda entry: _natural_key(entry.name))]


def inspect_mindrecord(paths: str | Path | Sequence[str | Path]) -> RecordInfo:
    """Read what the files hold, and check that they belong together.

    Raises:
        DataError: a file is not a MindRecord, was renamed, lacks its index, differs in columns from the first
            one, or all of them hold no record.
    """
    files = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not files:
        raise DataError("no MindRecord file is given")
    total, columns = 0, None
    for path in files:
        _existing_file(path)
        found, rows = _read_header(path)
        if columns is not None and found != columns:
            raise DataError(
                f"{path} has columns {found}, but {files[0]} has {columns}; they cannot be read as one dataset"
            )
        columns = found
        count = _count_records(path)
        if rows != count:
            raise DataError(
                f"{path} holds {rows} records, but its index {path.name}.db lists {count}: not a pair. "
                "Copy both files again, or write the dataset again"
            )
        total += count
    if total == 0:
        raise DataError(f"{', '.join(map(str, files))}: no records. Write the file again (was its input text empty?)")
    shape = (columns.get("input_ids") or next(iter(columns.values())))[1]
    length = shape[-1] if shape and shape[-1] > 0 else None
    return RecordInfo(tuple(map(str, files)), total, columns, length, _read_meta(files[0]))


def read_records(info: RecordInfo, column: str, count: int) -> list[np.ndarray]:
    """The first ``count`` records of one column, in file order. Imports MindSpore."""
    import mindspore.dataset as ds

    data = ds.MindDataset(list(info.paths), columns_list=[column], shuffle=False, num_parallel_workers=1)
    rows = data.take(min(count, info.num_records)).create_tuple_iterator(num_epochs=1, output_numpy=True)
    return [row[0] for row in rows]


class MindRecordWriter:
    """Writes int32 columns of fixed length to one MindRecord file (or several), records in order.

    Args:
        path: file to write; ``num_files`` > 1 appends 0, 1, ... to the name.
        columns: name -> record length.
        num_files: files to spread the records over.

    MindSpore drops an int64 array under an int32 schema with only a warning, so other dtypes are refused here,
    and :meth:`close` counts what is really in the files.
    """

    def __init__(self, path: str | Path, columns: dict[str, int], num_files: int = 1) -> None:
        from mindspore.mindrecord import FileWriter

        self._columns = columns
        self._written = 0
        self._opened = False
        self.paths = mindrecord_names(path, num_files)
        self._writer = FileWriter(str(path), num_files, overwrite=False)
        self._writer.set_header_size(HEADER_BYTES)
        self._writer.set_page_size(PAGE_BYTES)
        self._writer.add_schema({name: {"type": "int32", "shape": [length]} for name, length in columns.items()})

    def write(self, **arrays: np.ndarray) -> None:
        """Append records: one int32 array of shape (records, length) per column."""
        shapes = {name: array.shape[1:] for name, array in arrays.items()}
        assert shapes == {name: (length,) for name, length in self._columns.items()}, f"{shapes} != {self._columns}"
        assert all(array.dtype == np.int32 for array in arrays.values()), "records must be int32"
        count = len(next(iter(arrays.values())))
        if count:
            self._written += count
            self._write_rows(arrays)

    def _write_rows(self, arrays: dict[str, np.ndarray]) -> None:
        """Hand records to MindSpore, behind its per-record checks in Python where these can be left out.

        The checks (done above, for a whole array at once) take twice the time of the writing. The function behind them
        exists in 2.10; without it the public one serves.
        """
        core = getattr(self._writer, "_writer", None)
        native = getattr(getattr(core, "_writer", None), "write_raw_data", None)
        order = getattr(getattr(core, "_header", None), "blob_fields", None)
        if native is None or not self._opened or set(order or ()) != set(arrays):
            rows = [dict(zip(arrays, row, strict=True)) for row in zip(*arrays.values(), strict=True)]
            self._writer.write_raw_data(rows)  # opens the files
            self._opened = True
            return
        from mindspore.mindrecord import SUCCESS

        if native({}, record_blobs([arrays[name] for name in order]), True, False) != SUCCESS:
            raise DataError(f"MindSpore could not write to {', '.join(self.paths)}; is the disk full?")

    def close(self) -> RecordInfo:
        """Finish the files and check the number of records in them."""
        self._writer.commit()
        mode = 0o666 & ~_umask()
        for path in self.paths:  # MindSpore makes them readable for the owner only
            os.chmod(path, mode)
            os.chmod(f"{path}.db", mode)
        info = inspect_mindrecord(self.paths)
        assert info.num_records == self._written, f"{info.num_records} records in {self.paths}, {self._written} written"
        return info


def record_blobs(columns: list[np.ndarray]) -> list[bytes]:
    """Records as MindRecord stores them: each column's length in bytes (8, big-endian) and its values; one column
    stands without its length.

    Args:
        columns: arrays of shape (records, length) in the order of the file's schema.
    """
    parts = [np.ascontiguousarray(column).view(np.uint8) for column in columns]
    if len(parts) > 1:
        sizes = [np.frombuffer(part.shape[1].to_bytes(8, "big"), np.uint8) for part in parts]
        parts = [
            piece
            for size, part in zip(sizes, parts, strict=True)
            for piece in (np.broadcast_to(size, (len(part), 8)), part)
        ]
    return [row.tobytes() for row in np.concatenate(parts, axis=1)]


def mindrecord_names(path: str | Path, num_files: int) -> list[str]:
    """Names MindSpore gives to ``num_files`` files: the path, or the path with 0, 1, ... of equal width."""
    if num_files == 1:
        return [str(path)]
    width = len(str(num_files - 1))
    return [f"{path}{number:0{width}d}" for number in range(num_files)]


def _existing_file(path: Path) -> str:
    if path.is_dir():
        raise DataError(f"{path} is a folder; give MindRecord files here, or the folder as dataset_dir")
    if not path.is_file():
        where = f"the folder {path.parent} does not exist"
        if path.parent.is_dir():
            names = listing(sorted(entry.name for entry in path.parent.iterdir()))
            where = f"its folder holds: {names or 'nothing'}"
        raise DataError(f"no such dataset file: {path} ({where})")
    return str(path)


def _natural_key(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def _read_header(path: Path) -> tuple[dict[str, tuple[str, tuple[int, ...]]], int]:
    """Columns and number of records, from the header of one file: an 8-byte length, then JSON."""
    problem = f"{path} is not a MindRecord file, or is damaged (llama_preprocess.py makes one from text)"
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length < _LARGEST_HEADER:
            raise DataError(problem)
        text = file.read(length)
    try:
        header = json.loads(text)
        fields = {name: field for part in header["schema"] for name, field in part["schema"].items()}
        columns = {name: (field["type"], tuple(field.get("shape", ()))) for name, field in fields.items()}
        rows = max((page["end_row_id"] for page in header["page"]), default=0)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(problem) from error
    if not columns:
        raise DataError(problem)
    return columns, rows


def _count_records(path: Path) -> int:
    """Rows of the index beside a file; MindSpore refuses an index that names another file."""
    index = Path(f"{path}.db")
    if not index.is_file():
        raise DataError(f"{path} has no index {index.name} beside it; copy both files, or write the dataset again")
    try:
        with closing(sqlite3.connect(f"{index.absolute().as_uri()}?mode=ro", uri=True)) as database:
            names = [row[0] for row in database.execute("SELECT NAME FROM SHARD_NAME")]
            count = database.execute("SELECT COUNT(*) FROM INDEXES").fetchone()[0]
    except sqlite3.Error as error:
        raise DataError(
            f"the index {index} is damaged ({error}); copy both files again, or write the dataset again"
        ) from error
    if path.name not in names:
        raise DataError(
            f"{path} was written as {names[0] if names else 'another file'!r}: MindRecord files cannot be "
            "renamed. "
            "Give the file and its .db their old names, or write the dataset again"
        )
    return count


def _read_meta(path: Path) -> dict[str, Any] | None:
    """The JSON beside a file, or beside the first of several (``NAME.json`` for NAME0, NAME1, ...)."""
    for candidate in (Path(f"{path}.json"), Path(re.sub(r"\d+$", "", str(path)) + ".json")):
        if candidate.is_file():
            try:
                meta = json.loads(candidate.read_text(encoding="utf-8"))
            except ValueError as error:
                raise DataError(
                    f"{candidate} is not valid JSON ({error}); delete it or write the dataset again"
                ) from error
            return meta if isinstance(meta, dict) else None
    return None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
