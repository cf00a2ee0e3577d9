# SPDX-License-Identifier: Apache-2.0
"""What the arguments of Trainer mean: from a model, settings and a dataset to one RunConfig."""

from pathlib import Path
from typing import Any

import mindspore as ms

from mindformers.config import LoraSection, MindFormerConfig, RunConfig, load_config
from mindformers.config.files import configs_dir, shipped_configs
from mindformers.config.load import change_tree, load_tree
from mindformers.core.context import is_launched
from mindformers.errors import ConfigError
from mindformers.models.base_model import BaseModel
from mindformers.models.model_config import model_config_of
from mindformers.models.pretrained import Source, find_source
from mindformers.tools.logger import get_logger
from mindformers.tools.utils import did_you_mean
from mindformers.trainer.compile_cache import without_compile_cache
from mindformers.trainer.config_args import ConfigArguments
from mindformers.trainer.training_args import TrainingArguments

__all__ = ["TASKS", "make_run_config", "use_path"]

logger = get_logger(__name__)

TASKS = ("text_generation", "general")
# What a LoRA run adapts when nothing else is said: the four projections of attention, as in the model card.
_LORA = {"target_modules": ".*wq|.*wk|.*wv|.*wo"}


def make_run_config(args: Any, task: str, model: Any, model_name: str | None, pet_method: str) -> RunConfig:
    """The config of a Trainer; nothing given is changed.

    Args:
        args: None, RunConfig, path of a YAML, dict or MindFormerConfig, TrainingArguments, ConfigArguments.
        task: 'text_generation', or 'general' which leaves it to the config.
        model: None, a name, YAML or directory, or a model object.
        model_name: with a model object the name whose settings are the base; without a model the model.
        pet_method: '' or 'lora'.

    Raises:
        ConfigError: with every problem of the settings.
    """
    if task not in TASKS:
        raise ConfigError(f"no task is called {task!r}.{did_you_mean(str(task), TASKS, 'tasks')}")
    if pet_method not in ("", "lora"):
        raise ConfigError(f"pet_method {pet_method!r} is not available; allowed: '', 'lora'")
    if model is None and model_name is not None and not isinstance(args, str | Path | RunConfig):
        model, model_name = model_name, None
    source = find_source(model) if isinstance(model, str | Path) else None
    if source is None and model is not None and not isinstance(model, BaseModel):
        raise ConfigError(f"model is {type(model).__name__}: give a name, a YAML, a directory, or a model object")
    if isinstance(args, RunConfig | str | Path):
        cfg = args.model_copy(deep=True) if isinstance(args, RunConfig) else load_config(args)
        cfg = _with_model(cfg, source, model)
    else:
        cfg = _from_parts(args, source, model, model_name, pet_method)
    if model_name is not None:
        cfg.trainer.model_name = model_name
    if pet_method == "lora" and cfg.model.config.pet_config is None:
        cfg.model.config.pet_config = LoraSection(**_LORA)
        logger.info(
            "pet_method lora: adapters of rank %d on %s", cfg.model.config.pet_config.lora_rank, *_LORA.values()
        )
    for warning in cfg.warnings:
        logger.warning("%s", warning)
    return cfg


def context_section(cfg: RunConfig) -> Any:
    """The ``context`` section as ``init_context`` takes it: the compile cache is switched on later, by the trainer."""
    context = without_compile_cache(cfg.context)
    if context.native_kernels is None and cfg.model.config.compute_dtype == "float16":
        # There are none for it, and beside them MindSpore's own ops would be left one thread.
        return context.model_copy(update={"native_kernels": False})
    return context


def use_path(cfg: RunConfig, dataset: Any, name: str) -> Any:
    """Write the path of a dataset into its section of the config and give None; give a dataset object back.

    Raises:
        ConfigError: neither a path nor a dataset.
    """
    if dataset is None:
        return None
    if isinstance(dataset, str | Path):
        getattr(cfg, name).data_loader.dataset_dir = str(dataset)
        getattr(cfg, name).data_loader.dataset_files = None
        return None
    if not hasattr(dataset, "create_tuple_iterator") or not hasattr(dataset, "get_dataset_size"):
        raise ConfigError(
            f"{name} is {type(dataset).__name__}: give the path of MindRecord files or a MindSpore dataset"
        )
    return dataset


