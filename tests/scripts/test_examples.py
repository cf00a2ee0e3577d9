# SPDX-License-Identifier: Apache-2.0
"""The model card's scripts, run as the card says on a tiny model."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers import REPO
from tests.unit.api.conftest import model, model_dir, tokenizer  # noqa: F401 - fixtures
from tests.unit.conftest import tiny_model_file  # noqa: F401 - a fixture

EXAMPLES = REPO / "scripts" / "examples"
PROMPTS = ["I love Beijing, because", "LLaMA is a", "Huawei is a company that"]


@pytest.fixture(scope="module")
def place(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A folder with run.yaml, the weights and the tokenizer, as a user of the card has them."""
    folder = tmp_path_factory.mktemp("a place")
    shutil.copytree(model_dir, folder / "model")
    document = yaml.safe_load((folder / "model" / "mindspore_model.yaml").read_text(encoding="utf-8"))
    document["model"]["model_config"] |= {"seq_length": 64, "max_decode_length": 64}
    document |= {"use_parallel": False, "context": {"device_target": "CPU"}}
    (folder / "run.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    (folder / "table.json").write_text("{}", encoding="utf-8")
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(REPO)}
    return subprocess.run(
        command, cwd=folder, env=environment, text=True, capture_output=True, timeout=900, check=False
    )


def predict(folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess:
    return run(folder, sys.executable, str(EXAMPLES / script), "--yaml_file", "run.yaml", "--model_type", "model",
               "--seq_length", "64", *arguments)  # fmt: skip


def test_both_scripts_give_the_same_texts_alone_and_in_a_batch(place: Path) -> None:
    weights = ("--checkpoint_path", "model/mindspore_model.ckpt")
    batch = predict(place, "predict_custom.py", *weights)
    assert batch.returncode == 0, batch.stderr[-2000:]
    texts = [line for line in batch.stdout.splitlines() if line.startswith("<s>")]
    assert [prompt in text for text, prompt in zip(texts, PROMPTS, strict=True)] == [True] * 3
    alone = predict(place, "predict_custom_pipeline.py", *weights, "--batch_size", "1")
    assert alone.returncode == 0, alone.stderr[-2000:]
    results = [ast.literal_eval(line) for line in alone.stdout.splitlines() if line.startswith("{'text_generation")]
    for result, text, prompt in zip(results, texts, PROMPTS, strict=True):
        (generated,) = result["text_generation_text"]
        assert generated.startswith(prompt)
        begin = text.split("<s>")[1].strip().rstrip("\ufffd")  # up to the first special token the model makes
        assert generated.startswith(begin)


def test_mistakes_end_with_one_message(place: Path) -> None:
    done = predict(place, "predict_custom.py", "--checkpoint_path", "model/nothing.ckpt")
    assert done.returncode == 2
    assert "nothing.ckpt" in done.stderr
    assert "Traceback" not in done.stderr
    done = predict(place, "predict_custom.py", "--device_target", "Ascend", "--checkpoint_path", "model")
    assert done.returncode == 2
    assert "Ascend" in done.stderr


def test_run_predict_waits_for_every_rank_and_fails_with_one(place: Path) -> None:
    script = str(EXAMPLES / "run_predict.sh")
    arguments = ["table.json", "model/mindspore_model.ckpt", "run.yaml", "model"]
    done = run(place, "bash", script, *arguments, "2", "0")
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert PROMPTS[0] in (place / f"mindformers_{rank}.log").read_text(encoding="utf-8")
    failing = run(place, "bash", script, "table.json", "model/mindspore_model.yaml", "run.yaml", "model", "1", "3")
    assert failing.returncode == 2
    assert "rank 0 ended with exit code 2" in failing.stderr
    assert "mindspore_model.yaml" in failing.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table.json"], "usage"),
        (["nowhere.json", "model", "run.yaml", "model", "1", "0"], "nowhere.json"),
        (["table.json", "model", "run.yaml", "model", "two", "0"], "whole numbers"),
        (["table.json", "model", "run.yaml", "model", "0", "0"], "at least 1"),
    ],
)
def test_run_predict_checks_its_arguments(place: Path, arguments: list[str], message: str) -> None:
    done = run(place, "bash", str(EXAMPLES / "run_predict.sh"), *arguments)
    assert done.returncode == 2
    assert message in done.stderr
