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
from tests.helpers import REPO

_SCHEDULER = "from mindspore import communication; communication.init()"


def run_ranks(count: int, command: Sequence[str], folder: Path, timeout: float = 300) -> list[str]:
    """Run a Python command as ``count`` connected ranks.

    Args:
        count: processes.
        command: what follows the interpreter.
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
    port = reserved.getsockname()[1]
    env = dict(os.environ, MS_WORKER_NUM=str(count), MS_SCHED_HOST="127.0.0.1", MS_SCHED_PORT=str(port))
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO), "GLOG_v": "3"}
    logs = [tempfile.TemporaryFile("w+") for _ in range(count + 1)]  # noqa: SIM115 - closed below
    commands = [(dict(env, MS_ROLE="MS_SCHED"), ["-c", _SCHEDULER])]
    commands += [(dict(env, MS_ROLE="MS_WORKER", MS_NODE_ID=str(rank)), list(command)) for rank in range(count)]
    processes = [
        subprocess.Popen([sys.executable, *words], cwd=folder, env=own, stdout=log, stderr=subprocess.STDOUT)
        for (own, words), log in zip(commands, logs, strict=True)
    ]
    deadline = time.monotonic() + timeout
    try:
        while any(process.poll() is None for process in processes[1:]) and time.monotonic() < deadline:
            if any(process.poll() for process in processes):
                break
            time.sleep(0.1)
    finally:
        codes = [process.poll() for process in processes]
        codes[0] = codes[0] or 0  # the scheduler looks every 5 seconds whether all have left: not waited for
        for process in processes:
            process.kill()
            process.wait()
        reserved.close()
    texts = []
    for log in logs:
        log.seek(0)
        texts.append(log.read())
        log.close()
    failed = [index for index, code in enumerate(codes) if code != 0]
    worst = next((index for index in failed if codes[index] is not None), failed[0] if failed else 0)
    assert not failed, f"exit codes {codes}; rank {worst - 1}:\n{texts[worst][-6000:]}"
    return texts[1:]
