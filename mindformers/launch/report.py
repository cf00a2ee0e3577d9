# SPDX-License-Identifier: Apache-2.0
"""What the launcher says about a failed run: who was first, why it probably was, and where to read on."""

import os
import re
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path

from mindformers.launch.process import Child

TAIL_LINES = 12
_TAIL_BYTES = 64 << 10
NOISE = re.compile(r"\[(INFO|WARNING)\] [A-Z_]+\(|==== ")

# (what stands in the log, what it means, what to do); docs/launch.md explains the same rows. The codes of HCCL are
# those of Huawei's "HCCL Errors", https://www.hiascend.com/document/detail/en/canncommercial/800/maintenref/troubleshooting/
# atlaserrorcode_15_0242.html (EI0002), _0244 (EI0004), _0246 (EI0006); EJ0001 as quoted in a log of
# https://github.com/hiyouga/LlamaFactory/issues/3839. None of them could be provoked here.
HINTS: tuple[tuple[str, str, str], ...] = (
    (
        r"EJ0001|last training process is running",
        "processes of an earlier run still hold the NPU",
        "npu-smi info lists them; end them, wait 10 seconds, start again",
    ),
    (
        r"EI0006|[Gg]etting socket times out",
        "a rank could not reach another one within HCCL_CONNECT_TIMEOUT",
        "look for the first error in the logs of the other ranks; if all say this more than 120 s apart, raise that "
        "variable; check the links between the nodes",
    ),
    (
        r"EI0002|Notify register.*times? ?out|[Tt]ime ?out occurs when the Notify register",
        "a rank waited in vain for another one in a collective operation, longer than HCCL_EXEC_TIMEOUT",
        "look for an earlier error in the logs of the other ranks; all must have the same number of records; a rank "
        "that is only slow (saving, for instance) needs a larger HCCL_EXEC_TIMEOUT",
    ),
    (
        r"EI0004|rank ?[tT]able.*(invalid|not.*found)",
        "HCCL does not accept the rank table",
        "python -m mindformers rank-table check FILE; it must be the same on all servers",
    ),
    (
        r"MemoryError|Allocate memory failed|[Oo]ut of [Mm]emory|cannot allocate memory",
        "the memory of a device or of the host is used up",
        "a smaller runner_config.batch_size, recompute, or more model_parallel or pipeline_stage",
    ),
    (r"No space left on device", "a disk is full", "free space below output_dir; the checkpoint before is intact"),
    (
        r"libascendcl|libge_runner|ASCEND_OPP_PATH|no usable Ascend",
        "CANN is not installed, or its environment is not set",
        "source set_env.sh of CANN; on a machine without NPUs: --device_target CPU",
    ),
    (
        r"Failed to call bind.*in use",
        "another program listens on the port where the ranks meet",
        "the same command again with --port N, on every server; who holds it: ss -ltnp",
    ),
    (
        r"[Tt]opology build timed out(?!., retry)|BuildCluster.*failed|Failed to register",
        "the ranks did not all meet at the first server",
        "start the command of every server; check the address and --port between them",
    ),
)


def describe_exit(code: int) -> str:
    """``exit code 2`` or ``killed by SIGKILL``."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def shell_code(code: int) -> int:
    """The exit code a shell would show; never 0 for a failure."""
    return 128 - code if code < 0 else code or 1


def tail(path: Path, start: int = 0, lines: int = TAIL_LINES) -> list[str]:
    """The last lines of a log, from byte ``start`` on; MindSpore's notices only when there is nothing else."""
    try:
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    found = [line.rstrip().rpartition("\r")[2] for line in text.split("\n") if line.strip()]
    telling = [line for line in found if not NOISE.match(line)]
    return (telling or found)[-lines:]


def hint_for(text: str) -> str | None:
    """Meaning and remedy of a known message in a log."""
    for pattern, meaning, remedy in HINTS:
        if re.search(pattern, text):
            return f"probably {meaning}; {remedy}"
    return None


def failure_report(first: Child, reason: str, others: Sequence[Child], logs: Path) -> str:
    """The text about a failed run.

    Args:
        first: who failed first.
        reason: how it ended.
        others: the other processes, all ended.
        logs: the folder of the logs.
    """
    last = tail(first.spec.log, first.log_start)
    error = str((first.reported_error() or {}).get("error", "")).partition("\n")[0]
    lines = [f"{first.spec.name} failed first: {reason}, after {first.seconds:.0f} s" + (error and f": {error[:300]}")]
    if "SIGKILL" in reason:
        lines.append("  if nobody did that by hand, the system ran out of memory: dmesg | grep -i 'out of memory'")
    hint = hint_for("\n".join(tail(first.spec.log, first.log_start, 400)))
    if hint:
        lines.append(f"  {hint}")
    lines.append(f"  last lines of {first.spec.log}:")
    lines += [f"    | {line[:400]}" for line in last] or ["    | (nothing)"]
    alone = [child for child in others if not child.stopped_by_us and child.poll()]
    stopped = [child for child in others if child.stopped_by_us]
    if alone:
        listed = ", ".join(f"{child.spec.name} ({describe_exit(child.poll())})" for child in alone)
        lines.append(f"ended after it: {listed}")
    if stopped:
        lines.append(f"stopped by the launcher: {_names(stopped)}")
    lines.append(f"all logs: {logs}/rank_*/mindformer.log")
    return "\n".join(lines)


def _names(children: Iterable[Child]) -> str:
    return ", ".join(child.spec.name for child in children)
