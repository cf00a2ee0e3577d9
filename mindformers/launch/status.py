# SPDX-License-Identifier: Apache-2.0
"""The one line that says how a run is going, rewritten on a terminal and printed now and then elsewhere."""

import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from mindformers.launch.process import Child
from mindformers.launch.report import NOISE, tail
from mindformers.tools.rank_table import spans

_TERMINAL_SECONDS, _FILE_SECONDS = 1.0, 60.0


class StatusLine:
    """Shows which ranks run, for how long, and the last line of the first rank's log.

    Args:
        stream: where to write.
    """

    def __init__(self, stream: TextIO = sys.stdout):
        self._stream = stream
        self._live = stream.isatty()
        self._next = time.monotonic() + (0 if self._live else _FILE_SECONDS)
        self._started = time.monotonic()
        self._shown = False

    def update(self, ranks: Sequence[Child]) -> None:
        """Show the present state when it is time to."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (_TERMINAL_SECONDS if self._live else _FILE_SECONDS)
        text = status_text(ranks, now - self._started)
        if self._live:
            width = shutil.get_terminal_size().columns
            self._stream.write(f"\r\033[K{text[: width - 1]}")
            self._shown = True
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        """Print a message of its own line."""
        self.clear()
        print(text, file=self._stream, flush=True)

    def clear(self) -> None:
        """Take the live line away."""
        if self._shown:
            self._stream.write("\r\033[K")
            self._shown = False


def status_text(ranks: Sequence[Child], seconds: float) -> str:
    """``[0:01:05] ranks 0-1 running | loss ...``."""
    running = [child.spec.rank for child in ranks if child.poll() is None]
    ended = [child.spec.rank for child in ranks if child.poll() is not None]
    minutes, rest = divmod(int(seconds), 60)
    state = f"ranks {spans(running)} running" if running else "no rank is running"
    if ended:
        state += f", {spans(ended)} finished"
    last = tail(ranks[0].spec.log, ranks[0].log_start, 1)
    line = last[0].rpartition(" - INFO - ")[2].strip() if last and not NOISE.match(last[0]) else "starting"
    return f"[{minutes // 60}:{minutes % 60:02d}:{rest:02d}] {state} | {line}"
