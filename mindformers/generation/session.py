# SPDX-License-Identifier: Apache-2.0
"""DecodeSession: the caches and compiled graphs behind ``generate``, kept with the model from call to call.

Legend: B rows, S positions of this call, L positions of the cache, V vocabulary.
"""

import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import JitConfig, Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from mindformers.generation.sampling import Choice, TokenChooser
from mindformers.modules.dtypes import to_ms_dtype
from mindformers.modules.kernels import activation_type
from mindformers.modules.kv_cache import new_cache

__all__ = ["DecodeSession", "OftenCalled", "SameShapes", "graph_mode", "session_for", "window"]

# Windows up to this length are not worth a shorter cache: attention over it is a small part of a step.
SHORT_WINDOW = 512
# Each session holds caches of its own, so only the latest are kept.
MAX_SESSIONS = 2
# Between these numbers of rows a product with a weight (out, in) takes oneDNN longer than with GOOD_ROWS: 32 rows of
# 1024 features to 2816 take 2.6 ms and 64 take 1.2 ms. Narrow layers gain nothing.
FEW_ROWS, GOOD_ROWS, WIDE = 8, 64, 512
_STEP_PHASE = "increment"  # one of the two that MindSpore looks up in a cell's phase_cache
_STORE = "_decode_sessions"


@contextmanager
def graph_mode() -> Iterator[None]:
    """Cells are compiled inside, whatever the mode of MindSpore's context: op by op, its default, a token of a small
    model takes forty times as long. ``MS_JIT=0`` in the environment, MindSpore's own switch, still turns compilation
    off."""
    mode = ms.get_context("mode")
    if mode == ms.GRAPH_MODE:
        yield
        return
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        yield
    finally:
        ms.set_context(mode=mode)


