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
from contextlib import contextmanager
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
        num_workers: 1 works in a thread of this process, more in that many processes.

    Yields:
        One result per item, in order.

    Raises:
        DataError: a process died.
    """
    pending: deque[Future[Result]] = deque()
    with _submitter(factory, num_workers) as submit:
        try:
            for item in items:
                pending.append(submit(item))
                if len(pending) > 2 * num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "a tokenizing process died, perhaps for lack of memory; try a smaller --num_workers"
            ) from error


@contextmanager
def _submitter(factory: Callable[[], Callable], num_workers: int) -> Iterator[Callable[[Any], "Future[Any]"]]:
    """The function that hands one item to a worker."""
    executor: Executor
    if num_workers == 1:
        executor = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        function = factory()

        def submit(item: Any) -> "Future[Any]":
            return executor.submit(function, item)
    else:
        context = multiprocessing.get_context("spawn")  # MindSpore's threads do not survive a fork
        executor = ProcessPoolExecutor(num_workers, context, _start_process, (factory,))

        def submit(item: Any) -> "Future[Any]":
            return executor.submit(_call, item)

    try:
        yield submit
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
