# SPDX-License-Identifier: Apache-2.0
"""Exact match and F1 of generated answers, in the two definitions people quote.

``EmF1Metric`` is the one behind the numbers of the model card; ``SquadMetric`` is SQuAD 1.1's own. They differ in what
they take off a text and in how they compare it, so their values must not be compared with each other.
"""

import logging
import re
import string
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mindformers.errors import DataError, MindFormersError
from mindformers.registry import MindFormerModuleType, MindFormerRegister
from mindformers.tools.logger import get_logger

__all__ = ["AnswerMetric", "EmF1Metric", "SquadMetric", "first_line"]

logger = get_logger(__name__)

# What the old metric takes off: some ASCII signs, and Chinese punctuation. The full stop, the comma and quotation
# marks of ASCII stay, and so do articles.
_OLD_PUNCTUATION = frozenset(
    "-:_*^/\\~`+="
    "\uff0c\u3002\uff1a\uff1f\uff01\u201c\u201d\uff1b\u2019\u300a\u300b\u00b7\u3001"
    "\u300c\u300d\uff08\uff09\uff0d\uff5e\u300e\u300f"
)
_CHINESE = re.compile("[\u4e00-\u9fa5]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)


def first_line(text: str) -> str:
    """What counts of a generated text: stripped, then cut at its first line break."""
    return text.strip().split("\n")[0]


class AnswerMetric(ABC):
    """Mean score of generated texts against reference answers.

    Args:
        predictions_file: where the generated texts are kept; empty takes ``predictions.jsonl`` in the run's folder.
    """

    generates = True  # the evaluation has to generate text for it, see trainer/generate_evaluate.py
    takes_all_answers = False  # of a question, not only the one in the record
    answers_file = ""

    def __init__(self, predictions_file: str = "") -> None:
        self.predictions_file = predictions_file
        self.clear()

    def clear(self) -> None:
        """Forget everything seen."""
        self._matches = 0.0
        self._overlaps = 0.0
        self.total_count = 0

    def update(self, predictions: Sequence[str], answers: Sequence[str | Sequence[str]]) -> None:
        """Add texts.

        Args:
            predictions: generated texts; only the first line of each counts.
            answers: for each text its answer, or several answers of which the best one counts.

        Raises:
            DataError: the two differ in length, or a question has no answer.
        """
        if len(predictions) != len(answers):
            raise DataError(f"{len(predictions)} predictions for {len(answers)} answers; there must be one for each")
        for number, (prediction, given) in enumerate(zip(predictions, answers, strict=True)):
            choices = [given] if isinstance(given, str) else list(given)
            if not choices:
                raise DataError(f"question {self.total_count + number} has no answer to compare with")
            text = first_line(prediction)
            self._matches += max(self.exact(text, answer) for answer in choices)
            self._overlaps += max(self.overlap(text, answer) for answer in choices)
        self.total_count += len(predictions)

    def percentages(self) -> tuple[float, float]:
        """Mean exact match and mean F1, in percent.

        Raises:
            DataError: nothing was added.
        """
        if not self.total_count:
            raise DataError("exact match and F1 of no answer: the evaluation data holds no record")
        return 100.0 * self._matches / self.total_count, 100.0 * self._overlaps / self.total_count

    @abstractmethod
    def exact(self, prediction: str, answer: str) -> float:
        """1 when they count as equal, else 0."""

    @abstractmethod
    def overlap(self, prediction: str, answer: str) -> float:
        """F1 of the two texts, 0 to 1."""

    @abstractmethod
    def eval(self) -> dict[str, float]:
        """The means in percent; also logged."""


@MindFormerRegister.register(MindFormerModuleType.METRIC)
class EmF1Metric(AnswerMetric):
    """Exact match and F1 as in MindFormers r0.8 (there: the Chinese reading comprehension test CMRC 2018 with jieba).

    Both texts are put in lower case and stripped, and lose a fixed set of signs that leaves ``. , ? ! ' " ( )`` and
    articles in place. Exact match: they are equal. F1: they are cut into words by jieba (spaces are words of their own,
    Chinese characters stand alone), and the longest run of words that both contain, without a gap, is taken
    for what they share. jieba comes with the extra ``eval``.
    """

    def exact(self, prediction: str, answer: str) -> float:
        """1 when they are equal without the signs."""
        return float(_plain(prediction) == _plain(answer))

    def overlap(self, prediction: str, answer: str) -> float:
        """F1 of the longest common run of words."""
        ours, theirs = _segments(prediction), _segments(answer)
        return _f1(_longest_run(theirs, ours), len(ours), len(theirs))

    def eval(self) -> dict[str, float]:
        """``{"F1": percent, "Em": percent}``."""
        em, f1 = self.percentages()
        logger.info("F1 score: %s, Em score: %s, total_count: %s", f1, em, self.total_count)
        return {"F1": f1, "Em": em}


@MindFormerRegister.register(MindFormerModuleType.METRIC)
class SquadMetric(AnswerMetric):
    """Exact match and F1 by the rules of SQuAD 1.1 (Rajpurkar et al. 2016 and the evaluation script published with it).

    Both texts are put in lower case and lose ASCII punctuation and the words a, an, the. F1 compares the bags of words
    between white space; the best of several answers counts.

    Args:
        answers_file: where all answers of each question stand: the SQuAD JSON the records were made from, or the
            ``NAME.references.jsonl`` that squad_data_process.py wrote with them. Empty takes the latter if it lies
            beside the records, else the one answer in their labels, which gives lower values.
        predictions_file: as in :class:`AnswerMetric`.
    """

    takes_all_answers = True

    def __init__(self, answers_file: str = "", predictions_file: str = "") -> None:
        super().__init__(predictions_file)
        self.answers_file = answers_file

    def exact(self, prediction: str, answer: str) -> float:
        """1 when the normalised texts are equal."""
        return float(squad_normalize(prediction) == squad_normalize(answer))

    def overlap(self, prediction: str, answer: str) -> float:
        """F1 of the bags of words."""
        ours, theirs = squad_normalize(prediction).split(), squad_normalize(answer).split()
        return _f1(sum((Counter(ours) & Counter(theirs)).values()), len(ours), len(theirs))

    def eval(self) -> dict[str, float]:
        """``{"exact_match": percent, "f1": percent}``."""
        em, f1 = self.percentages()
        logger.info("exact_match: %s, f1: %s, total_count: %s", em, f1, self.total_count)
        return {"exact_match": em, "f1": f1}


def squad_normalize(text: str) -> str:
    """Lower case, without ASCII punctuation, then without articles, single spaces between words."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_ASCII_PUNCTUATION)).split())


def _f1(shared: int, in_prediction: int, in_answer: int) -> float:
    if not shared:
        return 0.0
    precision, recall = shared / in_prediction, shared / in_answer
    return 2 * precision * recall / (precision + recall)


def _plain(text: str) -> str:
    """Lower case, stripped, without the old metric's signs."""
    return "".join(char for char in text.lower().strip() if char not in _OLD_PUNCTUATION)


def _segments(text: str) -> list[str]:
    """Words of a text without signs: Chinese characters one by one, the stretches between them as jieba cuts them."""
    words: list[str] = []
    stretch = ""
    for char in _plain(text):
        if _CHINESE.match(char):
            words += _cut(stretch)
            words.append(char)
            stretch = ""
        else:
            stretch += char
    return words + _cut(stretch)


def _cut(stretch: str) -> list[str]:
    return _jieba().lcut(stretch) if stretch else []


def _jieba() -> Any:
    try:
        import jieba
    except ImportError as error:
        raise MindFormersError(
            "EmF1Metric cuts texts into words with jieba, which is not installed: pip install 'mindformers[eval]' "
            "(or pip install jieba), or choose --metric.type SquadMetric"
        ) from error
    jieba.setLogLevel(logging.WARNING)  # else it reports the loading of its dictionary
    return jieba


def _longest_run(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest stretch of words that stands in both without a gap."""
    longest = 0
    row = [0] * (len(second) + 1)
    for word in first:
        previous = row
        row = [0] * (len(second) + 1)
        for j, other in enumerate(second):
            if word == other:
                row[j + 1] = previous[j] + 1
                longest = max(longest, row[j + 1])
    return longest
