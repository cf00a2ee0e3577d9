# SPDX-License-Identifier: Apache-2.0
"""Real weights: TinyStories 260K, used as they come from Hugging Face and from Meta's files.

The expected text is the greedy one of llama2.c (temperature 0, 200 positions), from the README of the test data.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindformers import AutoConfig, AutoModel, AutoTokenizer, Trainer, pipeline
from tests.helpers import shared_data

PROMPT = "Once upon a time"
OTHER = "Lily and Tom"
KEY = "text_generation_text"


@pytest.fixture(scope="module")
def story() -> str:
    """The text of the data's README, without its indent."""
    text = shared_data("README.md").read_text(encoding="utf-8")
    block = text.split("200 positions):", 1)[1].split("None of these files", 1)[0]
    return "\n".join(line.removeprefix("    ") for line in block.strip("\n").splitlines()).strip()


@pytest.fixture(scope="module", params=["hf", "meta"])
def folder(request: pytest.FixtureRequest) -> Path:
    return shared_data(f"stories260k/{request.param}")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    """The model, 256 positions long so that one window serves all tests, and its tokenizer."""
    return AutoModel.from_pretrained(folder, seq_length=256), AutoTokenizer.from_pretrained(folder)


def test_greedy_text_token_for_token(loaded: tuple, story: str) -> None:
    model, tokenizer = loaded
    expected = tokenizer(story)["input_ids"]
    assert len(expected) == 201  # the begin token and 200 positions
    outputs = model.generate(tokenizer(PROMPT)["input_ids"], max_length=201, do_sample=False)
    assert outputs[0].tolist() == expected
    assert tokenizer.decode(outputs[0].tolist(), skip_special_tokens=True) == story


def test_batch_and_no_cache_give_the_same_tokens(loaded: tuple, story: str) -> None:
    model, tokenizer = loaded
    prompts = [tokenizer(text)["input_ids"] for text in (PROMPT, OTHER)]
    batch = model.generate(prompts, max_length=40, do_sample=False)
    for use_past in (True, False):
        alone = [model.generate(prompt, max_length=40, do_sample=False, use_past=use_past)[0] for prompt in prompts]
        for ours, theirs in zip(batch, alone, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert batch[0].tolist() == tokenizer(story)["input_ids"][:40]


def test_pipeline_and_trainer_say_the_same(loaded: tuple, folder: Path, story: str, tmp_path: Path) -> None:
    model, tokenizer = loaded
    text = pipeline("text_generation", model=model, tokenizer=tokenizer, max_length=60)(PROMPT, do_sample=False)
    assert story.startswith(text[0][KEY][0])
    trainer = Trainer(task="text_generation", model=model, tokenizer=tokenizer)
    assert trainer.predict(input_data=PROMPT, max_length=60, do_sample=False, save_file=tmp_path / "t.txt") == text


def test_logits_equal_those_of_transformers() -> None:
    torch = pytest.importorskip("torch", reason="extra `test` brings torch")
    transformers = pytest.importorskip("transformers", reason="extra `test` brings transformers")
    from mindspore import Tensor

    folder = shared_data("stories260k/hf")
    ids = AutoTokenizer.from_pretrained(folder)(PROMPT)["input_ids"]
    model = AutoModel.from_config(AutoConfig.from_pretrained(folder, seq_length=256))
    model.set_train(False)
    ours = model(Tensor(np.array([ids], np.int32)))[0].asnumpy()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits.numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-5)
