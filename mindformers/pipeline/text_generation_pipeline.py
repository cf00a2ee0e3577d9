# SPDX-License-Identifier: Apache-2.0
"""TextGenerationPipeline: prompts to texts; the one place that does this."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mindformers.errors import ConfigError, DataError, MindFormersError
from mindformers.generation import GenerationConfig, TextIteratorStreamer
from mindformers.models.base_model import BaseModel
from mindformers.models.build import pretrained_model, pretrained_tokenizer
from mindformers.registry import MindFormerModuleType, MindFormerRegister

__all__ = ["RESULT_KEY", "TextGenerationPipeline"]

RESULT_KEY = "text_generation_text"
_CALL = ("generation_config", "logits_processor", "streamer", "seed")  # arguments of generate besides its settings


@MindFormerRegister.register(MindFormerModuleType.PIPELINE)
class TextGenerationPipeline:
    """Continues prompts with a model.

    Args:
        model: a model, or a name, YAML or directory to load one from.
        tokenizer: a tokenizer, or what to load one from. None takes that of the model's name or directory.
        batch_size: prompts generated together when a call names no other number; each gives the text it would give
            alone.
        add_special_tokens: put the begin token before each prompt.
        keys: column of a dataset that holds the prompts, ``{"src_language": "text"}``.
        **settings: settings of ``generate`` for every call (max_new_tokens, do_sample, ...).

    Raises:
        ConfigError: an unknown setting (with the nearest name), or no tokenizer.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        batch_size: int = 1,
        add_special_tokens: bool = True,
        keys: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self._check(settings)
        self.batch_size = _positive(batch_size)
        self.add_special_tokens = add_special_tokens
        self.column = (keys or {}).get("src_language", "text")
        self.settings = settings
        source = model if isinstance(model, str | Path) else None
        if tokenizer is None and source is None:
            raise ConfigError(
                "a pipeline of a model object needs a tokenizer: tokenizer=AutoTokenizer.from_pretrained(DIRECTORY)"
            )
        if tokenizer is None or isinstance(tokenizer, str | Path):
            tokenizer = pretrained_tokenizer(source if tokenizer is None else tokenizer)
        if not callable(tokenizer) or not hasattr(tokenizer, "decode"):
            raise ConfigError(f"{type(tokenizer).__name__} is no tokenizer: it must be callable and have decode()")
        model = pretrained_model(source, True, {}) if source is not None else _bare(model)
        if not hasattr(model, "generate"):
            raise ConfigError(
                f"{type(model).__name__} cannot generate: give a LlamaForCausalLM, or what to load it from"
            )
        self.tokenizer, self.model = tokenizer, model

    def __call__(self, inputs: Any, batch_size: int | None = None, **settings: Any) -> list[dict[str, list[str]]]:
        """Continue prompts.

        Args:
            inputs: a text; a list, tuple or any iterable of texts; or a MindSpore dataset with a column of texts. An
                iterable is read batch by batch, with a progress bar on a terminal.
            batch_size: prompts generated together; the last batch may be smaller. Default: the pipeline's, and for
                the rows of a batched dataset the dataset's.
            **settings: as in the constructor, for this call; ``streamer`` gets each token (one prompt at a time).

        Returns:
            One ``{"text_generation_text": [text, ...]}`` per batch, each text with its prompt, without special tokens.

        Raises:
            ConfigError: an unknown setting, or a prompt that leaves no room for a token.
            DataError: something that is not text; names its place.
        """
        results = self.iterate(inputs, batch_size, **settings)
        if isinstance(inputs, str | list | tuple):
            return list(results)
        return list(tqdm(results, desc="generate", unit="batch", disable=None))

    def iterate(self, inputs: Any, batch_size: int | None = None, **settings: Any) -> Iterator[dict[str, list[str]]]:
        """As a call, one result at a time as it is made: for inputs that are long, or never end."""
        special = settings.pop("add_special_tokens", self.add_special_tokens)
        column = (settings.pop("keys", None) or {}).get("src_language", self.column)
        self._check(settings)
        settings = self._merged(settings)
        size = None if batch_size is None else _positive(batch_size)
        return self._results(_batches(inputs, size, self.batch_size, column), special, settings)

    def stream(self, prompt: str, skip_prompt: bool = True, **settings: Any) -> Iterator[str]:
        """Pieces of the text as they are made; together they are the text.

        Args:
            prompt: one text.
            skip_prompt: leave the prompt out.
            **settings: as in a call.
        """
        self._check(settings)
        if "streamer" in settings:
            raise ConfigError("stream() has a streamer of its own: leave streamer out, or call the pipeline with it")
        ids = self._encode([_text(prompt, 0)], self.add_special_tokens)
        streamer = _Stoppable(self.tokenizer, skip_prompt=skip_prompt, skip_special_tokens=True)
        merged = self._merged(settings)
        return _in_thread(lambda: self.model.generate(ids, streamer=streamer, **merged), streamer)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **kwargs: Any) -> "TextGenerationPipeline":
        """Model and tokenizer of one source; kwargs as in the constructor."""
        return cls(str(name_or_path), **kwargs)

    def _results(self, batches: Iterable[list[str]], special: bool, settings: dict) -> Iterator[dict[str, list[str]]]:
        done = 0
        for texts in batches:
            try:
                rows = self.model.generate(self._encode(texts, special), **settings)
            except MindFormersError as error:
                where = f"input {done}" if len(texts) == 1 else f"inputs {done} to {done + len(texts) - 1}"
                raise type(error)(f"{where}: {error}") from error
            yield {RESULT_KEY: [self.tokenizer.decode(row.tolist(), skip_special_tokens=True) for row in rows]}
            done += len(texts)

    def _encode(self, texts: list[str], special: bool) -> list[list[int]]:
        return [list(self.tokenizer(text, add_special_tokens=special)["input_ids"]) for text in texts]

    def _merged(self, settings: dict) -> dict:
        """The pipeline's settings under those of a call; a length given in the call replaces the pipeline's length."""
        lengths = ("max_length", "max_new_tokens", "max_decode_length")
        if any(settings.get(key) is not None for key in lengths):
            return {**{key: value for key, value in self.settings.items() if key not in lengths}, **settings}
        return {**self.settings, **settings}

    @staticmethod
    def _check(settings: Mapping[str, Any]) -> None:
        GenerationConfig.from_dict({key: value for key, value in settings.items() if key not in _CALL})


