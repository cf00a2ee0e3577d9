# SPDX-License-Identifier: Apache-2.0
"""IncrementalDecoder: instalments join to the full text, and none of them is ever taken back."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindformers.models.incremental_decoder import IncrementalDecoder
from mindformers.models.llama.llama_tokenizer import LlamaTokenizer

_RELAXED = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Special tokens, bytes and words in any order; small numbers are <unk>, <s>, </s>, then the 256 bytes.
_IDS = st.lists(st.one_of(st.integers(0, 2), st.integers(3, 258), st.integers(0, 399)), max_size=30)


@pytest.fixture(scope="module", params=[(), ("<|user|>",)], ids=["plain", "added"])
def tokenizer(request, tiny_model_file: Path) -> LlamaTokenizer:
    return LlamaTokenizer(str(tiny_model_file), additional_special_tokens=list(request.param))


def _stream(decoder: IncrementalDecoder, ids: list[int], step: int = 1) -> list[str]:
    return [decoder.put(ids[at : at + step]) for at in range(0, len(ids), step)] + [decoder.flush()]


@given(ids=_IDS, step=st.integers(1, 4), skip=st.booleans())
@_RELAXED
def test_instalments_join_to_the_full_text(tokenizer, ids: list[int], step: int, skip: bool) -> None:
    limit = len(tokenizer)
    ids = [limit - 1 if index >= limit else index for index in ids]
    decoder = IncrementalDecoder(tokenizer, skip_special_tokens=skip)
    assert "".join(_stream(decoder, ids, step)) == tokenizer.decode(ids, skip_special_tokens=skip)
    assert "".join(_stream(decoder, ids, step)) == tokenizer.decode(ids, skip_special_tokens=skip)  # fresh after flush


@given(ids=_IDS)
@_RELAXED
def test_what_was_said_stays_said(tokenizer, ids: list[int]) -> None:
    ids = [min(index, tokenizer.vocab_size - 1) for index in ids]
    for skip in (True, False):
        decoder, said = IncrementalDecoder(tokenizer, skip), ""
        for index in ids:
            said += decoder.put(index)
        for more in ([2], [300], [0xE4 + 3], [1, 2, 300]):
            assert tokenizer.decode(ids + more, skip_special_tokens=skip).startswith(said)


@pytest.mark.parametrize(
    "text", ["\u4f60\u597d\uff0c\u4e16\u754c", "\U0001f600\U0001f468\u200d\U0001f469 ok", "\u00e9t\u00e9 \u9f98\u9f98"]
)
def test_no_replacement_character_while_streaming(tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    parts = _stream(IncrementalDecoder(tokenizer), ids)
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)
    assert sum(bool(part) for part in parts) > 1  # it does stream


def test_each_unfinished_byte_is_held_back_and_flushed(tokenizer) -> None:
    bytes_of = {value: tokenizer.convert_tokens_to_ids(piece) for piece, value in tokenizer.byte_pieces.items()}
    ids = [bytes_of[byte] for byte in "\U0001f600".encode()]
    decoder = IncrementalDecoder(tokenizer)
    assert [decoder.put(index) for index in ids] == ["", "", "", "\U0001f600"]
    assert [decoder.put(index) for index in ids[:2]] == ["", ""]
    assert decoder.put(ids[0]) == "\ufffd\ufffd"  # a new character begins: the old one will never be finished
    assert decoder.flush() == "\ufffd"


def test_legacy_spaces(tokenizer) -> None:
    ids = [1, *tokenizer.encode("the fox", add_special_tokens=False), 2]
    held = [IncrementalDecoder(tokenizer, skip_special_tokens=False), []]
    for index in ids:
        held[1].append(held[0].put(index))
    assert held[1][0] == "<s>"
    assert "".join(held[1][:-1]) == "<s>"
    assert held[1][-1] == " the fox</s>"
    free = _stream(IncrementalDecoder(tokenizer, skip_special_tokens=False, legacy_spaces=False), ids)
    assert "".join(free) == "<s>the fox</s>"
    assert free[1] != ""
