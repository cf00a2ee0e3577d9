# SPDX-License-Identifier: Apache-2.0
"""Write docs/config.md from the schema; ``--check`` only compares and exits with 1 when it is out of date."""

import argparse
import sys
from pathlib import Path
from typing import Any, get_args, get_origin

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mindformers.config.save import save_text
from mindformers.config.schema import RunConfig, Section
from mindformers.config.tree import branches, is_section, sections_in, yaml_name
from mindformers.errors import run_cli

TARGET = Path(__file__).resolve().parent.parent / "docs" / "config.md"
HEAD = """# Every key of the config

Generated from the schema by `python tools/gen_config_doc.py`; do not edit. The keys of a YAML file, of
`--a.b.c VALUE` and of `--options a.b.c=VALUE` are the same. A key that is not listed here is an error, with the
nearest key in the message. `base_config: FILE` (or a list, relative to the file) takes another file's keys where this
one gives none: mappings merge key by key, lists are replaced as a whole, and a section that gets another `type` keeps
the arguments the new type has.

`python -m mindformers show FILE` prints a file with everything it inherits. What changed against the old library:
[differences.md](differences.md).
"""
_WORDS = {int: "int", float: "float", bool: "bool", str: "text", dict: "mapping", type(None): "null"}


def type_text(annotation: Any) -> str:
    """A type as the tables show it."""
    words = []
    for _, branch in branches(annotation):
        origin = get_origin(branch)
        if origin in (list, tuple):
            words.append(f"list of {type_text(get_args(branch)[0])}")
        elif is_section(branch):
            words.append("section")
        elif get_args(branch) and origin is not dict:
            words += [str(value) for value in get_args(branch)]
        else:
            words.append(_WORDS.get(origin or branch, "any"))
    return ", ".join(dict.fromkeys(words))


def default_text(info: Any) -> str:
    """A default as it would be written in YAML."""
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, Section):
        return ""
    if value is None:
        return "absent"
    return f"`{value!r}`".replace("'", '"') if isinstance(value, str | list | dict) else f"`{value}`"


def table(section: type[Section], prefix: str, without: tuple[str, ...] = ()) -> list[str]:
    """Markdown lines for the keys of one section that are not sections themselves."""
    rows = []
    for name, info in section.model_fields.items():
        if name in without or info.exclude:
            continue
        key = f"{prefix}{yaml_name(name, info)}"
        kind = type_text(info.annotation)
        rows.append(f"| `{key}` | {kind} | {default_text(info)} | {info.description} |")
    return ["| key | type | default | meaning |", "|---|---|---|---|", *rows, ""] if rows else []


def describe(section: type[Section], path: str, depth: int, seen: dict[object, str]) -> list[str]:
    """Markdown lines for a section and everything below it; a section met before is only named.

    Args:
        section: the section.
        path: its dotted key.
        depth: level of its heading.
        seen: where each kind of section was described first; filled on the way.
    """
    lines = [f"{'#' * min(depth, 6)} {f'`{path}`' if path else 'Top level'}", ""]
    if section in seen:
        return [*lines, f"The same keys as `{seen[section]}`.", ""]
    seen[section] = path
    lines += table(section, f"{path}." if path else "")
    for name, info in section.model_fields.items():
        below = f"{path}.{yaml_name(name, info)}" if path else yaml_name(name, info)
        found = sections_in(info.annotation)
        if info.exclude or (found and name == "dataset_config"):
            continue
        if len(found) == 1:
            lines += describe(next(iter(found.values())), below, depth + 1, seen)
        elif found:
            kinds = tuple(found.values())
            if kinds in seen:
                lines += [f"{'#' * min(depth + 1, 6)} `{below}`", "", f"The same as `{seen[kinds]}`.", ""]
            else:
                seen[kinds] = below
                lines += components(below, found, depth + 1)
    return lines


def components(path: str, found: dict[str, type[Section]], depth: int) -> list[str]:
    """Markdown lines for a section that is one of several, chosen by ``type``."""
    lines = [f"{'#' * min(depth, 6)} `{path}` by `type`", ""]
    for tag, section in found.items():
        if tag == "<other>":
            lines += ["Another `type`: a class of MindSpore or your own (`register_path`), with its own arguments.", ""]
            continue
        names = get_args(section.model_fields["type"].annotation)
        lines += [f"**{' / '.join(names)}** - {(section.__doc__ or '').strip()}", "", *table(section, "", ("type",))]
        for name, info in section.model_fields.items():
            inner = sections_in(info.annotation)
            if len(inner) > 1:
                lines += components(f"{path}.{name}", inner, depth + 1)
    return lines


def render() -> str:
    """The whole document."""
    return "\n".join([HEAD, *describe(RunConfig, "", 2, {})]).rstrip() + "\n"


def main(argv: list[str] | None = None) -> int:
    """Write or compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only")
    args = parser.parse_args(argv)
    text = render()
    if args.check:
        if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text:
            return 0
        print(f"{TARGET} is out of date: python tools/gen_config_doc.py", file=sys.stderr)
        return 1
    save_text(TARGET, text)
    print(TARGET)
    return 0


if __name__ == "__main__":
    run_cli(main)
