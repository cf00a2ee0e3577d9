# SPDX-License-Identifier: Apache-2.0
"""Tokenizing blocks of text in several processes, results in order."""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mindformers.errors import DataError
from mindformers.tools.sentencepiece_model import load_sentencepiece

__all__ = ["TokenBlock", "TokenizerFile", "tokenize_blocks"]


class TokenBlock(NamedTuple):
    """Tokens of one block of text: ids as int32 of shape (tokens,), and what was in the block."""

    ids: np.ndarray
    paragraphs: int
    headings: int


@dataclass(frozen=True)
class TokenizerFile:
    """A SentencePiece model file, and the facts a dataset remembers of it."""

    path: str
    vocab_size: int
    bos_id: int
    eos_id: int
    sha256: str

    @classmethod
    def open(cls, path: str | Path) -> "TokenizerFile":
        """Check the file.

        Raises:
            DataError: it cannot be used, or the model defines no bos or eos.
        """
        model = load_sentencepiece(path)
        if model.bos_id() < 0 or model.eos_id() < 0:
            raise DataError(f"{path} defines no bos or eos piece; Llama needs both (train it with bos_id=1, eos_id=2)")
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return cls(str(path), model.get_piece_size(), model.bos_id(), model.eos_id(), digest)


Splitter = Callable[[str], tuple[list[str], int]]


def tokenize_blocks(
    blocks: Iterable[str], splitter: Splitter, model_file: str, num_workers: int
) -> Iterator[TokenBlock]:
    """Tokenize each paragraph of each block between bos and eos.

    Args:
        blocks: text; read only as fast as it is tokenized.
        splitter: block -> (paragraphs, headings left out); a module-level function.
        model_file: SentencePiece model.
        num_workers: 1 tokenizes in a thread of this process, more in that many processes.

    Yields:
        One result per block, in order; the ids do not depend on ``num_workers``.
    """
    pending: deque[Future[TokenBlock]] = deque()
    with _submitter(model_file, num_workers) as submit:
        try:
            for block in blocks:
                pending.append(submit(block, splitter))
                if len(pending) > 2 * num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "a tokenizing process died, perhaps for lack of memory; try a smaller --num_workers"
            ) from error


@contextmanager
def _submitter(model_file: str, num_workers: int) -> Iterator[Callable[[str, Splitter], "Future[TokenBlock]"]]:
    """The function that hands one block to a worker."""
    executor: Executor
    if num_workers == 1:
        executor = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        tokenizer = _Tokenizer(model_file)

        def submit(block: str, splitter: Splitter) -> "Future[TokenBlock]":
            # SentencePiece lets go of the interpreter lock: this thread splits while the other tokenizes.
            return executor.submit(tokenizer, *splitter(block))
    else:
        context = multiprocessing.get_context("spawn")  # MindSpore's threads do not survive a fork
        executor = ProcessPoolExecutor(num_workers, context, _start_process, (model_file,))

        def submit(block: str, splitter: Splitter) -> "Future[TokenBlock]":
            return executor.submit(_split_and_tokenize, block, splitter)

    try:
        yield submit
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


class _Tokenizer:
    def __init__(self, model_file: str) -> None:
        self._model = load_sentencepiece(model_file)

    def __call__(self, texts: list[str], headings: int) -> TokenBlock:
        rows = self._model.encode(texts, add_bos=True, add_eos=True, num_threads=1) if texts else []
        count = sum(map(len, rows))
        ids = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=count)
        return TokenBlock(ids, len(texts), headings)


_process_tokenizer: _Tokenizer | None = None


def _start_process(model_file: str) -> None:
    """Load the model once per process; leave when the parent is gone (even by kill -9)."""
    global _process_tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _process_tokenizer = _Tokenizer(model_file)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _split_and_tokenize(block: str, splitter: Splitter) -> TokenBlock:
    assert _process_tokenizer is not None
    return _process_tokenizer(*splitter(block))
