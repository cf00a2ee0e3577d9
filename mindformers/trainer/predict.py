# SPDX-License-Identifier: Apache-2.0
"""Text in, text out: the predict mode of a run."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mindspore import nn

from mindformers.checkpoint.download import fetch
from mindformers.config import RunConfig
from mindformers.errors import CheckpointError, ConfigError, DataError
from mindformers.model_zoo import known_name
from mindformers.registry import MindFormerModuleType, MindFormerRegister
from mindformers.tools.logger import get_logger

logger = get_logger(__name__)

RESULT_KEY = "text_generation_text"


def build_tokenizer(cfg: RunConfig) -> Any:
    """The tokenizer of ``processor.tokenizer``; without a vocab_file, with the one published for trainer.model_name.

    Raises:
        ConfigError: the section or its vocab_file is missing, and nothing could be downloaded.
    """
    section = cfg.processor.tokenizer if cfg.processor else None
    options = section.options() if section else {}
    if section is None or not options.get("vocab_file"):
        needed = (
            "processor.tokenizer.vocab_file is not set: give the path of tokenizer.model, for example "
            "--processor.tokenizer.vocab_file path/to/tokenizer.model"
        )
        name = known_name(cfg.trainer.model_name)
        if section is None or name is None:
            raise ConfigError(needed)
        try:
            options["vocab_file"] = str(fetch(name, "tokenizer"))
        except CheckpointError as error:
            raise ConfigError(f"{needed}\n{error}") from error
    return MindFormerRegister.get_instance_from_cfg({"type": section.type, **options}, MindFormerModuleType.TOKENIZER)


def read_prompts(input_data: str | Sequence[str]) -> list[str]:
    """Prompts of ``--predict_data``: a text, several texts, or a file with one prompt on each line.

    A literal ``\\n`` in a line of a file stands for a line break.
    """
    items = [input_data] if isinstance(input_data, str) else list(input_data)
    prompts: list[str] = []
    for item in items:
        if len(item) < 4096 and os.path.isfile(item):
            try:
                lines = Path(item).read_text(encoding="utf-8").splitlines()
            except UnicodeDecodeError as error:
                raise DataError(f"{item} is not UTF-8 text: {error}") from error
            prompts.extend(line.replace("\\n", "\n") for line in lines if line.strip())
        else:
            prompts.append(item)
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise DataError("nothing to predict from: give --predict_data 'a text', several texts, or a file of texts")
    return prompts


def generate_texts(network: nn.Cell, tokenizer: Any, prompts: Sequence[str], batch_size: int) -> list[dict]:
    """Continue each prompt; one ``{"text_generation_text": [texts]}`` per batch, prompts included."""
    results = []
    for start in range(0, len(prompts), batch_size):
        ids = [tokenizer(prompt)["input_ids"] for prompt in prompts[start : start + batch_size]]
        outputs = network.generate(ids)
        results.append({RESULT_KEY: [tokenizer.decode(out.tolist(), skip_special_tokens=True) for out in outputs]})
    return results


def predict(cfg: RunConfig, network: nn.Cell, input_data: Any = None) -> list[dict]:
    """Generate from ``input_data`` (or the config's), log the result and write it to ``save_file``."""
    prompts = read_prompts(input_data if input_data is not None else cfg.input_data or "")
    results = generate_texts(network, build_tokenizer(cfg), prompts, cfg.predict_batch_size or 1)
    for result in results:
        logger.info("%s", result)
    path = Path(cfg.save_file or "text_generation_result.txt")
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(str(results) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    logger.info("result written to %s", path)
    return results
