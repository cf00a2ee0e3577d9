# SPDX-License-Identifier: Apache-2.0
"""The Llama tokenizer: SentencePiece, with the rules of transformers' slow, legacy LlamaTokenizer (4.x)."""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mindformers.errors import DataError
from mindformers.models.base_tokenizer import BaseTokenizer, check_names, to_plain
from mindformers.models.incremental_decoder import IncrementalDecoder
from mindformers.registry import MindFormerModuleType, MindFormerRegister
from mindformers.tools.sentencepiece_model import load_sentencepiece, parse_sentencepiece

__all__ = ["LlamaTokenizer"]

_BASE_OPTIONS = (
    "model_max_length",
    "padding_side",
    "truncation_side",
    "name_or_path",
    "additional_special_tokens",
)
# Contractions and punctuation that clean_up_tokenization_spaces joins to the word before.
_CLEAN_UP = {" " + mark: mark for mark in (".", "?", "!", ",")} | {" ' ": "'"}
_CLEAN_UP |= {" " + ending: ending for ending in ("n't", "'m", "'s", "'ve", "'re")}

_SURROGATE = re.compile(r"[\ud800-\udfff]")


@MindFormerRegister.register(MindFormerModuleType.TOKENIZER)
class LlamaTokenizer(BaseTokenizer):
    """Text to ids and back with a SentencePiece model.

    A special token that stands in a text becomes its id, and the text after it is tokenized like a new text.
    Plain text gives exactly the ids of SentencePiece.

    Args:
        vocab_file: the SentencePiece model, ``tokenizer.model``.
        unk_token: for pieces the vocabulary does not know.
        bos_token: put before a text when ``add_bos_token``.
        eos_token: put after a text when ``add_eos_token``.
        pad_token: fills rows up; Llama has none of its own, so ``<unk>`` serves.
        sp_model_kwargs: options of ``sentencepiece.SentencePieceProcessor``.
        add_bos_token: see ``bos_token``.
        add_eos_token: see ``eos_token``.
        clean_up_tokenization_spaces: default of the same option of :meth:`decode`.
        **kwargs: ``model_max_length``, ``padding_side``, ``truncation_side``, ``name_or_path`` (see
            :class:`~mindformers.models.base_tokenizer.BaseTokenizer`) and ``additional_special_tokens`` (list
            of strings).

    Raises:
        DataError: ``vocab_file`` cannot be used, or an argument is unknown or of the wrong kind.
    """

    def incremental_decoder(self, skip_special_tokens: bool = True) -> IncrementalDecoder:
        """A fresh decoder for a stream of ids; text is final, and free of halves of characters, as soon as it is given.

        Args:
            skip_special_tokens: leave special tokens out of the text.
        """
        return IncrementalDecoder(self, skip_special_tokens, legacy_spaces=skip_special_tokens)

    def __init__(
        self,
        vocab_file: str | Path,
        unk_token: str = "<unk>",
        bos_token: str = "<s>",
        eos_token: str = "</s>",
        pad_token: str = "<unk>",
        sp_model_kwargs: dict[str, Any] | None = None,
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        clean_up_tokenization_spaces: bool = False,
        **kwargs: Any,
    ) -> None:
        check_names("LlamaTokenizer", kwargs, _BASE_OPTIONS)
        extra = kwargs.pop("additional_special_tokens", None) or []
        super().__init__(**kwargs)
        self.vocab_file = str(vocab_file)
        self.sp_model_kwargs = dict(sp_model_kwargs or {})
        self.sp_model = load_sentencepiece(vocab_file, **self.sp_model_kwargs)
        self.add_bos_token = add_bos_token
        self.add_eos_token = add_eos_token
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.unk_token, self.bos_token, self.eos_token, self.pad_token = (
            unk_token,
            bos_token,
            eos_token,
            pad_token,
        )
        self.additional_special_tokens = extra
        self._rebuild_special_tokens()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "sp_model": self.sp_model.serialized_model_proto()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        proto = state["sp_model"]
        self.__dict__.update(state)
        self.sp_model = parse_sentencepiece(proto, self.vocab_file, **self.sp_model_kwargs)

    def __len__(self) -> int:
        """Pieces plus special tokens with ids behind them: what a model's ``vocab_size`` must hold."""
        return max(self.vocab_size, 1 + max(self.special_id_to_token, default=0))

    def __repr__(self) -> str:
        return f"LlamaTokenizer({self.vocab_file!r}, vocab_size={self.vocab_size}, {self.special_tokens_map})"

    @property
    def vocab_size(self) -> int:
        """Pieces of the SentencePiece model."""
        return self.sp_model.get_piece_size()

    def get_vocab(self) -> dict[str, int]:
        """Piece to id, special tokens included."""
        pieces = {self.sp_model.id_to_piece(index): index for index in range(self.vocab_size)}
        return {**pieces, **self.special_token_to_id}

    # ---------------------------------------------------------------- text to ids
    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without bos and eos around it; one SentencePiece call for all of them."""
        parts = [self._split(text) for text in texts]
        plain = [part for row in parts for part, is_special in row if not is_special]
        encoded = iter(self.sp_model.encode(plain, num_threads=1) if plain else ())
        return [
            [
                index
                for part, is_special in row
                for index in ([self.special_token_to_id[part]] if is_special else next(encoded))
            ]
            for row in parts
        ]

    def tokenize(self, text: str) -> list[str]:
        """Pieces of a text (special tokens whole), without bos and eos around it."""
        pieces: list[str] = []
        for part, is_special in self._split(text):
            pieces += [part] if is_special else self.sp_model.encode(part, out_type=str)
        return pieces

    def build_inputs_with_special_tokens(self, first: list[int], second: list[int] | None = None) -> list[int]:
        """``[bos] first [eos]`` and then the same for the second, as the two ``add_`` settings say."""
        bos = [self.bos_token_id] if self.add_bos_token else []
        eos = [self.eos_token_id] if self.add_eos_token else []
        ids = bos + first + eos
        return ids if second is None else ids + bos + second + eos

    def get_special_tokens_mask(self, first: list[int], second: list[int] | None = None) -> list[int]:
        """1 where :meth:`build_inputs_with_special_tokens` puts a special token, 0 elsewhere."""
        bos, eos = [1] * bool(self.add_bos_token), [1] * bool(self.add_eos_token)
        mask = bos + [0] * len(first) + eos
        return mask if second is None else mask + bos + [0] * len(second) + eos

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Id of a piece, or ids of several; an unknown piece gives the id of ``unk_token``."""
        if isinstance(tokens, str):
            return self.special_token_to_id.get(tokens, self.sp_model.piece_to_id(tokens))
        return [self.convert_tokens_to_ids(token) for token in tokens]

    # ---------------------------------------------------------------- ids to text
    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Piece of an id, or pieces of several."""
        values = self.to_id_list(ids)
        kept = [index for index in values if not (skip_special_tokens and index in self.special_id_to_token)]
        tokens = [self.special_id_to_token.get(index) or self.id_to_piece(index) for index in kept]
        return tokens[0] if isinstance(ids, int) and tokens else tokens

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of pieces."""
        return self.decode(self.convert_tokens_to_ids(list(tokens)))

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str | list[str]:
        """The text of ids.

        Args:
            token_ids: an int, a list, array or Tensor of ints; or several of these in a list (or a 2-D array).
            skip_special_tokens: leave bos, eos, unk, pad and additional special tokens out.
            clean_up_tokenization_spaces: join punctuation and contractions to the word before; None means the
                tokenizer's own setting.

        Returns:
            A string, or a list of strings for several rows.

        Raises:
            DataError: an id outside the vocabulary (-100 of labels too), or something that is not an id.
        """
        plain = to_plain(token_ids)
        if isinstance(plain, list) and plain and isinstance(plain[0], list):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in plain]
        decoder = IncrementalDecoder(self, skip_special_tokens)
        text = decoder.put(plain) + decoder.flush()
        clean = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        if clean:
            for spaced, joined in _CLEAN_UP.items():
                text = text.replace(spaced, joined)
        return text

    def batch_decode(
        self,
        sequences: Iterable[Any],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """:meth:`decode` of each row."""
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in to_plain(sequences)]

    # ---------------------------------------------------------------- what IncrementalDecoder asks for
    def to_id_list(self, ids: Any) -> list[int]:
        """A flat list of ids, each checked against the vocabulary."""
        plain = to_plain(ids)
        values = plain if isinstance(plain, list) else [plain]
        limit = len(self)
        for index in values:
            if isinstance(index, bool) or not isinstance(index, int):
                raise DataError(f"a token id must be an integer, got {type(index).__name__}: {repr(index)[:80]}")
            if not 0 <= index < limit:
                hint = " (labels mark ignored positions so: leave them out first)" if index == -100 else ""
                raise DataError(
                    f"token id {index} is outside the vocabulary of {limit} tokens (0 to {limit - 1}){hint}"
                )
        return values

    def id_to_piece(self, index: int) -> str:
        """Piece of an ordinary id."""
        return self.sp_model.id_to_piece(index)

    def is_separate_token(self, index: int) -> bool:
        """True for additional tokens behind the SentencePiece pieces: decoding sets them off by spaces."""
        return index >= self.vocab_size and self.special_id_to_token[index] in self.additional_special_tokens

    @cached_property
    def byte_pieces(self) -> dict[str, int]:
        """Piece to byte value, for models with byte fallback."""
        found = {f"<0x{value:02X}>": value for value in range(256)}
        return {
            piece: value for piece, value in found.items() if self.sp_model.is_byte(self.sp_model.piece_to_id(piece))
        }

    @cached_property
    def anchor_piece(self) -> tuple[str, str]:
        """Some ordinary piece and its text."""
        model = self.sp_model
        for index in range(self.vocab_size):
            if not (
                model.is_unknown(index) or model.is_control(index) or model.is_byte(index) or model.is_unused(index)
            ):
                piece = model.id_to_piece(index)
                text = model.decode([piece])
                if text:
                    return piece, text
        raise DataError(f"the SentencePiece model {self.vocab_file} has no ordinary piece, so it cannot decode text")

    # ---------------------------------------------------------------- saving
    def settings(self) -> dict[str, Any]:
        """Constructor arguments other than the vocabulary file, as plain data."""
        names = ("sp_model_kwargs", "add_bos_token", "add_eos_token", "clean_up_tokenization_spaces")
        values = {**self.special_tokens_map, **{name: getattr(self, name) for name in names}}
        return {
            **values,
            **{name: getattr(self, name) for name in ("model_max_length", "padding_side", "truncation_side")},
        }

    def serialized_vocabulary(self) -> bytes:
        """The SentencePiece model as bytes."""
        return self.sp_model.serialized_model_proto()

    # ---------------------------------------------------------------- internals
    def _rebuild_special_tokens(self) -> None:
        super()._rebuild_special_tokens()
        tokens = sorted(self.all_special_tokens, key=len, reverse=True)
        self._special_pattern = re.compile("(" + "|".join(map(re.escape, tokens)) + ")") if tokens else None

    def _vocabulary_id(self, token: str) -> int | None:
        index = self.sp_model.piece_to_id(token)
        return index if self.sp_model.id_to_piece(index) == token else None

    def _split(self, text: str) -> list[tuple[str, bool]]:
        """A text cut at the special tokens in it: (part, is a special token), empty parts left out."""
        if not isinstance(text, str):
            raise DataError(f"the tokenizer needs a string, got {type(text).__name__}: {repr(text)[:80]}")
        if not text.isascii() and _SURROGATE.search(text):
            raise DataError(f"the text holds half a character (a lone surrogate), which is not UTF-8: {text[:80]!a}")
        if self._special_pattern is None:
            return [(text, False)] if text else []
        parts = self._special_pattern.split(text)
        return [(part, number % 2 == 1) for number, part in enumerate(parts) if part]
