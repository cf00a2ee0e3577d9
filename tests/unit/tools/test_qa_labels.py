# SPDX-License-Identifier: Apache-2.0
"""Labels of instruction data: the ids of every answer token and its eos, and nothing else."""

import io
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindformers.errors import DataError
from mindformers.tools.dataset_preprocess.llama.answer_tokens import SpanEncoder
from mindformers.tools.dataset_preprocess.llama.conversations import Template, dialogue_of
from mindformers.tools.dataset_preprocess.llama.packing import IGNORED
from mindformers.tools.dataset_preprocess.llama.qa_records import Conversations, QaTokenizer
from mindformers.tools.dataset_preprocess.llama.token_stream import TokenizerFile
from tests.helpers import shared_data

pytest.importorskip("fastchat")
LONG = 100_000
SPEECH = st.text(
    st.one_of(
        st.sampled_from(" \n\tabc.,:!</s>\u2581\u4f60\u597d\u4e16\u754c\u00e9\U0001f600\U0001f468\u200d\u00a0\u3000"),
        st.characters(exclude_categories=("Cs",)),
    ),
    min_size=1,
    max_size=40,
).filter(lambda text: bool(text.strip()))
WORDS = st.sampled_from(
    ["</s>", "<s>", "ASSISTANT:", "USER: hi", "[/INST]", "<unk>", "the quick fox", " lead", "end  "]
)
TEXT = st.one_of(SPEECH, WORDS, st.tuples(SPEECH, WORDS).map(" ".join))
TALK = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4)


def record(turns: list[tuple[str, str]]) -> dict:
    names = ("human", "gpt")
    return {"conversations": [{"from": names[i], "value": turn[i]} for turn in turns for i in (0, 1)]}


