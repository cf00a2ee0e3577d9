# SPDX-License-Identifier: Apache-2.0
"""The file of predictions: resumable at any byte, in order at the end, and of one run only."""

import json
from pathlib import Path

import pytest

from mindformers.errors import DataError
from mindformers.trainer.predictions import PredictionStore

RUN = {"data": "3 records, abc", "weights": "0123"}


def record(index: int, text: str = "x") -> dict:
    return {"index": index, "prediction": text, "answers": ["y"]}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_records_end_in_order_and_a_second_run_has_nothing_to_do(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "p.jsonl"
    store = PredictionStore(path, RUN)
    store.append([record(2, "caf\u00e9\u2028\nz"), record(0)])
    assert not path.exists()
    store.append([record(1)])
    assert [r["index"] for r in store.finish()] == [0, 1, 2]
    assert lines(path) == [record(0), record(1), record(2, "caf\u00e9\u2028\nz")]
    assert sorted(file.name for file in path.parent.iterdir()) == ["p.jsonl", "p.jsonl.json"]
    again = PredictionStore(path, RUN)
    assert sorted(again.done) == [0, 1, 2]
    before = path.stat().st_mtime_ns
    again.finish()
    assert path.stat().st_mtime_ns == before


def test_a_run_killed_at_any_byte_goes_on(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path / "p.jsonl", RUN)
    store.append([record(0, "\u4f60"), record(1)])
    partial = tmp_path / "p.jsonl.partial"
    content = partial.read_bytes()
    first = content.index(b"\n") + 1
    for length in range(len(content) + 1):
        partial.write_bytes(content[:length])
        again = PredictionStore(tmp_path / "p.jsonl", RUN)
        assert len(again.done) == (length >= first) + (length == len(content))
        missing = [record(i, "\u4f60" if i == 0 else "x") for i in (0, 1) if i not in again.done]
        again.append(missing)
        assert partial.read_bytes() == content


def test_another_runs_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    PredictionStore(path, RUN).append([record(0)])
    with pytest.raises(DataError, match=r'weights: "0123" there, "4567" now[\s\S]*metric.predictions_file'):
        PredictionStore(path, RUN | {"weights": "4567"})
    assert PredictionStore(path, RUN).done  # untouched
    assert not PredictionStore(path, {"data": "other"}, resume=False).done
    assert not PredictionStore(path, {"data": "other"}).done


def test_files_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("precious\n", encoding="utf-8")
    with pytest.raises(DataError, match="Move it away"):
        PredictionStore(path, RUN)
    assert path.read_text(encoding="utf-8") == "precious\n"
    (tmp_path / "q.jsonl.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="not JSON"):
        PredictionStore(tmp_path / "q.jsonl", RUN)
    with pytest.raises(DataError, match="folder"):
        PredictionStore(tmp_path, RUN)
    PredictionStore(tmp_path / "r.jsonl", RUN)
    (tmp_path / "r.jsonl.partial").write_text('{"index": 0}\n{"index": 1, "prediction": "x"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"r.jsonl.partial:1"):
        PredictionStore(tmp_path / "r.jsonl", RUN)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be written"):
        PredictionStore(tmp_path / "file" / "p.jsonl", RUN)
