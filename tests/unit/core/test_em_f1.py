# SPDX-License-Identifier: Apache-2.0
"""Exact match and F1: the old definition case by case, SQuAD's rules, several answers, what comes into the mean."""

import sys

import numpy as np
import pytest

from mindformers.core.metric import EmF1Metric, PerplexityMetric, SquadMetric
from mindformers.core.metric import perplexity as perplexity_module
from mindformers.core.metric.em_f1 import first_line, squad_normalize
from mindformers.errors import DataError, MindFormersError


def scores(metric: EmF1Metric | SquadMetric, prediction: str, *answers: str) -> tuple[float, float]:
    metric.clear()
    metric.update([prediction], [answers if len(answers) > 1 else answers[0]])
    em, f1 = metric.percentages()
    return em, f1


# The old metric: words are those of jieba, a space is a word, ASCII signs such as . and , stay.
# (prediction, answer, exact match, shared run, words of the prediction, words of the answer)
OLD_CASES = [
    ("Cam Newton", "Cam Newton", 1, 3, 3, 3),
    ("cam newton", "CAM NEWTON ", 1, 3, 3, 3),  # case and outer white space
    ("Newton", "Cam Newton", 0, 1, 1, 3),
    ("the Cam Newton", "Cam Newton", 0, 3, 5, 3),  # articles stay
    ("Cam Newton.", "Cam Newton", 0, 3, 4, 3),  # the full stop stays
    ("a-b", "ab", 1, 1, 1, 1),  # the hyphen goes
    ("one two x three four", "one two y three four", 0, 4, 9, 9),  # "one two " (3 words + space), not the sum of both
    ("\u4f60\u597d\uff0c\u4e16\u754c", "\u4f60\u597d\u4e16\u754c", 1, 4, 4, 4),  # Chinese one by one, comma off
    ("\u4e16\u754c", "\u4f60\u597d\u4e16\u754c", 0, 2, 2, 4),
    ("blue", "red", 0, 0, 1, 1),
    ("", "red", 0, 0, 0, 1),
    ("---", "", 1, 0, 0, 0),  # equal once the signs are gone, yet nothing is shared
]


@pytest.mark.parametrize(("prediction", "answer", "em", "shared", "ours", "theirs"), OLD_CASES)
def test_the_old_definition(prediction: str, answer: str, em: int, shared: int, ours: int, theirs: int) -> None:
    pytest.importorskip("jieba", reason="extra `eval` brings jieba")
    expected = 2 * shared / (ours + theirs) if shared else 0.0
    assert scores(EmF1Metric(), prediction, answer) == pytest.approx((100 * em, 100 * expected))


