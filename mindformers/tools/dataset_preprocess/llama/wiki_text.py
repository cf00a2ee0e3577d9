# SPDX-License-Identifier: Apache-2.0
"""WikiText as plain text: reading blocks of whole paragraphs, and undoing its tokenization."""

import codecs
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mindformers.errors import DataError

__all__ = ["clean_paragraph", "paragraphs_of", "read_blocks"]

BLOCK_CHARS = 1 << 19
LONGEST_PARAGRAPH = 1 << 23  # SentencePiece needs about fifty bytes of memory per character

_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
# WikiText sets every mark off with spaces; numbers and compounds carry @ signs. Applied in this order, as
# (rarest character, old, new): looking for one character first makes the table three times as fast.
_BEFORE_PAIRS = (
    ("'", "s '", "s'"),
    ("@", " @-@ ", "-"),
    ("@", " @,@ ", ","),
    ("@", " @.@ ", "."),
    (":", " : ", ": "),
    (";", " ; ", "; "),
    (".", " . ", ". "),
    ("!", " ! ", "! "),
    ("?", " ? ", "? "),
    (",", " , ", ", "),
)
_BRACKETS = tuple(
    (start, re.compile(rf"\{start}([^\{end}]*)\{end}"), start, end)
    for start, end in (("(", ")"), ("[", "]"), ("{", "}"))
)
_AFTER_PAIRS = (
    ("=", "= = = =", "===="),
    ("=", "= = =", "==="),
    ("=", "= =", "=="),
    ("\u00b0", " \u00b0 ", "\u00b0"),
    ("N", " N ", " 1 "),
    ("'", " 's", "'s"),
)


def read_blocks(path: Path, progress: Callable[[int], object] = lambda count: None) -> Iterator[str]:
    """The text of a file in blocks that end between paragraphs; it holds a block and a paragraph at most.

    Args:
        path: a UTF-8 file; a byte order mark is left out, line ends may be of any system.
        progress: told the number of bytes read, as they are read.

    Raises:
        DataError: not UTF-8 (with the byte offset), unreadable, or a paragraph of more than 8 million
            characters.
    """
    try:
        with path.open("rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline=None) as file:
            done, carry = 0, ""
            while part := file.read(BLOCK_CHARS):
                progress(raw.tell() - done)
                done = raw.tell()
                text = carry + part
                cut = _last_paragraph_end(text)
                if len(text) - cut > LONGEST_PARAGRAPH:
                    raise DataError(
                        f"{path}: a paragraph of more than {LONGEST_PARAGRAPH} characters begins near byte "
                        f"{done - len(text)}. "
                        "Separate the texts of the file by blank lines"
                    )
                if cut:
                    yield text[:cut]
                carry = text[cut:]
            if carry:
                yield carry
    except UnicodeDecodeError as error:
        offset = _first_bad_byte(path)
        raise DataError(
            f"{path} is not UTF-8 text: byte {offset} (0x{error.object[error.start]:02x}) cannot be decoded. "
            "Convert it, for instance with: iconv -f LATIN1 -t UTF-8"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def paragraphs_of(block: str) -> tuple[list[str], int]:
    """The cleaned paragraphs of a block, headings left out, and the number of headings.

    Paragraphs are separated by blank lines. One that begins with ``=`` is a heading.
    """
    parts = [clean_paragraph(part) for part in _BLANK_LINES.split(block)]
    texts = [part for part in parts if part and part[0] != "="]
    return texts, sum(1 for part in parts if part and part[0] == "=")


def clean_paragraph(text: str) -> str:
    """Undo WikiText's tokenization in one paragraph, and strip it."""
    text = _replace(text, _BEFORE_PAIRS)
    for first, pattern, start, end in _BRACKETS:
        if first in text:
            text = pattern.sub(lambda match, start=start, end=end: start + match[1].strip() + end, text)
    for quote in ('"', "'"):
        text = _tighten_quotes(text, quote)
    return _replace(_trim_lines(text), _AFTER_PAIRS).strip()


def _replace(text: str, table: tuple[tuple[str, str, str], ...]) -> str:
    for rarest, old, new in table:
        if rarest in text:
            text = new.join(text.split(old))  # what str.replace does, in two thirds of its time
    return text


def _trim_lines(text: str) -> str:
    """Take one space off each side of the line ends inside a paragraph."""
    lines = text.split("\n")
    for index in range(1, len(lines)):
        lines[index - 1] = lines[index - 1].removesuffix(" ")
        lines[index] = lines[index].removeprefix(" ")
    return "\n".join(lines)


def _tighten_quotes(text: str, quote: str) -> str:
    """Take the spaces off inside each pair of quotes; an unpaired last quote stays as it is."""
    parts = text.split(quote)
    for index in range(1, len(parts) - 1, 2):
        parts[index] = parts[index].strip()
    return quote.join(parts)


def _last_paragraph_end(text: str) -> int:
    """Index behind the last blank line that has a line end before it, or 0."""
    end = text.rfind("\n")
    while end > 0:
        start = text.rfind("\n", 0, end)
        if start >= 0 and not text[start:end].strip():
            return end + 1
        end = start
    return 0


def _first_bad_byte(path: Path) -> int:
    """Offset of the first byte that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            held = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                return offset - held + error.start
            offset += len(block)
    return offset - len(decoder.getstate()[0])
