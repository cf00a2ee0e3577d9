# SPDX-License-Identifier: Apache-2.0
"""YAML text -> plain values, with the line of every key; duplicate keys and odd tags are errors."""

import re
from pathlib import Path as FilePath
from typing import Any

import yaml

from mindformers.config.problems import Place, Problem, dotted
from mindformers.config.tree import Path
from mindformers.errors import ConfigError

_MAX_NODES = 20_000  # a config has some hundred; aliases of aliases can unfold into billions
_MAX_DEPTH = 60
_MAX_BYTES = 1_000_000
_MERGE = "tag:yaml.org,2002:merge"
_BOOL = {"true": True, "false": False}


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: 3e-4 is a number, ``yes`` and dates and 1:30 are text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As the parent class, with a limit on the depth: its recursion would end in the interpreter's."""
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {_MAX_DEPTH} levels", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _resolver(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


_resolver("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF")
_resolver("null", r"^(?:~|null|Null|NULL|)$", "~nN\0")
_resolver("int", r"^[-+]?(?:[0-9][0-9_]*|0x[0-9a-fA-F]+)$", "-+0123456789")
_resolver(
    "float",
    r"^[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$"
    r"|^\.(?:nan|NaN|NAN)$",
    "-+0123456789.",
)
_resolver("merge", r"^(?:<<)$", "<")
_Loader.yaml_implicit_resolvers.setdefault("", []).append(("tag:yaml.org,2002:null", re.compile(r"^$")))


class YamlError(ConfigError):
    """The text is not YAML as a config needs it; carries the problem for the collected message."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class Document:
    """One parsed text.

    Attributes:
        value: plain dicts, lists and scalars.
        places: path -> where its key stands.
        problems: duplicate keys and the like; the value is usable for collecting further problems.
    """

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.places: dict[Path, Place] = {}
        self.problems: list[Problem] = []
        self._nodes = 0
        node = _compose(text, file)
        self.value: Any = None if node is None else self._convert(node, (), ())

    def _problem(self, node: yaml.Node, path: Path, message: str) -> None:
        self.problems.append(Problem(path, message, place=Place(self.file, node.start_mark.line + 1)))

    def _convert(self, node: yaml.Node, path: Path, above: tuple[int, ...]) -> Any:
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise YamlError(Problem((), f"more than {_MAX_NODES} values: aliases that unfold without end?"))
        if len(above) > _MAX_DEPTH:
            raise YamlError(Problem((), f"nested deeper than {_MAX_DEPTH} levels by aliases"))
        if id(node) in above:
            self._problem(node, path, "an alias that contains itself")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, (*above, id(node)))
        if isinstance(node, yaml.SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                self.places[(*path, index)] = Place(self.file, item.start_mark.line + 1)
                items.append(self._convert(item, (*path, index), (*above, id(node))))
            return items
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path, above: tuple[int, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        own: dict[str, int] = {}
        merged = [value for key, value in node.value if key.tag == _MERGE]
        for source in (item for value in merged for item in reversed(_sources(value))):
            inherited = self._convert(source, path, above)
            if isinstance(inherited, dict):
                result |= inherited
            else:
                self._problem(source, path, "<< needs a mapping, or a list of mappings")
        for key, value in node.value:
            if key.tag == _MERGE:
                continue
            if not isinstance(key, yaml.ScalarNode):
                self._problem(key, path, "a key must be a plain name")
                continue
            name, line = key.value, key.start_mark.line + 1
            if name in own:
                self._problem(key, (*path, name), f"given twice, first in line {own[name]}")
                continue
            own[name] = line
            below = (*path, name)
            if name in result:  # merged in by <<, and replaced here
                for old in [place for place in self.places if place[: len(below)] == below]:
                    del self.places[old]
            self.places[below] = Place(self.file, line)
            result[name] = self._convert(value, below, above)
        return result

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        tag, text = node.tag.removeprefix("tag:yaml.org,2002:"), node.value
        try:
            text.encode()  # half of a surrogate pair ("\ud800") could not be printed or written
            if tag == "str":
                return text
            if tag == "null":
                return None
            if tag == "bool":
                return _BOOL[text.lower()]
            if tag == "int":
                return int(text, 16 if "x" in text.lower() else 10)
            if tag == "float":
                return float(re.sub(r"\.(inf|nan)$", r"\1", text, flags=re.IGNORECASE).replace("_", ""))
        except (ValueError, KeyError):
            self._problem(node, path, f"{text[:40]!a} is not a value of type {tag}")
            return None
        self._problem(node, path, f"the tag {node.tag} is not allowed; write plain values")
        return None


def _sources(node: yaml.Node) -> list[yaml.Node]:
    return list(node.value) if isinstance(node, yaml.SequenceNode) else [node]


def _compose(text: str, file: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part) or "not valid YAML"
        if "'\\t'" in what:
            what = "a tab; YAML is indented with spaces"
        place = Place(file, mark.line + 1 if mark else 1)
        raise YamlError(Problem((), f"not valid YAML: {what}", place=place)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"the character U+{ord(text[error.position]):04X} is not allowed in YAML"
        raise YamlError(Problem((), message, place=Place(file, line))) from None
    except (ValueError, OverflowError) as error:  # "\UFFFFFFFF" is no character
        raise YamlError(Problem((), f"not valid YAML: {error}", place=Place(file, 1))) from None


def read_text(path: FilePath) -> str:
    """The text of a file, UTF-8 with or without a byte order mark.

    Raises:
        YamlError: it cannot be read, or is not UTF-8.
    """
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise YamlError(Problem((), f"{size} bytes is too large for a config (at most {_MAX_BYTES})"))
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise YamlError(Problem((), f"not a text file (byte {error.start} is not UTF-8)")) from None
    except OSError as error:
        raise YamlError(Problem((), f"cannot be read: {error.strerror or error}")) from None


def parse_inline(text: str) -> Any:
    """A value as it could stand after a key: number, True, null, [1, 2], {a: b}, or text.

    Raises:
        ConfigError: brackets that do not close, or a key twice.
    """
    document = Document(text, "")
    if document.problems:
        problem = document.problems[0]
        raise ConfigError(f"{dotted(problem.path)}: {problem.message}" if problem.path else problem.message)
    return document.value
