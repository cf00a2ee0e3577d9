# SPDX-License-Identifier: Apache-2.0
"""Shared by the launcher's tests: jobs of small programs, and looking at what is alive."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mindformers.launch.hosts import birth
from tests.helpers import REPO

DRIVER = Path(__file__).with_name("driver.py")
# Writes its own pid and that of a child that would live on, then does something.
START = """
import os, signal, subprocess, sys, time
place = os.environ["PLACE"]
def note(name, number):
    with open(f"{place}/{name}.tmp", "w") as file:
        file.write(str(number))
    os.replace(f"{place}/{name}.tmp", f"{place}/{name}")
helper = subprocess.Popen(["sleep", "600"])
note(f"helper{NUMBER}", helper.pid)
note(f"pid{NUMBER}", os.getpid())
"""


def program(number: int, body: str) -> str:
    """Code of a rank: it starts a helper process, notes both pids, and goes on with ``body``."""
    return START.replace("{NUMBER}", str(number)) + body


SLEEP = "time.sleep(600)"


class Running:
    """A supervisor in a process of its own over the given programs.

    Args:
        folder: its files.
        programs: name -> code; ``rank N`` or ``scheduler``.
        extra: further entries of the job.
        options: of :class:`mindformers.launch.supervisor.Job`.
    """

    def __init__(self, folder: Path, programs: dict[str, str], extra: dict | None = None, **options):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        job = {"programs": programs, "options": {"grace": 2.0, **options}, **(extra or {})}
        (folder / "job.json").write_text(json.dumps(job))
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER), str(folder / "job.json")],
            env=os.environ | {"PYTHONPATH": str(REPO)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pids(self, *numbers: int) -> list[int]:
        """Processes of ranks and of their helpers, once all have started."""
        found = []
        for name in [f"{kind}{number}" for number in numbers for kind in ("helper", "pid")]:
            wait_until(lambda name=name: (self.folder / name).exists())
            found.append(int((self.folder / name).read_text()))
        return found

    def end(self) -> tuple[int, str, str]:
        """Exit code and both outputs."""
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for something that happens soon."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def alive(pids: list[int]) -> list[int]:
    """Those processes that still run."""
    return [pid for pid in pids if birth(pid) is not None]
