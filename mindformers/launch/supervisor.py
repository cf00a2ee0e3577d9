# SPDX-License-Identifier: Apache-2.0
"""Start the processes of one server, watch them, end them together, and start again from the last checkpoint."""

import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindformers.launch.control import Alone
from mindformers.launch.hosts import RunRecord
from mindformers.launch.process import STOP_SIGNALS, WATCHED, Child, Guardian, Spec, stop_all
from mindformers.launch.report import describe_exit, failure_report, shell_code
from mindformers.launch.status import StatusLine

USER_ERROR = 2  # exit code of a mistake in the configuration: it would fail again
_TICK = 0.2
_LAST_WORDS = 3.0  # time for a rank that reported an error to end by itself


class StoppedError(Exception):
    """The user or the system asked the launcher to stop, by the signal in ``args[0]``."""


@dataclass
class Failure:
    """Why an attempt failed: the first process, how it ended, the exit code for the shell, what to tell others."""

    child: Child | None
    reason: str
    code: int
    final: bool = False


@dataclass
class Job:
    """What a supervisor runs.

    Args:
        specs: gives the processes of an attempt; the argument says whether it resumes. A spec without a rank is
            the scheduler.
        output_dir: root of the run's files.
        record: the record of living processes.
        can_resume: whether this server has a checkpoint that the next attempt can go on from.
        prepare: called before each attempt: waits for ports, and raises when that is hopeless.
        hosts: the other servers' launchers.
        max_restarts: attempts after the first one.
        grace: seconds between SIGTERM and SIGKILL.
        advice: how to go on, for a user who stopped the job.
    """

    specs: Callable[[bool], Sequence[Spec]]
    output_dir: Path
    record: RunRecord
    can_resume: Callable[[], bool] = lambda: False
    prepare: Callable[[], None] = lambda: None
    hosts: Any = field(default_factory=Alone)
    max_restarts: int = 0
    grace: float = 5.0
    advice: str = ""


