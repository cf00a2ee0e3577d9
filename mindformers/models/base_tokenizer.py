# SPDX-License-Identifier: Apache-2.0
"""What a tokenizer does whatever its vocabulary: batches, truncation, padding."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from mindformers.errors import DataError
from mindformers.models.special_tokens import SpecialTokensMixin
from mindformers.models.tokenizer_files import PretrainedFilesMixin
from mindformers.tools.logger import get_logger
from mindformers.tools.utils import did_you_mean

__all__ = ["BaseTokenizer", "BatchEncoding", "EncodeOptions", "SpecialTokensMixin", "Tokenizer"]

logger = get_logger(__name__)
VERY_LARGE = int(1e30)  # model_max_length of a tokenizer that was not told one


class BatchEncoding(dict):
    """The result of a tokenizer call: a dict whose keys (``input_ids`` ...) are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no field {name!r} in this encoding; fields: {', '.join(self)}") from None


@dataclass(frozen=True)
class EncodeOptions:
    """The options of a tokenizer call.

    Args:
        add_special_tokens: put bos / eos around the text as ``add_bos_token`` and ``add_eos_token`` say.
        padding: False, True or 'longest' (to the longest of the batch), 'max_length'.
        truncation: False, True or 'longest_first', 'only_first', 'only_second'. None: on when ``max_length`` is
            given without padding.
        max_length: tokens, special ones included; None means the tokenizer's ``model_max_length``.
        stride: only 0; overflowing tokens are not returned.
        is_split_into_words: each text is a list of words, tokenized one by one.
        pad_to_multiple_of: round the padded length up to a multiple of this.
        padding_side: 'right' or 'left'; None means the tokenizer's own.
        return_tensors: None (lists), 'np' (int32 arrays) or 'ms' (int32 mindspore Tensors).
        return_token_type_ids: add ``token_type_ids`` (0 for the first text, 1 for the second).
        return_attention_mask: False leaves ``attention_mask`` out.
        return_special_tokens_mask: add ``special_tokens_mask`` (1 for bos and eos that were added).
        return_length: add ``length``, tokens before padding.
    """

    add_special_tokens: bool = True
    padding: bool | str = False
    truncation: bool | str | None = None
    max_length: int | None = None
    stride: int = 0
    is_split_into_words: bool = False
    pad_to_multiple_of: int | None = None
    padding_side: str | None = None
    return_tensors: str | None = None
    return_token_type_ids: bool | None = None
    return_attention_mask: bool | None = None
    return_special_tokens_mask: bool = False
    return_length: bool = False

    def __post_init__(self) -> None:
        _check_choice("padding", self.padding, (False, True, "longest", "max_length", "do_not_pad"))
        truncations = (None, False, True, "longest_first", "only_first", "only_second", "do_not_truncate")
        _check_choice("truncation", self.truncation, truncations)
        _check_choice("padding_side", self.padding_side, (None, "right", "left"))
        _check_choice("return_tensors", self.return_tensors, (None, "np", "ms"))
        for name in ("max_length", "pad_to_multiple_of"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise DataError(f"{name} must be a positive integer or None, got {value!r}")
        if self.stride != 0:
            raise DataError(
                f"stride={self.stride}: overflowing tokens are not returned, so only stride=0 has a meaning"
            )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "EncodeOptions":
        """Options from keyword arguments; an unknown name is an error with the nearest one."""
        check_names("tokenizer call", options, [field.name for field in fields(cls)])
        return cls(**options)


class BaseTokenizer(SpecialTokensMixin, PretrainedFilesMixin):
    """What callers see of every tokenizer.

    A subclass supplies ``vocab_size``, ``encode_texts``, ``tokenize``, ``convert_tokens_to_ids``,
    ``build_inputs_with_special_tokens`` and the decoding.

    Args:
        model_max_length: longest input of the model in tokens; used when ``max_length`` is not given.
        padding_side: 'right' or 'left'.
        truncation_side: the side on which tokens are cut off, 'right' or 'left'.
        name_or_path: where the tokenizer came from; for messages only.
    """

    def __init__(
        self,
        model_max_length: int | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
        name_or_path: str = "",
    ) -> None:
        _check_choice("padding_side", padding_side, ("right", "left"))
        _check_choice("truncation_side", truncation_side, ("right", "left"))
        self.model_max_length = VERY_LARGE if model_max_length is None else int(model_max_length)
        self.padding_side = padding_side
        self.truncation_side = truncation_side
        self.name_or_path = name_or_path
        self._warned: set[str] = set()

    def __call__(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding:
        """Tokenize one text or a list of texts.

        Args:
            text: a string, or a list of strings. With ``is_split_into_words`` a list of words, or a list of
                such lists.
            text_pair: a second text, or one per text.
            **options: see :class:`EncodeOptions`.

        Returns:
            ``input_ids`` and ``attention_mask``: lists of int (of lists for a batch), or tensors of shape (S,)
            or (B, S).

        Raises:
            DataError: the text is not text, an option is unknown or has no meaning, or lengths differ where a
                tensor is asked for.
        """
        option = EncodeOptions.of(options)
        texts, pairs, is_batch = _as_batch(text, text_pair, option.is_split_into_words)
        firsts = self._ids_of(texts, option)
        seconds = [None] * len(firsts) if pairs is None else self._ids_of(pairs, option)
        rows = [self._finish(first, second, option) for first, second in zip(firsts, seconds, strict=True)]
        batch = BatchEncoding({key: [row[key] for row in rows] for key in _row_keys(option)})
        self._pad_batch(batch, option)
        if option.return_attention_mask is False:
            batch.pop("attention_mask", None)
        if not is_batch:
            batch = BatchEncoding({key: value[0] for key, value in batch.items()})
        return _to_tensors(batch, option.return_tensors)

    def encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding:
        """:meth:`__call__` for one text."""
        return self(text, text_pair, **options)

    def batch_encode_plus(self, batch_text_or_text_pairs: Sequence[Any], **options: Any) -> BatchEncoding:
        """:meth:`__call__` for a list of texts or of (text, text_pair) tuples."""
        if not isinstance(batch_text_or_text_pairs, list | tuple):
            raise DataError(f"a list of texts is needed, got {type(batch_text_or_text_pairs).__name__}")
        texts = list(batch_text_or_text_pairs)
        if texts and all(isinstance(item, tuple) and len(item) == 2 for item in texts):
            return self([first for first, _ in texts], [second for _, second in texts], **options)
        return self(texts, **options)

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """The ``input_ids`` of :meth:`__call__`."""
        return self(text, text_pair, **options)["input_ids"]

    def pad(self, encoded_inputs: Any, padding: bool | str = True, **options: Any) -> BatchEncoding:
        """Pad encodings to one length.

        Args:
            encoded_inputs: a dict of lists (one row, or rows), or a list of dicts, with ``input_ids`` at least.
            padding: see :class:`EncodeOptions`, as the ``max_length``, ``pad_to_multiple_of``,
                ``padding_side``, ``return_tensors`` and ``return_attention_mask`` options.
            **options: those options.
        """
        allowed = (
            "max_length",
            "pad_to_multiple_of",
            "padding_side",
            "return_tensors",
            "return_attention_mask",
        )
        check_names("pad", options, allowed)
        option = EncodeOptions(padding=padding, **options)
        if isinstance(encoded_inputs, list | tuple):
            encoded_inputs = (
                {key: [row[key] for row in encoded_inputs] for key in encoded_inputs[0]} if encoded_inputs else {}
            )
        if "input_ids" not in encoded_inputs:
            raise DataError(f"pad needs 'input_ids'; given: {', '.join(encoded_inputs) or 'nothing'}")
        batch = BatchEncoding({key: to_plain(value) for key, value in encoded_inputs.items()})
        single = not batch["input_ids"] or not isinstance(batch["input_ids"][0], list)
        if single:
            batch = BatchEncoding({key: [value] for key, value in batch.items()})
        batch.setdefault("attention_mask", [[1] * len(row) for row in batch["input_ids"]])
        self._pad_batch(batch, option)
        if option.return_attention_mask is False:
            del batch["attention_mask"]
        if single:
            batch = BatchEncoding({key: value[0] for key, value in batch.items()})
        return _to_tensors(batch, option.return_tensors)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Special tokens that a call adds around one text, or around a pair."""
        return len(self.build_inputs_with_special_tokens([], [] if pair else None))

    def _ids_of(self, texts: list[Any], option: EncodeOptions) -> list[list[int]]:
        if not option.is_split_into_words:
            return self.encode_texts(texts)
        return [[index for word in self.encode_texts(words) for index in word] for words in texts]

    def _finish(self, first: list[int], second: list[int] | None, option: EncodeOptions) -> dict[str, Any]:
        """One row: truncate, add the special tokens, and the fields that go with it."""
        add = option.add_special_tokens
        spare = self.num_special_tokens_to_add(second is not None) if add else 0
        first, second = self._truncate(first, second, spare, option)
        if add:
            ids = self.build_inputs_with_special_tokens(first, second)
            ends = len(self.build_inputs_with_special_tokens(first))
            special = self.get_special_tokens_mask(first, second)
        else:
            ids, ends = first + (second or []), len(first)
            special = [0] * len(ids)
        limit = self.model_max_length
        if len(ids) > limit:
            self._warn_once(f"{len(ids)} tokens are more than the model's {limit}; use truncation=True to cut them")
        types = [0] * ends + [1] * (len(ids) - ends)
        row = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": types}
        return {**row, "special_tokens_mask": special, "length": len(ids)}

    def _truncate(
        self, first: list[int], second: list[int] | None, spare: int, option: EncodeOptions
    ) -> tuple[list[int], list[int] | None]:
        how = option.truncation
        if how is None and option.max_length is not None and option.padding in (False, "do_not_pad"):
            self._warn_once("max_length is given without truncation or padding: truncation is switched on")
            how = True
        if how in (None, False, "do_not_truncate"):
            return first, second
        room = self._length_limit("truncation", option) - spare
        excess = len(first) + len(second or []) - room
        if excess <= 0:
            return first, second
        if room < 0:
            raise DataError(f"max_length={room + spare} leaves no room for {spare} special tokens")
        if how == "only_second" and second is None:
            raise DataError("truncation='only_second' needs a text_pair")
        cut_first, cut_second = _share_of_cut(len(first), len(second or []), excess, how)
        return self._cut(first, cut_first), None if second is None else self._cut(second, cut_second)

    def _cut(self, ids: list[int], count: int) -> list[int]:
        return ids[count:] if self.truncation_side == "left" else ids[: len(ids) - count]

    def _length_limit(self, what: str, option: EncodeOptions) -> int:
        limit = option.max_length or self.model_max_length
        if limit >= VERY_LARGE:
            raise DataError(f"{what} needs max_length=N: this tokenizer has no model_max_length to fall back on")
        return limit

    def _pad_batch(self, batch: BatchEncoding, option: EncodeOptions) -> None:
        """Pad the rows of every field in place."""
        if option.padding in (False, "do_not_pad") or not batch["input_ids"]:
            return
        if self.pad_token is None:
            raise DataError("padding needs a pad token; set tokenizer.pad_token, for instance to tokenizer.unk_token")
        if option.padding == "max_length":
            width = self._length_limit("padding='max_length'", option)
        else:
            width = max(len(ids) for ids in batch["input_ids"])
        if option.pad_to_multiple_of:
            width = -(-width // option.pad_to_multiple_of) * option.pad_to_multiple_of
        fill = {"input_ids": self.pad_token_id, "special_tokens_mask": 1}
        on_left = (option.padding_side or self.padding_side) == "left"
        for key, rows in batch.items():
            if key == "length":
                continue
            for index, row in enumerate(rows):
                padding = [fill.get(key, 0)] * (width - len(row))
                rows[index] = padding + row if on_left else row + padding

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(message)


Tokenizer = BaseTokenizer  # the name older scripts import


def _share_of_cut(first: int, second: int, excess: int, how: bool | str) -> tuple[int, int]:
    """Tokens to cut from two sequences; 'longest_first' cuts the longer one, on a tie the second."""
    if how == "only_first" or (second == 0 and how != "only_second"):
        shares = (excess, 0)
    elif how == "only_second":
        shares = (0, excess)
    else:
        lead = min(excess, abs(first - second))  # level the longer one first
        rest = excess - lead
        shares = (lead + rest // 2, rest - rest // 2) if first > second else (rest // 2, lead + rest - rest // 2)
    if shares[0] > first or shares[1] > second:
        raise DataError(f"truncation={how!r} cannot cut {excess} tokens from texts of {first} and {second} tokens")
    return shares


def _as_batch(text: Any, pair: Any, words: bool) -> tuple[list[Any], list[Any] | None, bool]:
    """Bring the forms of input into lists of texts (or of word lists)."""
    is_text: Callable[[Any], bool] = _is_words if words else _is_str
    what = "a list of words, or a list of such lists" if words else "a string or a list of strings"
    is_batch = isinstance(text, list | tuple) and not (words and bool(text) and _is_words(text))
    texts = list(text) if is_batch else [text]
    pairs = None if pair is None else list(pair) if is_batch and not isinstance(pair, str) else [pair]
    for item in texts + (pairs or []):
        if not is_text(item):
            raise DataError(f"the tokenizer needs {what}, got {type(item).__name__}: {repr(item)[:80]}")
    if pairs is not None and len(pairs) != len(texts):
        raise DataError(f"{len(texts)} texts but {len(pairs)} text_pairs; there must be one for each")
    return texts, pairs, is_batch


def _is_str(item: Any) -> bool:
    return isinstance(item, str)


def _is_words(item: Any) -> bool:
    return isinstance(item, list | tuple) and all(isinstance(word, str) for word in item)


def _row_keys(option: EncodeOptions) -> list[str]:
    wanted = {
        "input_ids": True,
        "attention_mask": True,
        "token_type_ids": option.return_token_type_ids,
        "special_tokens_mask": option.return_special_tokens_mask,
        "length": option.return_length,
    }
    return [key for key, on in wanted.items() if on]


def to_plain(value: Any) -> Any:
    """Lists and ints from lists, numpy arrays and mindspore Tensors, at any depth."""
    if hasattr(value, "asnumpy"):
        value = value.asnumpy()
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping | str):
        return value
    return [to_plain(item) for item in value] if isinstance(value, Iterable) else value


def _to_tensors(batch: BatchEncoding, kind: str | None) -> BatchEncoding:
    if kind is None:
        return batch
    import numpy as np

    try:
        arrays = {key: np.array(value, dtype=np.int32) for key, value in batch.items()}
    except ValueError as error:
        lengths = sorted({len(row) for row in batch["input_ids"]})
        raise DataError(
            f"rows of lengths {lengths} cannot form one tensor; pass padding=True (and truncation=True, max_length=N)"
        ) from error
    if kind == "ms":
        from mindspore import Tensor

        return BatchEncoding({key: Tensor(array) for key, array in arrays.items()})
    return BatchEncoding(arrays)


def check_names(what: str, given: Iterable[str], allowed: Sequence[str]) -> None:
    """Raise for the first name that is not allowed, with the nearest allowed one."""
    for name in given:
        if name not in allowed:
            raise DataError(f"{what}: unknown option {name!r}.{did_you_mean(name, allowed)}")


def _check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if not any(value is item or (isinstance(value, str) and value == item) for item in allowed):
        raise DataError(f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}")
