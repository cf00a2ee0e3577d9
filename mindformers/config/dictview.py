# SPDX-License-Identifier: Apache-2.0
"""MindFormerConfig: the config as an attribute dict, for scripts; names the schema does not know raise."""

import argparse
from collections.abc import Mapping
from typing import Any

from mindformers.config.load import load_tree, validate_tree
from mindformers.config.overrides import parse_option
from mindformers.config.problems import dotted, unknown_key
from mindformers.config.schema.base import Section
from mindformers.config.schema.run import RunConfig
from mindformers.config.tree import Path, choose_section, field_of, is_open, is_section, keys_of
from mindformers.errors import ConfigError

__all__ = ["ActionDict", "MindFormerConfig", "UnknownKeyError"]

_OWN = ("_section", "_path")


class UnknownKeyError(ConfigError, AttributeError):
    """A key that the schema does not know; an AttributeError, so that ``hasattr`` answers False."""


class MindFormerConfig(dict):
    """What a YAML says, with attribute access and the schema's defaults for the keys it leaves out.

    Args:
        *yaml_paths: YAML files; the top-level keys of a later one replace those of the files before.
        **kwargs: top-level keys that replace those of the files.

    ``config.model.model_config`` holds just what the YAML says, so ``LlamaConfig(**config.model.model_config)`` works.

    Raises:
        ConfigError: with every problem of the files.
        UnknownKeyError: reading or writing a name that the schema does not know; names the nearest one.
    """

    def __init__(self, *yaml_paths: str, **kwargs: Any) -> None:
        super().__init__()
        self._own(RunConfig, ())
        for path in yaml_paths:
            for key, value in load_tree(path).items():
                self[key] = value
        for key, value in kwargs.items():
            self[key] = value

    def _own(self, section: type[Section] | None, path: Path) -> None:
        object.__setattr__(self, "_section", section)
        object.__setattr__(self, "_path", path)

    @classmethod
    def _node(cls, values: Mapping[str, Any], section: type[Section] | None, path: Path) -> "MindFormerConfig":
        node = cls.__new__(cls)
        node._own(section, path)
        for key, value in values.items():
            node[key] = value
        return node

    def _check(self, key: str) -> None:
        section = self._section
        if section is not None and not is_open(section) and field_of(section, key) is None:
            path = (*self._path, key)
            raise UnknownKeyError(f"{dotted(path)}: {unknown_key(RunConfig, section, path)}")

    def _below(self, key: str, value: Any) -> type[Section] | None:
        info = field_of(self._section, key) if self._section is not None else None
        return choose_section(info.annotation, value) if info is not None else None

    def _wrapped(self, key: str, value: Any) -> Any:
        path = (*self._path, key)
        if isinstance(value, MindFormerConfig):
            value._own(self._below(key, value), path)
            return value
        if isinstance(value, Mapping):
            return self._node(value, self._below(key, value), path)
        if isinstance(value, list):
            return [self._wrapped(key, item) if isinstance(item, Mapping) else item for item in value]
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        self._check(key)
        super().__setitem__(key, self._wrapped(key, value))

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in _OWN:
            raise AttributeError(name)
        if name in self:
            return self[name]
        self._check(name)
        info = field_of(self._section, name) if self._section is not None else None
        if info is None:
            raise UnknownKeyError(f"{dotted((*self._path, name))}: not given")
        default = None if info.is_required() else info.get_default(call_default_factory=True)
        if isinstance(default, Section):
            self[name] = {} if is_section(info.annotation) else default.to_dict()  # kept: a change to it must stay
            return self[name]
        if isinstance(default, list | dict):
            self[name] = default
            return self[name]
        return default

    def __delattr__(self, name: str) -> None:
        if name not in self:
            raise UnknownKeyError(f"{dotted((*self._path, name))}: not given")
        del self[name]

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self, *(keys_of(self._section) if self._section else ())})

    def __deepcopy__(self, memo: dict[int, Any]) -> "MindFormerConfig":
        return self._node(self.to_dict(), self._section, self._path)

    def __reduce__(self) -> tuple[Any, ...]:
        return MindFormerConfig._node, (self.to_dict(), self._section, self._path)

    def copy(self) -> "MindFormerConfig":
        """A copy that shares nothing with this one."""
        return self.__deepcopy__({})

    def update(self, *args: Any, **kwargs: Any) -> None:
        """As ``dict.update``, with the keys checked."""
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def setdefault(self, key: str, default: Any = None) -> Any:
        """As ``dict.setdefault``, with the key checked."""
        if key not in self:
            self[key] = default
        return self[key]

    def merge_from_dict(self, options: Mapping[str, Any]) -> None:
        """Set dotted keys; sections on the way are made.

        Args:
            options: ``{"runner_config.epochs": 3, ...}``; a mapping as value is merged key by key.
        """
        for dotted_key, value in options.items():
            *above, last = dotted_key.split(".")
            node = self
            for key in above:
                if not isinstance(node.get(key), MindFormerConfig):
                    node[key] = {}
                node = node[key]
            if isinstance(value, Mapping) and isinstance(node.get(last), MindFormerConfig):
                node[last].merge_from_dict(value)
            else:
                node[last] = value

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        return {key: _plain(value) for key, value in self.items()}

    def to_run_config(self) -> RunConfig:
        """The checked config of a run.

        Raises:
            ConfigError: with every problem.
        """
        return validate_tree(self.to_dict(), "MindFormerConfig")


def _plain(value: Any) -> Any:
    if isinstance(value, MindFormerConfig):
        return value.to_dict()
    return [_plain(item) for item in value] if isinstance(value, list) else value


class ActionDict(argparse.Action):
    """argparse action for ``--options a.b=c d=[1,2]``: a dict of values read as inline YAML."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Read ``key=value`` words into a dict on the namespace."""
        words = [values] if isinstance(values, str) else values
        setattr(namespace, self.dest, dict(parse_option(word, option_string or "--options") for word in words))