def label(tokenizer: QaTokenizer, turns: list[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    made = tokenizer(Conversations([("x", record(turns))], True))
    assert not made.bad
    assert made.ids.dtype == made.labels.dtype == np.int32
    assert made.lengths.tolist() == [len(made.ids)] == [len(made.labels)]
    return made.ids, made.labels


def written(model: sentencepiece.SentencePieceProcessor, ids: list[int]) -> str:
    """The text that ids write, with every space, by the pieces themselves."""
    raw = b"".join(
        bytes([int(model.id_to_piece(i)[3:-1], 16)]) if model.is_byte(i) else model.id_to_piece(i).encode() for i in ids
    )
    return raw.decode("utf-8")


def answers_of(labels: np.ndarray, eos: int) -> list[list[int]]:
    """Runs of labels, each up to its eos."""
    runs: list[list[int]] = [[]]
    for value, before in zip(labels[1:], labels[:-1], strict=True):
        if value != IGNORED:
            if before in (IGNORED, eos):
                runs.append([])
            runs[-1].append(int(value))
    return runs[1:]


@pytest.fixture(scope="module")
def model(tiny_model_file: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(tiny_model_file))


@pytest.fixture(scope="module")
def tokenizers(tiny_model_file: Path) -> dict[str, QaTokenizer]:
    file = TokenizerFile.open(tiny_model_file)
    return {name: QaTokenizer(file, name, LONG) for name in ("vicuna_v1.1", "llama-2")}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(turns=TALK)
def test_vicuna_labels_are_the_answers_and_nothing_else(tokenizers, model, turns) -> None:
    ids, labels = label(tokenizers["vicuna_v1.1"], turns)
    chosen = labels != IGNORED
    assert (labels[chosen] == ids[chosen]).all()
    assert ids[0] == 1
    assert (ids == 1).sum() == 1
    assert (ids == 2).sum() == len(turns)
    runs = answers_of(labels, 2)
    assert len(runs) == len(turns)
    for run, (_, answer) in zip(runs, turns, strict=True):
        assert run[-1] == 2
        assert written(model, run[:-1]) == (" " + answer).replace(" ", "\u2581")
    inputs = ids[~chosen].tolist()
    for question, _ in turns:
        assert question.replace(" ", "\u2581") in written(model, [i for i in inputs if i > 2])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(turns=TALK)
def test_llama_2_labels(tokenizers, model, turns) -> None:
    ids, labels = label(tokenizers["llama-2"], turns)
    assert (ids == 1).sum() == (ids == 2).sum() == len(turns)
    runs = answers_of(labels, 2)
    for run, (_, answer) in zip(runs, turns, strict=True):
        assert written(model, run[:-1]) == f" {answer} ".replace(" ", "\u2581")  # the template's space before </s>


@settings(max_examples=100, deadline=None)
@given(text=st.one_of(SPEECH, st.text(" \u2581a\n", max_size=12)), cut=st.integers(0, 40))
def test_words_and_places_agree_with_sentencepiece(tiny_encoders, model, text: str, cut: int) -> None:
    """Word by word or at once, by lengths or by SentencePiece's account: the same ids and the same first token."""
    fast, slow = tiny_encoders
    start = min(cut, len(text))
    ids, first = fast.encode_from([text], [start])[0]
    assert ids.tolist() == model.encode(text)
    assert first == slow.encode_from([text], [start])[0][1]
    assert fast._by_words
    assert not slow._by_words


@pytest.fixture(scope="module")
def tiny_encoders(tiny_model_file: Path) -> tuple[SpanEncoder, SpanEncoder]:
    fast, slow = SpanEncoder(str(tiny_model_file)), SpanEncoder(str(tiny_model_file))
    slow._by_words = False
    return fast, slow


def test_a_tokenizer_that_rewrites_text(tmp_path) -> None:
    """With NFKC and without byte fallback places come from SentencePiece itself."""
    proto = io.BytesIO()
    lines = ["the quick brown fox", "jumps over a lazy dog", "USER: ASSISTANT: ok", "fine words"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=proto, vocab_size=60, model_type="unigram",
        normalization_rule_name="nmt_nfkc", hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    path = tmp_path / "tokenizer.model"
    path.write_bytes(proto.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = QaTokenizer(TokenizerFile.open(path), "vicuna_v1.1", LONG)
    # a ligature becomes two letters, full-width letters become ASCII, runs of spaces one, an unknown character <unk>
    ids, labels = label(tokenizer, [("\ufb01ne   \uff54he fox?", "the \ufb01ne\u4f60  dog"), ("a", "\uff57ords")])
    runs = answers_of(labels, 2)
    assert [model.decode([i for i in run if i > 2]) for run in runs] == ["the fine dog", "words"]
    assert 0 in runs[0]
    assert len(labels) == len(ids)


def test_the_real_tokenizer(tmp_path) -> None:
    path = shared_data("llama2_tokenizer/tokenizer.model")
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = QaTokenizer(TokenizerFile.open(path), "vicuna_v1.1", LONG)
    turns = [("Say hello in Chinese.", "\u4f60\u597d\uff0c\u4e16\u754c \U0001f468\u200d\U0001f469"), ("Bye", "\nBye!")]
    ids, labels = label(tokenizer, turns)
    assert [written(model, run[:-1]) for run in answers_of(labels, 2)] == [
        "\u2581" + answer.replace(" ", "\u2581") for _, answer in turns
    ]
    prompt = Template("vicuna_v1.1").segments(dialogue_of(record(turns[:1])))[0].text
    assert prompt.endswith(f"USER: {turns[0][0]} ASSISTANT: {turns[0][1]}")
    assert ids[: len(model.encode(prompt)) + 2].tolist() == [1, *model.encode(prompt), 2]


def test_truncation_keeps_labels_aligned(tiny_model_file) -> None:
    file = TokenizerFile.open(tiny_model_file)
    turns = [("the quick brown fox", "a lazy dog"), ("jumps", "over the evil queen")]
    ids, labels = label(QaTokenizer(file, "vicuna_v1.1", LONG), turns)
    first = int(np.argmax(labels != IGNORED))
    for length in range(first - 1, len(ids) + 2):
        made = QaTokenizer(file, "vicuna_v1.1", length)(Conversations([("x", record(turns))], True))
        if length <= first:
            assert (made.unlabelled, made.truncated, len(made.lengths)) == (1, 0, 0)
            continue
        assert (made.unlabelled, made.truncated) == (0, int(length < len(ids)))
        assert made.ids.tolist() == ids[:length].tolist()
        assert made.labels.tolist() == labels[:length].tolist()


def test_templates() -> None:
    with pytest.raises(DataError, match=r"'vicuna_v11' is not known. Did you mean 'vicuna_v1.1'"):
        Template("vicuna_v11")
    with pytest.raises(DataError, match=r"one_shot: its answers do not end with </s>.*Use one of: .*llama-2"):
        Template("one_shot")
    system = {"conversations": [{"from": "system", "value": "Be brief."}, *record([("q", "a")])["conversations"]]}
    assert "Be brief." in Template("llama-2").segments(dialogue_of(system))[0].text
    assert "curious user" not in Template("vicuna_v1.1").segments(dialogue_of(system))[0].text
