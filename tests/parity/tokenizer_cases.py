# SPDX-License-Identifier: Apache-2.0
"""The texts and id sequences of the tokenizer goldens, made from a seed: the same on every Python version."""

import hashlib
import json
import random
from typing import Any

SEED = 20240229
NUM_TEXTS = 2400
NUM_ID_ROWS = 400
ADDED_TOKENS = ["<|user|>", "<pad>"]
VOCAB_SIZE = 32000

_WORDS = tuple(
    word
    for line in (
        "the of and to in is was that it for with as on by at from his were are which this be had or not but also one",
        "first their new after two its city game season film album song team war ship river company school university",
        "government president British American German battle century north-west player's don't it's O'Neill 1,000 3.14",
        "1066 2024-02-29 50% $12.50 e.g. i.e. U.S. Ph.D. \u00e9t\u00e9 na\u00efve \u00dcber stra\u00dfe",
        "\u0141\u00f3d\u017a",
        "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac \u0440\u0443\u0441\u0441\u043a\u0438\u0439",
        "antidisestablishmentarianism https://example.org/a?b=c&d=%20 foo@bar.baz C++ x86_64 <unk> @-@",
    )
    for word in line.split(" ")
)
_CHINESE = (
    "\u4f60\u597d\u4e16\u754c\u6211\u4eec\u5728\u5b66\u4e60\u5927\u8bed\u8a00\u6a21\u578b\u4eca\u5929\u5929\u6c14\u5f88"
    "\u4e0d\u9519\u56fd\u7684\u4e86\u662f\u4eba\u8fd9\u4e2a\u4e0a\u5230\u8bf4\u9f98\u9750\u8b8b\u5f41\u9b31\u2f00\u3400"
    "\u3042\u30a2\ud55c\uff0c\u3002\uff01\u300a\u300b"
)
_CODE = (
    "def ",
    "return ",
    "self.",
    "x = ",
    "for i in range(10):\n",
    "    ",
    "\t",
    "if __name__ == '__main__':\n",
    "{",
    "}",
    "[",
    "]",
    "();\n",
    "#include <stdio.h>\n",
    "// ",
    "/* */",
    "lambda x: x**2",
    "!=",
    "->",
    "=>",
    "&&",
    "||",
    "\\n",
    '"""',
    "print(f'{x!r}')",
    "SELECT * FROM t;",
    '<div class="a">',
    "</div>",
    "0x7fff",
    "1e-5",
    "_private",
    "CamelCase",
)
_EMOJI = (
    "\U0001f600",
    "\U0001f44d\U0001f3fd",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u2764\ufe0f",
    "\U0001f1e8\U0001f1f3",
    "\U0001f9ec",
    "\u2603",
    "\U0001d54f",
    "\U00020bb7",
)
_SPACES = (
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    "\u00a0",
    "\u3000",
    "\u2009",
    "\u200b",
    "\u2028",
    "\ufeff",
    "\v",
    "\f",
)
_CONTROL = (
    "\x00",
    "\x01",
    "\x1b[0m",
    "\x7f",
    "\x85",
    "\ufffd",
    "\ufffe",
    "\u0301",
    "\u202e",
    "\u2581",
    "\ue000",
    "\U0010ffff",
)
_SPECIAL = (
    "<s>",
    "</s>",
    "<unk>",
    "<s",
    "s>",
    "<S>",
    "</s",
    "<<s>>",
    "<0x0A>",
    "<0xE4>",
    "[INST]",
    "<|user|>",
    "<pad>",
)

