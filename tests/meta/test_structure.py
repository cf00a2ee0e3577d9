# SPDX-License-Identifier: Apache-2.0
"""The rules of the layout, read from the syntax trees: import direction, sizes, headers, lone imports."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import REPO

PACKAGE = REPO / "mindformers"
CODE_FOLDERS = ("mindformers", "scripts", "tools", "tests", "benchmarks")
MAX_FILE = 400
LIMITS = {ast.FunctionDef: 60, ast.AsyncFunctionDef: 60, ast.ClassDef: 300}

# A module may import only from its own row or a row above it; the longest prefix decides.
ROWS = {
    "mindformers": 0,  # __init__ is a table of names, resolved on first use
    "mindformers.version": 0,
    "mindformers.errors": 0,
    "mindformers.atomic": 0,
    "mindformers.config": 0,
    "mindformers.registry": 0,
    "mindformers.tools": 0,
    "mindformers.tools.register": 0,
    "mindformers.native": 0,
    "mindformers.model_zoo": 1,
    "mindformers.checkpoint.layout": 1,
    "mindformers.core": 2,
    "mindformers.core.context": 1,
    "mindformers.core.context_config": 1,
    "mindformers.core.parallel_context": 1,
    "mindformers.core.throughput": 1,
    "mindformers.core.progress": 1,
    "mindformers.checkpoint": 2,
    "mindformers.modules": 2,
    "mindformers.dataset": 2,
    "mindformers.core.callback": 3,
    "mindformers.wrapper": 3,
    "mindformers.generation": 3,
    "mindformers.models": 4,
    "mindformers.pet": 4,
    "mindformers.auto_class": 5,
    "mindformers.pipeline": 6,
    "mindformers.evaluation": 6,
    "mindformers.inference": 6,
    "mindformers.trainer": 7,
    "mindformers.launch": 8,
    "mindformers.simulate": 8,
    "mindformers.serve": 8,
    "mindformers.simulate.cpu_auto_parallel": 1,
    "mindformers.commands": 8,
    "mindformers.__main__": 8,
}
# The folder tools/ holds library modules of row 0; everything else in it is a command of row 8.
TOOLS_LIBRARY = {
    "mindformers.tools",
    "mindformers.tools.logger",
    "mindformers.tools.rank_table",
    "mindformers.tools.utils",
    "mindformers.tools.sentencepiece_model",
}
# Optional extras (setup.py) are imported where they are used, never when a module is imported.
EXTRAS = {
    "torch",
    "transformers",
    "jieba",
    "lm_eval",
    "tensorboardX",
    "matplotlib",
    "peft",
    "fastchat",
    "mindspore_lite",
}
MACHINE_PATH = re.compile("/" + "(?:work|farm|root|home/[a-z]+|opt/pypi[a-z-]*)" + r"/[\w.]|/tmp/dev\b")


@functools.cache
def python_files() -> tuple[Path, ...]:
    """Every .py file of the project, without environments and outputs."""
    files = [*REPO.glob("*.py")]
    for folder in CODE_FOLDERS:
        files += (REPO / folder).rglob("*.py")
    return tuple(sorted(files))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def module_name(path: Path) -> str:
    """Dotted module name of a file of the package."""
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def row_of(module: str) -> int:
    """Row of a module in the order of the packages."""
    if module.startswith("mindformers.tools.") and not module.startswith("mindformers.tools.register"):
        return 0 if module in TOOLS_LIBRARY else 8
    name = module
    while name not in ROWS or (name == "mindformers" and module != "mindformers"):
        assert "." in name, f"{module}: a package without a row; add it to ROWS and to docs/architecture.md"
        name = name.rpartition(".")[0]
    return ROWS[name]


def imports_of(path: Path, tree: ast.AST) -> list[tuple[int, str]]:
    """(line, module) of every import below a node; `from a import b` gives a.b where that is a module."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*anchor, *([base] if base else [])])
            for alias in node.names:
                child = REPO.joinpath(*base.split("."), alias.name)
                is_module = child.with_suffix(".py").exists() or (child / "__init__.py").exists()
                found.append((node.lineno, f"{base}.{alias.name}" if is_module else base))
    return found


def test_import_direction():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        module = module_name(path)
        for line, target in imports_of(path, tree_of(path)):
            own, other = row_of(module), row_of(target) if target.split(".")[0] == "mindformers" else 0
            if other > own:
                wrong.append(f"{path.relative_to(REPO)}:{line}: row {own} imports {target} of row {other}")
    assert not wrong, "\n".join(wrong)


