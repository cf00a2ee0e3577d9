# SPDX-License-Identifier: Apache-2.0
"""Instruction data from files to MindRecord: converter, qa mode, packing, SQuAD; bad records and bad files."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from mindformers.dataset.causal_language_model import create_causal_lm_dataset
from mindformers.dataset.mindrecord import inspect_mindrecord, read_records
from mindformers.errors import DataError
from mindformers.tools.dataset_preprocess.llama import (
    alpaca_converter,
    json_records,
    llama_preprocess,
    squad_data_process,
)
from mindformers.tools.dataset_preprocess.llama.packing import IGNORED, Packer
from tests.helpers import REPO, shared_data

pytest.importorskip("fastchat")
SCRIPTS = REPO / "mindformers" / "tools" / "dataset_preprocess" / "llama"
ALPACA = [
    {"instruction": "Say one.", "input": "", "output": "one"},
    {"instruction": "Add.", "input": "1 2", "output": "3 \u4f60\u597d"},
    {"instruction": "Empty", "input": "", "output": " "},
    {"instruction": 7, "output": "x"},
    {"text": "x"},
    "rubbish",
    {"instruction": "half \ud83d", "output": "x"},
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "the fox"}], "id": "mine"},
]
REASONS = {2: "output is empty", 3: "instruction must be text, got int", 4: "has neither 'instruction'",
           5: "must be an object, got str", 6: "lone surrogate at character 5"}  # fmt: skip


def columns(path: Path | str) -> dict[str, np.ndarray]:
    info = inspect_mindrecord(path)
    return {name: np.stack(read_records(info, name, info.num_records)) for name in info.columns}


def conversations(count: int) -> list[dict]:
    return [
        {"conversations": [{"from": "human", "value": "the fox " * (1 + n % 5)},
                           {"from": "gpt", "value": f"lazy dog {n} " * (1 + n % 7)}]} for n in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def talk(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("talk") / "c.json"
    path.write_text(json.dumps(conversations(150)))
    return path


def words(source: Path, model: Path, output: Path, *more: str) -> list[str]:
    found = ["--dataset_type", "qa", "--input_glob", str(source), "--model_file", str(model)]
    return [*found, "--output_file", str(output), "--seq_length", "255", *more]


@pytest.mark.parametrize("lines", [False, True])
def test_alpaca_converter(tmp_path, capsys, lines: bool) -> None:
    source, target = tmp_path / "in.json", tmp_path / "made" / "out.json"
    text = "\n".join(map(json.dumps, ALPACA)) if lines else json.dumps(ALPACA, indent=1)
    if lines:  # starts with a record, so it is JSON Lines; one line is broken
        text = text.replace('"rubbish"', '{"rubbish')
    source.write_text("\ufeff" + text + "\n", encoding="utf-8")
    for workers in ("1", "2"):
        assert alpaca_converter.main(
            ["--data_path", str(source), "--output_path", str(target), "--num_workers", workers]
        ) == 0  # fmt: skip
        made = json.loads(target.read_text(encoding="ascii"))
        assert [row["id"] for row in made] == ["1", "2", "mine"]
        asked = [row["conversations"][0]["value"] for row in made]
        assert asked[0] == (
            "Below is an instruction that describes a task. Write a response that appropriately completes the "
            "request.\n\n### Instruction:\nSay one.\n\n### Response:"
        )
        assert "\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:" in asked[1]
        assert made[1]["conversations"][1] == {"from": "gpt", "value": "3 \u4f60\u597d"}
        said = capsys.readouterr().out
        for number, reason in REASONS.items():
            assert f"left out: record {number}: " in said
            assert reason in said or (lines and number == 5 and "line 6 is not JSON" in said)
        assert "3 conversations, 5 bad records left out" in said
    assert [path.name for path in target.parent.iterdir()] == ["out.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"hello", "starts with 'hello'"),
        (b"[]", "none of its 0 records"),
        (b'[{"a": 1}, ', "the file was cut"),
        (b'[{"a": 1}', "the file was cut"),
        (b'[{"a": 1} {"b": 2}]', "expected ',' or ']' after record 0"),
        (b'[{"instruction": "x", "output": "y"}, {"instruct', "record 1 .*cannot be read"),
        (b'[{"a": nonsense}]', "record 0 .*cannot be read"),
        (b'[{"a": "\xff"}]', "not UTF-8"),
        (b"[" * 100_000, "record 0 .*cannot be read"),
        (b'{"a": 1}\n{"b"\n', r"(?s)none of its 2 records can be used.*line 2 is not JSON"),
    ],
)
def test_broken_json(tmp_path, content: bytes, message: str) -> None:
    source, target = tmp_path / "in.json", tmp_path / "out.json"
    source.write_bytes(content)
    target.write_text("old")
    with pytest.raises(DataError, match=message):
        alpaca_converter.main(["--data_path", str(source), "--output_path", str(target)])
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_records_in_small_pieces(tmp_path, monkeypatch) -> None:
    """Where the pieces of a file end does not matter, not even inside a character."""
    rows = [{"t": '\u4f60\u597d \U0001f600 ] , [ " \\'}, {}, [1, [2]], 12345, "x", None]
    path, lines = tmp_path / "list.json", tmp_path / "lines.jsonl"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=2), encoding="utf-8")
    lines.write_text("{}\n\n" + "\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    for size in (1, 2, 3, 7, 1000):
        monkeypatch.setattr(json_records, "_CHUNK_BYTES", size)
        read: list[int] = []
        assert list(json_records.read_json_records(path, read.append)) == rows
        assert path.stat().st_size - size <= sum(read) <= path.stat().st_size
        assert list(json_records.read_json_records(lines, read.append)) == [{}, *rows]


def test_qa_records(talk, tiny_model_file, tmp_path, capsys) -> None:
    llama_preprocess.main(words(talk, tiny_model_file, tmp_path / "a"))
    said = capsys.readouterr().out
    made = columns(tmp_path / "a")
    assert {name: (rows.shape, rows.dtype) for name, rows in made.items()} == dict.fromkeys(
        ("input_ids", "labels"), ((150, 256), np.int32)
    )
    meta = json.loads((tmp_path / "a.json").read_text())
    assert meta["label_tokens"] == (made["labels"] != IGNORED).sum()
    assert (meta["template"], meta["pack"], meta["samples"], meta["pad_id"]) == ("vicuna_v1.1", False, 150, 0)
    assert f"{meta['tokens'] / made['input_ids'].size:.1%} filled" in said
    assert "train_dataset.input_columns for these files: [input_ids, labels]" in said
    llama_preprocess.main(words(talk, tiny_model_file, tmp_path / "b", "--num_workers", "2"))
    for name, rows in columns(tmp_path / "b").items():
        np.testing.assert_array_equal(rows, made[name])


def test_packed_records_hold_the_same_samples(talk, tiny_model_file, tmp_path, capsys) -> None:
    long = ("--seq_length", "1023")
    llama_preprocess.main(words(talk, tiny_model_file, tmp_path / "a", "--repeat", "2", *long))
    llama_preprocess.main(words(talk, tiny_model_file, tmp_path / "b", "--repeat", "2", *long, "--pack", "True"))
    alone, packed = columns(tmp_path / "a"), columns(tmp_path / "b")
    assert len(packed["input_ids"]) < len(alone["input_ids"])
    meta = json.loads((tmp_path / "b.json").read_text())
    assert meta["packing_rate"] == pytest.approx((packed["segment_ids"] > 0).mean(), abs=1e-4)
    assert meta["columns"] == ["input_ids", "labels", "segment_ids"]
    assert "input_columns for these files: [input_ids, labels, segment_ids]" in capsys.readouterr().out
    one = sorted((tuple(ids[ids > 0]), tuple(labels[ids > 0])) for ids, labels in
                 zip(alone["input_ids"], alone["labels"], strict=True))  # fmt: skip
    several = []
    for ids, labels, numbers in zip(packed["input_ids"], packed["labels"], packed["segment_ids"], strict=True):
        assert (np.diff(numbers[numbers > 0]) >= 0).all()
        assert (labels[numbers == 0] == IGNORED).all()
        for number in range(1, numbers.max() + 1):
            several.append((tuple(ids[numbers == number]), tuple(labels[numbers == number])))
            assert several[-1][1][0] == IGNORED
    assert sorted(several) == one
    with pytest.raises(DataError, match=r"pack True.*input_columns to \[input_ids, labels, segment_ids\]"):
        create_causal_lm_dataset(tmp_path / "b", input_columns=["input_ids", "labels"])


def test_packer_fills_nearly_all() -> None:
    rng = np.random.default_rng(0)
    packer, records = Packer(512, 0), []
    lengths = rng.gamma(3, 40, 3000).astype(int).clip(5, 512)
    for length in lengths:
        records += packer.add(np.ones(length, np.int32), np.ones(length, np.int32))
    records += packer.rest()
    assert sum((record[2] > 0).sum() for record in records) == lengths.sum()
    assert lengths.sum() / (512 * len(records)) > 0.98
    [whole] = [*packer.add(np.ones(512, np.int32), np.ones(512, np.int32)), *packer.rest()]
    assert (whole[2] == 1).all()


def test_bad_conversations_are_counted(tiny_model_file, tmp_path, capsys) -> None:
    turn = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
    rows = [
        {"conversations": [turn[1], *turn, turn[0]]},  # an answer first and a question last: left out, the rest stays
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"conversations": [turn[0], turn[0], turn[1]]},
        {"conversations": [{"from": "robot", "value": "q"}]},
        {"conversations": [turn[0]]},
        {"conversations": []},
        {"conversations": [turn[0], {"from": "gpt", "value": None}]},
        {"conversations": [{"from": "human", "value": "the fox " * 400}, turn[1]]},
        {"conversations": [turn[0], {"from": "gpt", "value": "the fox " * 400}]},
    ]
    (tmp_path / "c.json").write_text(json.dumps(rows))
    llama_preprocess.main(words(tmp_path / "c.json", tiny_model_file, tmp_path / "o"))
    said = capsys.readouterr().out
    assert "9 conversations, 3 samples (1 truncated at 256 tokens, 1 dropped because no label was left, 5 bad" in said
    for number, reason in (
        (2, "turn 2 is the second of 'human' in a row"),
        (3, "turn 1 is from 'robot'"),
        (4, "holds no answer"),
        (5, "holds no answer"),
        (6, "turn 2 (gpt) must be text, got NoneType"),
    ):
        assert f"c.json record {number}: {reason}" in said
    made = columns(tmp_path / "o")
    np.testing.assert_array_equal(made["input_ids"][0], made["input_ids"][1])
    (tmp_path / "c.json").write_text(json.dumps(rows[2:8]))
    with pytest.raises(DataError, match=r"(?s)5 are bad, 1 have no answer within 256 tokens.*robot"):
        llama_preprocess.main(words(tmp_path / "c.json", tiny_model_file, tmp_path / "o"))
    assert len(columns(tmp_path / "o")["input_ids"]) == 3


def test_wrong_flags(talk, tiny_model_file, tmp_path) -> None:
    base = words(talk, tiny_model_file, tmp_path / "o")
    with pytest.raises(DataError, match=r"Did you mean 'vicuna_v1\.1'"):
        llama_preprocess.main([*base, "--template", "vicuna"])
    wiki = ["--dataset_type", "wiki", *base[2:]]
    with pytest.raises(DataError, match="--pack belongs to --dataset_type qa"):
        llama_preprocess.main([*wiki, "--pack", "True"])
    with pytest.raises(SystemExit):
        llama_preprocess.main([*base, "--pack", "perhaps"])
    assert not list(tmp_path.iterdir())


def test_no_fastchat(talk, tiny_model_file, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "fastchat.conversation", None)
    monkeypatch.delattr("fastchat.conversation", raising=False)
    with pytest.raises(DataError, match="pip install fschat"):
        llama_preprocess.main(words(talk, tiny_model_file, tmp_path / "o"))


# ---------------------------------------------------------------- SQuAD
def squad(paragraphs: list) -> str:
    return json.dumps({"version": "1.1", "data": [{"title": "T", "paragraphs": paragraphs}]})


def paragraph(passage: str = "the quick brown fox") -> dict:
    answers = [{"text": "fox", "answer_start": 16}, {"text": "brown fox", "answer_start": 10}]
    return {"context": passage, "qas": [{"id": f"q{n}", "question": f"who {n}?", "answers": answers} for n in (1, 2)]}


def squad_words(source: Path, model: Path, output: Path, *more: str) -> list[str]:
    found = ["--input_file", str(source), "--output_file", str(output), "--tokenizer_type", str(model.parent)]
    return [*found, "--max_length", "160", *more]


def test_squad(tiny_model_file, tmp_path, capsys) -> None:
    source = tmp_path / "s.json"
    source.write_text(squad([paragraph(), paragraph("lazy dog " * 300 + "\u4f60\u597d"), {"context": "x", "qas": []}]))
    model = sentencepiece.SentencePieceProcessor(model_file=str(tiny_model_file))
    prompt = squad_data_process.squad_prompt("the quick brown fox", "who 1?")
    ids, answer = model.encode(prompt), model.encode("fox")
    assert squad_data_process.main(squad_words(source, tiny_model_file, tmp_path / "e", "--mode", "eval")) == 0
    said = capsys.readouterr().out
    assert "3 paragraphs, 2 questions, 1 passages shortened to 160 tokens, 1 left out, 2 records" in said
    assert "left out: T, paragraph 2: has no questions" in said
    made = columns(tmp_path / "e")
    assert made["input_ids"].shape == made["labels"].shape == (2, 160)
    assert made["input_ids"][0].tolist() == [1, *ids] + [0] * (159 - len(ids))
    assert made["labels"][0].tolist() == answer + [0] * (160 - len(answer))
    asked = [int(i) for i in made["input_ids"][1] if i]
    longest = len(model.encode("brown fox"))
    assert 150 - longest < len(asked) <= 160 - longest
    assert model.decode(asked).endswith("### Input:\nwho 1?\n\n### Response:")
    lines = (tmp_path / "e.references.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"id": "q1", "question": "who 1?", "answers": ["fox", "brown fox"]}
    assert len(lines) == 2

    more = ("--questions", "all", "--num_workers", "2")
    squad_data_process.main(squad_words(source, tiny_model_file, tmp_path / "t", *more))
    made = columns(tmp_path / "t")
    assert made["input_ids"].shape == (4, 161)
    labels = made["labels"][0]
    assert labels[labels != IGNORED].tolist() == [*answer, 2]
    place = np.flatnonzero(labels != IGNORED)
    assert place[0] == 1 + len(ids)
    assert made["input_ids"][0][place].tolist() == [*answer, 2]
    assert (made["labels"][3] != IGNORED).sum() == len(answer) + 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a SQuAD file"),
        ('{"data": [{}]}', "not a SQuAD file"),
        (squad([5, {"context": ""}]), r"(?s)no record could be made.*paragraph 1: context must|is empty"),
        (squad([{"context": "x", "qas": [{"question": "q", "answers": []}]}]), "has no answers"),
        (squad([{"context": "x", "qas": [{"question": "q " * 300, "answers": [{"text": "a"}]}]}]), "leave no room"),
    ],
)
def test_bad_squad(tiny_model_file, tmp_path, content: str, message: str) -> None:
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(DataError, match=message):
        squad_data_process.main(squad_words(tmp_path / "s.json", tiny_model_file, tmp_path / "o"))
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]


def test_squad_tokenizer_names(tiny_model_file, tmp_path, monkeypatch) -> None:
    assert squad_data_process.tokenizer_file("x", "given") == "given"
    monkeypatch.setenv("CHECKPOINT_DOWNLOAD_FOLDER", str(tmp_path))
    with pytest.raises(DataError, match=r"--tokenizer_type llama2_7b: no tokenizer at .*llama2/tokenizer.model"):
        squad_data_process.tokenizer_file("llama2_7b", None)
    (tmp_path / "llama2").mkdir()
    (tmp_path / "llama2" / "tokenizer.model").write_bytes(tiny_model_file.read_bytes())
    assert squad_data_process.tokenizer_file("llama2_7b", None) == str(tmp_path / "llama2" / "tokenizer.model")


def test_the_counts_of_the_real_files(tmp_path) -> None:
    model = shared_data("llama2_tokenizer/tokenizer.model")
    source = shared_data("squad/dev-v1.1.json")
    args = argparse.Namespace(input_file=str(source), output_file=str(tmp_path / "s"), mode="eval", max_length=512)
    args.questions, args.num_workers = "first", 1
    counts, _ = squad_data_process.convert(args, squad_data_process.TokenizerFile.open(model), show=False)
    assert (counts.paragraphs, counts.records, counts.left_out) == (2067, 2067, 0)
    count, skipped = alpaca_converter.convert(
        shared_data("alpaca/alpaca_data.subset5000.json"), tmp_path / "c.json", show=False
    )
    assert (count, skipped.count) == (4996, 4)
    assert skipped.first[0] == "record 284: output is empty"


def test_as_scripts_from_another_folder(tmp_path, tiny_model_file) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ALPACA))
    commands = (
        ["alpaca_converter.py", "--data_path", "a.json", "--output_path", "out/c.json"],
        ["llama_preprocess.py", *words(Path("out/*.json"), tiny_model_file, Path("out/q"), "--pack", "true")],
        ["squad_data_process.py", "--input_file", "none.json"],
    )
    for (script, *rest), code in zip(commands, (0, 0, 2), strict=True):
        done = subprocess.run(
            [sys.executable, str(SCRIPTS / script), *rest], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
    assert "error: --input_file none.json: no such file" in done.stderr
    assert inspect_mindrecord(tmp_path / "out" / "q").num_records == 1
