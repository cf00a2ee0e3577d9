# SPDX-License-Identifier: Apache-2.0
"""What the documents tell a reader to type or open: commands parse against the real flags, links lead to files."""

import re
import shlex

import pytest

from mindformers.config import load_config
from mindformers.config.cli import read_flags
from mindformers.config.files import find_config
from tests.helpers import REPO

PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(?:bash|sh|shell)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(start: str) -> list[list[str]]:
    """Words after ``start`` of each command in the pages' shell blocks; examples with gaps ("...") are left out."""
    found = []
    for page in PAGES:
        for block in BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip().startswith(start) and "..." not in line:
                    found.append(shlex.split(line.strip()[len(start) :], comments=True))
    return found


def test_run_commands_fit_the_schema():
    examples = commands("python run_mindformer.py")
    assert len(examples) >= 4
    for words in examples:
        problems = []
        config, overrides = read_flags(words, problems)
        assert not problems, (words, problems)
        yours = "/" not in config  # a file of the reader's own: its flags still have to fit
        load_config("run_llama2_tiny" if yours else config, overrides)


def test_config_commands_name_real_files():
    examples = commands("python -m mindformers")
    assert {words[0] for words in examples} >= {"ls", "validate", "show", "cp"}
    for command, *names in examples:
        if command in ("show", "cp"):
            assert find_config(names[0]).is_file()


def test_conversion_commands_fit_the_parser():
    from mindformers.models.llama.convert_weight import build_parser, check_arguments

    examples = commands("python mindformers/models/llama/convert_weight.py")
    assert len(examples) >= 5
    for words in examples:
        check_arguments(build_parser().parse_args(words))


def test_transform_commands_fit_the_parser():
    from mindformers.tools.transform_ckpt import build_parser

    examples = commands("python mindformers/tools/transform_ckpt.py")
    assert len(examples) >= 3
    for words in examples:
        build_parser().parse_args(words)


def test_table_of_weight_names_is_that_of_the_code():
    from mindformers.checkpoint.foreign.table import TABLE

    letters = {"vocab_size": "V", "hidden_size": "H", "intermediate_size": "F", "n_kv_heads * head_dim": "K"}
    rows = [
        f"| `{entry.ours}` | `{entry.huggingface}` | `{entry.meta}` | "
        f"{', '.join(letters[axis] for axis in entry.axes)} | {'-' if entry.split is None else entry.split} |"
        for entry in TABLE
    ]
    text = (REPO / "docs" / "weights.md").read_text(encoding="utf-8")
    assert "\n".join(rows) in text


def test_commands_run_files_that_exist():
    examples = commands("python ") + commands("bash ")
    assert examples
    for words in examples:
        if words[0].endswith((".py", ".sh")):
            assert (REPO / words[0]).is_file(), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_readme_sets_up_with_two_commands():
    blocks = BLOCK.findall((REPO / "README.md").read_text(encoding="utf-8"))
    first = [line.split("#")[0].strip() for line in blocks[0].splitlines()]
    assert first == ["bash scripts/quickstart.sh", "bash scripts/test.sh"]
    assert first[1] in (REPO / ".ci" / "run").read_text(encoding="utf-8")


def test_the_errors_page_is_that_of_the_code():
    import runpy

    tool = runpy.run_path(str(REPO / "tools" / "gen_errors_doc.py"))
    page = (REPO / "docs" / "errors.md").read_text(encoding="utf-8")
    assert tool["document"]() == page, "run: python tools/gen_errors_doc.py"
