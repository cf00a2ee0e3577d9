# SPDX-License-Identifier: Apache-2.0
"""The Python of docs/api.md and of the model card's part on the API, run with small directories in place of names."""

import re
from pathlib import Path
from typing import Any

import pytest

from mindformers.model_zoo import MODELS
from mindformers.trainer.training_args import KEYS, RULES
from tests.helpers import REPO

PAGE = (REPO / "docs" / "api.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)

# What a user of the old library's model card types: names, arguments and the order of the calls are the card's.
CARD = """
import mindspore
from mindformers import AutoConfig, AutoModel, AutoTokenizer
mindspore.set_context(mode=0, device_id=0)
tokenizer = AutoTokenizer.from_pretrained('llama2_7b')
config = AutoConfig.from_pretrained('llama2_7b')
config.use_past = True
model = AutoModel.from_config(config)
inputs = tokenizer("I love Beijing, because")["input_ids"]
outputs = model.generate(inputs, max_new_tokens=8, do_sample=False)
response = tokenizer.decode(outputs)
from mindformers.trainer import Trainer
trainer = Trainer(task='text_generation', model='llama2_7b', train_dataset='path/to/train_dataset',
                  eval_dataset='path/to/eval_dataset')
metrics = trainer.evaluate()
predict_result = trainer.predict(input_data="I love Beijing, because", max_length=24)
from mindformers.pipeline import pipeline
pipeline_task = pipeline("text_generation", model='llama2_7b', max_length=24)
pipeline_result = pipeline_task("I love Beijing, because", do_sample=False)
from mindformers import MindFormerConfig, LlamaConfig, TransformerOpParallelConfig, LlamaForCausalLM, pipeline
from mindformers import init_context, ContextConfig, ParallelContextConfig
from mindformers.tools.utils import str2bool
from mindformers.trainer.utils import get_last_checkpoint
"""


@pytest.fixture
def execute(hf_dir: Path, records: Path) -> Any:
    """Run code with the names of models and data replaced; its variables."""

    def run(code: str) -> dict[str, Any]:
        for given, path in (
            ("llama2_7b", hf_dir),
            ("path/to/train_dataset", records / "train.mindrecord"),
            ("path/to/eval_dataset", records / "valid.mindrecord"),
        ):
            code = re.sub(f"""['"]{given}['"]""", repr(str(path)), code)
        namespace: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(code, "snippet", "exec"), namespace)
        return namespace

    return run


def test_the_page(execute: Any) -> None:
    assert len(BLOCKS) == 4
    names = execute("".join(BLOCKS))
    assert len(names["texts"]) == 2
    assert names["metrics"]["PerplexityMetric"]["PPL"] > 1
    assert names["result"][0]["text_generation_text"][0].startswith("I love Beijing, because")
    assert Path("my_model/mindspore_model.safetensors").is_file()
    assert Path("output/mine/config.yaml").is_file()


def test_the_card(execute: Any) -> None:
    names = execute(CARD)
    assert names["response"][0].startswith("<s>")
    assert names["metrics"]["PerplexityMetric"]["PPL"] > 1
    assert names["predict_result"] == names["pipeline_result"]


def test_the_page_names_what_exists() -> None:
    for name in MODELS:
        assert f"'{name}'" in PAGE
    table = PAGE.split("| TrainingArguments |")[1]
    mentioned = set(re.findall(r"\w+", table))
    plain = {name for name, keys in KEYS.items() if keys[0].split(".")[-1] == name}  # "the others"
    assert {*KEYS, *RULES} - mentioned <= plain
