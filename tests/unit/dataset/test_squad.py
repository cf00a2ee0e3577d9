# SPDX-License-Identifier: Apache-2.0
"""SQuAD files, and the questions that records stand for."""

import json
from pathlib import Path

import pytest

from mindformers.dataset.squad import match_questions, read_squad
from mindformers.errors import DataError


def squad_file(path: Path, *paragraphs: list[tuple[str, list[str]]]) -> Path:
    """Write a SQuAD 1.1 file: each paragraph a list of (question, answers)."""
    number = iter(range(1000))
    body = [
        {"context": "c", "qas": [
            {"id": f"id{next(number)}", "question": question, "answers": [{"text": answer} for answer in answers]}
            for question, answers in paragraph
        ]}
        for paragraph in paragraphs
    ]  # fmt: skip
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": body}]}), encoding="utf-8")
    return path


PARAGRAPHS = (
    [("Who won?", ["Broncos", "the Broncos"]), ("Who lost?", ["Panthers"])],
    [("How many?", ["three"]), ("How many more?", ["three", "3"])],
)


def test_records_find_their_questions_whether_all_or_the_first_of_each_paragraph(tmp_path: Path) -> None:
    questions = read_squad(squad_file(tmp_path / "s.json", *PARAGRAPHS))
    assert [q.key for q in questions] == ["id0", "id1", "id2", "id3"]

    def ascii_only(text: str) -> str:
        return text.lower().encode("ascii", "ignore").decode()

    def keys(*records: tuple[str, str | None]) -> list[str]:
        return [q.key for q in match_questions(records, questions, str.lower, ascii_only, "s.json")]

    every = [("broncos", "p who won? r"), ("panthers", "who lost?"), ("three", "how many?"), ("3", "how many more?")]
    assert keys(*every) == ["id0", "id1", "id2", "id3"]
    assert keys(every[0], every[2]) == ["id0", "id2"]
    assert keys(("three", "p how many more? r")) == ["id3"]  # the answer alone would give id2
    assert keys(("three", None)) == ["id2"]  # the prompt is cut
    lost = squad_file(tmp_path / "t.json", [("Caf\u00e9?", ["na\u00efve"])])
    found = match_questions([("nave", "caf? r")], read_squad(lost), str.lower, ascii_only, "t.json")
    assert found[0].key == "id0"  # characters the tokenizer does not know are missing in the record
    with pytest.raises(DataError, match=r"record 1 .*after the 1 before"):
        keys(every[1], every[0])  # wrong order
    with pytest.raises(DataError, match="record 0"):
        keys(("seven", "how many?"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[]", "not of SQuAD 1.1's form"),
        ('{"data": [{"paragraphs": [{"qas": [{"id": 1}]}]}]}', "question"),
        ('{"data": []}', "no question"),
        ('{"data": [{"paragraphs": [{"qas": [{"id": "a", "question": "q", "answers": []}]}]}]}', "question a has no"),
    ],
)
def test_rubbish_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_squad(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_squad(tmp_path / "nowhere.json")
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match="UTF-8"):
        read_squad(path)
