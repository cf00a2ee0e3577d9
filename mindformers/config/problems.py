# SPDX-License-Identifier: Apache-2.0
"""Problems of a config: pydantic's errors in the user's words, and all of them in one message with their lines."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from mindformers.config.schema.base import Section, count_problems, type_names
from mindformers.config.tree import (
    Path,
    branches,
    field_of,
    find_spot,
    is_section,
    keys_of,
    literals,
    sections_in,
    value_at,
    walk_fields,
)
from mindformers.errors import ConfigError
from mindformers.tools.utils import did_you_mean, listing, nearest

_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text", dict: "a mapping"}
_LIMITS = {"greater_than": ("above", "gt"), "greater_than_equal": ("at least", "ge"),
           "less_than": ("below", "lt"), "less_than_equal": ("at most", "le")}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a value was written: a line of a file, or a command line flag."""

    file: str = ""
    line: int = 0
    flag: str = ""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a config.

    Args:
        path: the key; empty for the file as a whole.
        message: what is wrong and what is allowed.
        involved: further keys the rule looked at.
        place: where it was written, if that is not looked up by the path.
    """

    path: Path
    message: str
    involved: tuple[Path, ...] = ()
    place: Place | None = None


@dataclass
class Places:
    """Where each key of a config was written."""

    file: str
    table: dict[Path, Place] = field(default_factory=dict)

    def of(self, path: Path) -> Place | None:
        """The place of a key, or of the nearest section around it."""
        while path and path not in self.table:
            path = path[:-1]
        return self.table.get(path)

    def of_problem(self, problem: Problem) -> Place | None:
        """A flag among the keys of the problem comes first: it is what was typed last."""
        if problem.place is not None:
            return problem.place
        exact = [self.table.get(path) for path in (problem.path, *problem.involved)]
        flags = [place for place in exact if place is not None and place.flag]
        return flags[0] if flags else next((place for place in exact if place is not None), self.of(problem.path))


def dotted(path: Path) -> str:
    """A path as it is written: ``a.b.0.c``."""
    return ".".join(map(str, path))


def raise_problems(places: Places, problems: Iterable[Problem]) -> None:
    """Raise one ConfigError with every problem, in the order of the lines; do nothing when there is none."""
    entries = []
    for problem in dict.fromkeys(problems):
        place = places.of_problem(problem)
        key = f"{dotted(problem.path)}: " if problem.path else ""
        if place is None:
            entries.append((2, "", 0, f"{key}{problem.message}"))
        elif place.flag:
            named = re.match(r"(?:--options |override |--)" + re.escape(dotted(problem.path)) + "[ =]", place.flag)
            entries.append((3, "", 0, f"{place.flag}: {'' if named else key}{problem.message}"))
        else:
            own = place.file == places.file
            where = f"line {place.line}" if own else f"{place.file} line {place.line}"
            entries.append((0 if own else 1, place.file, place.line, f"{where}: {key}{problem.message}"))
    if entries:
        lines = [f"  {text}" for *_, text in sorted(entries, key=lambda entry: entry[:3])]
        raise ConfigError("\n".join([f"{places.file}: {count_problems(len(lines))}", *lines]))


def problems_of(root: type[Section], error: ValidationError, data: Any) -> list[Problem]:
    """The problems behind a pydantic error, one per key.

    Args:
        root: the section that was being read.
        error: what pydantic raised.
        data: the values that were read.
    """
    grouped: dict[Path, list[dict[str, Any]]] = {}
    for item in error.errors(include_url=False):
        grouped.setdefault(_yaml_path(item["loc"], data, item["type"]), []).append(item)
    return [
        Problem(path, _message(root, path, items, data))
        for path, items in grouped.items()
        if not any(path[:length] in grouped for length in range(len(path)))  # said already, one level up
    ]


def _yaml_path(loc: tuple[str | int, ...], data: Any, kind: str) -> Path:
    """pydantic's location without the tags of unions: only what can be found in the data, and a missing last key."""
    path: list[str | int] = []
    for position, part in enumerate(loc):
        if isinstance(part, str) and part.startswith("<") and part.endswith(">"):
            continue
        last = position == len(loc) - 1
        here = value_at(data, tuple(path))
        inside = isinstance(here, dict) and part in here
        inside = inside or (isinstance(here, list | tuple) and isinstance(part, int))
        if inside or (last and kind in ("missing", "extra_forbidden")):
            path.append(part)
    return tuple(path)


