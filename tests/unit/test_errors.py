# SPDX-License-Identifier: Apache-2.0
"""How an entry point ends: exit code, words, and what a launcher is told."""

import json

import pytest

from mindformers.errors import DataError, TrainingError, run_cli


def failing(error: Exception):
    """An entry point that raises."""

    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(("error", "code"), [(DataError("bad \u00e9"), 2), (TrainingError("nan"), 1)])
def test_a_launcher_learns_of_the_error(tmp_path, monkeypatch, capsys, error, code):
    path = tmp_path / "outcome.json"
    monkeypatch.setenv("MINDFORMERS_OUTCOME_FILE", str(path))
    with pytest.raises(SystemExit) as stop:
        run_cli(failing(error))
    assert stop.value.code == code
    record = json.loads(path.read_text())
    assert record["error"] == f"{type(error).__name__}: {error}"
    assert record["exit_code"] == code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_launcher_learns_that_the_work_is_done(tmp_path, monkeypatch):
    path = tmp_path / "outcome.json"
    monkeypatch.setenv("MINDFORMERS_OUTCOME_FILE", str(path))
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda: None)
    record = json.loads(path.read_text())
    assert (stop.value.code, record["exit_code"]) == (0, 0)
    assert "error" not in record


def test_a_bug_keeps_its_traceback_and_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("MINDFORMERS_OUTCOME_FILE", str(tmp_path / "outcome.json"))
    with pytest.raises(ZeroDivisionError):
        run_cli(lambda: 1 // 0)
    assert json.loads((tmp_path / "outcome.json").read_text())["exit_code"] == 1


def test_without_a_launcher_or_with_a_full_disk_the_error_is_shown_all_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MINDFORMERS_OUTCOME_FILE", raising=False)
    with pytest.raises(SystemExit):
        run_cli(failing(DataError("bad")))
    monkeypatch.setenv("MINDFORMERS_OUTCOME_FILE", str(tmp_path / "no" / "outcome.json"))
    with pytest.raises(SystemExit):
        run_cli(failing(DataError("worse")))
    assert capsys.readouterr().err.endswith("error: worse\n")
