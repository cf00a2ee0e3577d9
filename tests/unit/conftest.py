# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several unit tests share."""

import io
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model of 400 pieces built like Llama's (BPE, byte fallback, bos 1, eos 2, white space kept)."""
    import sentencepiece

    text = "the quick brown fox jumps over a lazy dog while seven wizards make toxic brew for evil queen Jack"
    words = text.split()
    lines = [" ".join(words[(i * step) % len(words)] for i in range(12)) + "." for step in range(1, 40)]
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines + ["don't stop, 1234567890 (maybe)!", "\u00e9t\u00e9 \u4f60\u597d\u4e16\u754c"]),
        model_writer=proto,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("tiny_tokenizer") / "tokenizer.model"
    path.write_bytes(proto.getvalue())
    return path
