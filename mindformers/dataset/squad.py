# SPDX-License-Identifier: Apache-2.0
"""The questions of a SQuAD 1.1 file, and which of them evaluation records stand for."""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindformers.errors import DataError

__all__ = ["SquadQuestion", "match_questions", "read_squad"]


@dataclass(frozen=True)
class SquadQuestion:
    """One question.

    Args:
        key: its id in the file.
        text: the question.
        answers: what counts as right, at least one.
    """

    key: str
    text: str
    answers: tuple[str, ...]


def read_squad(path: str | Path) -> list[SquadQuestion]:
    """All questions in the order of the file.

    Args:
        path: a SQuAD 1.1 JSON, or the ``.references.jsonl`` that squad_data_process.py writes beside its records (a
            line ``{"id", "question", "answers"}`` per record).

    Raises:
        DataError: the file is absent, not JSON, not of either form, or has a question without an answer.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        lines = str(path).endswith(".jsonl")
        content = [json.loads(line) for line in text.split("\n") if line] if lines else json.loads(text)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON in UTF-8: {error}") from error
    try:
        if lines:
            questions = [SquadQuestion(str(line["id"]), line["question"], tuple(line["answers"])) for line in content]
        else:
            questions = [
                SquadQuestion(str(qa["id"]), qa["question"], tuple(answer["text"] for answer in qa["answers"]))
                for article in content["data"]
                for paragraph in article["paragraphs"]
                for qa in paragraph["qas"]
            ]
    except (KeyError, TypeError) as error:
        form = "a line of id, question, answers" if lines else "data > paragraphs > qas > id, question, answers > text"
        raise DataError(f"{path} is not of SQuAD 1.1's form: {form} ({error!r})") from error
    for question in questions:
        if not question.answers:
            raise DataError(f"{path}: question {question.key} has no answer; SQuAD 1.1 is needed, 2.0 is another task")
    if not questions:
        raise DataError(f"{path} holds no question")
    return questions


def match_questions(
    records: Sequence[tuple[str, str | None]],
    questions: Sequence[SquadQuestion],
    plain: Callable[[str], str],
    lossy: Callable[[str], str],
    source: str,
) -> list[SquadQuestion]:
    """The question each record was made from.

    Records stand in the order of the file, and some questions may have no record (one per paragraph, or left out). A
    record belongs to the next question whose text is in its prompt and one of whose answers is its answer.

    Args:
        records: (answer, prompt) of each, as they are compared; prompt None where it is cut and may have lost the
            question.
        questions: from :func:`read_squad`.
        plain: brings texts of the file into the form of the records.
        lossy: the same by way of the tokenizer, which may not know every character; slow, asked only where ``plain``
            finds nothing.
        source: name of the file, for messages.

    Raises:
        DataError: a record fits no question that is left.
    """
    quick, slow = functools.cache(plain), functools.cache(lossy)
    matched: list[SquadQuestion] = []
    position = 0
    for number, (answer, prompt) in enumerate(records):

        def fits(index: int, form: Callable[[str], str], own: str = answer, inside: str | None = prompt) -> bool:
            question = questions[index]
            asked = inside is None or form(question.text) in inside
            return asked and any(form(other) == own for other in question.answers)

        later = range(position, len(questions))
        hit = next((index for form in (quick, slow) for index in later if fits(index, form)), None)
        if hit is None:
            raise DataError(
                f"record {number} (answer {answer[:80]!r}) fits no question of {source} after the "
                f"{len(matched)} before it: were the records made from this file, and in its order?"
            )
        matched.append(questions[hit])
        position = hit + 1
    return matched
