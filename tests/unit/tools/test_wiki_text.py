# SPDX-License-Identifier: Apache-2.0
"""Reading and cleaning WikiText."""

import tracemalloc
from pathlib import Path

import pytest

from mindformers.errors import DataError
from mindformers.tools.dataset_preprocess.llama import wiki_text
from mindformers.tools.dataset_preprocess.llama.wiki_text import clean_paragraph, paragraphs_of, read_blocks


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (" a well @-@ known 1 @,@ 000 and 3 @.@ 5 .", "a well-known 1,000 and 3.5 ."),
        ("a , b ; c : d ! e ? f . g", "a, b; c: d! e? f. g"),
        ('he said " no way " and ( maybe ) [ 1 ] { x } left', 'he said "no way" and (maybe) [1] {x} left'),
        ("the players ' game", "the players' game"),
        ("it 's N days at 5 \u00b0 C", "it's 1 days at 5\u00b0C"),
        ('an odd " quote', 'an odd " quote'),
        (" = = Heading = = ", "== Heading =="),
        (" = = = Heading = = = ", "=== Heading ==="),
        (" one . \n two , three \n", "one.\ntwo, three"),
        ("", ""),
        ("  \n ", ""),
    ],
)
def test_clean_paragraph(raw: str, clean: str) -> None:
    assert clean_paragraph(raw) == clean


def test_paragraphs_and_headings() -> None:
    block = " = Title = \n \n First one , here . \n Second line . \n \t \n\n = = Part = = \n\n Last"
    assert paragraphs_of(block) == (["First one, here.\nSecond line.", "Last"], 2)
    assert paragraphs_of("\n\n \n") == ([], 0)


def test_an_odd_quote_spoils_its_own_paragraph_only() -> None:
    texts, _ = paragraphs_of('an odd " here \n\n a " pair " there')
    assert texts[1] == 'a "pair" there'


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10**6])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_block_size_and_line_ends_do_not_matter(tmp_path, monkeypatch, size: int, end: str) -> None:
    lines = ["a b", " c ", "", "  ", "\u4f60\u597d", "", "", "", "= h =", "\t", "d e", "f"]
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbf" + end.join(lines).encode())
    monkeypatch.setattr(wiki_text, "BLOCK_CHARS", size)
    read = []
    blocks = list(read_blocks(path, read.append))
    assert "".join(blocks) == "\n".join(lines)
    texts = [part for block in blocks for part in paragraphs_of(block)[0]]
    assert texts == ["a b\nc", "\u4f60\u597d", "d e\nf"]
    assert sum(read) == path.stat().st_size


@pytest.mark.parametrize("prefix", [0, 5, 3_000_000])
def test_not_utf8_names_the_byte(tmp_path, prefix: int) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes(b"\n" * prefix + "\u4f60".encode() + b"ol\xe9 x")
    with pytest.raises(DataError, match=rf"latin1\.txt is not UTF-8 text: byte {prefix + 5} \(0xe9\)"):
        list(read_blocks(path))
    path.write_bytes(b"x" * prefix + "\u4f60".encode()[:2])
    with pytest.raises(DataError, match=f"byte {prefix} "):
        list(read_blocks(path))


def test_memory_is_bounded(tmp_path) -> None:
    path = tmp_path / "big"
    with path.open("w") as file:
        for _ in range(3000):
            file.write("word " * 2000 + "\n\n")  # 30 MB
    tracemalloc.start()
    total = sum(len(block) for block in read_blocks(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == path.stat().st_size
    assert peak < 8e6


def test_one_endless_paragraph_is_an_error(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(wiki_text, "LONGEST_PARAGRAPH", 100)
    monkeypatch.setattr(wiki_text, "BLOCK_CHARS", 64)
    path = tmp_path / "lines.txt"
    path.write_text("short\n\n" + "a line\n" * 50)
    with pytest.raises(DataError, match=r"more than 100 characters.*blank lines"):
        list(read_blocks(path))


def test_unreadable(tmp_path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        list(read_blocks(Path(tmp_path)))
