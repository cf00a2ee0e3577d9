# SPDX-License-Identifier: Apache-2.0
"""GeneratorMixin: ``model.generate``, from checked ids to finished sequences.

Legend: B rows, S longest prompt, V vocabulary.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Tensor

from mindformers.errors import ConfigError, DataError
from mindformers.generation.generation_config import GenerationConfig
from mindformers.generation.logits_process import LogitsProcessorList, build_processors, draw
from mindformers.generation.sampling import Choice, controls_of
from mindformers.generation.session import DecodeSession, graph_mode, session_for, window
from mindformers.tools.logger import get_logger

__all__ = ["GeneratorMixin"]

logger = get_logger(__name__)

# Steps made in one launch may take this long together, in a stream and else: nothing can stop them.
_SECONDS_STREAMED, _SECONDS = 0.05, 0.25

# u below 1 by more than one fp32 step keeps u * total below total
_BELOW_ONE = np.float32(1.0 - 2.0**-22)


class GeneratorMixin:
    """Text generation for a cell with ``config``, ``prefill`` and ``increment`` (see LlamaForCausalLM)."""

    def generate(
        self,
        input_ids: Any,
        generation_config: GenerationConfig | None = None,
        logits_processor: Iterable[Callable] | None = None,
        streamer: Any = None,
        seed: int | None = None,
        stop: Callable[[Sequence[int]], bool] | None = None,
        **kwargs: Any,
    ) -> list[np.ndarray]:
        """Continue token sequences.

        Args:
            input_ids: one prompt (list of ids, 1-D array or Tensor) or several (list of lists, which may differ in
                length; 2-D array or Tensor). Padding ids at the right end of a prompt are taken off.
            generation_config: settings; default: those of the model's config.
            logits_processor: own callables ``(input_ids (1, n), logits (1, V)) -> logits`` in numpy, called for each
                unfinished row and token after the repetition penalty. They make every token cost a copy of the logits
                to the host.
            streamer: gets the prompt and then each token; one prompt only.
            seed: of the random draws, per call; None takes generation_config.seed, else fresh randomness.
            stop: asked after each token of a row with all its new ids; True ends the row there, this token included.
            kwargs: settings of GenerationConfig that win over generation_config.

        Returns:
            One int32 array per prompt: the prompt, then the new tokens up to and including the end token, no padding.
            Rows of a batch get the tokens they would get alone; when drawing, row i is seeded by (seed, i).

        Raises:
            ConfigError: an unknown or impossible setting, a prompt that leaves no room for a token.
            DataError: an empty prompt, or ids outside the vocabulary.
        """
        try:
            return self._generate(input_ids, generation_config, logits_processor, streamer, seed, stop, kwargs)
        except BaseException as error:
            if hasattr(streamer, "fail"):
                streamer.fail(error)
            raise

    def decoding_cell(self) -> Any:
        """The cell whose ``prefill`` and ``increment`` a generation calls; a model with kernels for it has another."""
        return self

    def decode_session(self, rows: int, length: int) -> Any:
        """What computes the logits of a call.

        Args:
            rows: sequences generated together.
            length: most tokens of a sequence.
        """
        return session_for(self, rows, window(self.config.seq_length, length))

    def _generate(
        self, input_ids: Any, given: Any, logits_processor: Any, streamer: Any, seed: Any, stop: Any, kwargs: dict
    ) -> list[np.ndarray]:
        config = _settings(self.config, given, seed, kwargs)
        prompts = _prompts(input_ids, self.config.vocab_size, config.pad_token_id)
        if streamer is not None and len(prompts) > 1:
            raise ConfigError(f"a streamer follows one sequence, not {len(prompts)}: pass one prompt, or no streamer")
        limits = _limits(config, [len(prompt) for prompt in prompts], self.config.seq_length)
        session = self.decode_session(len(prompts), max(limits))
        on_host = bool(logits_processor) or session.host_choice
        processors = build_processors(config, logits_processor or ()) if on_host else None
        training = self.training
        self.set_train(False)
        try:
            rows = _Rows(prompts, limits, config.eos_ids(), stop)
            with graph_mode():
                _Run(session, config, processors, rows, streamer).loop()
        finally:
            self.set_train(training)
        return rows.sequences()


@dataclass
class _Rows:
    """The sequences as they grow."""

    prompts: list[np.ndarray]
    limits: list[int]
    eos: tuple[int, ...]
    stop: Callable[[Sequence[int]], bool] | None = None

    def __post_init__(self) -> None:
        self.new: list[list[int]] = [[] for _ in self.prompts]
        self.open = [True] * len(self.prompts)
        self._ids = [np.resize(prompt, limit) for prompt, limit in zip(self.prompts, self.limits, strict=True)]

    def append(self, tokens: Sequence[int]) -> None:
        """Add one token to every row that is not finished."""
        for i, token in enumerate(tokens):
            if self.open[i]:
                self._ids[i][len(self.prompts[i]) + len(self.new[i])] = token
                self.new[i].append(token)
                full = len(self.prompts[i]) + len(self.new[i]) >= self.limits[i]
                ended = token in self.eos or (self.stop is not None and self.stop(self.new[i]))
                self.open[i] = not full and not ended

    def most_left(self) -> int:
        """Most tokens that an open row may still get."""
        rows = zip(self.open, self.limits, self.prompts, self.new, strict=True)
        return max(limit - len(prompt) - len(new) for is_open, limit, prompt, new in rows if is_open)

    def sequence(self, i: int) -> np.ndarray:
        """Row i so far, int32 (n,)."""
        return self._ids[i][: len(self.prompts[i]) + len(self.new[i])].copy()

    def sequences(self) -> list[np.ndarray]:
        """All rows."""
        return [self.sequence(i) for i in range(len(self.prompts))]


class _Run:
    """One call: prompts in, then a step per token until every row is finished."""

    def __init__(
        self,
        session: DecodeSession,
        config: GenerationConfig,
        processors: LogitsProcessorList | None,
        rows: _Rows,
        streamer: Any,
    ) -> None:
        self.session = session
        self.config = config
        self.processors = processors
        self.rows = rows
        self.streamer = streamer
        self.choice = Choice("logits") if processors is not None else Choice.of(config)
        entropy = [config.seed] if config.seed is not None else [np.random.SeedSequence().entropy]
        self.randoms = [
            np.random.Generator(np.random.PCG64(np.random.SeedSequence([*entropy, i])))
            for i in range(len(rows.prompts))
        ]
        self.constant = Tensor(self._controls(np.zeros(len(rows.prompts), np.float32)))

    def loop(self) -> None:
        """Generate until every row is finished; log the speed."""
        begin = time.perf_counter()
        compiled = self.session.num_compiled()
        lengths = np.array([len(prompt) for prompt in self.rows.prompts], np.int32)
        tokens = np.stack([_fill(prompt, lengths.max()) for prompt in self.rows.prompts])
        self._stream(self.rows.prompts[0])
        uniform, controls = self._next_controls()
        result = self.session.start(tokens, lengths, self.choice, controls, self.config.use_past)
        result = self._take(result, uniform)
        first = time.perf_counter()
        several = self.processors is None and self.session.makes_several(self.choice)
        while any(self.rows.open):
            if several:
                result = self._take_several(result)
                continue
            uniform, controls = self._next_controls()
            result = self._take(self.session.step(result, self.choice, controls), uniform)
        if self.streamer is not None:
            self.streamer.end()
        self._report(int(lengths.sum()), first - begin, time.perf_counter() - first, compiled)

    def _controls(self, uniform: np.ndarray) -> np.ndarray:
        return controls_of(self.config, self.session.vocab_size, uniform)

    def _next_controls(self) -> tuple[np.ndarray | None, Tensor]:
        """Random numbers of this token, for the host, and the graph's input."""
        if not self.config.do_sample:
            return None, self.constant
        uniform = np.array([random.random(dtype=np.float32) for random in self.randoms], np.float32)
        uniform = np.minimum(uniform, _BELOW_ONE)
        return uniform, Tensor(self._controls(uniform)) if self.choice.draws else self.constant

    def _take(self, result: Tensor | np.ndarray, uniform: np.ndarray | None) -> Tensor | np.ndarray:
        """Record the tokens of a result; return them, (B, 1), where they are: on the device, or where it was chosen."""
        array = result.asnumpy() if isinstance(result, Tensor) else result
        if self.processors is not None:
            result = array = self._choose_on_host(array, uniform)[:, None]
        self._record(array[:, 0])
        return result

    def _take_several(self, last: Tensor | np.ndarray) -> np.ndarray:
        """Make and record some steps after the tokens (B, 1); return the last tokens, (B, 1)."""
        seconds = _SECONDS if self.streamer is None and self.rows.stop is None else _SECONDS_STREAMED
        found = self.session.steps(last, self.rows.most_left(), seconds, self.rows.eos)
        for i in range(found.shape[1]):
            if any(self.rows.open):  # rows may also end by a limit or by ``stop``
                self._record(found[:, i])
        return found[:, -1:]

    def _record(self, tokens: np.ndarray) -> None:
        """Tokens (B,) of one step."""
        self.rows.append(tokens.tolist())
        self._stream(tokens[:1].astype(np.int32))

    def _choose_on_host(self, logits: np.ndarray, uniform: np.ndarray | None) -> np.ndarray:
        """int32 (B,) from logits (B, V) through the processors; the token of a finished row is any."""
        if not self.processors and uniform is None:
            return logits.argmax(-1).astype(np.int32)
        chosen = np.zeros(len(logits), np.int32)
        by_rank = self.config.top_k != 0 or self.config.top_p < 1.0
        for i, row_open in enumerate(self.rows.open):
            if row_open:
                scores = self.processors(self.rows.sequence(i)[None], logits[i : i + 1].astype(np.float32))
                if np.shape(scores) != (1, logits.shape[1]):
                    raise ConfigError(
                        f"a logits processor returned shape {np.shape(scores)}, not {(1, logits.shape[1])}"
                    )
                chosen[i] = scores.argmax() if uniform is None else draw(scores, uniform[i : i + 1], by_rank)[0]
        return chosen

    def _stream(self, ids: np.ndarray) -> None:
        if self.streamer is not None:
            self.streamer.put(ids)

    def _report(self, prompt_tokens: int, prefill: float, decode: float, compiled: int) -> None:
        new = sum(map(len, self.rows.new))
        later = new - len(self.rows.new)
        logger.info(
            "generated %d tokens for %d prompts: prompts (%d tokens) %.3f s, %.0f tokens/s; "
            "steps %.3f s, %.1f tokens/s%s",
            new,
            len(self.rows.new),
            prompt_tokens,
            prefill,
            prompt_tokens / prefill,
            decode,
            later / decode if later else 0.0,
            "; times include compiling" if self.session.num_compiled() > compiled else "",
        )


