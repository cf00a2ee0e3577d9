# SPDX-License-Identifier: Apache-2.0
"""LlamaTokenizer on a small SentencePiece model trained by the fixture: no data from outside."""

import logging
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindformers.errors import DataError
from mindformers.models.base_tokenizer import EncodeOptions
from mindformers.models.llama.llama_processor import LlamaProcessor
from mindformers.models.llama.llama_tokenizer import LlamaTokenizer
from tests.helpers import REPO

TEXTS = ["the quick brown fox", "", " two  spaces ", "\u4f60\u597d \U0001f600", "a\nb\tc", "don't stop (maybe)!"]
_RELAXED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def tokenizer(tiny_model_file: Path) -> LlamaTokenizer:
    return LlamaTokenizer(str(tiny_model_file))


@pytest.fixture(scope="module")
def bare(tiny_model_file: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(tiny_model_file))


@given(text=st.text(max_size=40).filter(lambda text: not any(t in text for t in ("<s>", "</s>", "<unk>"))))
@_RELAXED
def test_plain_text_gives_the_ids_of_sentencepiece(tokenizer, bare, text: str) -> None:
    assert tokenizer.encode(text, add_special_tokens=False) == bare.encode(text)
    assert tokenizer.encode(text) == [1] + bare.encode(text)
    assert tokenizer.tokenize(text) == bare.encode(text, out_type=str)


def test_special_tokens_in_text_are_recognised(tokenizer, bare) -> None:
    ids = tokenizer.encode("fox</s>dog<s><unk> a", add_special_tokens=False)
    assert ids == bare.encode("fox") + [2] + bare.encode("dog") + [1, 0] + bare.encode(" a")
    assert tokenizer.tokenize("fox</s>") == bare.encode("fox", out_type=str) + ["</s>"]


def test_bos_and_eos_switches_and_pairs(tokenizer, tiny_model_file) -> None:
    fox, dog = (tokenizer.encode(text, add_special_tokens=False) for text in ("fox", "dog"))
    both = LlamaTokenizer(str(tiny_model_file), add_eos_token=True)
    assert both.encode("fox") == [1, *fox, 2]
    assert both.encode("fox", "dog") == [1, *fox, 2, 1, *dog, 2]
    assert tokenizer.encode("fox", "dog") == [1, *fox, 1, *dog]
    both.add_bos_token = False
    assert both.encode("fox") == [*fox, 2]
    assert both.num_special_tokens_to_add() == 1
    assert both.num_special_tokens_to_add(pair=True) == 2
    row = tokenizer("fox", "dog", return_token_type_ids=True, return_special_tokens_mask=True, return_length=True)
    assert row["token_type_ids"] == [0] * (1 + len(fox)) + [1] * (1 + len(dog))
    assert row["special_tokens_mask"] == [1] + [0] * len(fox) + [1] + [0] * len(dog)
    assert row["length"] == len(row["input_ids"])


def test_one_text_and_a_batch(tokenizer) -> None:
    one, many = tokenizer(TEXTS[0]), tokenizer(TEXTS)
    assert isinstance(one.input_ids[0], int)
    assert many.input_ids[0] == one["input_ids"]
    assert list(many) == ["input_ids", "attention_mask"]
    assert [len(row) for row in many.attention_mask] == [len(row) for row in many.input_ids]
    assert tokenizer.batch_encode_plus(TEXTS) == many
    pairs = tokenizer.batch_encode_plus([("fox", "dog"), ("dog", "fox")])
    assert pairs.input_ids == [tokenizer.encode("fox", "dog"), tokenizer.encode("dog", "fox")]
    words = tokenizer(["fox", "dog"], is_split_into_words=True)
    assert words.input_ids == [1] + tokenizer.encode("fox")[1:] + tokenizer.encode("dog")[1:]
    assert tokenizer([])["input_ids"] == []


