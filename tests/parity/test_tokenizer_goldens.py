# SPDX-License-Identifier: Apache-2.0
"""LlamaTokenizer against the slow, legacy LlamaTokenizer of transformers 4.x, over goldens (made by tools/)."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from mindformers.models.llama.llama_tokenizer import LlamaTokenizer
from tests.helpers import REPO, shared_data
from tests.parity import tokenizer_cases as cases


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads((REPO / "tests" / "golden" / "tokenizer_llama2.json").read_text())


@pytest.fixture(scope="module")
def model_file() -> str:
    return str(shared_data("llama2_tokenizer/tokenizer.model"))


@pytest.fixture(scope="module")
def plain(model_file: str) -> LlamaTokenizer:
    return LlamaTokenizer(model_file)


@pytest.fixture(scope="module")
def added(model_file: str) -> LlamaTokenizer:
    return LlamaTokenizer(model_file, additional_special_tokens=cases.ADDED_TOKENS)


def _compare(rows: list[Any], hashes: list[str], describe: Callable[[Any], list[Any]]) -> None:
    assert len(rows) == len(hashes)
    wrong = [row for row, expected in zip(rows, hashes, strict=True) if cases.digest(describe(row)) != expected]
    assert not wrong, f"{len(wrong)} of {len(rows)} differ; the first: {wrong[0]!r} -> {describe(wrong[0])}"


def test_hard_texts_in_full(golden: dict[str, Any], plain: LlamaTokenizer) -> None:
    assert [row[0] for row in golden["hard"]] == cases.HARD_TEXTS
    for text, *expected in golden["hard"]:
        assert cases.describe_text(plain, text) == expected, repr(text)


def test_texts(golden: dict[str, Any], plain: LlamaTokenizer) -> None:
    texts = cases.make_texts()
    assert len(texts) >= 2000
    _compare(texts, golden["texts"], lambda text: cases.describe_text(plain, text))


def test_texts_with_added_tokens(golden: dict[str, Any], added: LlamaTokenizer) -> None:
    rows = cases.make_texts()[::4]
    _compare(rows, golden["texts_with_added_tokens"], lambda text: cases.describe_text(added, text))


def test_any_ids_decode(golden: dict[str, Any], plain: LlamaTokenizer, added: LlamaTokenizer) -> None:
    rows = cases.make_id_rows(cases.VOCAB_SIZE)
    _compare(rows, golden["ids"], lambda row: cases.describe_ids(plain, row))
    rows = cases.make_id_rows(cases.VOCAB_SIZE + len(cases.ADDED_TOKENS))
    _compare(rows, golden["ids_with_added_tokens"], lambda row: cases.describe_ids(added, row))


def test_batch_gives_the_same_ids_as_one_by_one(plain: LlamaTokenizer) -> None:
    texts = cases.make_texts()[:300]
    assert plain(texts)["input_ids"] == [plain(text)["input_ids"] for text in texts]


def test_known_ids(plain: LlamaTokenizer) -> None:
    assert plain("Once upon a time")["input_ids"] == [1, 9038, 2501, 263, 931]
    assert plain.encode("\u4f60\u597d\uff0c\u4e16\u754c", add_special_tokens=False) == [
        29871,
        30919,
        31076,
        30214,
        30793,
        30967,
    ]
    assert plain.decode([1, 306, 5360]) == "<s>I love"
    assert plain.decode([1, 306, 5360, 2]) == "<s> I love</s>"
