# SPDX-License-Identifier: Apache-2.0
"""YAML text -> values and lines: scalars, anchors, merge keys, and every kind of rubbish."""

import math

import pytest

from mindformers.config.problems import Place
from mindformers.config.yaml_text import Document, YamlError, parse_inline, read_text
from mindformers.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1.e-5", 1e-5),
        ("-.5", -0.5),
        ("1_000", 1000),
        ("010", 10),
        ("0x1F", 31),
        ("True", True),
        ("false", False),
        ("yes", "yes"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("", None),
        ('"2"', "2"),
        ("'a # b'", "a # b"),
        ("[1, 2.5, a]", [1, 2.5, "a"]),
        ("{a: 1, b: {c: null}}", {"a": 1, "b": {"c": None}}),
        (".inf", math.inf),
    ],
)
def test_scalars(text, value):
    parsed = parse_inline(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_lines_anchors_and_merge_keys():
    text = "base: &b {x: 1, y: 2}\ncopy: *b\nmerged:\n  <<: *b\n  y: 3\nlist:\n  - 1\n  - k: 2\n"
    document = Document(text, "f")
    assert document.value["copy"] == {"x": 1, "y": 2}
    assert document.value["merged"] == {"x": 1, "y": 3}
    assert document.places["merged",] == Place("f", 3)
    assert document.places["merged", "y"] == Place("f", 5)
    assert document.places["merged", "x"] == Place("f", 1)
    assert document.places["list", 1, "k"] == Place("f", 8)
    assert not document.problems


def test_earlier_source_of_a_merge_list_wins():
    assert Document("a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc:\n  <<: [*a, *b]\n", "f").value["c"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "given twice, first in line 1"),
        ("a: &x\n  b: *x\n", 1, "contains itself"),
        ("? [a]\n: 1\n", 1, "plain name"),
        ("a: !!python/object:os.system x\n", 1, "not allowed"),
        ("a: !!int x\n", 1, "not a value of type int"),
        ("a: !!bool x\n", 1, "not a value of type bool"),
        ("a:\n  <<: 3\n", 2, "needs a mapping"),
        ('a: "\\ud800"\n', 1, "not a value of type str"),
        ("a: " + "9" * 5000, 1, "not a value of type int"),
    ],
)
def test_problems_keep_the_value_usable(text, line, words):
    problem = Document(text, "f").problems[0]
    assert words in problem.message
    assert problem.place.line == line


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\n\tb: 2\n", 2, "a tab"),
        ("a: [1, 2\nb: 3\n", 2, "not valid YAML"),
        ("a: 'x\n", 2, "not valid YAML"),
        ("a: *nope\n", 1, "nope"),
        ('a: "\\UFFFFFFFF"\n', 1, "not valid YAML"),
        ("a: 1\n---\nb: 2\n", 2, "single document"),
        ("a: 1\nb: \x07\n", 2, "U+0007"),
        ("[" * 3000, 1, "deeper than"),
        ("\n".join(["a0: &a0 1", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 99))]), 0, "by aliases"),
        (
            "a: &a [1,1]\nb: &b [" + "*a," * 99 + "]\nc: &c [" + "*b," * 99 + "]\nd: [" + "*c," * 99 + "]",
            0,
            "more than",
        ),
    ],
)
def test_text_that_is_not_yaml(text, line, words):
    with pytest.raises(YamlError, match=r"not|more|deep") as caught:
        Document(text, "f")
    problem = caught.value.problem
    assert words in problem.message
    assert (problem.place.line if problem.place else 0) == line


def test_read_text(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_text(file) == "a: 1\n"
    file.write_bytes(b"a: \xff\xfe")
    with pytest.raises(YamlError, match=r"UTF-8"):
        read_text(file)
    file.write_bytes(b"#" * 1_000_001)
    with pytest.raises(YamlError, match=r"too large"):
        read_text(file)
    with pytest.raises(YamlError, match=r"cannot be read"):
        read_text(tmp_path)


def test_parse_inline_reports_brackets():
    with pytest.raises(ConfigError, match=r"not valid YAML"):
        parse_inline("[1, 2")
    with pytest.raises(ConfigError, match=r"given twice"):
        parse_inline("{a: 1, a: 2}")
