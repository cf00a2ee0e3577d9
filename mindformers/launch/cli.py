# SPDX-License-Identifier: Apache-2.0
"""The command behind the scripts: check everything that can be checked here, then hand over to the supervisor."""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mindformers.checkpoint.agree import common_step, complete_steps, saving_options
from mindformers.checkpoint.layout import OutputLayout
from mindformers.config import RunConfig
from mindformers.config.cli import parse_command_line
from mindformers.errors import ConfigError
from mindformers.launch import control
from mindformers.launch.environment import rank_specs, scheduler_spec
from mindformers.launch.hosts import PORT_SECONDS, RunRecord, reserve_port, wait_for_port
from mindformers.launch.plan import (
    DEFAULT_PORT,
    DISTRIBUTE_USAGE,
    OPTIONS_USAGE,
    STANDALONE_USAGE,
    Plan,
    check_target,
    make_plan,
)
from mindformers.launch.process import WATCHED, Guardian, Spec
from mindformers.launch.report import tail
from mindformers.launch.supervisor import Job, Supervisor
from mindformers.tools.rank_table import spans

_USAGE = {"distribute": DISTRIBUTE_USAGE, "standalone": STANDALONE_USAGE}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a job on this server.

    Args:
        argv: ``distribute`` or ``standalone``, then the arguments of the script; None takes those of the process.

    Returns:
        The exit code: 0, that of the first rank that failed, or 128 + the signal that ended it.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in _USAGE:
        raise ConfigError(f"what to launch: distribute or standalone\n{DISTRIBUTE_USAGE}\n{STANDALONE_USAGE}")
    kind, words = words[0], words[1:]
    if any(word in ("-h", "--help") for word in words):
        print(f"{_USAGE[kind]}\n{OPTIONS_USAGE}")
        return 0
    plan = make_plan(kind, words, Path.cwd())
    os.chdir(plan.run_dir)
    config = parse_command_line(plan.program_flags(), ranks=plan.size)
    _require_weights(plan, config)
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for note in check_target(plan, config.context.device_target):
        print(note, file=sys.stderr)
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    guardian = Guardian()  # before any file is open, so that it holds none
    try:
        return _launch(plan, config, guardian)
    finally:
        guardian.close()


def _require_weights(plan: Plan, config: RunConfig) -> None:
    """An evaluation or a prediction without weights ends here, not seconds later in every rank."""
    given = config.load_checkpoint or config.adapter_checkpoint or config.model.config.checkpoint_name_or_path
    if config.run_mode in ("eval", "predict") and not given and not plan.options.script:
        raise ConfigError(f"run_mode {config.run_mode} needs weights: give --load_checkpoint FILE (or a cluster's DIR)")


def _launch(plan: Plan, config: RunConfig, guardian: Guardian) -> int:
    output_dir = Path(config.output_dir).resolve()
    record = RunRecord(OutputLayout(output_dir, plan.ranks.start).launch_file)
    try:
        if record.leftover:
            print("note: the run before this one did not end cleanly; none of its processes is left", file=sys.stderr)
        job = make_job(plan, config, output_dir, record)
        logs = output_dir / "log"
        print(
            f"{plan.mode}: {plan.size} rank(s), here {spans(plan.ranks)}; logs: {logs}/rank_*/mindformer.log",
            flush=True,
        )
        started = time.monotonic()
        code = Supervisor(job, guardian).run()
        if code == 0:
            _say_success(plan, output_dir, time.monotonic() - started)
        return code
    finally:
        record.close()


def make_job(plan: Plan, config: RunConfig, output_dir: Path, record: RunRecord) -> Job:
    """A plan and its config as something to supervise.

    Ranks of one server meet at a port of their own unless a port was asked for, so that jobs side by side do not
    collide; it stays reserved as long as the job lives.

    Args:
        plan: what to start.
        config: the checked config of the run.
        output_dir: root of the run's files, absolute.
        record: of the living processes.
    """
    target, started = config.context.device_target, time.time()
    uses_scheduler = plan.table is not None and target == "CPU"
    port = plan.options.port
    if port is None:
        port = DEFAULT_PORT if plan.other_servers else 0
    if port == 0 and plan.other_servers:
        raise ConfigError("--port 0 (any free port) is for one server: all servers must know the port")
    reserved = reserve_port(plan.address) if uses_scheduler and port == 0 else None
    if reserved is not None:
        port = reserved.getsockname()[1]
    prefix, directory = saving_options(config)
    trains = prefix is not None and config.run_mode in ("train", "finetune")
    saved_in = Path(directory).resolve() if directory else output_dir

    def specs(resume: bool) -> list[Spec]:
        extra = ["--load_checkpoint", str(saved_in), "--resume_training", "True"] if resume else []
        ranks = rank_specs(plan, output_dir, target, port, extra)
        return [scheduler_spec(plan, output_dir, port), *ranks] if uses_scheduler and plan.is_head else ranks

    def can_resume() -> bool:
        since = 0.0 if config.resume_training else started
        if not trains:
            return False
        steps = [complete_steps(OutputLayout(saved_in, rank).checkpoint_dir, prefix, since) for rank in plan.ranks]
        return common_step(steps) is not None

    def prepare() -> None:
        if uses_scheduler and plan.is_head and not reserved:
            wait_for_port(plan.address, port, PORT_SECONDS)

    options = plan.options
    hosts = _hosts(plan, config, port)
    advice = "; the same command with --resume_training True goes on from the last checkpoint" if trains else ""
    return Job(specs, output_dir, record, can_resume, prepare, hosts, options.max_restarts, options.grace, advice)


def _hosts(plan: Plan, config: RunConfig, port: int) -> Any:
    if not plan.other_servers:
        return control.Alone()
    values = config.to_dict()
    values.pop("output_dir")
    settings = {
        "rank table": _digest(plan.table.to_json()),
        "config": _digest(json.dumps(values, sort_keys=True, default=str)),
        "number of restarts": str(plan.options.max_restarts),
    }
    identity = control.Identity(plan.ranks.start, settings)
    if not plan.is_head:
        return control.Member(plan.address, port + 1, identity)
    others = {server.ranks.start: server.server_id for server in plan.table.servers[1:]}
    return control.Head(plan.address, port + 1, identity, others)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _say_success(plan: Plan, output_dir: Path, seconds: float) -> None:
    first = OutputLayout(output_dir, plan.ranks.start).log_file
    if plan.mode in ("eval", "predict"):
        for line in tail(first, lines=6):
            print(f"  | {line}")
    print(f"all {len(plan.ranks)} rank(s) finished well in {seconds:.0f} s; log of the first: {first}", flush=True)
