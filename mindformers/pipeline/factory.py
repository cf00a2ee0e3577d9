# SPDX-License-Identifier: Apache-2.0
"""pipeline(): a ready pipeline for a task, from a model's name, directory or object."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindformers.errors import ConfigError
from mindformers.generation import GenerationConfig
from mindformers.models.build import pretrained_model, pretrained_tokenizer
from mindformers.models.llama.llama_config import LlamaConfig
from mindformers.pipeline.text_generation_pipeline import _CALL, TextGenerationPipeline
from mindformers.registry import MindFormerModuleType, MindFormerRegister
from mindformers.tools.utils import did_you_mean

__all__ = ["TASKS", "build_pipeline", "pipeline"]

TASKS = {"text_generation": TextGenerationPipeline}
"""Task -> class of its pipeline."""

_OWN = ("batch_size", "add_special_tokens", "keys")
_BACKENDS = ("ms", "mslite")


def pipeline(
    task: str | None = None, model: Any = None, tokenizer: Any = None, backend: str = "ms", **kwargs: Any
) -> Any:
    """A pipeline for a task.

    Args:
        task: 'text_generation', which None means as well.
        model: a registered name, a YAML, a directory (ours or Hugging Face's), or a model object.
        tokenizer: a tokenizer or what to load one from; None takes that of the model's name or directory.
        backend: 'ms', MindSpore; or 'mslite' for exported graphs: ``model`` is then their file, a (prefill, increment)
            pair, or a folder of them, and the result is that of ``inference.get_mslite_pipeline``.
        **kwargs: ``batch_size``, ``add_special_tokens``, ``keys`` and settings of ``generate`` (max_length, do_sample,
            ...), the defaults of every call; keys of ``model.model_config`` (seq_length, compute_dtype, ...) when the
            model is loaded here. With 'mslite' fields of InferConfig.

    Raises:
        ConfigError: an unknown task, backend, model or keyword, with the nearest name.
        CheckpointError: the model's weights are missing; says what to put where.
    """
    name = task or "text_generation"
    if name not in TASKS:
        raise ConfigError(f"no task is called {task!r}.{did_you_mean(str(task), TASKS, 'tasks')}")
    if backend not in _BACKENDS:
        raise ConfigError(f"backend {backend!r} is not available; allowed: {', '.join(_BACKENDS)}")
    if model is None:
        raise ConfigError(
            "a pipeline needs a model: pipeline('text_generation', model=NAME_OR_DIRECTORY_OR_MODEL_OBJECT)"
        )
    if backend == "mslite":
        from mindformers.inference import get_mslite_pipeline

        ready = pretrained_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
        return get_mslite_pipeline(name, model, ready, **kwargs)
    settings, changes = _sort_out(kwargs, named := isinstance(model, str | Path))
    if named:
        tokenizer = model if tokenizer is None else tokenizer
        if isinstance(tokenizer, str | Path):  # before the model: it fails within a second when it is not there
            tokenizer = pretrained_tokenizer(tokenizer)
        model = pretrained_model(model, True, changes)
    return TASKS[name](model, tokenizer, **settings)


def build_pipeline(
    config: Mapping[str, Any] | None = None, default_args: Mapping[str, Any] | None = None, **kwargs: Any
) -> Any:
    """The registered pipeline that a mapping with ``type`` (or ``class_name=``) describes.

    Args:
        config: ``{"type": "TextGenerationPipeline", "model": ..., ...}``.
        default_args: arguments used where ``config`` has none.
        **kwargs: without ``config``: ``class_name`` and the arguments.

    Raises:
        ConfigError: an unknown class or argument.
    """
    if config is None:
        kwargs.pop("module_type", None)
        name = kwargs.pop("class_name", "text_generation")
        return MindFormerRegister.get_instance(MindFormerModuleType.PIPELINE, name, **kwargs)
    return MindFormerRegister.get_instance_from_cfg(config, MindFormerModuleType.PIPELINE, default_args)


def _sort_out(kwargs: Mapping[str, Any], named: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword arguments of the pipeline (and generate), and those of the model's config."""
    for_calls = {*_OWN, *_CALL, *GenerationConfig().to_dict(), "max_decode_length"}
    for_model = set(LlamaConfig.model_fields) if named else set()
    for key in kwargs:
        if key not in for_calls | for_model:
            fixed = (
                " A model object's config is fixed: change it before the model is made."
                if (key in LlamaConfig.model_fields)
                else did_you_mean(key, [*for_calls, *for_model])
            )
            raise ConfigError(f"pipeline: unknown keyword {key!r}.{fixed}")
    settings = {key: value for key, value in kwargs.items() if key in for_calls}
    return settings, {key: value for key, value in kwargs.items() if key not in for_calls}
