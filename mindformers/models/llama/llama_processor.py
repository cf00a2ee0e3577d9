# SPDX-License-Identifier: Apache-2.0
"""The processor of a Llama YAML: a tokenizer with fixed padding."""

from collections.abc import Sequence
from typing import Any

from mindformers.errors import DataError
from mindformers.models.base_processor import BaseProcessor
from mindformers.registry import MindFormerModuleType, MindFormerRegister

__all__ = ["LlamaProcessor"]


@MindFormerRegister.register(MindFormerModuleType.PROCESSOR)
class LlamaProcessor(BaseProcessor):
    """Text to ids of one length.

    Args:
        tokenizer: a :class:`~mindformers.models.llama.llama_tokenizer.LlamaTokenizer`.
        max_length: tokens per text, special ones included, to which ``padding='max_length'`` pads; longer texts
            stay.
        padding: as in the tokenizer's call; False leaves lengths as they are.
        return_tensors: 'ms', 'np' or None.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int = 128,
        padding: bool | str = "max_length",
        return_tensors: str | None = "ms",
    ) -> None:
        if not callable(tokenizer) or not hasattr(tokenizer, "encode_texts"):
            raise DataError(f"LlamaProcessor needs a LlamaTokenizer, got {type(tokenizer).__name__}")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.padding = padding
        self.return_tensors = return_tensors

    def __call__(self, text: str | Sequence[str]) -> dict[str, Any]:
        """Ids of one text or several.

        Returns:
            ``{'text': ids}``, ids of shape (S,) for a string and (B, S) for a list.
        """
        encoded = self.tokenizer(
            text,
            padding=self.padding,
            truncation=False,
            max_length=self.max_length,
            return_tensors=self.return_tensors,
        )
        return {"text": encoded["input_ids"]}
