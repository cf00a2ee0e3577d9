# SPDX-License-Identifier: Apache-2.0
"""Ranks that wait for each other by files, so that the one which fails or hangs is named, not waited for in silence."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from mindformers.atomic import write_text
from mindformers.errors import CheckpointError, MindFormersError

__all__ = ["Meeting"]

_LOOK_AGAIN = 0.2  # seconds


class Meeting:
    """One run's ranks.

    Args:
        folder: a folder that all ranks see.
        rank: this process.
        ranks: how many there are; alone, nobody waits and nothing is written.
        token: the same for all ranks of this run, another for each run: what earlier runs left does not count.
        timeout: seconds to wait for the last rank; 0 does not wait (machines without a common folder).
    """

    def __init__(self, folder: Path, rank: int, ranks: int, token: str, timeout: float) -> None:
        self.folder, self.rank, self.ranks, self.token, self.timeout = folder, rank, ranks, token, timeout
        if self._meets:
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob(f"*.rank_{rank}"):
                if not old.name.startswith(f"{token}."):
                    old.unlink(missing_ok=True)

    @property
    def _meets(self) -> bool:
        return self.ranks > 1 and self.timeout > 0

    def _event(self, what: str, rank: int) -> Path:
        return self.folder / f"{self.token}.{what}.rank_{rank}"

    def _tell(self, what: str, problem: str) -> None:
        write_text(self._event(what, self.rank), problem)

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Do something that all ranks do, and leave when all have done it.

        Args:
            what: it is, one word; for the names of the files and for messages ("load").

        Raises:
            CheckpointError: another rank failed, or did not come in time; says which.
        """
        try:
            yield
        except MindFormersError as error:
            if self._meets:
                self._tell(what, str(error) or type(error).__name__)
            raise
        if self._meets:
            self._tell(what, "")
            self._wait(what)

    def _wait(self, what: str) -> None:
        begin = time.monotonic()
        missing = list(range(self.ranks))
        while True:
            for rank in list(missing):
                event = self._event(what, rank)
                if event.exists():
                    problem = event.read_text(encoding="utf-8")
                    if problem:
                        raise CheckpointError(f"rank {rank} could not {what} the checkpoint: {problem}")
                    missing.remove(rank)
            if not missing:
                return
            if time.monotonic() - begin > self.timeout:
                named = ", ".join(map(str, missing[:8])) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
                raise CheckpointError(
                    f"rank {self.rank} waited {self.timeout:.0f} s for rank {named} to {what} the checkpoint: look at "
                    f"the log of rank {missing[0]}. All ranks must see {self.folder}; where they do not, set "
                    "auto_trans_timeout to 0"
                )
            time.sleep(_LOOK_AGAIN)
