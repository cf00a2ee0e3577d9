# SPDX-License-Identifier: Apache-2.0
"""A conversation as ids: the frames of the chat format, continued text, what is dropped, what is refused."""

from pathlib import Path

import pytest

from mindformers.errors import DataError
from mindformers.generation.conversation import MARKS, Conversation
from mindformers.models.llama.llama_tokenizer import LlamaTokenizer
from tests.helpers import shared_data


@pytest.fixture(scope="module")
def tokenizer(tiny_model_file: Path) -> LlamaTokenizer:
    return LlamaTokenizer(str(tiny_model_file))


def words(tokenizer: LlamaTokenizer, text: str) -> list[int]:
    return tokenizer.sp_model.encode(text)


def test_frames_of_a_chat(tokenizer):
    talk = Conversation(tokenizer, chat=True, system="Be kind.")
    first = [1, *words(tokenizer, "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nquick fox [/INST]")]
    assert talk.prompt(" quick fox \n", 1000) == (first, 0)
    talk.add(" quick fox \n", " jumps \n", [7, 2])
    done = words(tokenizer, "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nquick fox [/INST] jumps ")
    assert talk.prompt("dog", 1000) == ([1, *done, 2, 1, *words(tokenizer, "[INST] dog [/INST]")], 0)
    talk.set_system("")
    talk.reset()
    assert talk.prompt("dog", 1000) == ([1, *words(tokenizer, "[INST] dog [/INST]")], 0)


def test_frames_in_ids_of_the_real_vocabulary():
    tokenizer = LlamaTokenizer(str(shared_data("llama2_tokenizer/tokenizer.model")))
    talk = Conversation(tokenizer, chat=True)
    hello = [1, 518, 25580, 29962, 15043, 518, 29914, 25580, 29962]
    assert talk.prompt("Hello", 100) == (hello, 0)
    talk.add("Hello", "Hello", [15043])
    assert talk.prompt("Hello", 100) == ([*hello, 15043, 29871, 2, *hello], 0)
    talk.set_system("Hello")
    framed = talk.prompt("Hello", 100)[0]
    assert framed[4:18] == [3532, 14816, 29903, 6778, 13, 10994, 13, 29966, 829, 14816, 29903, 6778, 13, 13]


def test_oldest_turns_are_dropped_and_the_system_prompt_moves(tokenizer):
    talk = Conversation(tokenizer, chat=True, system="Be kind.")
    for text in ("one", "two", "three"):
        talk.add(text, "quick", [])
    everything, dropped = talk.prompt("dog", 10_000)
    assert dropped == 0
    ids, dropped = talk.prompt("dog", len(everything) - 1)
    assert dropped == 1
    assert ids[1:] == words(tokenizer, "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\ntwo [/INST] quick ") + ids[ids.index(2) :]
    assert talk.prompt("dog", 10_000) == (ids, 0)


def test_a_text_too_long_drops_nothing(tokenizer):
    talk = Conversation(tokenizer, chat=True)
    talk.add("one", "quick", [])
    with pytest.raises(DataError, match=r"alone makes \d+ tokens, but the model has room for 20"):
        talk.prompt("the quick brown fox " * 20, 20)
    assert len(talk.turns) == 1


def test_text_is_continued_until_the_model_ends_it(tokenizer):
    talk = Conversation(tokenizer, chat=False)
    assert talk.prompt("quick", 100) == ([1, *words(tokenizer, "quick")], 0)
    talk.add("quick", "brown", [50, 51])
    assert talk.prompt("", 100)[0] == [1, *words(tokenizer, "quick"), 50, 51]
    assert talk.prompt("fox", 100)[0] == [1, *words(tokenizer, "quick"), 50, 51, *words(tokenizer, "fox")]
    talk.add("fox", "", [52, 2])
    assert talk.prompt("dog", 100) == ([1, *words(tokenizer, "dog")], 0)


@pytest.mark.parametrize("mark", [*MARKS, "</s>", "<s>"])
def test_marks_of_the_format_are_refused(tokenizer, mark):
    talk = Conversation(tokenizer, chat=True)
    with pytest.raises(DataError, match="cannot be part of a text"):
        talk.prompt(f"ignore this {mark}", 1000)
    with pytest.raises(DataError, match="cannot be part of a text"):
        talk.set_system(mark)
    assert talk.system == ""


def test_what_else_is_refused(tokenizer):
    with pytest.raises(DataError, match="needs the chat format"):
        Conversation(tokenizer, chat=False, system="x")
    with pytest.raises(DataError, match="not UTF-8"):
        Conversation(tokenizer, chat=True).prompt("\udcff", 100)
    bare = Conversation(LlamaTokenizer(tokenizer.vocab_file, add_bos_token=False), chat=False)
    with pytest.raises(DataError, match="nothing to continue"):
        bare.prompt("", 100)
    assert Conversation(tokenizer, chat=False).prompt("[INST] is just text", 100)[1] == 0
