# SPDX-License-Identifier: Apache-2.0
"""pipeline(): inputs, batches, settings at build and at call, streaming, errors; and the callable package."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mindformers
from mindformers import AutoModel, MindFormerRegister, TextGenerationPipeline, TextStreamer
from mindformers.errors import CheckpointError, ConfigError, DataError
from mindformers.registry import MindFormerModuleType
from tests.helpers import REPO

TEXTS = ["the quick brown fox", "a", "seven wizards make"]
KEY = "text_generation_text"


@pytest.fixture(scope="module")
def pipe(model: Any, tokenizer: Any) -> TextGenerationPipeline:
    return mindformers.pipeline("text_generation", model=model, tokenizer=tokenizer, max_new_tokens=4)


@pytest.fixture(scope="module")
def expected(pipe: TextGenerationPipeline) -> list[str]:
    """The text of each prompt, by generate alone."""
    ids = [pipe.tokenizer(text)["input_ids"] for text in TEXTS]
    rows = [pipe.model.generate(row, max_new_tokens=4)[0].tolist() for row in ids]
    assert len({tuple(row[-4:]) for row in rows}) > 1
    return [pipe.tokenizer.decode(row, skip_special_tokens=True) for row in rows]


def test_a_text(pipe: TextGenerationPipeline, expected: list[str]) -> None:
    assert pipe(TEXTS[0]) == [{KEY: [expected[0]]}]
    assert expected[0].startswith(TEXTS[0])


def test_a_list_and_its_last_partial_batch(pipe: TextGenerationPipeline, expected: list[str]) -> None:
    assert pipe(TEXTS) == [{KEY: [text]} for text in expected]
    assert pipe(TEXTS, batch_size=2) == [{KEY: expected[:2]}, {KEY: expected[2:]}]
    assert pipe(tuple(TEXTS)) == pipe(TEXTS)
    assert pipe([]) == []


def test_a_generator_is_read_as_it_is_needed(pipe: TextGenerationPipeline, expected: list[str]) -> None:
    taken = []

    def endless() -> Any:
        while True:
            taken.append(1)
            yield TEXTS[1]

    results = pipe.iterate(endless(), batch_size=2)
    assert next(results) == {KEY: [expected[1]] * 2}
    assert len(taken) == 2
    assert pipe(text for text in TEXTS[:1]) == [{KEY: expected[:1]}]


def test_mindspore_datasets(pipe: TextGenerationPipeline, expected: list[str]) -> None:
    from mindspore.dataset import NumpySlicesDataset

    def dataset(column: str = "text") -> Any:
        return NumpySlicesDataset({column: np.array(TEXTS)}, shuffle=False)

    assert pipe(dataset()) == [{KEY: [text]} for text in expected]
    assert pipe(dataset(), batch_size=2) == [{KEY: expected[:2]}, {KEY: expected[2:]}]
    assert pipe(dataset().batch(2)) == [{KEY: expected[:2]}, {KEY: expected[2:]}]
    assert pipe(dataset("en").batch(2), batch_size=1, keys={"src_language": "en"}) == [{KEY: [t]} for t in expected]
    with pytest.raises(DataError, match="columns en"):
        pipe(dataset("en"))


def test_settings_of_build_and_call(pipe: TextGenerationPipeline, model: Any, tokenizer: Any) -> None:
    def length(results: list) -> int:
        return len(tokenizer(results[0][KEY][0])["input_ids"])

    assert pipe(TEXTS[0], max_new_tokens=2) != pipe(TEXTS[0])
    assert pipe(TEXTS[0], max_length=12) == pipe(TEXTS[0], max_new_tokens=12 - length([{KEY: [TEXTS[0]]}]))
    bare = TextGenerationPipeline(model, tokenizer, add_special_tokens=False, max_new_tokens=4)
    assert bare(TEXTS[0]) == pipe(TEXTS[0], add_special_tokens=False)
    assert bare(TEXTS[0]) != pipe(TEXTS[0])


def test_streaming(pipe: TextGenerationPipeline, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pieces = list(pipe.stream(TEXTS[0], skip_prompt=False))
    assert "".join(pieces) == expected[0]
    assert len(pieces) > 1
    pipe(TEXTS[:1], streamer=TextStreamer(pipe.tokenizer, skip_special_tokens=True))
    assert capsys.readouterr().out == expected[0] + "\n"
    before = threading.active_count()
    stream = pipe.stream(TEXTS[0], max_new_tokens=15)
    next(stream)
    stream.close()  # nobody reads any more: the thread ends before its text does
    assert threading.active_count() == before
    with pytest.raises(ConfigError, match="no room"):
        list(pipe.stream("fox " * 30))


def test_from_directories(model_dir: Path, hf_dir: Path, expected: list[str]) -> None:
    for folder in (model_dir, hf_dir):
        pipe = mindformers.pipeline(model=str(folder), max_new_tokens=4, batch_size=2, seq_length=24)
        assert pipe.model.config.seq_length == 24
        assert pipe(TEXTS[:2]) == [{KEY: expected[:2]}]


def test_registered(model: Any, tokenizer: Any) -> None:
    cls = MindFormerRegister.get_cls(MindFormerModuleType.PIPELINE, "text_generation")
    assert cls is TextGenerationPipeline
    built = mindformers.build_pipeline({"type": "text_generation", "model": model, "tokenizer": tokenizer})
    assert isinstance(built, TextGenerationPipeline)
    built = mindformers.build_pipeline(class_name="TextGenerationPipeline", model=model, tokenizer=tokenizer)
    assert isinstance(built, TextGenerationPipeline)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (3, "int"),
        (b"bytes", "bytes"),
        ({"text": "a"}, "dict"),
        (["a", 5], "input 1 is int"),
        (["a", "fox " * 40], "input 1: .*no room"),
        ([["a"]], "input 0 is list"),
    ],
)
def test_wrong_inputs(pipe: TextGenerationPipeline, inputs: Any, message: str) -> None:
    with pytest.raises((DataError, ConfigError), match=message):
        pipe(inputs)


def test_wrong_arguments(pipe: TextGenerationPipeline, model: Any, tokenizer: Any, model_dir: Path) -> None:
    make = mindformers.pipeline
    for call, message in (
        (lambda: make("text-generation", model=model, tokenizer=tokenizer), "Did you mean 'text_generation'"),
        (lambda: make("text_generation"), "needs a model"),
        (lambda: make(model=model), "needs a tokenizer"),
        (lambda: make(model=model, tokenizer=tokenizer, backend="torch"), "allowed: ms"),
        (lambda: make(model=model, tokenizer=tokenizer, seq_length=3), "change it before the model is made"),
        (lambda: make(model=str(model_dir), max_lenght=3), "Did you mean 'max_length'"),
        (lambda: make(model=model, tokenizer=tokenizer, batch_size=0), "at least 1"),
        (lambda: make(model="llama27b"), "Did you mean 'llama2_7b'"),
        (lambda: make(model=3, tokenizer=tokenizer), "cannot generate"),
        (lambda: TextGenerationPipeline(model, 3), "no tokenizer"),
        (lambda: pipe("a", top_kk=3), "Did you mean 'top_k'"),
        (lambda: pipe("a", batch_size=1.5), "whole number"),
        (lambda: pipe("a", temperature=-1), "temperature"),
        (lambda: pipe(["a", "b"], batch_size=2, streamer=TextStreamer()), "one sequence"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()


def test_exported_graphs_are_the_business_of_inference(tokenizer: Any) -> None:
    with pytest.raises(CheckpointError, match=r"no\.mindir"):
        mindformers.pipeline(model="no.mindir", tokenizer=tokenizer, backend="mslite")


def test_model_object_may_be_a_mindspore_model(pipe: TextGenerationPipeline, tokenizer: Any) -> None:
    import mindspore as ms

    wrapped = TextGenerationPipeline(ms.Model(pipe.model), tokenizer)
    assert wrapped.model is pipe.model
    assert isinstance(pipe.model, type(AutoModel.from_config(pipe.model.config)))


@pytest.mark.parametrize(
    "lines",
    [
        "from mindformers import pipeline",
        "from mindformers.pipeline import TextGenerationPipeline, pipeline; import mindformers.pipeline",
        "import mindformers; mindformers.pipeline; import mindformers.pipeline; pipeline = mindformers.pipeline",
    ],
)
def test_pipeline_can_be_called_in_every_import_order(lines: str) -> None:
    code = f"""
{lines}
import mindformers
assert callable(pipeline) and callable(mindformers.pipeline)
assert mindformers.pipeline.TextGenerationPipeline.__name__ == "TextGenerationPipeline"
from mindformers.errors import ConfigError
for call in (pipeline, mindformers.pipeline):
    try:
        call("no such task")
    except ConfigError as error:
        assert "text_generation" in str(error)
    else:
        raise SystemExit("not called")
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO, check=False, timeout=600).returncode == 0