def _from_parts(args: Any, source: Source | None, model: Any, model_name: str | None, pet_method: str) -> RunConfig:
    """The settings of a model's config with those of ``args`` over them."""
    changes, overrides, what = _changes(args)
    if source is None and model is None and "model" not in changes:
        raise ConfigError(
            "Trainer needs to know the model: model='llama2_7b' (a name, a YAML, a directory or a model object), or "
            "args with a section 'model' (the path of a YAML, a MindFormerConfig)"
        )
    if source is None and model is None:
        tree: dict[str, Any] = {}
    else:
        tree = _base_tree(source, model, model_name, pet_method)
    if isinstance(args, TrainingArguments):
        overrides = args.overrides(bool(tree.get("lr_schedule")))
    cfg = change_tree(tree, changes, overrides, what)
    if isinstance(args, TrainingArguments) and not args.saves:
        cfg.callbacks = [c for c in cfg.callbacks if c.type not in ("CheckpointMonitor", "CheckpointMointor")]
    if source is None and model is not None:
        _same_model(cfg, model)
    return cfg


def _changes(args: Any) -> tuple[dict[str, Any], list[tuple[str, Any]], str]:
    """Nested changes, and what to call them."""
    if args is None or isinstance(args, TrainingArguments):
        return {}, [], type(args).__name__ if args is not None else "Trainer"
    if isinstance(args, ConfigArguments):
        return {}, args.overrides(), "ConfigArguments"
    if isinstance(args, MindFormerConfig):
        return args.to_dict(), [], "MindFormerConfig"
    if isinstance(args, dict):
        return args, [], "args"
    raise ConfigError(
        f"args is {type(args).__name__}: give TrainingArguments, the path of a YAML, a dict or MindFormerConfig, "
        "ConfigArguments, or a loaded RunConfig"
    )


def _base_tree(source: Source | None, model: Any, model_name: str | None, pet_method: str) -> dict[str, Any]:
    """The settings that belong to a model.

    Of a run's own YAML all is kept. Otherwise the shipped ones are taken, for the device MindSpore has now, on one
    process unless a launcher started several.
    """
    if source is not None and source.kind in ("yaml", "ours"):
        tree = load_tree(source.path)
        if "runner_config" in tree:
            return _put_model(tree, source, model)
    if source is None and model_name is not None:
        tree = load_tree(find_source(model_name).path)
    elif source is not None and source.kind == "name":
        adapted = shipped_configs().get(f"{source.path.stem}_lora_910b") if pet_method == "lora" else None
        tree = load_tree(adapted or source.path)
    else:
        tree = load_tree(configs_dir() / "llama2" / "_base.yaml")
        tree["recompute_config"] = {"recompute": False, "recompute_slice_activation": False}
        tree["trainer"]["model_name"] = source.folder.name if source else type(model).__name__
    target = ms.get_context("device_target")
    tree["use_parallel"] = is_launched(target)
    if not tree["use_parallel"]:
        tree.pop("parallel_config", None)
    tree["context"] = {**tree.get("context", {}), "device_target": target}
    if target == "CPU":
        tree["parallel"] = {**tree.get("parallel", {}), "enable_parallel_optimizer": False}
    return _put_model(tree, source, model)


def _put_model(tree: dict[str, Any], source: Source | None, model: Any) -> dict[str, Any]:
    """The settings with the model, the weights and the tokenizer of a source or an object."""
    if source is not None and source.kind == "name":
        return tree
    config = model.config if source is None else model_config_of(source, {})
    tree["model"] = {"model_config": config.to_dict(), "arch": {"type": config.architecture}}
    if source is not None and source.kind != "yaml":
        tree["load_checkpoint"] = ""  # the directory's weights are the ones meant
        file = source.folder / "tokenizer.model"
        if file.is_file():
            tree.setdefault("processor", {}).setdefault("tokenizer", {})["vocab_file"] = str(file)
    return tree


def _with_model(cfg: RunConfig, source: Source | None, model: Any) -> RunConfig:
    """A config with its section ``model`` replaced, where a model is given besides."""
    if source is None and model is None:
        return cfg
    tree = _put_model(cfg.to_dict(), source, model)
    if source is not None and source.kind == "name":
        tree["model"] = load_tree(source.path)["model"]
    logger.info("the model is the one given, not that of the config")
    return change_tree(tree, {}, [], "Trainer")


def _same_model(cfg: RunConfig, model: BaseModel) -> None:
    """Refuse settings that would change a model that is already built."""
    own, wanted = model.config.to_dict(), cfg.model.config.to_dict()
    changed = [key for key in wanted if wanted[key] != own.get(key)]
    if changed:
        raise ConfigError(
            f"args change {', '.join(f'model.model_config.{key}' for key in changed)}, but the model is already built: "
            "change its config before it is made, or give its name or directory"
        )
