# SPDX-License-Identifier: Apache-2.0
"""YAML files and overrides -> RunConfig, with every problem reported at once."""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from mindformers.config.files import find_config
from mindformers.config.legacy import modernise
from mindformers.config.merge import Layer
from mindformers.config.overrides import Override, apply_overrides, as_overrides
from mindformers.config.problems import Place, Places, Problem, dotted, problems_of, raise_problems
from mindformers.config.schema.base import Finding, Section, collecting
from mindformers.config.schema.checks import launch_findings, without_cache
from mindformers.config.schema.layout_checks import fill_ranks, rank_findings
from mindformers.config.schema.run import RunConfig
from mindformers.config.tree import Path, value_at, yaml_name
from mindformers.config.yaml_text import Document, YamlError, read_text
from mindformers.errors import ConfigError
from mindformers.registry import import_user_modules
from mindformers.tools.logger import get_logger

logger = get_logger(__name__)

__all__ = ["change_tree", "load_config", "load_tree"]


def load_config(
    path: str | FilePath,
    overrides: Iterable[Override | str | tuple[str, Any]] = (),
    *,
    launch: bool = False,
    ranks: int | None = None,
    problems: Iterable[Problem] = (),
) -> RunConfig:
    """Read a YAML file, the files it is based on, and changes to single keys.

    Args:
        path: the file, or the name of a shipped config (``run_llama2_tiny``).
        overrides: ``Override`` objects, ``"key=value"`` texts or ``(key, value)`` pairs; a later one wins.
        launch: also check what must be there to run now: data, prompts, weights.
        ranks: number of processes of this run, when it is known; the parallel layout must use all of them, and a
            ``data_parallel`` of 1 is raised so that it does.
        problems: what the caller found wrong already (the command line), reported together with the rest.

    Returns:
        The config; ``.warnings`` holds what is allowed but has no effect.

    Raises:
        ConfigError: with every problem of the files and the overrides, each with its line or flag.
    """
    reader = _Reader(path)
    reader.problems += problems
    layer = reader.read()
    layer = apply_overrides(layer, as_overrides(overrides), reader.problems)
    modernise(layer, reader.warnings, reader.problems)
    places = Places(str(reader.path), layer.places)
    config = _validate(layer.value, places, reader.problems, launch=launch, ranks=ranks)
    config._source = places
    config._warnings = [*reader.warnings, *config._warnings, *_idle(config, places)]
    return config


def load_tree(path: str | FilePath) -> dict[str, Any]:
    """The merged values of a YAML file and the files it is based on, without defaults; every key is checked.

    Old spellings and options without effect are logged, one warning each.

    Raises:
        ConfigError: as :func:`load_config`.
    """
    reader = _Reader(path)
    layer = reader.read()
    places = Places(str(reader.path), layer.places)
    config = _validate(deepcopy(layer.value), places, reader.problems)
    for line in [*reader.warnings, *_idle(config, places)]:
        logger.warning("%s", line)
    return layer.value


def change_tree(
    tree: dict[str, Any], changes: dict[str, Any], overrides: Iterable[Override | str | tuple[str, Any]], name: str
) -> RunConfig:
    """A RunConfig from plain values with others laid over them, as a file is laid over its base.

    Args:
        tree: the values, as of :func:`load_tree`.
        changes: nested values that win over them.
        overrides: changes to single keys, as of :func:`load_config`; they win over ``changes``.
        name: what problems are reported under.

    Raises:
        ConfigError: with every problem.
    """
    problems: list[Problem] = []
    warnings: list[str] = []
    upper = Layer(deepcopy(changes), {})
    modernise(upper, warnings, problems)
    layer = upper.put_over(Layer(deepcopy(tree), {}))
    layer = apply_overrides(layer, as_overrides(overrides), problems)
    places = Places(name, layer.places)
    config = _validate(layer.value, places, problems)
    config._source = places
    config._warnings = [*warnings, *_idle(config, places)]
    return config


def validate_tree(tree: dict[str, Any], name: str) -> RunConfig:
    """A RunConfig from plain values; problems are reported under ``name``."""
    layer = Layer(deepcopy(tree), {})
    problems: list[Problem] = []
    modernise(layer, [], problems)
    return _validate(layer.value, Places(name), problems)


