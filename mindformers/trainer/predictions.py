# SPDX-License-Identifier: Apache-2.0
"""The file of generated texts: written line by line, complete or resumable, never mixed from two runs."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mindformers.atomic import write_text
from mindformers.errors import DataError
from mindformers.tools.logger import get_logger

__all__ = ["PredictionStore"]

logger = get_logger(__name__)

_VERSION = 1


class PredictionStore:
    """JSON Lines in the order of the records, made in any order.

    While a run goes on, finished records are appended to ``NAME.partial`` in the order in which they are made; at the
    end they are put in order and become ``NAME``. ``NAME.json`` says which run they come from and is written first.
    A run that was killed leaves whole lines and perhaps a torn last one, which is dropped.

    Args:
        path: NAME.
        run: what the texts depend on (digests of weights, data, settings), as JSON values. Texts of a run that
            differs in any of them are refused.
        resume: False throws away what an earlier run left.

    Raises:
        DataError: the file belongs to another run, or is not one of ours.
    """

    def __init__(self, path: str | Path, run: Mapping[str, Any], resume: bool = True) -> None:
        self.path = Path(path)
        self.done: dict[int, dict[str, Any]] = {}
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._about = self.path.with_name(self.path.name + ".json")
        self._run = {"version": _VERSION, **run}
        if self.path.is_dir():
            raise DataError(f"predictions_file {self.path} is a folder: give the name of a file")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if resume:
                self._take_over()
            else:
                for file in (self.path, self._partial, self._about):
                    file.unlink(missing_ok=True)
            write_text(self._about, json.dumps(self._run, indent=1) + "\n")
        except OSError as error:
            raise DataError(f"predictions cannot be written to {self.path}: {error}") from error

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Keep finished records, safe on the disk when this returns.

        Args:
            records: mappings with ``index``, the number of the record in the data.
        """
        with open(self._partial, "a", encoding="utf-8") as file:
            file.writelines(_line(record) for record in records)
            file.flush()
            os.fsync(file.fileno())
        self.done.update((record["index"], record) for record in records)

    def finish(self) -> list[dict[str, Any]]:
        """All records in the order of the data; the file gets its name."""
        ordered = [self.done[index] for index in sorted(self.done)]
        if self._partial.exists() or not self.path.exists():
            write_text(self.path, "".join(map(_line, ordered)))
            self._partial.unlink(missing_ok=True)
        return ordered

    def _take_over(self) -> None:
        """Read what an earlier run of the same kind left."""
        left = [file for file in (self.path, self._partial) if file.exists()]
        if left and not self._about.exists():
            raise DataError(
                f"{left[0]} exists and has no {self._about.name} beside it that says which run made it. "
                "Move it away, or choose another name: --metric.predictions_file FILE"
            )
        if not self._about.exists():
            return
        self._compare()
        for file in left:
            self.done.update((record["index"], record) for record in _read(file, torn=file == self._partial))
        if self.done:
            logger.info("%d finished predictions are taken from %s", len(self.done), left[0])

    def _compare(self) -> None:
        try:
            theirs = json.loads(self._about.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{self._about} is not JSON ({error}); delete it and {self.path.name}*") from error
        theirs = theirs if isinstance(theirs, dict) else {}
        differing = [key for key in {**theirs, **self._run} if theirs.get(key) != self._run.get(key)]
        if differing:
            lines = [f"  {key}: {_short(theirs.get(key))} there, {_short(self._run.get(key))} now" for key in differing]
            raise DataError(
                f"{self.path} holds predictions of another run:\n" + "\n".join(lines) + "\n"
                f"Delete {self.path.name}* to generate anew, or choose another name: --metric.predictions_file FILE"
            )


# Characters that some readers take for the end of a line.
_LINE_ENDS = str.maketrans({char: f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"})


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False).translate(_LINE_ENDS) + "\n"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _read(path: Path, torn: bool) -> list[dict[str, Any]]:
    """The records of a file; a last line that was not finished is cut off where ``torn`` allows one."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if torn and end < len(content):
        with open(path, "r+b") as file:
            file.truncate(end)
        content = content[:end]
    records = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            record = json.loads(line)
            if not isinstance(record["index"], int) or not isinstance(record["prediction"], str):
                raise ValueError("no index or prediction")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}:{number}: not a line of predictions ({error}); delete {path}") from error
        records.append(record)
    return records
