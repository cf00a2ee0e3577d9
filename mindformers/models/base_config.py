# SPDX-License-Identifier: Apache-2.0
"""BaseConfig: what every model's config can do besides holding values."""

from pathlib import Path
from typing import Any

from mindformers.errors import ConfigError

__all__ = ["BaseConfig"]


class BaseConfig:
    """``from_pretrained`` and ``save_pretrained`` of a model's config; the values live in the subclass."""

    @classmethod
    def from_pretrained(cls, yaml_name_or_path: str | Path, **kwargs: Any) -> Any:
        """The config of a name, a YAML, or a directory with a model; see ``AutoConfig.from_pretrained``.

        Raises:
            ConfigError: as there, and when the source holds a config of another class.
        """
        from mindformers.models.model_config import model_config_of
        from mindformers.models.pretrained import find_source

        config = model_config_of(find_source(yaml_name_or_path), kwargs)
        if not isinstance(config, cls):
            raise ConfigError(f"{yaml_name_or_path} holds a {type(config).__name__}, not a {cls.__name__}")
        return config

    def save_pretrained(self, save_directory: str | Path | None = None, save_name: str = "") -> str:
        """Write the config, every value included, as ``{save_name}.yaml``.

        Args:
            save_directory: made if absent; None is ``./checkpoint_save`` (or CHECKPOINT_SAVE_FOLDER).
            save_name: name of the file without suffix, default ``mindspore_model``; an existing file keeps its other
                sections.

        Returns:
            Path of the file. ``AutoConfig.from_pretrained`` reads it, or its directory.
        """
        from mindformers.models.pretrained import SAVE_NAME, save_folder, update_yaml

        self.check()
        section = {"model_config": self.to_dict(), "arch": {"type": self.architecture}}
        return str(update_yaml(save_folder(save_directory) / f"{save_name or SAVE_NAME}.yaml", {"model": section}))
