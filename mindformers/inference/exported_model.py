# SPDX-License-Identifier: Apache-2.0
"""ExportedModel: ``generate`` over MindIR files, with the loop and the settings of a model that was not exported.

Legend: B batch size of the files, R rows of a call (at most B), S their sequence length, V vocabulary.
"""

from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor

from mindformers.errors import CheckpointError, ConfigError
from mindformers.generation import GeneratorMixin
from mindformers.generation.sampling import Choice
from mindformers.inference.backends import Backend, open_backend
from mindformers.inference.mindir_files import PairInfo, existing_mindir
from mindformers.models.llama.llama_config import LlamaConfig
from mindformers.tools.logger import get_logger

__all__ = ["ExportedModel"]

logger = get_logger(__name__)

FLAG = np.array([True])


class ExportedModel(GeneratorMixin):
    """Text generation from exported files.

    Args:
        backend: the engine that has them open.
        config: configuration of the model; its generation defaults apply.
        batch_size: B.
        cached: there are two graphs and a cache; False is one graph that computes everything anew.

    Rows of a call may be fewer than the files' batch, not more. :meth:`open` reads everything from the files.
    """

    training = False  # what GeneratorMixin asks of a cell

    def __init__(self, backend: Backend, config: LlamaConfig, batch_size: int, cached: bool = True) -> None:
        self.backend = backend
        self.config = config
        self.batch_size = batch_size
        self._session = _Session(self, cached)

    @classmethod
    def open(
        cls,
        prefill: str | Path,
        increment: str | Path | None = None,
        *,
        backend: str | None = None,
        vocab_size: int | None = None,
        seq_length: int | None = None,
        **options: Any,
    ) -> "ExportedModel":
        """Open MindIR files.

        Args:
            prefill: file of the graph that reads prompts, or of the only graph.
            increment: file of the graph that appends a token.
            backend: see :func:`open_backend`.
            vocab_size: V, for files without a description beside them.
            seq_length: S as the user believes it; another value in the files is an error.
            options: device options of the Lite backend.

        Raises:
            CheckpointError: a file is missing or damaged.
            ConfigError: the files do not fit each other, or seq_length is not theirs.
        """
        prefill = existing_mindir(prefill, "--prefill_model_path")
        files = {"full" if increment is None else "prefill": prefill}
        if increment is not None:
            files["increment"] = existing_mindir(increment, "--increment_model_path")
        engine = open_backend(backend, files, **options)
        logger.info("MindIR files run by backend %s", engine.name)
        first, *_ = engine.input_shapes(next(iter(files)))
        if len(first) != 2:
            raise CheckpointError(f"{prefill}: its first input has shape {list(first)}, not (batch, sequence)")
        batch, length = first
        if seq_length is not None and seq_length != length:
            raise ConfigError(f"seq_length {seq_length} is not that of {prefill}, which was exported with {length}")
        if increment is not None and tuple(engine.input_shapes("increment")[0]) != (batch, 1):
            raise ConfigError(
                f"{files['increment']} takes tokens of shape {list(engine.input_shapes('increment')[0])}, but "
                f"{prefill} computes {batch} prompts together: the two files are not of one export"
            )
        info = PairInfo.read(prefill)
        return cls(engine, _config(info, prefill, length, vocab_size), batch, increment is not None)

    def set_train(self, mode: bool = True) -> None:
        """Exported graphs have no training mode."""

    def decode_session(self, rows: int, length: int) -> "_Session":
        """See GeneratorMixin.

        Raises:
            ConfigError: more rows than the files compute together.
        """
        if rows > self.batch_size:
            raise ConfigError(
                f"{rows} prompts at once, but the exported files compute {self.batch_size}: give at most that many, or "
                "export with a larger --batch_size"
            )
        return self._session


def _config(info: PairInfo | None, path: Path, length: int, vocab_size: int | None) -> LlamaConfig:
    if info is not None:
        return LlamaConfig(**info.model_config)
    if vocab_size is None:
        raise CheckpointError(f"{path} has no description (.json) beside it: give the size of its vocabulary")
    logger.warning("%s has no description beside it: token ids and generation settings take their defaults", path)
    return LlamaConfig(vocab_size=vocab_size, seq_length=length, use_past=True, do_sample=False)


class _Session:
    """The calls of one generation, as :class:`~mindformers.generation.session.DecodeSession` makes them, in numpy:
    logits come to the host and tokens are made there, so a Tensor in between would only be a copy."""

    host_choice = True  # the graphs end in logits

    def __init__(self, model: ExportedModel, cached: bool) -> None:
        self.backend = model.backend
        self.length = model.config.seq_length
        self.batch_size = model.batch_size
        self.vocab_size = model.config.vocab_size
        self._cached = cached
        self._rows = 0

    def start(
        self, tokens: np.ndarray, lengths: np.ndarray, choice: Choice, controls: Tensor, cached: bool
    ) -> np.ndarray:
        """Take prompts int32 (R, n) of the given lengths; fp32 logits (R, V) of the token after each."""
        self._rows, width = tokens.shape
        self._ids = np.repeat(tokens[:1, :1], self.batch_size, 0).repeat(self.length, 1)
        self._ids[: self._rows, :width] = tokens
        self._lengths = np.ones(self.batch_size, np.int32)
        self._lengths[: self._rows] = lengths
        if not self._cached:
            return self._full()
        position = np.arange(self.batch_size, dtype=np.int32) * self.length + self._lengths - 1
        return self._take(self.backend.run("prefill", self._ids, position, ~FLAG, self._lengths))

    def step(self, tokens: np.ndarray, choice: Choice, controls: Tensor) -> np.ndarray:
        """Append one token to each row, int32 (R, 1); fp32 logits (R, V) of the next."""
        appended = np.zeros((self.batch_size, 1), np.int32)
        appended[: self._rows] = tokens
        # a finished row goes on beside longer ones and must stay inside its own cache
        self._lengths = np.minimum(self._lengths + 1, self.length)
        last = self._lengths - 1
        if self._cached:
            return self._take(self.backend.run("increment", appended, last, FLAG, self._lengths))
        self._ids[np.arange(self.batch_size), last] = appended[:, 0]
        return self._full()

    def num_compiled(self) -> int:
        """Graphs compiled by this session: they were compiled when they were opened or first run."""
        return 0

    def _full(self) -> np.ndarray:
        logits = self.backend.run("full", self._ids)
        return self._take(logits[np.arange(self.batch_size), self._lengths - 1])

    def _take(self, logits: np.ndarray) -> np.ndarray:
        return logits.reshape(self.batch_size, -1)[: self._rows].astype(np.float32, copy=False)
