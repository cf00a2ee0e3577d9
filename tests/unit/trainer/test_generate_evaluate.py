# SPDX-License-Identifier: Apache-2.0
"""EM/F1 from records: batches give what single prompts give, a killed run goes on, wrong data is named."""

import json
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindformers.config import save_config
from mindformers.core.metric import EmF1Metric, SquadMetric
from mindformers.dataset.mindrecord import MindRecordWriter
from mindformers.errors import ConfigError, DataError
from mindformers.trainer import generate_evaluate
from mindformers.trainer.evaluate import EvalCell, evaluate, try_evaluation
from mindformers.trainer.generate_evaluate import Question, answers_file, check_room, generate_answers, read_questions
from tests.helpers import REPO
from tests.parallel.ranks import run_ranks
from tests.unit.dataset.test_squad import squad_file
from tests.unit.trainer.conftest import LENGTH, texts, write_questions


def predictions(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def alone(network: Any, tokenizer: Any, questions: list[Question]) -> dict[int, str]:
    """First lines of the texts generated one prompt at a time, without the early stop."""
    found = {}
    for question in questions:
        new = network.generate(question.prompt)[0][len(question.prompt) :]
        found[question.index] = tokenizer.decode(new.tolist(), skip_special_tokens=True).strip().split("\n")[0]
    return found


def test_batches_give_the_texts_of_single_prompts(make_config, network, tokenizer) -> None:
    cfg = make_config()
    questions = read_questions(cfg, tokenizer)
    assert [q.index for q in questions] == list(range(11))
    assert [q.answers[0] for q in questions] == [answer for _, _, answer in texts(11)]
    assert len({len(q.prompt) for q in questions}) > 4  # lengths do differ
    result = evaluate(cfg, EvalCell(network))["SquadMetric"]
    made = predictions(Path(cfg.output_dir) / "predictions.jsonl")
    assert [record["index"] for record in made] == list(range(11))
    single = alone(network, tokenizer, questions)
    assert {r["index"]: r["prediction"].strip().split("\n")[0] for r in made} == single
    assert len(set(single.values())) > 3  # and so do the texts
    metric = SquadMetric()
    metric.update(list(single.values()), [q.answers for q in questions])
    assert result == metric.eval()
    assert [r["prompt"] for r in made] == [f"{passage}\n{question}\n" for passage, question, _ in texts(11)]


def test_no_new_graph_for_a_last_short_batch(make_config, network, tokenizer, monkeypatch) -> None:
    questions = read_questions(make_config(), tokenizer)
    sizes = []
    generate = type(network).generate
    monkeypatch.setattr(
        type(network), "generate", lambda self, rows, **kw: sizes.append(len(rows)) or generate(self, rows, **kw)
    )
    batches = list(generate_answers(network, tokenizer, questions, 4, done={3}))
    assert sizes == [4, 4, 4]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    lengths = [len(questions[r["index"]].prompt) for batch in batches for r in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert {r["index"] for batch in batches for r in batch} == set(range(11)) - {3}


@pytest.mark.parametrize(("mode", "way", "second"), [(0, "data", range(1, 11, 2)), (1, "model", range(11))])
def test_two_ranks_give_the_scores_of_one(make_config, network, tmp_path, mode, way, second) -> None:
    """In two real processes: the scores and the file of one. Data parallel ranks share the records, ranks that share
    the model generate all of them together (without the cache, which cannot be split)."""
    alone_config = make_config()
    expected = evaluate(alone_config, EvalCell(network))
    ms.save_checkpoint(network, str(tmp_path / "weights.ckpt"))
    sizes = (
        "hidden_size",
        "num_layers",
        "num_heads",
        "n_kv_heads",
        "multiple_of",
        "use_past",
        "max_new_tokens",
        "do_sample",
    )
    model = {f"model.model_config.{name}": getattr(network.config, name) for name in sizes}
    split = {"use_parallel": True, "parallel.parallel_mode": mode, f"parallel_config.{way}_parallel": 2}
    split["auto_trans_ckpt"] = mode == 1
    cfg = make_config(output_dir="two", load_checkpoint=str(tmp_path / "weights.ckpt"), **model, **split)
    save_config(cfg, tmp_path / "two.yaml")
    outputs = run_ranks(2, [str(REPO / "run_mindformer.py"), "--config", "two.yaml"], tmp_path)
    assert all(str(expected) in output for output in outputs)
    files = [tmp_path / "two" / "predictions.jsonl", tmp_path / "two" / "log" / "rank_1" / "predictions.jsonl"]
    assert predictions(files[0]) == predictions(Path(alone_config.output_dir) / "predictions.jsonl")
    assert [record["index"] for record in predictions(files[1])] == list(second)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def test_a_killed_run_goes_on_and_gives_the_same(make_config, network, monkeypatch, tmp_path) -> None:
    whole = make_config(output_dir=str(tmp_path / "whole"))
    expected = evaluate(whole, EvalCell(network))
    cfg = make_config()
    calls = []
    generate = type(network).generate

    def dying(self: Any, rows: list, **options: Any) -> Any:
        calls.append(len(rows))
        if len(calls) == 2:
            raise Killed
        return generate(self, rows, **options)

    monkeypatch.setattr(type(network), "generate", dying)
    with pytest.raises(Killed):
        evaluate(cfg, EvalCell(network))
    assert len(predictions(Path(cfg.output_dir) / "predictions.jsonl.partial")) == 4
    cfg.runner_config.batch_size = 3  # may change: the texts do not depend on it
    assert evaluate(cfg, EvalCell(network)) == expected
    assert sum(calls[2:]) == 9  # 7 records were left, in batches of 3
    left = [(Path(c.output_dir) / "predictions.jsonl").read_bytes() for c in (cfg, whole)]
    assert left[0] == left[1]
    evaluate(cfg, EvalCell(network))
    assert sum(calls[2:]) == 9  # all done: nothing is generated


def test_predictions_of_other_weights_or_settings_are_refused(make_config, network, tmp_path) -> None:
    cfg = make_config(**{"metric.predictions_file": str(tmp_path / "mine.jsonl")})
    evaluate(cfg, EvalCell(network))
    assert (tmp_path / "mine.jsonl").exists()
    parameter = network.model.norm_out.trainable_params()[0]
    kept = parameter.asnumpy().copy()
    changed = kept.copy()
    changed[-1] += 1e-3
    try:
        parameter.set_data(Tensor(changed))
        with pytest.raises(DataError, match=r"weights: .* there, .* now[\s\S]*predictions_file"):
            evaluate(cfg, EvalCell(network))
    finally:
        parameter.set_data(Tensor(kept))
    cfg.eval_dataset.data_loader.num_samples = 5
    with pytest.raises(DataError, match='data: "11 records'):
        evaluate(cfg, EvalCell(network))


def test_an_evaluation_while_training_replaces_its_own_file(make_config, network) -> None:
    cfg = make_config()
    for _ in range(2):
        evaluate(cfg, EvalCell(network), training=True)
    names = sorted(path.name for path in Path(cfg.output_dir).iterdir())
    assert names == ["training_predictions.jsonl", "training_predictions.jsonl.json"]


def test_one_batch_is_tried_without_a_trace(make_config, network) -> None:
    cfg = make_config()
    try_evaluation(cfg, EvalCell(network))
    assert not Path(cfg.output_dir).exists()


def test_all_answers_of_the_squad_file_count(make_config, network, tokenizer, tmp_path) -> None:
    items = texts(11)
    paragraphs = [[(question, ["other", answer]), ("unused?", ["u"])] for _, question, answer in items]
    source = squad_file(tmp_path / "squad.json", *paragraphs)
    cfg = make_config(**{"metric.answers_file": str(source)})
    questions = read_questions(cfg, tokenizer, str(source))
    assert [q.answers for q in questions] == [("other", answer) for _, _, answer in items]
    evaluate(cfg, EvalCell(network))
    made = predictions(Path(cfg.output_dir) / "predictions.jsonl")
    assert [record["id"] for record in made] == [f"id{2 * i}" for i in range(11)]
    beside = Path(cfg.eval_dataset.data_loader.dataset_dir + ".references.jsonl")
    assert answers_file(cfg, SquadMetric()) == ""
    lines = [json.dumps({"id": f"r{i}", "question": q, "answers": [a, "more"]}) for i, (_, q, a) in enumerate(items)]
    beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    try:
        assert answers_file(cfg, SquadMetric()) == str(beside)
        assert answers_file(cfg, SquadMetric(str(source))) == str(source)
        assert answers_file(cfg, EmF1Metric()) == ""  # the old definition has one answer
        assert [q.answers[1] for q in read_questions(cfg, tokenizer, str(beside))] == ["more"] * 11
    finally:
        beside.unlink()
    other = squad_file(tmp_path / "other.json", *paragraphs[1:])
    with pytest.raises(DataError, match="record 0"):
        read_questions(cfg, tokenizer, str(other))


def write(path: Path, ids: list[int], labels: list[int]) -> str:
    writer = MindRecordWriter(path, {"input_ids": LENGTH, "labels": LENGTH})
    writer.write(**{name: np.array([row + [0] * (LENGTH - len(row))], np.int32)
                    for name, row in (("input_ids", ids), ("labels", labels))})  # fmt: skip
    writer.close()
    return str(path)


@pytest.mark.parametrize(
    ("ids", "labels", "message"),
    [
        ([1, 5], [-100, 7], "training records"),
        ([], [7], "empty prompt"),
        ([1, 5], [], "empty answer"),
        ([1, 999], [7], "vocab_size"),
    ],
)
def test_records_that_are_no_questions_are_named(make_config, tokenizer, tmp_path, ids, labels, message) -> None:
    path = write(tmp_path / "bad.mindrecord", ids, labels)
    cfg = make_config(**{"eval_dataset.data_loader.dataset_dir": path})
    with pytest.raises(DataError, match=message):
        read_questions(cfg, tokenizer)


def test_config_errors_come_before_anything_runs(make_config) -> None:
    with pytest.raises(ConfigError, match=r"SquadMetric needs \[input_ids, labels\]"):
        make_config(**{"eval_dataset.input_columns": ["input_ids"]})
    with pytest.raises(ConfigError, match="do_sample"):
        make_config(**{"model.model_config.do_sample": True})
    with pytest.raises(ConfigError, match="SquadMetric"):
        make_config(**{"metric.type": "SquadMetrik"})


def test_prompts_without_room(network, tokenizer, make_config, tmp_path) -> None:
    full = write_questions(tmp_path / "full.mindrecord", tokenizer, [("fox " * 80, "q?", "dog"), ("fox", "q?", "dog")])
    cfg = make_config(**{"eval_dataset.data_loader.dataset_dir": str(full)})
    questions = read_questions(cfg, tokenizer)
    assert len(questions[0].prompt) == LENGTH
    made = {r["index"]: r["prediction"] for batch in generate_answers(network, tokenizer, questions, 4) for r in batch}
    assert made[0] == ""
    assert made[1] == alone(network, tokenizer, questions[1:])[1]
    config = type(network.config)(**network.config.model_dump() | {"max_new_tokens": None, "max_decode_length": 5})
    with pytest.raises(ConfigError, match=r"1 of 2 prompts .*max_new_tokens 20"):
        check_room(config, questions)


def test_the_early_stop_changes_no_first_line(network, tokenizer) -> None:
    stop = generate_evaluate._stop_at_line_end(tokenizer)
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][-1:]
    word = tokenizer("fox", add_special_tokens=False)["input_ids"]
    assert not stop(newline)  # blank so far: the answer may come on the next line
    assert not stop(newline + word)
    assert stop(newline + word + newline)
    rows = network.generate([[1, 5, 6], [1, 9]], stop=lambda new: len(new) == 2, max_new_tokens=5)
    assert [len(row) for row in rows] == [5, 4]
