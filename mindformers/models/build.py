# SPDX-License-Identifier: Apache-2.0
"""Config objects and sections -> models, tokenizers, processors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindformers.checkpoint.load import load_into, read_checkpoint, resolve_checkpoint
from mindformers.checkpoint.names import modern_name
from mindformers.config import MindFormerConfig, RunConfig, Section
from mindformers.config.load import validate_tree
from mindformers.errors import CheckpointError, ConfigError
from mindformers.models.base_config import BaseConfig
from mindformers.models.base_model import BaseModel, check_class
from mindformers.models.model_config import model_config_from_run, model_config_of
from mindformers.models.pretrained import Source, find_source, run_config_of
from mindformers.registry import MindFormerModuleType, MindFormerRegister
from mindformers.tools.logger import get_logger

__all__ = [
    "as_model_config",
    "build_model",
    "build_model_config",
    "build_processor",
    "build_tokenizer",
    "model_from_config",
    "pretrained_model",
    "pretrained_processor",
    "pretrained_tokenizer",
]

logger = get_logger(__name__)
_ADAPTER = "mindpet_delta"  # start of the last part of an adapter weight's name


def pretrained_model(given: str | Path, load: bool, changes: Mapping[str, Any], wanted: type = BaseModel) -> Any:
    """The model of a source, with its weights.

    Args:
        given: name, YAML or directory.
        load: False leaves the weights random.
        changes: keys of ``model.model_config`` that get another value.
        wanted: the class the model must be of.

    Raises:
        ConfigError: no such source, an unknown key, a model of another class.
        CheckpointError: there are no weights; says what to put where.
    """
    source = find_source(given)
    config = model_config_of(source, changes)
    check_class(_class_of(config), wanted, given)
    if load and not config.checkpoint_name_or_path:
        raise CheckpointError(_no_weights(source))
    return model_from_config(config, load)


def model_from_config(config: BaseConfig, load: bool = True) -> Any:
    """A model of the class that belongs to its config, with the weights of ``config.checkpoint_name_or_path``.

    Without weights to load they are random, and the log says so.
    """
    if not load and config.checkpoint_name_or_path:
        config = config.model_copy(deep=True)
        config.checkpoint_name_or_path = ""
    if not config.checkpoint_name_or_path:
        logger.info("no checkpoint_name_or_path: the weights of the %s are random", config.architecture)
    if getattr(config, "pet_config", None) is None:
        return _class_of(config)(config)
    from mindformers.pet import get_pet_model  # adapters go around a base without weights, then all are loaded

    source = config.checkpoint_name_or_path
    config = config.model_copy(deep=True)
    config.checkpoint_name_or_path = ""
    model = get_pet_model(_class_of(config)(config), config.pet_config)
    if source:
        weights = read_checkpoint(resolve_checkpoint(source))
        adapted = any(modern_name(name).split(".")[-1].startswith(_ADAPTER) for name in weights)
        load_into(model, weights, ignore=() if adapted else (f"*.{_ADAPTER}*",))
        if not adapted:
            logger.info("%s holds no adapters: they start new", source)
    return model


def as_model_config(config: Any, changes: Mapping[str, Any]) -> BaseConfig:
    """The model config in whatever form: config object, RunConfig, MindFormerConfig, or path of a YAML.

    An object given is changed in a copy.

    Raises:
        ConfigError: something else, an unknown key, or a wrong value.
    """
    if isinstance(config, str | Path):
        return model_config_of(find_source(config), changes)
    if isinstance(config, MindFormerConfig | dict) and "model" in config:
        plain = config.to_dict() if isinstance(config, MindFormerConfig) else config
        config = validate_tree(plain, type(config).__name__)
    if isinstance(config, RunConfig):
        config = model_config_from_run(config)
    if not isinstance(config, BaseConfig):
        raise ConfigError(
            "from_config needs a model config (AutoConfig.from_pretrained(...), LlamaConfig(...)), a run's config "
            f"with a section 'model', or the path of a YAML; got {type(config).__name__}"
        )
    if changes:
        config = config.model_copy(deep=True)
        for key, value in changes.items():
            setattr(config, key, value)
    return config


def pretrained_tokenizer(given: str | Path, **kwargs: Any) -> Any:
    """The tokenizer of a source.

    Args:
        given: name, YAML or directory; a ``tokenizer.model`` file, or a directory that holds nothing else, is enough.
        **kwargs: arguments of the tokenizer that win over the source's.

    Raises:
        ConfigError, DataError: no such source, or it has no tokenizer; says what to put where.
    """
    from mindformers.models.llama.llama_tokenizer import LlamaTokenizer

    path = Path(given).expanduser()
    if (path / "tokenizer.model").is_file() or (path.is_file() and path.suffix == ".model"):
        return _tokenizer_class(path, LlamaTokenizer).from_pretrained(path, **kwargs)
    source = find_source(given)
    if source.kind == "foreign":
        return LlamaTokenizer.from_pretrained(path, **kwargs)  # says what the directory lacks
    section = run_config_of(source).processor.tokenizer
    options = {**section.options(), **kwargs}
    options["vocab_file"] = _vocab_file(source, str(options.get("vocab_file") or ""))
    return build_tokenizer({"type": section.type, **options})


def pretrained_processor(given: str | Path, **kwargs: Any) -> Any:
    """The processor of a source, with its tokenizer; kwargs are arguments of the processor."""
    source = find_source(given)
    options: dict[str, Any] = {"type": "LlamaProcessor"}
    if source.kind != "foreign":
        section = run_config_of(source).processor
        options = {"type": section.type, **section.options()}
    tokenizer = kwargs.pop("tokenizer", None) or pretrained_tokenizer(given)
    return build_processor({**options, **kwargs, "tokenizer": tokenizer})


def build_model_config(config: Mapping[str, Any] | Section, **kwargs: Any) -> Any:
    """The config object of a section ``model_config`` (with ``type``); kwargs are defaults."""
    return MindFormerRegister.get_instance_from_cfg(_mapping(config), MindFormerModuleType.CONFIG, kwargs)


def build_model(config: Mapping[str, Any] | Section, **kwargs: Any) -> Any:
    """The model of a section ``model`` (``arch`` and ``model_config``); kwargs change keys of ``model_config``."""
    return model_from_config(as_model_config({"model": _mapping(config)}, kwargs))


def build_tokenizer(config: Mapping[str, Any] | Section, **kwargs: Any) -> Any:
    """The tokenizer of a section ``processor.tokenizer``; kwargs are defaults.

    Raises:
        ConfigError: there is no ``vocab_file``.
    """
    options = {**kwargs, **_mapping(config)}
    if not options.get("vocab_file"):
        raise ConfigError(
            "processor.tokenizer.vocab_file is not set: give the path of tokenizer.model, for example "
            "--processor.tokenizer.vocab_file path/to/tokenizer.model"
        )
    return MindFormerRegister.get_instance_from_cfg(options, MindFormerModuleType.TOKENIZER)


def build_processor(config: Mapping[str, Any] | Section, **kwargs: Any) -> Any:
    """The processor of a section ``processor``, its tokenizer built first; kwargs are defaults."""
    options = {**kwargs, **_mapping(config)}
    if isinstance(options.get("tokenizer"), Mapping | Section):
        options["tokenizer"] = build_tokenizer(options["tokenizer"])
    return MindFormerRegister.get_instance_from_cfg(options, MindFormerModuleType.PROCESSOR)


def _class_of(config: BaseConfig) -> type:
    return MindFormerRegister.get_cls(MindFormerModuleType.MODELS, config.architecture)


def _mapping(config: Mapping[str, Any] | Section) -> dict[str, Any]:
    if isinstance(config, Section):
        return config.to_dict()
    return config.to_dict() if isinstance(config, MindFormerConfig) else dict(config)


def _no_weights(source: Source) -> str:
    if source.kind == "ours":
        return (
            f"{source.folder} holds {source.path.name} but no weights: put {source.path.stem}.ckpt or "
            f"{source.path.stem}.safetensors beside it. For random weights: AutoModel.from_config({source.given!r})"
        )
    if source.kind == "name":
        from mindformers.model_zoo import MODELS, known_name

        return (
            f"there are no weights of {source.given} to download: {MODELS[known_name(source.given)].weights_advice}. "
            f"Then give their directory, or set config.checkpoint_name_or_path and call AutoModel.from_config(config)"
        )
    if source.kind == "foreign":
        return (
            f"{source.folder} holds config.json but no weights: put model.safetensors, or its shards and index, there"
        )
    return (
        f"{source.given} names no weights: set load_checkpoint or model.model_config.checkpoint_name_or_path in it. "
        f"For random weights: AutoModel.from_config({source.given!r})"
    )


def _tokenizer_class(path: Path, default: type) -> type:
    """The tokenizer class that the YAML of a directory names."""
    try:
        source = find_source(path)
    except ConfigError:
        return default
    if source.kind != "ours":
        return default
    return MindFormerRegister.get_cls(MindFormerModuleType.TOKENIZER, run_config_of(source).processor.tokenizer.type)


def _vocab_file(source: Source, named: str) -> str:
    """The vocabulary of a source with a YAML: the file it names, one beside it, or the one of its name."""
    file = Path(named).expanduser()
    if named and file.is_file():
        return str(file)
    if source.folder is not None:
        for beside in (source.folder / file.name, source.folder / "tokenizer.model"):
            if beside.is_file():
                return str(beside)
    if source.kind == "name":
        from mindformers.checkpoint.download import fetch

        return str(fetch(source.given, "tokenizer"))
    what = f"names the vocabulary {named}, which is not there" if named else "names no vocabulary"
    raise ConfigError(
        f"{source.path} {what}: put tokenizer.model into {source.folder or source.path.parent}, or set "
        "processor.tokenizer.vocab_file to its path"
    )
