# SPDX-License-Identifier: Apache-2.0
"""A function applied to a stream of items by several processes, results in order."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from mindformers.errors import DataError

__all__ = ["ordered_map"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    items: Iterable[Item], factory: Callable[[], Callable[[Item], Result]], num_workers: int
) -> Iterator[Result]:
    """Apply a function to every item.

    Args:
        items: read only as fast as they are worked on.
        factory: makes the function, once in each worker (it loads a tokenizer, for instance); it and the items can be
            pickled.
        num_workers: a thread of this process, which begins at once, and a process for each worker more, which takes
            part as soon as it has started.

    Yields:
        One result per item, in order.

    Raises:
        DataError: a process died.
    """
    pending: deque[Future[Result]] = deque()
    with ExitStack() as stack:
        workers = [stack.enter_context(_thread(factory))]
        if num_workers > 1:
            workers.insert(0, stack.enter_context(_processes(factory, num_workers - 1)))
        try:
            for item in items:
                while len(pending) > 4 * num_workers or not any(worker.free() for worker in workers):
                    yield pending.popleft().result()
                pending.append(next(worker for worker in workers if worker.free()).submit(item))
                while pending and pending[0].done():
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "a tokenizing process died, perhaps for lack of memory; try a smaller --num_workers"
            ) from error


class _Worker:
    """An executor that is given two items at a time for each of its threads or processes."""

    def __init__(self, executor: Executor, function: Callable, size: int, ready: Callable[[], bool]) -> None:
        self._executor = executor
        self._function = function
        self._most = 2 * size
        self._ready = ready
        self._running: list[Future[Any]] = []

    def free(self) -> bool:
        self._running = [future for future in self._running if not future.done()]
        return len(self._running) < self._most and self._ready()

    def submit(self, item: Any) -> "Future[Any]":
        self._running.append(self._executor.submit(self._function, item))
        return self._running[-1]


@contextmanager
def _thread(factory: Callable[[], Callable]) -> Iterator[_Worker]:
    executor = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
    try:
        yield _Worker(executor, factory(), 1, lambda: True)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _processes(factory: Callable[[], Callable], count: int) -> Iterator[_Worker]:
    context = multiprocessing.get_context("spawn")  # MindSpore's threads do not survive a fork
    executor = ProcessPoolExecutor(count, context, _start_process, (factory,))
    try:
        started = [executor.submit(os.getpid) for _ in range(count)]
        yield _Worker(executor, _call, count, lambda: any(future.done() for future in started))
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


_function: Callable[[Any], Any] | None = None


def _start_process(factory: Callable[[], Callable]) -> None:
    """Make the function once per process; leave when the parent is gone (even by kill -9)."""
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _function = factory()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(item: Any) -> Any:
    assert _function is not None
    return _function(item)