def test_old_metric_prints_its_line_and_keeps_the_callers_list(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("jieba", reason="extra `eval` brings jieba")
    metric = EmF1Metric()
    predictions = ["  Cam Newton\n\n### Input:", "blue"]
    with capture(caplog):
        metric.update(predictions, ["Cam Newton", "red"])
        assert metric.eval() == {"F1": 50.0, "Em": 50.0}
    assert "F1 score: 50.0, Em score: 50.0, total_count: 2" in caplog.text
    assert predictions == ["  Cam Newton\n\n### Input:", "blue"]


def capture(caplog: pytest.LogCaptureFixture) -> object:
    """The library's logger does not propagate; hang pytest's handler on it."""
    import contextlib
    import logging

    @contextlib.contextmanager
    def attached():
        root = logging.getLogger("mindformers")
        root.addHandler(caplog.handler)
        try:
            yield
        finally:
            root.removeHandler(caplog.handler)

    return attached()


def test_without_jieba_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(MindFormersError, match=r"mindformers\[eval\]"):
        EmF1Metric().update(["a"], ["b"])
    SquadMetric().update(["a"], ["b"])  # needs no extra


SQUAD_CASES = [
    ("The Broncos", ["broncos"], 100, 100),  # article, case
    ("Broncos!", ["the Broncos."], 100, 100),  # punctuation
    ("an  apple\ta day", ["apple day"], 100, 100),  # articles inside, any white space
    ("theatre", ["the atre"], 0, 0),  # an article is a whole word
    ("Denver Broncos", ["Carolina Panthers", "Denver Broncos", "Broncos"], 100, 100),  # best of several
    ("the Denver Broncos won", ["Denver Broncos"], 0, 100 * 2 * (2 / 3) * 1 / (2 / 3 + 1)),
    ("to to be", ["to be to be"], 0, 100 * 2 * 1 * (3 / 4) / (1 + 3 / 4)),  # bags: "to" twice, "be" once
    ("15-1", ["15\u20131"], 0, 0),  # only ASCII punctuation goes: 151 against 15-1 with an en dash
    ("", ["x"], 0, 0),
    ("the", ["a"], 100, 0),  # both empty: equal, and no word in common, as the published script has it
]


@pytest.mark.parametrize(("prediction", "answers", "em", "f1"), SQUAD_CASES)
def test_the_rules_of_squad(prediction: str, answers: list[str], em: float, f1: float) -> None:
    assert scores(SquadMetric(), prediction, *answers) == pytest.approx((em, f1))


def test_f1_takes_the_best_answer_apart_from_exact_match() -> None:
    metric = SquadMetric()
    metric.update(["x y", "z"], [["x", "x y q", "w"], "z"])
    assert metric.eval() == pytest.approx({"exact_match": 50.0, "f1": 100 * (0.8 + 1) / 2})


def test_normal_forms() -> None:
    assert squad_normalize("  The (quick), brown-fox; an a ") == "quick brownfox"
    assert first_line(" \n first \n second") == "first "


@pytest.mark.parametrize("metric", [EmF1Metric, SquadMetric])
def test_what_cannot_be_scored_is_an_error(metric: type) -> None:
    with pytest.raises(DataError, match="2 predictions for 1 answers"):
        metric().update(["a", "b"], ["a"])
    with pytest.raises(DataError, match="question 0 has no answer"):
        metric().update(["a"], [[]])
    with pytest.raises(DataError, match="no record"):
        metric().eval()


def test_perplexity_from_logits_gives_padding_no_weight() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 5, 7)).astype(np.float32)
    tokens = rng.integers(1, 7, (2, 5))
    tokens[1, 3:] = 0
    metric = PerplexityMetric()
    metric.update(logits, tokens, (tokens != 0).astype(np.float32))
    losses = []
    for row, ids in zip(logits.astype(np.float64), tokens, strict=True):
        for scores_, target in zip(row, ids[1:], strict=False):
            if target:
                losses.append(np.log(np.exp(scores_).sum()) - scores_[target])
    assert metric.num_tokens == len(losses) == 6
    assert metric.eval()["loss"] == pytest.approx(np.mean(losses))
    with pytest.raises(DataError, match="0 and 1"):
        metric.update(logits, tokens, 1 + (tokens != 0))  # the old model's mask
    with pytest.raises(DataError, match="shapes"):
        metric.update(logits, tokens[:, :4], tokens[:, :4])
    with pytest.raises(DataError, match="got 1"):
        metric.update(logits)


def test_only_the_last_pipeline_stage_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = PerplexityMetric()
    metric.update(6.0, 3)
    assert metric.eval()["loss"] == 2.0
    monkeypatch.setattr(perplexity_module.GlobalComm, "INITED", True)
    monkeypatch.setattr(perplexity_module, "get_group_size", lambda: 8)
    monkeypatch.setattr(perplexity_module.ms, "get_auto_parallel_context", {"pipeline_stages": 4}.__getitem__)
    reporting = []
    for rank in range(8):
        monkeypatch.setattr(perplexity_module, "get_rank", lambda rank=rank: rank)
        reporting.append(bool(metric.eval()))
    assert reporting == [False] * 6 + [True] * 2