class Supervisor:
    """Runs a job to its end.

    Args:
        job: what to run.
        guardian: kills the ranks if this process is killed.

    The stop signals and SIGCHLD must be blocked: the supervisor fetches them when it is ready.
    """

    def __init__(self, job: Job, guardian: Guardian):
        self.job, self.guardian = job, guardian
        self.status = StatusLine()
        self.children: list[Child] = []
        self._waiting = ""

    def run(self) -> int:
        """The exit code for the shell: 0, that of the first rank that failed, or 128 + signal."""
        attempt, well = 0, False
        try:
            while True:
                failure = self._attempt(attempt)
                if failure is None:
                    well = True
                    self._mention_crashes()
                    return 0
                again = attempt < self.job.max_restarts and not failure.final
                self._report(failure, again)
                if not again:
                    return failure.code
                attempt += 1
        except StoppedError as stop:
            return self._give_up(stop.args[0])
        finally:
            self._end()
            self.job.hosts.close(well)

    def _give_up(self, number: int) -> int:
        name = signal.Signals(number).name
        self.status.say(f"{name}: stopping {len(self._living())} processes")
        self.job.hosts.tell_failure(f"its launcher was stopped by {name}", True)
        self._end()
        self.status.say(f"stopped{self.job.advice}")
        return 128 + number

    def _attempt(self, attempt: int) -> Failure | None:
        """One start of all processes; None when every rank ended well."""
        self.job.prepare()
        resume = self.job.hosts.gather(attempt, attempt > 0 and self.job.can_resume(), self._tick)
        self._waiting = ""
        if attempt:
            source = "from the last complete checkpoint" if resume else "from the beginning: no checkpoint is complete"
            self.status.say(f"restart {attempt} of {self.job.max_restarts}, {source}")
        self.children = []
        for spec in self.job.specs(resume):
            child = Child(spec)
            self.children.append(child)
            self.guardian.watch(child.pid)
        self.job.record.write([(child.spec.name, child.pid) for child in self.children])
        failure = self._watch()
        if failure is not None and failure.child is not None:
            final = failure.final or attempt >= self.job.max_restarts
            self.job.hosts.tell_failure(f"{failure.child.spec.name} failed: {failure.reason}", final)
        self._end()
        return failure

    def _watch(self) -> Failure | None:
        """Wait until every rank has ended, or one of them, the scheduler or another server has failed."""
        ranks = [child for child in self.children if child.spec.rank is not None]
        while True:
            failed = [child for child in self.children if child.poll()]
            reported = [child for child in ranks if child.reported_error()]
            if failed or reported:
                return self._find_first(failed, reported)
            if all(child.poll() == 0 for child in ranks):
                return None
            trouble = self.job.hosts.trouble()
            if trouble is not None:
                return Failure(None, f"another server failed: {trouble[0]}", 1, trouble[1])
            self._fetch_signal(_TICK)
            self.status.update(ranks)

    def _find_first(self, failed: Sequence[Child], reported: Sequence[Child]) -> Failure:
        """Who began it: the earliest error report; else a kill; else a rank before the scheduler."""
        deadline = time.monotonic() + _LAST_WORDS
        killed = [child for child in failed if child.poll() < 0]
        if not killed:
            # An error in one rank ends the others within moments: give the one that began time to say so.
            pause = time.monotonic() + 2 * _TICK
            while time.monotonic() < pause:
                self._fetch_signal(_TICK)
            reported = [child for child in self.children if child.reported_error()]
        if reported and not killed:
            first = min(reported, key=lambda child: child.reported_error().get("time", 0.0))
            while first.poll() is None and time.monotonic() < deadline:
                self._fetch_signal(0.1)
            code = first.poll()
            code = code if code else int(first.reported_error().get("exit_code", 1))
        else:
            order = [*killed, *sorted(failed, key=lambda child: child.spec.rank is None)]
            first = order[0]
            code = first.poll()
        # Processes that did not find each other may do so another time; a wrong configuration stays wrong.
        error = (first.reported_error() or {}).get("error", "")
        final = code == USER_ERROR and not error.startswith("DeviceError")
        return Failure(first, describe_exit(code), shell_code(code), final)

    def _mention_crashes(self) -> None:
        for child in self.children:
            if child.fatal_signal is not None:
                how = describe_exit(-child.fatal_signal)
                self.status.say(f"note: {child.spec.name} had finished its work and was {how} on its way out")

    def _report(self, failure: Failure, again: bool) -> None:
        if failure.child is None:
            text = failure.reason
        else:
            others = [child for child in self.children if child is not failure.child]
            text = failure_report(failure.child, failure.reason, others, self.job.output_dir / "log")
        self.status.clear()
        print(f"{'' if again else 'error: '}{text}", file=sys.stderr, flush=True)

    def _living(self) -> list[Child]:
        return [child for child in self.children if child.poll() is None]

    def _end(self) -> None:
        """End every process.

        When all ranks ended well, the scheduler of several servers may leave by itself: others may still need it. That
        of one server is not waited for: it looks every 5 seconds only whether all have left.
        """
        ranks = [child for child in self.children if child.spec.rank is not None]
        if ranks and all(child.poll() == 0 for child in ranks) and not self.job.hosts.alone:
            deadline = time.monotonic() + 2 * self.job.grace
            while self._living() and time.monotonic() < deadline:
                self._fetch_signal(0.1)
        stop_all(self.children, self.job.grace)
        for child in self.children:
            self.guardian.release(child.pid)
        if self.children:
            self.job.record.write([])

    def _tick(self, waiting: str) -> None:
        """Called while other servers are waited for."""
        if waiting != self._waiting:
            self.status.say(waiting)
            self._waiting = waiting
        self._fetch_signal(_TICK)

    @staticmethod
    def _fetch_signal(seconds: float) -> None:
        got = signal.sigtimedwait(WATCHED, seconds)
        if got is not None and got.si_signo in STOP_SIGNALS:
            raise StoppedError(got.si_signo)