def test_padding(tokenizer) -> None:
    texts = ["fox", "the quick brown fox jumps"]
    right = tokenizer(texts, padding=True)
    width = len(right.input_ids[1])
    assert [len(row) for row in right.input_ids] == [width, width]
    assert right.input_ids[0][-1] == 0
    assert right.attention_mask[0][-1] == 0
    left = tokenizer(texts, padding="longest", padding_side="left")
    assert left.input_ids[0][0] == 0
    assert left.input_ids[0][-1] == right.input_ids[0][sum(right.attention_mask[0]) - 1]
    assert {len(row) for row in tokenizer(texts, padding=True, pad_to_multiple_of=16).input_ids} == {16}
    fixed = tokenizer("fox", padding="max_length", max_length=20)
    assert len(fixed.input_ids) == 20
    long = tokenizer(texts[1], padding="max_length", max_length=3)  # not cut without truncation
    assert long.input_ids == tokenizer.encode(texts[1])
    again = tokenizer.pad({"input_ids": [[1, 5], [1]]}, return_tensors="np")
    np.testing.assert_array_equal(again.input_ids, [[1, 5], [1, 0]])
    np.testing.assert_array_equal(again.attention_mask, [[1, 1], [1, 0]])
    assert tokenizer.pad([{"input_ids": [1, 5]}, {"input_ids": [1]}])["input_ids"] == [[1, 5], [1, 0]]


def test_truncation(tokenizer, tiny_model_file, caplog) -> None:
    text = "the quick brown fox jumps over a lazy dog"
    full = tokenizer.encode(text)
    assert tokenizer.encode(text, truncation=True, max_length=5) == full[:5]
    left = LlamaTokenizer(str(tiny_model_file), truncation_side="left", add_eos_token=True)
    assert left.encode(text, truncation=True, max_length=5) == [1, *full[-3:], 2]
    assert tokenizer.encode(text, truncation=True, max_length=1) == [1]
    first, second = full[1:], tokenizer.encode("fox jumps")[1:]
    spare = len(first) + len(second) + 2
    cut = tokenizer.encode(text, "fox jumps", truncation="longest_first", max_length=spare - 3)
    assert cut == [1, *first[:-3], 1, *second]
    cut = tokenizer.encode(text, "fox jumps", truncation="only_second", max_length=spare - 1)
    assert cut == [1, *first, 1, *second[:-1]]
    logging.getLogger("mindformers").addHandler(caplog.handler)
    assert tokenizer.encode(text, max_length=4) == full[:4]
    assert "truncation is switched on" in caplog.text
    logging.getLogger("mindformers").removeHandler(caplog.handler)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(2, 30))
@_RELAXED
def test_longest_first_cuts_one_token_at_a_time_from_the_longer(tokenizer, first: int, second: int, limit: int) -> None:
    a, b = list(range(10, 10 + first)), list(range(50, 50 + second))
    while len(a) + len(b) + 2 > limit:
        (a if len(a) > len(b) else b).pop()
    option = EncodeOptions(truncation=True, max_length=limit)
    got = tokenizer._truncate(list(range(10, 10 + first)), list(range(50, 50 + second)), 2, option)
    assert got == (a, b)


