# SPDX-License-Identifier: Apache-2.0
"""Tokenizing blocks of text in several processes, results in order."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mindformers.errors import DataError
from mindformers.tools.dataset_preprocess.llama.worker_pool import ordered_map
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
    pad_id: int
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
        pad = model.pad_id() if model.pad_id() >= 0 else max(model.unk_id(), 0)  # Llama has no piece for padding
        return cls(str(path), model.get_piece_size(), model.bos_id(), model.eos_id(), pad, digest)


Splitter = Callable[[str], tuple[list[str], int]]


def tokenize_blocks(
    blocks: Iterable[str], splitter: Splitter, model_file: str, num_workers: int
) -> Iterator[TokenBlock]:
    """Tokenize each paragraph of each block between bos and eos.

    Args:
        blocks: text; read only as fast as it is tokenized.
        splitter: block -> (paragraphs, headings left out); a module-level function.
        model_file: SentencePiece model.
        num_workers: see :func:`~.worker_pool.ordered_map`.

    Yields:
        One result per block, in order; the ids do not depend on ``num_workers``.
    """
    if num_workers == 1:
        # SentencePiece lets go of the interpreter lock: this thread splits while the other tokenizes.
        return ordered_map(map(splitter, blocks), partial(_Tokenizer, model_file), 1)
    return ordered_map(blocks, partial(_SplitAndTokenize, model_file, splitter), num_workers)


class _Tokenizer:
    def __init__(self, model_file: str) -> None:
        self._model = load_sentencepiece(model_file)

    def __call__(self, block: tuple[list[str], int]) -> TokenBlock:
        texts, headings = block
        rows = self._model.encode(texts, add_bos=True, add_eos=True, num_threads=1) if texts else []
        count = sum(map(len, rows))
        ids = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=count)
        return TokenBlock(ids, len(texts), headings)


class _SplitAndTokenize(_Tokenizer):
    def __init__(self, model_file: str, splitter: Splitter) -> None:
        super().__init__(model_file)
        self._splitter = splitter

    def __call__(self, block: str) -> TokenBlock:
        return super().__call__(self._splitter(block))
