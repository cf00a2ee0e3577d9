# SPDX-License-Identifier: Apache-2.0
"""Starts the ranks of a small CPU job without the launcher."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mindformers.launch.hosts import reserve_port
from mindformers.launch.process import Child, Spec, stop_all
from tests.helpers import REPO

_SCHEDULER = "from mindspore import communication; communication.init()"


def run_ranks(count: int, command: Sequence[str], folder: Path, timeout: float = 300) -> list[str]:
    """Run a Python command as ``count`` connected ranks.

    Args:
        count: processes.
        command: what follows the interpreter; it leaves by :func:`mindformers.errors.run_cli`.
        folder: working directory.
        timeout: seconds until all are killed.

    Returns:
        The output of each rank. The calling test fails with the output of the first rank that fails.
    """
    if count == 1:  # a job of its own, unconnected
        done = subprocess.run([sys.executable, *command], cwd=folder, env=dict(os.environ, PYTHONPATH=str(REPO)),
                              text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout)  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:]
        return [done.stdout]
    reserved = reserve_port("127.0.0.1")
    env = {"MS_WORKER_NUM": str(count), "MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": str(reserved.getsockname()[1])}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO), "GLOG_v": "3"}
    with tempfile.TemporaryDirectory() as place:
        scheduler, *ranks = [Child(spec) for spec in _specs(count, command, env, folder, Path(place))]
        deadline = time.monotonic() + timeout
        try:
            while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
                if any(child.poll() for child in (scheduler, *ranks)):
                    break
                time.sleep(0.1)
        finally:
            # The scheduler looks every 5 seconds whether all have left: it is not waited for.
            codes = [scheduler.poll() or 0, *(rank.poll() for rank in ranks)]
            stop_all((scheduler, *ranks), 0)
            reserved.close()
        texts = [child.spec.log.read_text(encoding="utf-8") for child in (scheduler, *ranks)]
    failed = [index for index, code in enumerate(codes) if code != 0]
    worst = next((index for index in failed if codes[index] is not None), failed[0] if failed else 0)
    assert not failed, f"exit codes {codes}; rank {worst - 1}:\n{texts[worst][-6000:]}"
    return texts[1:]


def _specs(count: int, command: Sequence[str], env: dict[str, str], folder: Path, place: Path) -> list[Spec]:
    """The scheduler and the ranks; logs and outcomes go to ``place``."""
    words = (sys.executable, "-c", _SCHEDULER)
    specs = [Spec("scheduler", words, env | {"MS_ROLE": "MS_SCHED"}, folder, place / "scheduler.log")]
    for rank in range(count):
        outcome = place / f"{rank}.json"
        own = env | {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(rank), "MINDFORMERS_OUTCOME_FILE": str(outcome)}
        specs.append(
            Spec(f"rank {rank}", (sys.executable, *command), own, folder, place / f"{rank}.log", outcome, rank)
        )
    return specs