def test_tensors(tokenizer) -> None:
    arrays = tokenizer(TEXTS, padding=True, return_tensors="np")
    assert arrays.input_ids.dtype == np.int32
    assert arrays.input_ids.shape[0] == len(TEXTS)
    tensor = tokenizer("fox", return_tensors="ms").input_ids
    assert tensor.dtype.__str__() == "Int32"
    assert tensor.shape == (len(tokenizer.encode("fox")),)
    with pytest.raises(DataError, match="padding=True"):
        tokenizer(["fox", "the quick brown"], return_tensors="np")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"paddings": True}, "Did you mean 'padding'"),
        ({"padding": "maxlength"}, "'max_length'"),
        ({"padding": 1}, "padding=1"),
        ({"truncation": "longest"}, "longest_first"),
        ({"return_tensors": "pt"}, "'np', 'ms'"),
        ({"max_length": 0}, "positive integer"),
        ({"max_length": "8"}, "positive integer"),
        ({"stride": 2}, "stride"),
        ({"padding": "max_length"}, "max_length=N"),
        ({"truncation": True}, "max_length=N"),
        ({"truncation": "only_second", "max_length": 2}, "text_pair"),
    ],
)
def test_wrong_options(tokenizer, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tokenizer("the quick brown fox", **options)


@pytest.mark.parametrize("text", [None, 5, b"fox", {"a": 1}, ["fox", None], [["fox"]], "\ud800"])
def test_not_text(tokenizer, text) -> None:
    with pytest.raises(DataError):
        tokenizer(text)


def test_pairs_must_match(tokenizer) -> None:
    with pytest.raises(DataError, match="2 texts but 1"):
        tokenizer(["a", "b"], ["c"])


# ---------------------------------------------------------------- decoding
def test_decode_forms(tokenizer) -> None:
    ids = tokenizer.encode("the quick fox", add_special_tokens=False)
    assert tokenizer.decode(ids) == "the quick fox"
    assert tokenizer.decode([1, *ids]) == "<s>the quick fox"
    assert tokenizer.decode([1, *ids, 2]) == "<s> the quick fox</s>"  # the old rule: a later special token adds a space
    assert tokenizer.decode([1, *ids, 2], skip_special_tokens=True) == "the quick fox"
    assert tokenizer.decode(np.array(ids)) == "the quick fox"
    assert tokenizer.decode([ids, ids]) == ["the quick fox"] * 2
    assert tokenizer.decode([np.array(ids), ids[:1]]) == ["the quick fox", tokenizer.decode(ids[:1])]
    assert tokenizer.decode(np.array([ids, ids])) == ["the quick fox"] * 2
    assert tokenizer.batch_decode([ids, [1, *ids]]) == ["the quick fox", "<s>the quick fox"]
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode(1) == "<s>"
    tensor = tokenizer("the quick fox", return_tensors="ms").input_ids
    assert tokenizer.decode(tensor, skip_special_tokens=True) == "the quick fox"


@pytest.mark.parametrize("bad", [[-1], [10**6], [-100], [1.5], ["a"], [True], None])
def test_ids_that_are_none(tokenizer, bad) -> None:
    with pytest.raises(DataError):
        tokenizer.decode(bad)


def test_clean_up(tokenizer) -> None:
    ids = tokenizer.encode("do n't stop , fox !", add_special_tokens=False)
    assert tokenizer.decode(ids) == "do n't stop , fox !"
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=True) == "don't stop, fox!"


@given(text=st.text(max_size=60))
@_RELAXED
def test_text_survives_the_round_trip(tokenizer, text: str) -> None:
    if any(token in text for token in ("<s>", "</s>", "<unk>", "\u2581")) or text.startswith(" "):
        return  # specials are special, U+2581 is a space, and decoding drops leading spaces
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def test_vocabulary(tokenizer) -> None:
    vocabulary = tokenizer.get_vocab()
    assert len(vocabulary) == tokenizer.vocab_size == len(tokenizer)
    assert tokenizer.convert_tokens_to_ids(["<s>", "</s>", "never seen"]) == [1, 2, 0]
    ids = tokenizer.encode("the fox")
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert pieces[0] == "<s>"
    assert tokenizer.convert_tokens_to_ids(pieces) == ids
    assert tokenizer.convert_ids_to_tokens(ids, skip_special_tokens=True) == pieces[1:]
    assert tokenizer.convert_ids_to_tokens(1) == "<s>"
    assert tokenizer.convert_tokens_to_string(pieces[1:]) == "the fox"
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (
        0,
        1,
        2,
        0,
    )


def test_special_tokens_can_change(tiny_model_file) -> None:
    own = LlamaTokenizer(str(tiny_model_file), additional_special_tokens=["<|user|>"])
    size = own.vocab_size
    assert own.encode("a<|user|>b", add_special_tokens=False).count(size) == 1
    assert len(own) == size + 1
    own.pad_token = "<pad>"
    assert own.pad_token_id == size + 1
    assert own.encode("<pad>", add_special_tokens=False) == [size + 1]
    own.pad_token = own.eos_token
    assert own.pad_token_id == 2
    assert own.special_tokens_map["additional_special_tokens"] == ["<|user|>"]
    with pytest.raises(DataError, match="pad_token"):
        own.pad_token = 5
    with pytest.raises(AttributeError, match="no attribute"):
        _ = own.no_such_thing


def test_pickle(tokenizer) -> None:
    other = pickle.loads(pickle.dumps(tokenizer))
    assert other(TEXTS) == tokenizer(TEXTS)
    assert other.decode([1, 300, 2]) == tokenizer.decode([1, 300, 2])


