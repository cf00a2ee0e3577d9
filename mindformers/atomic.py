# SPDX-License-Identifier: Apache-2.0
"""Files that are complete or as they were before: a temporary name beside the file, the disk, then a rename."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["flush", "replacing", "write_bytes", "write_text"]


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """The temporary name of ``path``: what the body leaves there takes the place of ``path`` when the body ends well.

    Two processes that write the same file do not meet: the name holds the process id. It begins with ``.tmp.``.

    Raises:
        OSError: the file cannot be written; an older one then stays as it was. So it does when the body raises.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp.{os.getpid()}.{path.name}")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file, or leave it as it was; errors as for :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file, or leave it as it was; errors as for :func:`replacing`."""
    write_bytes(path, text.encode("utf-8"))


def flush(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk, so that they outlive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