def test_config_never_names_mindspore():
    files = list((PACKAGE / "config").rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(REPO)}:{line}"
        for path in files
        for line, target in imports_of(path, tree_of(path))
        if target.split(".")[0] == "mindspore"
    ]
    assert not wrong, wrong


def test_extras_are_imported_where_used():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        for node in tree_of(path).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                for line, target in imports_of(path, node):
                    if target.split(".")[0] in EXTRAS:
                        wrong.append(f"{path.relative_to(REPO)}:{line}: {target}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(REPO)))
def test_file_follows_the_rules(path: Path):
    text = path.read_text(encoding="utf-8")
    problems = []
    if not text.startswith("# SPDX-License-Identifier: Apache-2.0\n"):
        problems.append("line 1: the SPDX header is missing")
    lines = text.count("\n")
    if lines > MAX_FILE:
        problems.append(f"{lines} lines, at most {MAX_FILE}")
    if PACKAGE in path.parents and path.name != "__init__.py" and not ast.get_docstring(tree_of(path)):
        problems.append("the module docstring is missing")
    for node in ast.walk(tree_of(path)):
        limit = LIMITS.get(type(node))
        if limit and (size := node.end_lineno - node.lineno + 1) > limit:
            problems.append(f"line {node.lineno}: {node.name} has {size} lines, at most {limit}")
    assert not problems, "\n".join(problems)


def test_every_package_folder_is_a_package():
    missing = {path.parent for path in PACKAGE.rglob("*.py") if not (path.parent / "__init__.py").exists()}
    assert not missing, f"without __init__.py these folders are not in the wheel: {sorted(map(str, missing))}"


def test_no_path_of_a_developer_machine():
    suffixes = {".py", ".sh", ".md", ".yaml", ".yml", ".toml", ".cfg", ".in"}
    folders = [REPO / name for name in (*CODE_FOLDERS, "configs", "docs", ".ci")]
    files = [
        *(path for path in REPO.glob("*") if path.is_file()),
        *(p for f in folders for p in f.rglob("*")),
    ]
    wrong = []
    for path in files:
        if path.suffix in suffixes and path != Path(__file__).resolve():
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if MACHINE_PATH.search(line):
                    wrong.append(f"{path.relative_to(REPO)}:{number}: {line.strip()[:100]}")
    assert not wrong, "\n".join(wrong)


def test_no_module_in_tools_hides_another():
    # `python mindformers/tools/x.py` puts that folder first on sys.path: `import logging` would find ours.
    for folder in {path.parent for path in (PACKAGE / "tools").rglob("*.py")}:
        names = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
        hidden = names & (sys.stdlib_module_names | EXTRAS | {"mindspore", "numpy", "yaml", "rich", "tqdm", "pydantic"})
        assert not hidden, f"{folder}: {hidden}"


BLOCKER = """
import importlib, importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError("blocked: " + name, name=name)

sys.meta_path.insert(0, Blocker())
for name in {modules!r}:
    try:
        importlib.import_module(name)
    except Exception as error:
        print(name, type(error).__name__, error)
"""


def import_without(blocked: set[str], modules: list[str]) -> str:
    """Import modules in a new interpreter where some packages are absent; what failed, one per line."""
    script = BLOCKER.format(blocked=sorted(blocked), modules=modules)
    result = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_module_imports_without_the_extras():
    modules = sorted(module_name(path) for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")
    failed = import_without(EXTRAS, modules)
    assert not failed, failed


def test_config_imports_without_mindspore():
    modules = [module_name(path) for path in PACKAGE.rglob("*.py") if row_of(module_name(path)) == 0]
    failed = import_without({"mindspore", *EXTRAS}, sorted({*modules, "mindformers.__main__"}))
    assert not failed, failed


def test_configs_travel_in_the_build(tmp_path):
    words = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(words, cwd=REPO, check=True, capture_output=True, timeout=900)
    shipped = {path.relative_to(REPO / "configs") for path in (REPO / "configs").rglob("*.*")}
    assert shipped
    built = tmp_path / "mindformers" / "_configs"
    assert {path.relative_to(built) for path in built.rglob("*") if path.is_file()} == shipped
    assert (tmp_path / "mindformers" / "serve" / "page.html").is_file()
    sources = {path.name for path in (PACKAGE / "native" / "src").iterdir()}
    assert {path.name for path in (tmp_path / "mindformers" / "native" / "src").iterdir()} == sources
    modules = {path.relative_to(REPO) for path in PACKAGE.rglob("*.py")}
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*.py")} == modules