# ---------------------------------------------------------------- files
@pytest.mark.parametrize("file_format", ["yaml", "json"])
def test_save_and_load(tiny_model_file, tmp_path, file_format: str) -> None:
    own = LlamaTokenizer(
        str(tiny_model_file),
        add_bos_token=False,
        add_eos_token=True,
        additional_special_tokens=["<|user|>"],
        padding_side="left",
        model_max_length=77,
    )
    target = tmp_path / "new" / "folder"
    files = own.save_pretrained(target, file_format=file_format)
    assert {Path(file).name for file in files} == {path.name for path in target.iterdir()}
    again = LlamaTokenizer.from_pretrained(target)
    assert again.settings() == own.settings()
    assert again(TEXTS) == own(TEXTS)
    assert LlamaTokenizer.from_pretrained(target, add_eos_token=False).add_eos_token is False


def test_save_keeps_the_rest_of_a_yaml(tokenizer, tmp_path) -> None:
    (tmp_path / "mindspore_model.yaml").write_text(
        "model: {a: 1}\nprocessor: {type: LlamaProcessor, return_tensors: ms}\n"
    )
    tokenizer.save_pretrained(tmp_path)
    text = (tmp_path / "mindspore_model.yaml").read_text()
    assert "model:" in text
    assert "return_tensors: ms" in text
    assert "add_bos_token: true" in text


def test_hugging_face_directory(tiny_model_file, tmp_path, caplog) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tiny_model_file.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "LlamaTokenizer", "add_eos_token": true, "legacy": false, "pad_token": null, '
        '"bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": false}, "eos_token": "</s>", '
        '"model_max_length": 1000000000000000019884624838656, "chat_template": "x"}'
    )
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 400}')
    logging.getLogger("mindformers").addHandler(caplog.handler)
    own = LlamaTokenizer.from_pretrained(tmp_path)
    logging.getLogger("mindformers").removeHandler(caplog.handler)
    assert "legacy: false" in caplog.text
    assert own.add_eos_token
    assert own.pad_token == "<unk>"
    assert own.special_token_to_id["<pad>"] == own.vocab_size


def test_wrong_vocabulary_files(tiny_model_file, tmp_path) -> None:
    for name, content in (("empty", b""), ("junk", b"\x00junk"), ("cut", tiny_model_file.read_bytes()[:999])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            LlamaTokenizer(str(tmp_path / name))
    with pytest.raises(DataError, match="not found"):
        LlamaTokenizer(str(tmp_path / "absent.model"))
    with pytest.raises(DataError, match=r"directory.*holds: cut, empty, junk"):
        LlamaTokenizer(str(tmp_path))
    with pytest.raises(DataError, match="path of a SentencePiece model"):
        LlamaTokenizer(None)
    with pytest.raises(DataError, match="Did you mean 'padding_side'"):
        LlamaTokenizer(str(tiny_model_file), paddingside="left")
    with pytest.raises(DataError, match="does not accept"):
        LlamaTokenizer(str(tiny_model_file), sp_model_kwargs={"no_such": 1})


def test_wrong_directories(tiny_model_file, tmp_path) -> None:
    with pytest.raises(DataError, match="no tokenizer directory"):
        LlamaTokenizer.from_pretrained(tmp_path / "absent")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"holds no 'tokenizer.model'.*config.json"):
        LlamaTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(tiny_model_file.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        LlamaTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "a.yaml").write_text("processor: {tokenizer: {add_eos_token: true}}")
    (tmp_path / "b.yaml").write_text("processor: {tokenizer: {add_eos_token: false}}")
    with pytest.raises(DataError, match=r"a\.yaml, b\.yaml differ"):
        LlamaTokenizer.from_pretrained(tmp_path)
    with pytest.raises(DataError, match="is a file"):
        LlamaTokenizer(str(tiny_model_file)).save_pretrained(tmp_path / "a.yaml")


def test_processor(tokenizer) -> None:
    processor = LlamaProcessor(tokenizer, max_length=12, return_tensors="np")
    assert processor("the fox")["text"].shape == (12,)
    assert processor(["the fox", "dog"])["text"].shape == (2, 12)
    assert LlamaProcessor(tokenizer, max_length=12)("the fox")["text"].shape == (12,)
    with pytest.raises(DataError, match="LlamaTokenizer"):
        LlamaProcessor("llama2_7b")


def test_import_and_use_without_mindspore(tiny_model_file) -> None:
    code = (
        "import sys; from mindformers.models.llama.llama_tokenizer import LlamaTokenizer; "
        f"LlamaTokenizer({str(tiny_model_file)!r})('fox', return_tensors='np'); assert 'mindspore' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPO)
