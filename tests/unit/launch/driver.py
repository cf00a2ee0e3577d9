# SPDX-License-Identifier: Apache-2.0
"""Runs a supervisor over small programs, as the launcher runs it over ranks: ``python driver.py JOB.json``."""

import json
import signal
import sys
from pathlib import Path

from mindformers.launch.control import Alone, Head, Identity, Member
from mindformers.launch.hosts import RunRecord
from mindformers.launch.process import WATCHED, Guardian, Spec
from mindformers.launch.supervisor import Job, Supervisor


def main(path: str) -> int:
    """Run the job of a JSON file; the exit code of the supervisor."""
    job = json.loads(Path(path).read_text())
    folder = Path(path).parent
    out = folder / "out"

    def specs(resume: bool) -> list[Spec]:
        env = {"RESUME": str(resume), "PLACE": str(folder)}
        found = []
        for name, code in job["programs"].items():
            rank = int(name.split()[1]) if name.startswith("rank") else None
            outcome_file = folder / f"{name}.outcome"
            words = (sys.executable, "-S", "-c", code)
            changes = env | {"MINDFORMERS_OUTCOME_FILE": str(outcome_file)}
            found.append(Spec(name, words, changes, folder, folder / f"{name}.log", outcome_file, rank))
        return found

    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    guardian = Guardian()
    record = RunRecord(out / "log" / "launch.json")
    hosts = Alone()
    if "head" in job:
        identity = Identity(0, {})
        hosts = Head("127.0.0.1", job["head"], identity, {int(k): v for k, v in job["others"].items()})
    if "member" in job:
        hosts = Member("127.0.0.1", job["member"], Identity(job["first_rank"], {}))
    supervisor = Supervisor(
        Job(specs, out, record, lambda: (folder / "saved").exists(), hosts=hosts, **job.get("options", {})), guardian
    )
    try:
        return supervisor.run()
    finally:
        record.close()
        guardian.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