def _settings(model_config: Any, given: GenerationConfig | None, seed: int | None, kwargs: dict) -> GenerationConfig:
    """The settings of a call: the model's or the given ones, kwargs on top."""
    if given is not None and not isinstance(given, GenerationConfig):
        raise ConfigError(f"generation_config is {type(given).__name__}: give a GenerationConfig, or single settings")
    config = GenerationConfig.from_model_config(model_config)
    if given is not None:
        own = {key: value for key, value in config.to_dict().items() if key.endswith("_token_id")}
        config = GenerationConfig()
        config.__dict__.update(given.to_dict())
        config.update(**{key: value for key, value in own.items() if getattr(config, key) is None})
    unknown = config.update(**kwargs, **({} if seed is None else {"seed": seed}))
    GenerationConfig.from_dict(unknown)  # raises for the first unknown name
    if config.encoder_repetition_penalty != 1.0:
        logger.warning("encoder_repetition_penalty has no effect: the model has no encoder")
    return config


def _prompts(input_ids: Any, vocab_size: int, pad_token_id: int | None) -> list[np.ndarray]:
    """Prompts as int32 arrays without padding."""
    if isinstance(input_ids, Tensor):
        input_ids = input_ids.asnumpy()
    if not isinstance(input_ids, (list, tuple, np.ndarray)):
        raise DataError(f"input_ids is {type(input_ids).__name__}: give token ids as lists, a numpy array or a Tensor")
    nested = len(input_ids) > 0 and isinstance(input_ids[0], (list, tuple, np.ndarray, Tensor))
    rows = list(input_ids) if nested else [input_ids]
    return [_prompt(i, row, vocab_size, pad_token_id) for i, row in enumerate(rows)]


