# SPDX-License-Identifier: Apache-2.0
"""One process of a job: started in a session of its own, ended with everything it started, never outliving us."""

import contextlib
import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindformers.errors import ConfigError

_PR_SET_PDEATHSIG = 1
# What nohup or a shell's & made us ignore stays ignored.
STOP_SIGNALS = tuple(s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN)
_UNKILLABLE_SECONDS = 30.0
WATCHED = {*STOP_SIGNALS, signal.SIGCHLD}


@dataclass(frozen=True)
class Spec:
    """What to start.

    Args:
        name: ``rank 3`` or ``scheduler``, for messages.
        words: the command.
        env: variables to set; the value None removes one.
        cwd: folder to run in.
        log: file that gets both output streams; it is appended to.
        outcome_file: where the process says how its work ended, see :func:`mindformers.errors.run_cli`; None if it
            does not.
        rank: number in the job; None for the scheduler.
    """

    name: str
    words: tuple[str, ...]
    env: Mapping[str, str | None]
    cwd: Path
    log: Path
    outcome_file: Path | None = None
    rank: int | None = None


class Child:
    """A started process.

    Args:
        spec: what to start.

    Attributes:
        log_start: size of the log before this process wrote to it.
        fatal_signal: what ended it after it had said that its work was done; None as a rule.
    """

    def __init__(self, spec: Spec):
        self.spec = spec
        self.stopped_by_us = False
        self.fatal_signal: int | None = None
        try:
            spec.log.parent.mkdir(parents=True, exist_ok=True)
            if spec.outcome_file is not None:
                spec.outcome_file.unlink(missing_ok=True)
            log = open(spec.log, "ab")  # noqa: SIM115 - closed below, the child keeps its own
        except OSError as error:
            raise ConfigError(f"{spec.log}: cannot be written: {error.strerror or error}") from error
        with log:
            self.log_start = log.tell()
            command = shlex.join(spec.words).replace("\n", "\\n")
            log.write(f"==== {time.strftime('%Y-%m-%d %H:%M:%S')} {command}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                spec.words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=spec.cwd,
                env=merged_environment(spec.env), start_new_session=True, preexec_fn=die_with_parent(),
            )  # fmt: skip
        self.started = time.monotonic()
        self.ended: float | None = None

    @property
    def pid(self) -> int:
        """Process id, also the id of its session and process group."""
        return self._process.pid

    def poll(self) -> int | None:
        """Exit code (negative: minus the signal), or None while it runs.

        A process whose work is done and reported has ended well even when a signal ends it on its way out: MindSpore
        sometimes crashes while it leaves its cluster (docs/mindspore_notes.md).
        """
        code = self._process.poll()
        if code is None:
            return None
        if self.ended is None:
            self.ended = time.monotonic()
            if code < 0 and not self.stopped_by_us and self._outcome().get("exit_code") == 0:
                self.fatal_signal = -code
        return code if self.fatal_signal is None else 0

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return (self.ended or time.monotonic()) - self.started

    def signal_group(self, number: int) -> None:
        """Send a signal to the process and all it started."""
        self.stopped_by_us = self.stopped_by_us or self.poll() is None
        with contextlib.suppress(ProcessLookupError):  # all of them are gone
            os.killpg(self.pid, number)

    def reported_error(self) -> dict | None:
        """What the process said of the error that ended it: ``time``, ``error``, ``exit_code``."""
        outcome = self._outcome()
        return outcome if outcome.get("exit_code") else None

    def _outcome(self) -> dict:
        """What the process wrote to its outcome file; empty while it did not."""
        if self.spec.outcome_file is None or not self.spec.outcome_file.exists():
            return {}
        try:
            return json.loads(self.spec.outcome_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}


def merged_environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """Our environment with changes; None removes a variable."""
    merged = {**os.environ, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def die_with_parent() -> Callable[[], None]:
    """A ``preexec_fn``: the child gets SIGKILL when this process dies, and no blocked signals."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def setup() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return setup


def stop_all(children: Sequence[Child], grace: float) -> None:
    """End processes: SIGTERM, and SIGKILL for what is left after ``grace`` seconds (at once at a second Ctrl-C)."""
    for child in children:
        child.signal_group(signal.SIGTERM)
    deadline = time.monotonic() + grace
    while any(child.poll() is None for child in children) and (left := deadline - time.monotonic()) > 0:
        got = signal.sigtimedwait(WATCHED, min(left, 0.1))
        if got is not None and got.si_signo in STOP_SIGNALS:
            break
    for child in children:
        child.signal_group(signal.SIGKILL)  # helpers that a rank left behind too
    deadline = time.monotonic() + _UNKILLABLE_SECONDS
    while (left := [child for child in children if child.poll() is None]) and time.monotonic() < deadline:
        signal.sigtimedwait(WATCHED, 0.05)
    for child in left:
        print(
            f"note: {child.spec.name} (process {child.pid}) hangs in the kernel and cannot be killed", file=sys.stderr
        )


class Guardian:
    """A process that kills the ranks' groups when this one is killed without a chance to do it.

    SIGKILL of the supervisor reaches its children by the death signal, but not what these have started. The
    guardian holds the other end of a pipe: when it closes, every group still on its list is killed.
    """

    def __init__(self) -> None:
        reading, self._writing = os.pipe()
        os.set_inheritable(self._writing, False)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._writing)
            _guard(reading)
        os.close(reading)

    def watch(self, group: int) -> None:
        """Add a process group."""
        self._send(f"+{group}\n")

    def release(self, group: int) -> None:
        """Forget a process group: it has ended."""
        self._send(f"-{group}\n")

    def close(self) -> None:
        """End the guardian."""
        os.close(self._writing)
        os.waitpid(self.pid, 0)

    def _send(self, line: str) -> None:
        try:
            os.write(self._writing, line.encode())
        except BrokenPipeError:
            print("note: the guardian process is gone; only direct children die with the launcher", file=sys.stderr)


def _guard(reading: int) -> None:
    """The guardian's life: keep the list; at the end of the pipe kill what is on it."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    groups: set[int] = set()
    with os.fdopen(reading, encoding="ascii") as lines:
        for line in lines:
            (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except OSError:
            continue  # gone already
    os._exit(0)
