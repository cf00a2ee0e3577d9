# SPDX-License-Identifier: Apache-2.0
"""``python -m mindformers eval``: mistakes are named before a model is loaded."""

from pathlib import Path

import pytest

from mindformers.__main__ import main
from mindformers.errors import ConfigError, MindFormersError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--harness", ","], "--harness names no task"),
        (["--harness", "x", "--batch_size", "0"], "--batch_size 0"),
        (["--harness", "x", "--limit", "-1"], "--limit -1"),
        (["--harness", "x", "--include_path", "nowhere"], "nowhere: no such folder"),
        (["--harness", "x", "--output", "."], "name of a JSON file"),
        (["--harness", "x", "--output", "taken/r.json"], "name of a JSON file"),
        (["--harness", "x", "--output", "taken/below/r.json"], "cannot be written"),
        (["--harness", "x"], "processor.tokenizer.vocab_file"),
        (["--harness", "x", "--options", "model.model_config.hidden_siz=3"], "hidden_size"),
        (["--harness", "x", "--load_checkpoint", "a\nb"], "vocab_file"),
    ],
)
def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("precious", encoding="utf-8")
    Path("run.yaml").write_text("context: {device_target: CPU}\n", encoding="utf-8")
    with pytest.raises(MindFormersError, match=message):
        main(["eval", "run.yaml", *words])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.yaml", "taken"]


def test_weights_of_a_yaml_are_not_given_to_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="belong to a YAML"):
        main(["eval", str(tmp_path), "--harness", "x", "--load_checkpoint", "w.ckpt"])


def test_the_harness_is_required(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["eval", "run.yaml"])
    assert stopped.value.code == 2
    assert "--harness" in capsys.readouterr().err