def _prompt(i: int, row: Any, vocab_size: int, pad_token_id: int | None) -> np.ndarray:
    try:
        ids = np.asarray(row.asnumpy() if isinstance(row, Tensor) else row)
    except ValueError as error:
        raise DataError(f"prompt {i} is not a flat list of token ids") from error
    if ids.size and (ids.ndim != 1 or ids.dtype.kind not in "iu"):
        raise DataError(f"prompt {i} has shape {ids.shape} and type {ids.dtype}: give a flat list of integer token ids")
    wrong = ids[(ids < 0) | (ids >= vocab_size)] if ids.size else ids
    if wrong.size:
        raise DataError(f"prompt {i} holds the id {wrong[0]}, but the vocabulary has ids 0 to {vocab_size - 1}")
    if pad_token_id is not None:
        kept = np.flatnonzero(ids != pad_token_id)
        ids = ids[: kept[-1] + 1] if kept.size else ids[:0]
    if not ids.size:
        raise DataError(f"prompt {i} is empty: give at least one token that is not padding ({pad_token_id})")
    return ids.astype(np.int32)


def _limits(config: GenerationConfig, lengths: list[int], seq_length: int) -> list[int]:
    """Most tokens of each row, prompt included."""
    new = config.max_new_tokens
    limits = [config.max_length if new is None else length + new for length in lengths]
    name = f"max_length {config.max_length}" if new is None else f"max_new_tokens {new}"
    if max(limits) > seq_length:
        logger.warning("%s goes beyond the model's seq_length %d, where generation stops", name, seq_length)
    limits = [min(limit, seq_length) for limit in limits]
    for i, (length, limit) in enumerate(zip(lengths, limits, strict=True)):
        if length >= limit:
            fault = f"seq_length {seq_length}" if limit == seq_length else name
            raise ConfigError(
                f"prompt {i} has {length} tokens, which leaves no room below {fault}: shorten it, or raise that setting"
            )
    return limits


def _fill(prompt: np.ndarray, length: int) -> np.ndarray:
    """The prompt filled up with its own first token: never seen by attention, and no new token for the penalty."""
    return np.concatenate([prompt, np.repeat(prompt[:1], length - len(prompt))])
