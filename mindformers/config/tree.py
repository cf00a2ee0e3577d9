# SPDX-License-Identifier: Apache-2.0
"""Finding one's way in the schema: which section or field stands at a dotted key."""

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Tag
from pydantic.fields import FieldInfo

from mindformers.config.schema.base import OTHER, Section, default_section
from mindformers.registry import ALIASES

Path = tuple[str | int, ...]


def yaml_name(name: str, info: FieldInfo) -> str:
    """The key in the YAML of a field (only model.config has another one)."""
    return info.alias or name


def keys_of(section: type[Section]) -> list[str]:
    """The keys a section knows."""
    return [yaml_name(name, info) for name, info in section.model_fields.items()]


def is_open(section: type[Section]) -> bool:
    """Whether the section keeps keys that the schema does not describe."""
    return section.model_config.get("extra") == "allow"


def field_of(section: type[Section], key: str) -> FieldInfo | None:
    """The field behind a YAML key, or None."""
    for name, info in section.model_fields.items():
        if yaml_name(name, info) == key:
            return info
    return None


def branches(annotation: Any) -> Iterator[tuple[str, Any]]:
    """The plain types within a union as (tag, type), Annotated and Optional unwrapped; tag "" where there is none."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *metadata = get_args(annotation)
        tag = next((item.tag for item in metadata if isinstance(item, Tag)), "")
        for inner_tag, inner_type in branches(inner):
            yield inner_tag or tag, inner_type
    elif origin in (Union, types.UnionType):
        for inner in get_args(annotation):
            yield from branches(inner)
    else:
        yield "", annotation


def is_section(annotation: Any) -> bool:
    """Whether a type is a section class."""
    return isinstance(annotation, type) and issubclass(annotation, Section)


def sections_in(annotation: Any) -> dict[str, type[Section]]:
    """tag -> section class of a field, the entries of a list included."""
    found: dict[str, type[Section]] = {}
    for tag, branch in branches(annotation):
        if is_section(branch):
            found[tag] = branch
        elif get_origin(branch) is list:
            found |= sections_in(get_args(branch)[0])
    return found


def choose_section(annotation: Any, value: Any) -> type[Section] | None:
    """The section class a value belongs to: the only one, the one its ``type`` names, or the default; else None."""
    candidates = sections_in(annotation)
    if len(candidates) <= 1:
        return next(iter(candidates.values()), None)
    if value is None or (isinstance(value, Mapping) and "type" not in value):
        return default_section(section for tag, section in candidates.items() if tag != OTHER)
    name = value["type"] if isinstance(value, Mapping) else getattr(value, "type", None)
    if not isinstance(name, str):
        return None
    names = {name, *(table[name] for table in ALIASES.values() if name in table)}
    for section in candidates.values():
        if names & set(literals(section.model_fields["type"].annotation)):
            return section
    return candidates.get(OTHER)


def literals(annotation: Any) -> list[Any]:
    """The values of every Literal in a type."""
    return [value for _, branch in branches(annotation) if get_origin(branch) is Literal for value in get_args(branch)]


@dataclass(frozen=True)
class Spot:
    """What the schema says about one key.

    Args:
        known: whether the key exists, or stands in a section that keeps foreign keys.
        annotation: type of the key's value; ``Any`` in a free mapping.
        section: the deepest section on the way to the key, None inside a free mapping.
        parent: path of that section.
    """

    known: bool
    annotation: Any
    section: type[Section] | None
    parent: Path


def find_spot(root: type[Section], path: Path, tree: Any) -> Spot:
    """Walk a key down the schema.

    Args:
        root: the section the path starts in.
        path: keys and list indices.
        tree: the values, for sections chosen by their ``type``.
    """
    section: type[Section] | None = root
    annotation: Any = root
    value = tree
    here = 0
    for depth, key in enumerate(path):
        value = step(value, key)
        if isinstance(key, int):
            entries = [get_args(branch) for _, branch in branches(annotation) if get_origin(branch) in (list, tuple)]
            annotation = entries[0][min(key, len(entries[0]) - 1)] if entries and entries[0] else Any
            section, here = choose_section(annotation, value) or section, depth + 1
            continue
        if section is not None and here == depth:
            info = field_of(section, key)
            if info is None:
                return Spot(is_open(section), Any, section, path[:here])
            annotation = info.annotation
            chosen = choose_section(annotation, value)
            if chosen is not None and not isinstance(value, list):
                section, here = chosen, depth + 1
        elif any(branch is Any or get_origin(branch) is dict or branch is dict for _, branch in branches(annotation)):
            annotation = Any
        else:
            return Spot(False, annotation, section, path[:here])
    return Spot(True, annotation, section, path[:here])


def step(value: Any, key: str | int) -> Any:
    """The value under a key or index, None where there is none."""
    if isinstance(value, Mapping):
        return value.get(key)
    if isinstance(value, list) and isinstance(key, int):
        return value[key] if -len(value) <= key < len(value) else None
    return None


def value_at(tree: Any, path: Path) -> Any:
    """The value at a path, None where there is none."""
    for key in path:
        tree = step(tree, key)
    return tree


def walk_fields(root: type[Section], prefix: Path = ()) -> Iterator[tuple[Path, FieldInfo, type[Section]]]:
    """Every key of the schema as (path, field, section it stands in); list entries are written without an index."""
    for name, info in root.model_fields.items():
        path = (*prefix, yaml_name(name, info))
        yield path, info, root
        for section in sections_in(info.annotation).values():
            yield from walk_fields(section, path)