def _bare(model: Any) -> Any:
    """The network inside a ``mindspore.Model``; anything else as it is."""
    if isinstance(model, BaseModel):
        return model
    network = getattr(model, "predict_network", None)
    return model if network is None else network


def _positive(size: Any) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ConfigError(f"batch_size {size!r} is not allowed: give a whole number of at least 1")
    return size


def _text(value: Any, place: int) -> str:
    """A prompt as str, from the forms in which datasets hand them out."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        raise DataError(f"input {place} is {type(value).__name__}, not text: {repr(value)[:60]}")
    return value


def _batches(inputs: Any, size: int | None, default: int, column: str) -> Iterator[list[str]]:
    """Lists of texts of ``size``, the last one as long as what is left."""
    if isinstance(inputs, str):
        return iter([[inputs]])
    if hasattr(inputs, "create_dict_iterator"):
        rows = _dataset_rows(inputs, column)
        if size is None and inputs.get_batch_size() > 1:
            return ([_text(text, place) for place, text in enumerate(row)] for row in rows)
        return _chunks((text for row in rows for text in row), size or default)
    if not isinstance(inputs, Iterable) or isinstance(inputs, Mapping | bytes):
        raise DataError(f"inputs is {type(inputs).__name__}: give a text, an iterable of texts, or a MindSpore dataset")
    return _chunks(inputs, size or default)


def _chunks(texts: Iterable[Any], size: int) -> Iterator[list[str]]:
    numbered = (_text(text, place) for place, text in enumerate(texts))
    return iter(lambda: list(islice(numbered, size)), [])


def _dataset_rows(dataset: Any, column: str) -> Iterator[list[Any]]:
    """The texts of each row, or of each batch, of a MindSpore dataset."""
    columns = dataset.get_col_names()
    if column not in columns:
        raise DataError(
            f"the dataset has the columns {', '.join(columns)} and no {column!r}: name yours by "
            f"keys={{'src_language': {columns[0]!r}}}"
        )
    for row in dataset.create_dict_iterator(num_epochs=1, output_numpy=True):
        yield row[column].reshape(-1).tolist()


class _StoppedError(Exception):
    """The consumer of a stream went away."""


class _Stoppable(TextIteratorStreamer):
    """A streamer that ends generation when nobody reads any more."""

    stopped = False

    def put(self, value: Any) -> None:
        """See TextStreamer."""
        if self.stopped:
            raise _StoppedError
        super().put(value)


def _in_thread(generate: Callable[[], Any], streamer: _Stoppable) -> Iterator[str]:
    """Generate in another thread and hand out the streamer's pieces here."""

    def work() -> None:
        with contextlib.suppress(BaseException):  # the streamer hands it to the reader
            generate()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from streamer
    finally:
        streamer.stopped = True
        thread.join()
