# SPDX-License-Identifier: Apache-2.0
"""AutoConfig, AutoModel, AutoTokenizer, AutoProcessor: the right object from a name, a YAML or a directory.

Every ``from_pretrained`` takes

- a registered name: ``llama2_7b``, ``llama2_13b``, ``llama2_70b``, ``llama2_tiny`` (``mindspore/llama2_7b`` too);
- the path of a YAML;
- a directory of ours: made by ``save_pretrained``, or the output folder of a run;
- a Hugging Face directory as it is, ``config.json`` beside the weights.
"""

from pathlib import Path
from typing import Any, NoReturn

from mindformers.errors import ConfigError
from mindformers.model_zoo import MindFormerBook
from mindformers.tools.logger import get_logger

__all__ = ["AutoConfig", "AutoModel", "AutoProcessor", "AutoTokenizer"]

logger = get_logger(__name__)


class _Auto:
    """What the four share: they are called through their class."""

    def __init__(self) -> NoReturn:
        raise OSError(
            f"{type(self).__name__} is never made itself: call {type(self).__name__}.from_pretrained(NAME_OR_DIRECTORY)"
        )

    @classmethod
    def get_support_list(cls) -> dict[str, list[str]]:
        """Family -> registered names."""
        return MindFormerBook.get_model_support_list()

    @classmethod
    def show_support_list(cls) -> None:
        """Log the registered names."""
        for family, names in cls.get_support_list().items():
            logger.info("%s: %s: %s", cls.__name__, family, ", ".join(names))

    @staticmethod
    def _source(given: Any, kwargs: dict[str, Any]) -> Any:
        """The first argument, also under the name Hugging Face gives it."""
        alias = kwargs.pop("pretrained_model_name_or_path", None)
        if given is not None and alias is not None:
            raise ConfigError("give the name or path once: pretrained_model_name_or_path is the first argument")
        return alias if given is None else given


class AutoConfig(_Auto):
    """Configs of models."""

    @classmethod
    def from_pretrained(cls, yaml_name_or_path: str | Path | None = None, **kwargs: Any) -> Any:
        """The config of a model.

        Args:
            yaml_name_or_path: see the module; ``pretrained_model_name_or_path`` is another name of it.
            **kwargs: keys of ``model.model_config`` that get another value.

        Returns:
            A :class:`LlamaConfig`, free to be changed. Its ``checkpoint_name_or_path`` leads to the weights of the
            source, so that ``AutoModel.from_config`` loads them; it is empty where there are none.

        Raises:
            ConfigError: no such source, an unknown key (with the nearest name), or a value that is not allowed.
        """
        from mindformers.models.model_config import model_config_of
        from mindformers.models.pretrained import find_source

        source = cls._source(yaml_name_or_path, kwargs)
        return model_config_of(find_source(source), kwargs)


class AutoModel(_Auto):
    """Models with their weights."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_dir: str | Path | None = None, download_checkpoint: bool = True, **kwargs: Any
    ) -> Any:
        """A model with its weights; weights of a name are downloaded once.

        Args:
            pretrained_model_name_or_dir: see the module; ``pretrained_model_name_or_path`` is another name of it.
            download_checkpoint: False asks for random weights.
            **kwargs: keys of ``model.model_config`` that get another value.

        Raises:
            ConfigError: no such source, an unknown key, or a value that is not allowed.
            CheckpointError: there are no weights, or they do not fit; says what to put where.
        """
        from mindformers.models.build import pretrained_model

        return pretrained_model(cls._source(pretrained_model_name_or_dir, kwargs), download_checkpoint, kwargs)

    @classmethod
    def from_config(cls, config: Any, download_checkpoint: bool = True, **kwargs: Any) -> Any:
        """A model by its config.

        Args:
            config: a config object, changed or made by hand as you like; a run's config (RunConfig, MindFormerConfig
                or dict with a section ``model``); or anything ``from_pretrained`` takes. The class of model is the one
                that belongs to the config's type.
            download_checkpoint: False asks for random weights.
            **kwargs: keys of the config that get another value, in a copy.

        Returns:
            The model with the weights that ``config.checkpoint_name_or_path`` leads to; without it they are random,
            which is logged.

        Raises:
            ConfigError, CheckpointError: as for :meth:`from_pretrained`.
        """
        from mindformers.models.build import as_model_config, model_from_config

        return model_from_config(as_model_config(config, kwargs), download_checkpoint)


class AutoTokenizer(_Auto):
    """Tokenizers."""

    @classmethod
    def from_pretrained(cls, yaml_name_or_path: str | Path | None = None, **kwargs: Any) -> Any:
        """The tokenizer of a source; the vocabulary of a name is downloaded once.

        Args:
            yaml_name_or_path: see the module; also a ``tokenizer.model``, or a directory that holds just one.
            **kwargs: arguments of the tokenizer, such as ``add_eos_token``.

        Raises:
            ConfigError, DataError: no such source, no vocabulary there, or an unknown argument.
        """
        from mindformers.models.build import pretrained_tokenizer

        return pretrained_tokenizer(cls._source(yaml_name_or_path, kwargs), **kwargs)


class AutoProcessor(_Auto):
    """Processors: a tokenizer with fixed padding."""

    @classmethod
    def from_pretrained(cls, yaml_name_or_path: str | Path | None = None, **kwargs: Any) -> Any:
        """The processor of a source, its tokenizer included.

        Args:
            yaml_name_or_path: see the module.
            **kwargs: arguments of the processor, such as ``max_length``; ``tokenizer`` in place of the source's.

        Raises:
            ConfigError, DataError: as for :class:`AutoTokenizer`.
        """
        from mindformers.models.build import pretrained_processor

        return pretrained_processor(cls._source(yaml_name_or_path, kwargs), **kwargs)
