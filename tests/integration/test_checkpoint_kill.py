# SPDX-License-Identifier: Apache-2.0
"""kill -9 at random instants of a save: the newest complete checkpoint always loads and is what was saved."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers import REPO


@pytest.mark.slow
def test_kill_in_the_middle_of_saving(tmp_path):
    """24 kills over both formats; most of them must really hit a save that is under way."""
    script = REPO / "tests" / "integration" / "checkpoint_killer.py"
    environ = {**os.environ, "PYTHONPATH": str(REPO), "MINDFORMERS_LOG_LEVEL": "ERROR"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "24", "5"],
        capture_output=True,
        text=True,
        timeout=900,
        env=environ,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["trials"] == 24
    assert result["hits"] >= 3, result
