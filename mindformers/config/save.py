# SPDX-License-Identifier: Apache-2.0
"""A config as YAML text, and written to a file that is either old or complete."""

from pathlib import Path
from typing import Any

import yaml

from mindformers import atomic
from mindformers.config.schema.run import RunConfig
from mindformers.errors import ConfigError


class _Dumper(yaml.SafeDumper):
    """Plain YAML that the reader takes back as it was: no aliases, floats that stay floats."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value.strip("\n") else '"')


class _Key(str):
    """A mapping key: written without quotes where YAML allows it."""


_Dumper.add_representer(str, _text)
_Dumper.add_representer(_Key, lambda dumper, key: dumper.represent_scalar("tag:yaml.org,2002:str", str(key)))


def _keyed(value: Any) -> Any:
    if isinstance(value, dict):
        return {_Key(key): _keyed(item) for key, item in value.items()}
    return [_keyed(item) for item in value] if isinstance(value, list) else value


def to_yaml(values: dict[str, Any]) -> str:
    """YAML text of plain values, keys in the given order."""
    return yaml.dump(_keyed(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def save_config(config: RunConfig, path: str | Path) -> Path:
    """Write the whole config, defaults included, as YAML that loads back equal.

    Args:
        config: the config.
        path: the file; its folder is made. It is written under another name first and then renamed.

    Returns:
        The file.

    Raises:
        ConfigError: it cannot be written.
    """
    return save_text(path, to_yaml(config.to_dict()))


def save_text(path: str | Path, text: str) -> Path:
    """Write a text file, and its folder where there is none; errors as for :func:`save_config`."""
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(target, text)
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written: {error.strerror or error}") from error
    return target
