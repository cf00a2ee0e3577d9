# SPDX-License-Identifier: Apache-2.0
"""Text in, text out: the predict mode of a run."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mindspore import nn

from mindformers.checkpoint.download import fetch
from mindformers.config import RunConfig
from mindformers.config.save import save_text
from mindformers.core.distributed import world
from mindformers.errors import CheckpointError, ConfigError, DataError
from mindformers.model_zoo import known_name
from mindformers.pipeline.text_generation_pipeline import TextGenerationPipeline
from mindformers.registry import MindFormerModuleType, MindFormerRegister
from mindformers.tools.logger import get_logger

logger = get_logger(__name__)


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


def predict(
    cfg: RunConfig,
    network: nn.Cell,
    input_data: Any = None,
    tokenizer: Any = None,
    batch_size: int | None = None,
    **settings: Any,
) -> list[dict[str, list[str]]]:
    """Generate from ``input_data`` (or the config's), log the result and write it to ``save_file``.

    Args:
        cfg: the run's config.
        network: the model with its weights.
        input_data: a text, a file of texts, several of these, any iterable of texts, or a MindSpore dataset.
        tokenizer: the tokenizer; None makes the config's.
        batch_size: prompts generated together; None takes ``predict_batch_size``.
        **settings: of ``generate``.

    Returns:
        ``[{"text_generation_text": [texts]}, ...]``, one entry per batch.
    """
    given = input_data if input_data is not None else cfg.input_data or ""
    listed = isinstance(given, str) or (isinstance(given, list | tuple) and all(isinstance(i, str) for i in given))
    prompts = read_prompts(given) if listed else given
    pipeline = TextGenerationPipeline(network, tokenizer or build_tokenizer(cfg), **settings)
    results = pipeline(prompts, batch_size=batch_size or cfg.predict_batch_size or 1)
    for result in results:
        logger.info("%s", result)
    if world()[0] != 0:  # every rank has the same texts
        return results
    path = Path(cfg.save_file or "text_generation_result.txt")
    save_text(path, str(results) + "\n")
    logger.info("result written to %s", path)
    return results
