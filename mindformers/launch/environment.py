# SPDX-License-Identifier: Apache-2.0
"""What every process of a job finds in its environment."""

import os
import sys
from pathlib import Path

from mindformers.checkpoint.layout import OutputLayout
from mindformers.launch.plan import ROOT, Plan
from mindformers.launch.process import Spec

# Left over from another job these would make a process part of it.
_OF_JOBS = (
    "RANK_ID", "RANK_SIZE", "DEVICE_ID", "RANK_TABLE_FILE", "MS_ROLE", "MS_WORKER_NUM", "MS_LOCAL_WORKER_NUM",
    "MS_NODE_ID", "MS_SCHED_HOST", "MS_SCHED_PORT", "MS_WORKER_IP", "MINDFORMERS_OUTCOME_FILE",
)  # fmt: skip


def rank_specs(plan: Plan, output_dir: Path, target: str, port: int, extra: list[str]) -> list[Spec]:
    """The ranks of this server.

    Args:
        plan: what to start.
        output_dir: root of the run's files, absolute.
        target: CPU, Ascend or GPU.
        port: of the meeting point of CPU ranks.
        extra: words that a restart adds.
    """
    specs = []
    for index, rank in enumerate(plan.ranks):
        layout = OutputLayout(output_dir, rank)
        env = _shared(output_dir) | {"MINDFORMERS_OUTCOME_FILE": str(layout.outcome_file)}
        env["DEVICE_ID"] = str(plan.device_id)
        if plan.table is not None:
            device = plan.server.devices[index]
            env |= {"RANK_ID": str(rank), "RANK_SIZE": str(plan.size), "DEVICE_ID": str(device.device_id)}
            if target == "CPU":
                env |= _cluster(plan, port) | {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(rank)}
            else:
                env["RANK_TABLE_FILE"] = str(plan.table_path)
        words = (sys.executable, "-u", str(plan.program), *plan.program_flags(), *extra)
        specs.append(Spec(f"rank {rank}", words, env, plan.run_dir, layout.log_file, layout.outcome_file, rank))
    return specs


def scheduler_spec(plan: Plan, output_dir: Path, port: int) -> Spec:
    """MindSpore's scheduler, which CPU ranks meet at; one process on the first server."""
    env = _shared(output_dir) | _cluster(plan, port) | {"MS_ROLE": "MS_SCHED"}
    words = (sys.executable, "-u", "-m", "mindformers.launch.scheduler")
    return Spec("scheduler", words, env, plan.run_dir, OutputLayout(output_dir).scheduler_log)


def _shared(output_dir: Path) -> dict[str, str | None]:
    env: dict[str, str | None] = dict.fromkeys(_OF_JOBS)
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    env["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    env["LOCAL_DEFAULT_PATH"] = str(output_dir)
    for name, folder in (
        ("CHECKPOINT_DOWNLOAD_FOLDER", "checkpoint_download"),
        ("CHECKPOINT_SAVE_FOLDER", "checkpoint_save"),
    ):
        env[name] = os.environ.get(name) or str(output_dir.parent / folder)
    return env


def _cluster(plan: Plan, port: int) -> dict[str, str | None]:
    return {
        "MS_WORKER_NUM": str(plan.size),
        "MS_SCHED_HOST": plan.address,
        "MS_SCHED_PORT": str(port),
    }