# Kept in full in the golden file, so that a failure shows what differs.
HARD_TEXTS = [
    "",
    " ",
    "  ",
    "   ",
    "\n",
    "\t",
    "a",
    " a",
    "  a",
    "a ",
    "a  ",
    "\u2581",
    "\u2581a",
    " \u2581",
    "\u2581\u2581",
    "Once upon a time",
    "\u4f60\u597d\uff0c\u4e16\u754c",
    "I love Beijing, because",
    "hello world!!",
    "<s>",
    "</s>",
    "<unk>",
    "<s>a",
    "<s> a",
    "<s>  a",
    "a</s>",
    "a </s>",
    "a</s>b",
    "a </s> b",
    "a</s> b",
    "</s></s>",
    "<s><s>a",
    "<s> <s>",
    "<unk>a<unk>",
    "a<unk> b",
    "<s>a</s><s>b</s>",
    "<s></s><unk>",
    "\n<s>\n",
    "x<s>\u4f60</s>\u597d",
    "<s>\U0001f600</s>",
    "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi! [/INST] Hello </s><s>[INST] x [/INST]",
    "\U0001f600",
    "\U0001f600\U0001f600 a",
    "\u9f98",
    "\u9f98\u9f98a\u9f98",
    "a\u9f98 b",
    "\x00",
    "a\x00b",
    "\r\n",
    "a\r\nb",
    "\u3000a",
    "\u00a0a",
    "e\u0301",
    "\u00e9",
    "<0x0A>",
    "<0xE4><0xBD><0xA0>",
    "  def f(x):\n\treturn x  \n",
    "1234567890",
    "    " * 8,
    "\n" * 5,
    "a" * 50,
    "\ufeffa",
    "don 't , it 's",
    "<s",
    "</s",
    "< s>",
]


class _Chooser:
    """Choices from ``random()`` alone, the one method whose sequence Python promises to keep."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def below(self, limit: int) -> int:
        return int(self._random() * limit)

    def one(self, items: Any) -> Any:
        return items[self.below(len(items))]

    def some(self, items: Any, most: int, joint: str = "") -> str:
        return joint.join(self.one(items) for _ in range(1 + self.below(most)))


def make_texts() -> list[str]:
    """HARD_TEXTS, then NUM_TEXTS seeded ones: English, Chinese, emoji, code, white space, special tokens, mixtures."""
    choose = _Chooser(SEED)
    kinds = (
        lambda: choose.some(_WORDS, 40, " "),
        lambda: choose.some(_CHINESE, 40),
        lambda: choose.some(_CODE, 12),
        lambda: choose.some(_EMOJI, 4, choose.one(("", " ", "a"))),
        lambda: choose.some(_SPACES, 4) + choose.some(_WORDS, 6, choose.one(_SPACES)) + choose.some(_SPACES, 3),
        lambda: choose.some(_CONTROL, 3) + choose.some(_WORDS, 3, " "),
        lambda: (
            choose.some(_SPECIAL, 2)
            + choose.one(("", " ", "  "))
            + choose.some(_WORDS, 3, " ")
            + choose.some(_SPECIAL, 3)
        ),
        lambda: choose.some(_SPACES + _SPECIAL + _EMOJI + _CONTROL + tuple(_CHINESE) + _CODE + tuple(_WORDS), 25),
        lambda: "".join(chr(_scalar(choose.below(0x10FFFF - 0x800))) for _ in range(1 + choose.below(8))),
    )
    return HARD_TEXTS + [kinds[index % len(kinds)]() for index in range(NUM_TEXTS)]


def make_id_rows(limit: int) -> list[list[int]]:
    """Sequences of ids below ``limit`` that no text need give: bytes in any order, special tokens anywhere."""
    choose = _Chooser(SEED + limit)
    spaces = (29871, 259, 1678, 268, 13)  # runs of spaces, newline
    rows = []
    for _ in range(NUM_ID_ROWS):
        pools = (range(3), range(3, 259), range(32000), spaces, range(31990, limit))
        rows.append([choose.one(choose.one(pools)) for _ in range(1 + choose.below(20))])
    return rows


def digest(*values: Any) -> str:
    """Twelve hex digits that stand for the values."""
    return hashlib.sha256(json.dumps(values).encode("ascii")).hexdigest()[:12]


def describe_text(tokenizer: Any, text: str) -> list[Any]:
    """What is compared for one text: ids, pieces, and the ways back."""
    ids = tokenizer(text)["input_ids"]
    pieces = tokenizer.tokenize(text)
    both = [tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=True)]
    return [ids, pieces, *both, tokenizer.decode(ids[1:]), tokenizer.decode(ids + [2])]


def describe_ids(tokenizer: Any, ids: list[int]) -> list[Any]:
    """What is compared for one row of ids."""
    return [tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=True)]


def _scalar(number: int) -> int:
    return number if number < 0xD800 else number + 0x800
