# SPDX-License-Identifier: Apache-2.0
"""The special tokens of a tokenizer: their names, their ids, and changing them."""

from typing import Any

from mindformers.errors import DataError
from mindformers.tools.logger import get_logger

__all__ = ["SPECIAL_TOKEN_NAMES", "SpecialTokensMixin"]

logger = get_logger(__name__)
SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


class SpecialTokensMixin:
    """bos, eos, unk, pad and additional special tokens: attributes ``bos_token``, ``bos_token_id`` and so on.

    A token the vocabulary does not hold gets the next free id behind it.
    """

    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None

    def __getattr__(self, name: str) -> Any:
        if name.endswith("_token_id") and name[:-3] in SPECIAL_TOKEN_NAMES:
            token = getattr(self, name[:-3])
            return None if token is None else self.special_token_to_id[token]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in (*SPECIAL_TOKEN_NAMES, "additional_special_tokens"):
            super().__setattr__(name, value)
            return
        values = value if name == "additional_special_tokens" else [value]
        if not isinstance(values, list | tuple) or not all(item is None or isinstance(item, str) for item in values):
            raise DataError(f"{name} must be a string (a list of strings for additional_special_tokens), got {value!r}")
        if "" in values:
            raise DataError(f"{name} must not be empty")
        super().__setattr__(name, list(value) if name == "additional_special_tokens" else value)
        if "special_token_to_id" in self.__dict__:
            self._rebuild_special_tokens()

    def _rebuild_special_tokens(self) -> None:
        """Give every special token its id; called after each change."""
        old = self.__dict__.get("special_token_to_id", {})
        table: dict[str, int] = {}
        for token in self.all_special_tokens:
            known = self._vocabulary_id(token)
            if known is None:
                known = old.get(token, max([self.vocab_size - 1, *old.values(), *table.values()]) + 1)
                if token not in old:
                    logger.warning(
                        "special token %r is not in the vocabulary of %d pieces and gets id %d; the model "
                        "needs "
                        "vocab_size >= %d",
                        token,
                        self.vocab_size,
                        known,
                        known + 1,
                    )
            table[token] = known
        self.special_token_to_id = table
        self.special_id_to_token = {index: token for token, index in table.items()}

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens in use, without repeats."""
        named = [getattr(self, name) for name in SPECIAL_TOKEN_NAMES]
        return list(dict.fromkeys(token for token in named + self.additional_special_tokens if token is not None))

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of :attr:`all_special_tokens`."""
        return [self.special_token_to_id[token] for token in self.all_special_tokens]

    @property
    def special_tokens_map(self) -> dict[str, str | list[str]]:
        """Name to token of the special tokens that are set."""
        named = {name: getattr(self, name) for name in SPECIAL_TOKEN_NAMES if getattr(self, name) is not None}
        extra = self.additional_special_tokens
        return {**named, "additional_special_tokens": list(extra)} if extra else named