def _message(root: type[Section], path: Path, items: list[dict[str, Any]], data: Any) -> str:
    first = items[0]
    kind = first["type"]
    spot = find_spot(root, path, data)
    given = shown(value_at(data, path) if path else first["input"])
    if kind == "extra_forbidden":
        return unknown_key(root, spot.section or root, path)
    if kind == "missing":
        info = field_of(spot.section or root, str(path[-1]))
        return "missing" + (f": {info.description}" if info is not None and info.description else "")
    if kind == "value_error" and len(items) == 1:
        return str(first["ctx"]["error"])
    if kind == "union_tag_not_found":
        return _no_type(spot.annotation, first["input"], given)
    if is_section(spot.annotation) or any(item["type"] in ("model_type", "dict_type") for item in items):
        return f"must be a section (a mapping of keys), got {given}"
    if len(items) == 1:
        return _single(kind, first, spot, path, given)
    return f"must be {describe(spot.annotation)}, got {given}"


def _single(kind: str, item: dict[str, Any], spot: Any, path: Path, given: str) -> str:
    if kind == "literal_error":
        choices = literals(spot.annotation)
        hint = did_you_mean(str(item["input"]), [str(choice) for choice in choices])
        return f"{given} is not allowed.{hint}"
    if kind in _LIMITS:
        word, limit = _LIMITS[kind]
        return f"must be {word} {item['ctx'][limit]:g}, got {given}"
    if kind == "string_pattern_mismatch":
        info = field_of(spot.section, str(path[-1])) if spot.section else None
        return f"{given} does not have the right form: {info.description if info else item['msg']}"
    if kind in ("too_short", "string_too_short"):
        return "must not be empty"
    if kind == "finite_number":
        return f"must be a finite number, got {given}"
    if kind.endswith(("_type", "_parsing", "_from_float", "_parsing_size")):
        return f"must be {describe(spot.annotation)}, got {given}"
    return f"{item['msg']}, got {given}"


def _no_type(annotation: Any, value: Any, given: str) -> str:
    names = [name for section in sections_in(annotation).values() for name in type_names(section)]
    if isinstance(value, dict):
        return f"missing key 'type' (allowed: {listing(names)})"
    return f"must be a section with the key 'type' (type: {names[0] if names else 'NAME'}), got {given}"


def unknown_key(root: type[Section], section: type[Section], path: Path) -> str:
    """The message for a key its section does not have, with the nearest key here, or the section that has it.

    Args:
        root: the whole schema.
        section: where the key stands.
        path: the key.
    """
    keys, key = keys_of(section), str(path[-1])
    here = nearest(key, keys)
    if here is None:
        elsewhere = _paths_by_key(root)
        best = nearest(key, elsewhere)
        if best is not None:
            return f"unknown key. Did you mean {elsewhere[best]!r}?"
    return f"unknown key.{did_you_mean(key, keys, 'keys')}"


@cache
def _paths_by_key(root: type[Section]) -> dict[str, str]:
    table: dict[str, str] = {}
    for path, _, _ in walk_fields(root):
        table.setdefault(str(path[-1]), dotted(path))
    return table


def describe(annotation: Any) -> str:
    """A type in words."""
    words = []
    for _, branch in branches(annotation):
        origin = get_origin(branch)
        if origin in (list, tuple):
            words.append(f"a list (each {describe(get_args(branch)[0])})")
        elif branch is type(None):
            words.append("null")
        elif get_args(branch) and origin is not dict:
            words += [repr(value) for value in get_args(branch)]
        elif is_section(branch):
            words.append("a section with 'type'")
        else:
            words.append(_WORDS.get(origin or branch, getattr(branch, "__name__", str(branch))))
    return " or ".join(dict.fromkeys(words))


def shown(value: Any) -> str:
    """A value as the message shows it: its repr, cut to one short line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
