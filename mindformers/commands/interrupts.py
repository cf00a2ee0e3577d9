# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C that stops a reply and not the program.

When MindSpore has run or compiled a graph, a handler of its own is in Python's place, and that one ends the process.
So SIGINT is blocked in all threads (a thread inherits the mask of the one that starts it, hence: before MindSpore is
imported), and one thread waits for it and says what it means at that moment.
"""

import _thread
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["Interrupts"]

Result = TypeVar("Result")
_WAKE = signal.SIGUSR1  # sent to the waiting thread alone, to end it


class Interrupts:
    """A context in which SIGINT does this: during :meth:`reply` the first sets ``requested``; during :meth:`held` it
    waits; during :meth:`reading`, and at any other time, it raises KeyboardInterrupt in the main thread, where this is
    to be used.
    """

    def __init__(self) -> None:
        self.requested = False
        self._replying = False
        self._held = False
        self._ended = False
        self._thread = threading.Thread(target=self._wait, name="ctrl-c", daemon=True)

    def __enter__(self) -> "Interrupts":
        self._before = signal.getsignal(signal.SIGINT)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, _WAKE})
        self._thread.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {_WAKE})
        return self

    def __exit__(self, *error: object) -> None:
        self._ended = True
        signal.pthread_kill(self._thread.ident, _WAKE)
        self._thread.join()
        signal.signal(signal.SIGINT, self._before or signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    @contextmanager
    def reply(self) -> Iterator[None]:
        """The first SIGINT sets ``requested``; a second one, when that is not heeded, breaks in."""
        self.requested, self._replying = False, True
        try:
            yield
        finally:
            self._replying = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """SIGINT has its effect at the end: an import that is broken off leaves MindSpore unable even to exit."""
        self.requested, self._held = False, True
        try:
            yield
        finally:
            self._held = False
        if self.requested:
            raise KeyboardInterrupt

    def reading(self, read: Callable[[], Result]) -> Result:
        """What ``read`` returns; SIGINT reaches the system call it waits in."""
        signal.signal(signal.SIGINT, signal.default_int_handler)  # MindSpore leaves its own behind
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        try:
            return read()
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def _wait(self) -> None:
        while signal.sigwait({signal.SIGINT, _WAKE}) == signal.SIGINT and not self._ended:
            if self._held or (self._replying and not self.requested):
                self.requested = True
            else:
                _thread.interrupt_main()