class _Reader:
    """Reads one file and its bases; collects problems and warnings on the way."""

    def __init__(self, path: str | FilePath) -> None:
        self.path = find_config(path)
        self.problems: list[Problem] = []
        self.warnings: list[str] = []

    def read(self) -> Layer:
        """The file over its bases."""
        try:
            return self._file(self.path, ())
        except YamlError as error:
            raise_problems(Places(str(self.path)), [*self.problems, error.problem])
            raise

    def _file(self, path: FilePath, above: tuple[FilePath, ...]) -> Layer:
        document = Document(read_text(path), str(path))
        self.problems += document.problems
        if document.value is None:
            raise YamlError(Problem((), "the file is empty", place=Place(str(path), 1)))
        if not isinstance(document.value, dict):
            what = type(document.value).__name__
            raise YamlError(Problem((), f"must hold keys (seed: 0, ...), got one {what}", place=Place(str(path), 1)))
        layer = Layer(document.value, document.places)
        bases = layer.value.pop("base_config", None)
        modernise(layer, self.warnings, self.problems)
        below = Layer({}, {})
        for base in self._bases(bases, path, (*above, path.resolve()), layer.places):
            below = base.put_over(below)
        return layer.put_over(below)

    def _bases(
        self, given: Any, path: FilePath, above: tuple[FilePath, ...], places: dict[Path, Place]
    ) -> Iterator[Layer]:
        names = [] if given is None else given if isinstance(given, list) else [given]
        place = places.get(("base_config",))
        for name in names:
            if not isinstance(name, str) or not name:
                self.problems.append(Problem(("base_config",), f"must be a file name, got {name!r}", place=place))
                continue
            file = path.parent / name
            if file.resolve() in above:
                chain = " -> ".join(item.name for item in (*above, file))
                self.problems.append(
                    Problem(("base_config",), f"files that are based on each other: {chain}", place=place)
                )
                continue
            try:
                file = find_config(file)
            except ConfigError as error:
                self.problems.append(Problem(("base_config",), str(error), place=place))
                continue
            yield self._file(file, above)


def _validate(
    tree: dict[str, Any], places: Places, problems: list[Problem], *, launch: bool = False, ranks: int | None = None
) -> RunConfig:
    """Build the RunConfig, or raise with the problems so far, the schema's, and those between keys."""
    problems = list(problems)
    modules = tree.get("register_path")
    names = [modules] if isinstance(modules, str) else modules
    if isinstance(names, list) and all(isinstance(name, str) for name in names):  # else the schema says what is wrong
        try:
            import_user_modules(name for name in names if name)
        except ConfigError as error:
            problems.append(Problem(("register_path",), str(error).removeprefix("register_path: ")))
    config = None
    pruned = deepcopy(tree)
    for _ in range(4):  # what cannot be read is taken out, so that the rules between the other keys are checked too
        try:
            with collecting():
                config = RunConfig.model_validate(pruned)
            break
        except ValidationError as error:
            found = problems_of(RunConfig, error, pruned)
            problems += [problem for problem in found if problem not in problems]
            if not _prune(pruned, found):
                break
    if config is not None:
        bad = {problem.path for problem in problems}
        changed = [fill_ranks(config, ranks) if ranks else None, without_cache(config) if ranks or launch else None]
        config._warnings = [text for text in changed if text]
        findings = list(config.findings())
        findings += rank_findings(config, ranks, "the number of processes (RANK_SIZE)") if ranks else []
        findings += launch_findings(config) if launch else []
        problems += [problem for problem in map(_as_problem, findings) if not _touches(problem, bad)]
    raise_problems(places, problems)
    if config is None:
        raise AssertionError("a config that cannot be read must have a problem")
    return config


def _as_problem(finding: Finding) -> Problem:
    return Problem(_path(finding.key), finding.message, tuple(map(_path, finding.involved)))


def _path(key: str) -> Path:
    return tuple(int(part) if part.isdecimal() else part for part in key.split("."))


def _touches(problem: Problem, bad: set[Path]) -> bool:
    keys = (problem.path, *problem.involved)
    return any(key[: len(path)] == path or path[: len(key)] == key for key in keys for path in bad if path)


def _prune(tree: dict[str, Any], problems: list[Problem]) -> bool:
    """Take the values with a problem out of the tree, lists and sections of a wrong type as a whole.

    Returns:
        False when nothing was left to take out.
    """
    changed = False
    for problem in problems:
        path = problem.path
        while path and (isinstance(path[-1], int) or path[-1] == "type" or not _present(tree, path)):
            path = path[:-1]
        parent = value_at(tree, path[:-1]) if path else None
        if isinstance(parent, dict) and path[-1] in parent:
            del parent[path[-1]]
            changed = True
    return changed


def _present(tree: Any, path: Path) -> bool:
    parent = value_at(tree, path[:-1])
    return isinstance(parent, dict) and path[-1] in parent


def _idle(config: RunConfig, places: Places) -> list[str]:
    """One line per option that was set and changes nothing."""
    lines = [f"{_at(places, path)}{dotted(path)}: no effect: {reason}" for path, reason in _inert_keys(config, ())]
    if not config.use_parallel and config.parallel_config.ranks > 1:
        path = ("parallel_config",)
        lines.append(f"{_at(places, path)}parallel_config: no effect: use_parallel is False")
    return lines


def _at(places: Places, path: Path) -> str:
    place = places.of(path)
    if place is None:
        return ""
    return f"{place.flag}: " if place.flag else f"{place.file} line {place.line}: "


def _inert_keys(section: Section, prefix: Path) -> Iterator[tuple[Path, str]]:
    for name, info in type(section).model_fields.items():
        if name not in section.model_fields_set:
            continue
        value, path = getattr(section, name), (*prefix, yaml_name(name, info))
        extra = info.json_schema_extra
        if isinstance(extra, dict) and "inert" in extra and value != info.default:
            yield path, str(extra["inert"])
        for index, item in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(item, Section):
                yield from _inert_keys(item, path if index is None else (*path, index))