class OftenCalled(nn.Cell):
    """A cell that is launched once per token, on the shortest way MindSpore has for it.

    MindSpore writes the name of the current graph into every cell of the tree at every launch, which for a small model
    takes as long as its kernels. The name is only read while compiling, so it need not be written again. On CPU
    ``infer_boost`` makes a launch a quarter shorter; it works when the first graph of the process that asks for it is
    compiled with it, so all graphs of generation are.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if ms.get_context("device_target") == "CPU":
            quiet = {"suppress_infer_boost_warning": True}  # deprecated, but nothing takes its place on CPU yet
            self.set_jit_config(JitConfig(jit_level="O0", infer_boost="on", **quiet))

    @property
    def compile_phase(self) -> str | None:
        """Name of the graph compiled or launched last."""
        return nn.Cell.compile_phase.fget(self)

    @compile_phase.setter
    def compile_phase(self, value: str) -> None:
        if value != self.compile_phase:
            nn.Cell.compile_phase.fset(self, value)


class SameShapes(OftenCalled):
    """A cell whose inputs have the same shapes and types in every call.

    After the first call MindSpore need not look for its graph again: a cell in the phase ``increment`` has it in its
    ``phase_cache``.
    """

    def __call__(self, *inputs: Tensor) -> Tensor:
        """As of any cell."""
        result = super().__call__(*inputs)
        if self.phase != _STEP_PHASE:
            self.phase_cache[_STEP_PHASE] = self.compile_phase
            self.phase = _STEP_PHASE
        return result


class PrefillGraph(OftenCalled):
    """Whole prompts -> cache filled, positions set, first new tokens."""

    def __init__(self, model: nn.Cell, caches: tuple, position: Parameter, chooser: TokenChooser) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.keys, self.values, self.length = caches
        self.position = position
        self.chooser = chooser

    def construct(self, tokens: Tensor, lengths: Tensor, controls: Tensor) -> Tensor:
        """int32 (B, S), int32 (B,), fp32 (B, 5) -> int32 (B, 1), or logits (B, V)."""
        ops.assign(self.position, lengths - 1)
        self.chooser.forget()
        logits = self.model.prefill(tokens, lengths, (self.keys, self.values, self.length))
        return self.chooser(logits, tokens, controls)


class StepGraph(SameShapes):
    """One new token per row -> the next one."""

    def __init__(self, model: nn.Cell, caches: tuple, position: Parameter, chooser: TokenChooser) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.keys, self.values, self.length = caches
        self.position = position
        self.chooser = chooser
        self.one = Tensor(np.ones(position.shape, np.int32))
        self.last = Tensor(np.full(position.shape, self.length - 1, np.int32))
        self.may_overrun = position.shape[0] > 1

    def construct(self, tokens: Tensor, controls: Tensor) -> Tensor:
        """int32 (B, 1), fp32 (B, 5) -> int32 (B, 1), or logits (B, V)."""
        position = ops.assign_add(self.position, self.one)
        if self.may_overrun:  # a finished row goes on beside longer ones and must stay inside its own cache
            position = ops.minimum(position, self.last)
        logits = self.model.increment(tokens, position, (self.keys, self.values, self.length))
        return self.chooser(logits, tokens, controls)


class GreedyGraph(OftenCalled):
    """Some greedy tokens per row in one launch, by a decoder that has ``greedy``."""

    def __init__(self, decoder: nn.Cell, caches: tuple, position: Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.decoder = decoder
        self.keys, self.values, self.length = caches
        self.position = position
        self.one = Tensor(np.ones(position.shape, np.int32))
        self.last = Tensor(np.full(position.shape, self.length - 1, np.int32))

    def construct(self, tokens: Tensor, steps: Tensor, ends: Tensor) -> Tensor:
        """int32 (B, 1), int32 (1,), int32 (E,) -> int32 (B, at least steps)."""
        position = ops.minimum(self.position + self.one, self.last)  # as in StepGraph
        found = self.decoder.greedy(tokens, position, steps, ends, (self.keys, self.values, self.length))
        ops.assign_add(self.position, self.one * steps)
        return found


class FullGraph(OftenCalled):
    """All tokens so far -> the next ones, without any cache."""

    def __init__(self, model: nn.Cell, length: int, batch_size: int, chooser: TokenChooser) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.chooser = chooser
        self.starts = Tensor(np.arange(batch_size, dtype=np.int32) * length - 1)

    def construct(self, tokens: Tensor, lengths: Tensor, controls: Tensor) -> Tensor:
        """int32 (B, L), int32 (B,), fp32 (B, 5) -> int32 (B, 1), or logits (B, V)."""
        self.chooser.forget()
        logits = self.model(tokens, None, self.starts + lengths)
        return self.chooser(logits, tokens, controls)


class DecodeSession:
    """Generates token by token for a fixed number of rows and a fixed window.

    Args:
        model: has ``config``, ``decoding_cell()`` and ``construct(tokens, None, positions)`` (LlamaForCausalLM).
        batch_size: B.
        length: L, most positions of a row.

    A graph is compiled when it is first needed: per choice one for prompts of any length and one for a step. Tokens
    stay on the device between steps and positions are counted there, so a step is one launch with the last result as
    its input.
    """

    host_choice = False  # tokens are chosen inside the graph

    def __init__(self, model: nn.Cell, batch_size: int, length: int) -> None:
        config = model.config
        self.model = model
        self.decoder = model.decoding_cell()
        plain = ms.get_context("device_target") == "CPU" and not hasattr(self.decoder, "greedy")
        self._lengthens = plain and config.hidden_size >= WIDE
        self.batch_size = batch_size
        self.length = length
        self.vocab_size = config.vocab_size
        self.fingerprint = _fingerprint(model)
        self._shape = (config.num_layers, batch_size, config.num_kv_heads, length, config.head_dim)
        self._dtype = activation_type(to_ms_dtype(config.compute_dtype))
        self._caches: tuple | None = None
        self._position: Parameter | None = None
        self._graphs: dict[tuple[str, Choice], nn.Cell] = {}
        self._choosers: dict[Choice, TokenChooser] = {}
        self._rows: tuple[np.ndarray, np.ndarray] | None = None
        self._pace: float | None = None  # seconds of one of several steps

    def start(self, tokens: np.ndarray, lengths: np.ndarray, choice: Choice, controls: Tensor, cached: bool) -> Tensor:
        """Take the prompts and choose the first new tokens.

        Args:
            tokens: int32 (B, S), each row filled up on the right with tokens of its own.
            lengths: int32 (B,), true lengths.
            choice: how tokens are chosen.
            controls: fp32 (B, 5).
            cached: keep keys and values; False computes everything anew at every step.

        Returns:
            int32 (B, 1) on the device; fp32 logits (B, V) when the host chooses.
        """
        if cached:
            self._rows = None
            tokens = self._lengthened(tokens)
            return self._graph("prefill", choice)(Tensor(tokens), Tensor(lengths), controls)
        filled = np.repeat(tokens[:, :1], self.length, axis=1)  # filling with an own token keeps the penalty exact
        filled[:, : tokens.shape[1]] = tokens
        self._rows = (filled, lengths.copy())
        return self._graph("full", choice)(Tensor(filled), Tensor(lengths), controls)

    def _lengthened(self, tokens: np.ndarray) -> np.ndarray:
        """Prompts with more filling, where more rows take MindSpore's products less time."""
        rows, length = tokens.shape
        wanted = min(-(-GOOD_ROWS // rows), self.length)
        if not self._lengthens or rows * length <= FEW_ROWS or length >= wanted:
            return tokens
        return np.concatenate((tokens, np.repeat(tokens[:, :1], wanted - length, axis=1)), axis=1)

    def step(self, tokens: Tensor | np.ndarray, choice: Choice, controls: Tensor) -> Tensor:
        """Append one token to each row and choose the next.

        Args:
            tokens: int32 (B, 1), what the last call returned, or what the host made of it.
            choice: as given to start.
            controls: fp32 (B, 5).

        Returns:
            As start.
        """
        if self._rows is None:
            tokens = tokens if isinstance(tokens, Tensor) else Tensor(tokens)
            return self._graph("step", choice)(tokens, controls)
        tokens = tokens.asnumpy() if isinstance(tokens, Tensor) else tokens
        filled, lengths = self._rows
        inside = np.minimum(lengths, self.length - 1)
        filled[np.arange(self.batch_size), inside] = tokens[:, 0]
        lengths[:] = np.minimum(lengths + 1, self.length)
        return self._graph("full", choice)(Tensor(filled), Tensor(lengths), controls)

    def makes_several(self, choice: Choice) -> bool:
        """Whether :meth:`steps` can go on from here: greedy tokens, by a decoder that makes several in one launch."""
        return choice == Choice("greedy") and self._rows is None and hasattr(self.decoder, "greedy")

    def steps(self, tokens: Tensor | np.ndarray, most: int, seconds: float, ends: tuple[int, ...]) -> np.ndarray:
        """Append a token to each row and choose the next, several times.

        Args:
            tokens: int32 (B, 1), as for step.
            most: steps at most.
            seconds: what they may take together, by the time of those before; one is always made.
            ends: tokens after which a row is not read on. Nothing more is done when all rows have ended.

        Returns:
            int32 (B, n), what was chosen.
        """
        graph = self._graph("greedy", Choice("greedy"))
        count = 1 if self._pace is None else max(1, min(most, self.decoder.greedy_steps, int(seconds / self._pace)))
        tokens = tokens if isinstance(tokens, Tensor) else Tensor(tokens)
        begin, compiled = time.perf_counter(), self.num_compiled()
        found = graph(tokens, Tensor(np.array([count], np.int32)), Tensor(np.array(ends or (-1,), np.int32))).asnumpy()
        made = int((found[0] >= 0).sum())
        if self.num_compiled() == compiled:
            self._pace = (time.perf_counter() - begin) / made
        return found[:, :made]

    def num_compiled(self) -> int:
        """Graphs compiled so far."""
        return sum(len(graph.compile_cache) for graph in self._graphs.values())

    def _graph(self, kind: str, choice: Choice) -> nn.Cell:
        graph = self._graphs.get((kind, choice))
        if graph is None:
            graph = self._graphs[kind, choice] = self._build(kind, choice)
        return graph

    def _build(self, kind: str, choice: Choice) -> nn.Cell:
        if choice not in self._choosers:
            self._choosers[choice] = TokenChooser(choice, self.batch_size, self.vocab_size)
        chooser = self._choosers[choice]
        if kind == "full":
            graph: nn.Cell = FullGraph(self.model, self.length, self.batch_size, chooser)
        else:
            graph = self._cached_graph(kind, chooser)
        graph.set_train(False)
        return graph

    def _cached_graph(self, kind: str, chooser: TokenChooser) -> nn.Cell:
        rows = self.batch_size
        if self._caches is None:
            keys = new_cache("decode_key", *self._shape, self._dtype)
            values = new_cache("decode_value", *self._shape, self._dtype)
            self._caches = (keys, values, self.length)
            self._position = Parameter(initializer("zeros", (rows,), ms.int32), "position", requires_grad=False)
        if kind == "greedy":
            return GreedyGraph(self.decoder, self._caches, self._position)
        if kind == "step":
            return StepGraph(self.decoder, self._caches, self._position, chooser)
        graph = PrefillGraph(self.decoder, self._caches, self._position, chooser)
        graph.set_inputs(
            Tensor(shape=[rows, None], dtype=ms.int32),
            Tensor(shape=[rows], dtype=ms.int32),
            Tensor(shape=[rows, 5], dtype=ms.float32),
        )
        return graph


def window(seq_length: int, needed: int) -> int:
    """Cache length for rows of at most ``needed`` tokens: few different ones, so that graphs are reused.

    Short contexts get all of ``seq_length``; long ones the next power of two, so a short answer does not pay for
    attention over the whole context.
    """
    if seq_length <= SHORT_WINDOW:
        return seq_length
    return min(seq_length, max(SHORT_WINDOW, 1 << (needed - 1).bit_length()))


def session_for(model: nn.Cell, batch_size: int, length: int) -> DecodeSession:
    """The model's session for this many rows of this window, made when there is none."""
    store: OrderedDict[tuple[int, int], DecodeSession] = model.__dict__.setdefault(_STORE, OrderedDict())
    key = (batch_size, length)
    session = store.pop(key, None)
    if session is not None and session.fingerprint != _fingerprint(model):
        store.clear()  # weights were exchanged, for example by adapters: all graphs are stale
        session = None
    store[key] = session or DecodeSession(model, batch_size, length)
    while len(store) > MAX_SESSIONS:
        store.popitem(last=False)
    return store[key]


def _fingerprint(model: Any) -> tuple[int, ...]:
    return tuple(id(parameter) for parameter in model.get_parameters())
