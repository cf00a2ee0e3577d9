# SPDX-License-Identifier: Apache-2.0
"""InferTask: text in, text out, over exported files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mindformers.errors import ConfigError
from mindformers.inference.exported_model import ExportedModel
from mindformers.inference.infer_config import InferConfig
from mindformers.tools.utils import did_you_mean

__all__ = ["InferTask", "TextGeneratorInfer", "get_mslite_pipeline", "open_exported"]


def open_exported(config: InferConfig, vocab_size: int | None = None) -> ExportedModel:
    """The model of an InferConfig; errors as for :meth:`ExportedModel.open`."""
    lite = {"target": config.target, "device_id": config.device_id, "rank_id": config.rank_id}
    return ExportedModel.open(
        config.prefill_model_path,
        config.increment_model_path or None,
        backend=config.backend,
        vocab_size=vocab_size,
        seq_length=config.infer_seq_length,
        **lite,
        config_path=config.ge_config_path,
    )


class TextGeneratorInfer:
    """Continues texts with exported files.

    Args:
        model: the opened files.
        tokenizer: a LlamaTokenizer of the model's vocabulary.
    """

    def __init__(self, model: ExportedModel, tokenizer: Any) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the exported model only {model.config.vocab_size}: "
                "give the tokenizer.model that belongs to the weights"
            )
        self.model = model
        self.tokenizer = tokenizer

    def infer(
        self,
        inputs: str | Sequence[str],
        *,
        add_special_tokens: bool = False,
        streamer: Any = None,
        is_sample_acceleration: bool = False,
        **settings: Any,
    ) -> list[str]:
        """Texts continued, prompts included.

        Args:
            inputs: one text or several.
            add_special_tokens: put the begin token before each text.
            streamer: follows the tokens of a single text.
            is_sample_acceleration: of the old library, where a graph of its own chose the token; must be False.
            settings: of GenerationConfig (do_sample, top_k, top_p, temperature, repetition_penalty, max_length, seed,
                ...), over the model's defaults.

        Raises:
            ConfigError: a setting is unknown or impossible.
        """
        if is_sample_acceleration:
            raise ConfigError(
                "is_sample_acceleration True needs a third exported graph that post-processes logits, which this "
                "library does not write: leave it False; every sampling setting is obeyed without it"
            )
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        results: list[str] = []
        for start in range(0, len(texts), self.model.batch_size):
            batch = texts[start : start + self.model.batch_size]
            ids = [self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"] for text in batch]
            outputs = self.model.generate(ids, streamer=streamer, **settings)
            results += [self.tokenizer.decode(row.tolist(), skip_special_tokens=True) for row in outputs]
        return results

    __call__ = infer


class InferTask:
    """Tasks over exported files by name."""

    _TASKS = {"text_generation": TextGeneratorInfer}

    @classmethod
    def support_list(cls) -> dict[str, type]:
        """Task name -> class."""
        return dict(cls._TASKS)

    @classmethod
    def check_task_valid(cls, task_type: str) -> None:
        """Raise a ConfigError that lists the tasks when there is no such one."""
        if task_type not in cls._TASKS:
            raise ConfigError(f"no task is called {task_type!r}.{did_you_mean(str(task_type), cls._TASKS)}")

    @classmethod
    def get_infer_task(cls, task_type: str, config: InferConfig, tokenizer: Any = None) -> TextGeneratorInfer:
        """A task over the files of ``config``.

        Args:
            task_type: ``text_generation``.
            config: the files.
            tokenizer: required.

        Raises:
            ConfigError: an unknown task, or no tokenizer.
        """
        cls.check_task_valid(task_type)
        if tokenizer is None:
            raise ConfigError("text_generation needs a tokenizer: LlamaTokenizer(vocab_file) or AutoTokenizer")
        return cls._TASKS[task_type](open_exported(config, tokenizer.vocab_size), tokenizer)


def get_mslite_pipeline(
    task: str, model: str | Path | Sequence[str | Path], tokenizer: Any = None, **options: Any
) -> TextGeneratorInfer:
    """The task over exported files, as ``pipeline(..., backend='mslite')`` makes it.

    Args:
        task: ``text_generation``.
        model: the file of one graph, a (prefill, increment) pair, or a folder that holds them.
        tokenizer: required.
        options: further fields of InferConfig.

    Raises:
        ConfigError: the folder does not hold one graph or one pair.
    """
    paths = [model] if isinstance(model, str | Path) else list(model)
    if len(paths) == 1 and Path(paths[0]).is_dir():
        paths = _files_in(Path(paths[0]))
    if len(paths) not in (1, 2):
        raise ConfigError(f"give one MindIR file or a (prefill, increment) pair, not {len(paths)} files")
    increment = str(paths[1]) if len(paths) == 2 else ""
    return InferTask.get_infer_task(task, InferConfig(str(paths[0]), increment, **options), tokenizer)


def _files_in(folder: Path) -> list[Path]:
    """The graphs of a folder, the one with ``prefill`` in its name first."""
    files = sorted(folder.glob("*.mindir"), key=lambda file: ("prefill" not in file.name, file.name))
    if not files or len(files) > 2 or (len(files) == 2 and "prefill" not in files[0].name):
        names = ", ".join(file.name for file in files) or "none"
        raise ConfigError(
            f"{folder} must hold one MindIR file, or two with 'prefill' in the name of one; it holds: {names}"
        )
    return files
