# SPDX-License-Identifier: Apache-2.0
"""Changes to single keys, from the command line or a script, typed by the schema and never guessed from the text."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_origin

from mindformers.config.merge import Layer
from mindformers.config.problems import Place, Problem, dotted, unknown_key
from mindformers.config.schema.run import RunConfig
from mindformers.config.tree import Path, Spot, branches, find_spot, literals, sections_in, step
from mindformers.config.yaml_text import parse_inline
from mindformers.errors import ConfigError
from mindformers.registry import ALIASES, MindFormerModuleType
from mindformers.tools.utils import did_you_mean

# Where one of a pair is changed alone, the other one follows.
_LINKED = {
    "optimizer.learning_rate": "lr_schedule.learning_rate",
    "lr_schedule.learning_rate": "optimizer.learning_rate",
}


@dataclass(frozen=True)
class Override:
    """One key set from outside the file.

    Args:
        key: dotted key; an entry of a list is chosen by its number or by its ``type``.
        value: a text, read as the schema's type of that key, or a ready value.
        flag: what was typed, for messages.
        is_text: whether ``value`` is text that still has to be read.
    """

    key: str
    value: Any
    flag: str = ""
    is_text: bool = True

    @property
    def place(self) -> Place:
        """Where a problem with this key is shown."""
        return Place(flag=self.flag or f"override {self.key}={self.value}")


def as_overrides(given: Iterable[Any]) -> list[Override]:
    """Overrides from ``Override`` objects, ``"key=value"`` texts or ``(key, value)`` pairs.

    Raises:
        ConfigError: a text without ``=``, or something else.
    """
    found = []
    if isinstance(given, dict):
        given = given.items()
    for item in given:
        if isinstance(item, Override):
            found.append(item)
        elif isinstance(item, str) and "=" in item:
            key, _, value = item.partition("=")
            found.append(Override(key.strip(), value))
        elif isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str):
            found.append(Override(item[0], item[1], is_text=isinstance(item[1], str)))
        else:
            raise ConfigError(f"an override is 'key=value' or (key, value), got {item!r}")
    return found


def apply_overrides(layer: Layer, overrides: Iterable[Override], problems: list[Problem]) -> Layer:
    """Put overrides over a config, in their order.

    Args:
        layer: the config of the files.
        overrides: the changes; a later one wins.
        problems: unknown keys and unreadable values are added here.
    """
    touched: dict[str, Override] = {}
    for override in overrides:
        try:
            layer = _apply(layer, override)
            touched[override.key] = override
        except _OverrideError as error:
            problems.append(Problem(error.path, str(error), place=override.place))
    for key, other in _LINKED.items():
        path = tuple(other.split("."))
        if key in touched and other not in touched and path in layer.places:
            follower = touched[key]
            layer = _apply(layer, Override(other, follower.value, follower.flag, follower.is_text))
    return layer


class _OverrideError(ConfigError):
    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path


def _apply(layer: Layer, override: Override) -> Layer:
    path = _resolve(override.key, layer.value)
    spot = find_spot(RunConfig, path, layer.value)
    if not spot.known:
        raise _OverrideError(path, _unknown(spot, path))
    value = read_value(spot, override.value) if override.is_text else override.value
    if isinstance(value, ConfigError):
        raise _OverrideError(path, str(value))
    upper: Any = value
    index = max((depth for depth, key in enumerate(path) if isinstance(key, int)), default=None)
    if index is not None:  # lists are replaced as a whole when layers merge, so the change is made in a copy
        upper = _list_with(layer.value, path, value)
        path = path[: next(depth for depth, key in enumerate(path) if isinstance(key, int))]
    places = {path: override.place}
    if index is not None:
        places |= {old: place for old, place in layer.places.items() if old[: len(path)] == path and old != path}
        places[_resolve(override.key, layer.value)] = override.place
    for key in reversed(path):
        upper = {key: upper}
    return Layer(upper, places).put_over(layer)


def _resolve(key: str, tree: Any) -> Path:
    """Dotted key -> path; within a list a number or a ``type`` becomes the index."""
    path: list[str | int] = []
    for part in key.split("."):
        here: Any = tree
        for done in path:
            here = step(here, done)
        path.append(_index(part, here, tuple(path)) if isinstance(here, list) else part)
    return tuple(path)


def _index(part: str, entries: list[Any], path: Path) -> int:
    if re.fullmatch(r"\d+", part) and int(part) < len(entries):
        return int(part)
    aliases = ALIASES[MindFormerModuleType.CALLBACK]
    names = [str(entry.get("type")) if isinstance(entry, dict) else "" for entry in entries]
    for index, name in enumerate(names):
        if name and aliases.get(name, name) == aliases.get(part, part):
            return index
    choices = [*map(str, range(len(entries))), *filter(None, names)]
    raise _OverrideError((*path, part), f"no such entry.{did_you_mean(part, choices)}")


def _list_with(tree: Any, path: Path, value: Any) -> Any:
    """A copy of the outermost list on the path with one value inside it changed."""
    first = next(depth for depth, key in enumerate(path) if isinstance(key, int))
    result: Any = tree
    for key in path[:first]:
        result = step(result, key)

    def changed(old: Any, rest: Path) -> Any:
        if not rest:
            return value
        key = rest[0]
        if isinstance(key, int):
            return [changed(item, rest[1:]) if index == key else item for index, item in enumerate(old)]
        inner = old if isinstance(old, dict) else {}
        return {**inner, key: changed(inner.get(key), rest[1:])}

    return changed(result, path[first:])


def _unknown(spot: Spot, path: Path) -> str:
    if spot.section is None:
        return "unknown key"
    known = path[: len(spot.parent) + 1]
    if len(known) < len(path) and find_spot(RunConfig, known, {}).known:
        return f"{dotted(known)} holds a single value, no keys below it"
    return unknown_key(RunConfig, spot.section, known)


def read_value(spot: Spot, text: Any) -> Any:
    """A text as the schema's type of a key: verbatim where the key takes text, else as an inline YAML value.

    Args:
        spot: the key.
        text: what was typed.

    Returns:
        The value, or a ConfigError that says why there is none. Types and limits are checked later, with the rest.
    """
    if not isinstance(text, str):
        return text
    kinds = {get_origin(branch) or branch for _, branch in branches(spot.annotation)}
    choices = literals(spot.annotation)
    listed = list in kinds or tuple in kinds
    takes_text = str in kinds or any(isinstance(value, str) for value in choices)
    if takes_text and not (listed and text.lstrip().startswith("[")):
        if type(None) in kinds and text.strip().lower() in ("null", "none", "~"):
            return None
        return text if str in kinds else next((value for value in choices if str(value) == text), text)
    try:
        value = parse_inline(text)
    except ConfigError as error:
        return ConfigError(f"{text[:60]!r} cannot be read: {error}")
    if listed and isinstance(value, str):  # a,b without brackets
        return [parse_inline(item) if item.strip() else item for item in value.split(",")]
    if value is None and type(None) in kinds:
        return None
    if sections_in(spot.annotation) and not isinstance(value, dict | list) and float not in kinds and int not in kinds:
        return text
    return text if value is None else value


def split_option(word: str, flag: str) -> tuple[str, str]:
    """``a.b=c`` -> key and text, cut at the first ``=``.

    Raises:
        ConfigError: there is no ``=``, or no key.
    """
    key, equals, text = word.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{flag}: expected key=value, got {word!r}")
    return key.strip(), text


def parse_option(word: str, flag: str) -> tuple[str, Any]:
    """``a.b=c`` -> key and value, for callers without a schema; errors as for :func:`split_option`."""
    key, text = split_option(word, flag)
    return key, parse_inline(text)
