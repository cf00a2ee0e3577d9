# SPDX-License-Identifier: Apache-2.0
"""The chat command without a process of its own: options, the kind of a model, replies of a scripted model."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mindformers.__main__ import main
from mindformers.commands.chat_model import Partner, speaks_llama2
from mindformers.commands.chat_reply import Outcome, Replier
from mindformers.errors import ConfigError, DataError
from mindformers.generation.conversation import Conversation
from mindformers.models.llama.llama_tokenizer import LlamaTokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_model_file: Path) -> LlamaTokenizer:
    return LlamaTokenizer(str(tiny_model_file))


class Scripted:
    """A model that says what it is told, one token after the other, as ``generate`` does."""

    def __init__(self, seq_length: int) -> None:
        self.config = SimpleNamespace(seq_length=seq_length)
        self.script: list[int] = []
        self.calls: list[dict] = []

    def generate(self, ids: list[int], streamer, max_new_tokens: int, **options) -> None:
        """Feed the streamer."""
        self.calls.append({"ids": ids, "max_new_tokens": max_new_tokens, **options})
        try:
            streamer.put(np.asarray(ids, np.int32))
            for token in self.script[:max_new_tokens]:
                streamer.put(np.asarray([token], np.int32))
            streamer.end()
        except BaseException as error:
            streamer.fail(error)
            raise


@pytest.fixture
def replier(tokenizer) -> Iterator[Replier]:
    conversation = Conversation(tokenizer, chat=True)
    return Replier(Partner(Scripted(64), tokenizer), conversation, {"use_past": True}, 10, 5)


def notes() -> tuple[list[str], object]:
    said: list[str] = []
    return said, said.append


def test_emoji_over_several_tokens(replier, tokenizer, capsys):
    ids = tokenizer.sp_model.encode("fox \U0001f600 dog")
    assert len([i for i in ids if tokenizer.sp_model.is_byte(i)]) == 4
    replier.partner.model.script = [*ids, 2]
    replier.max_new_tokens = 30
    outcome = replier.reply("hi", print)
    assert capsys.readouterr().out == "fox \U0001f600 dog\n"
    assert (outcome.tokens, outcome.stopped, outcome.cut) == (len(ids) + 1, False, "")
    assert replier.conversation.turns[-1].answer == "fox \U0001f600 dog"


def test_unfinished_emoji_is_shown_at_the_end(replier, tokenizer, capsys):
    bytes_of_emoji = [i for i in tokenizer.sp_model.encode("\U0001f600") if tokenizer.sp_model.is_byte(i)]
    replier.partner.model.script = bytes_of_emoji[:2]
    replier.reply("hi", print)
    assert "\ufffd" in capsys.readouterr().out


def test_stop_keeps_what_was_said(replier, tokenizer, capsys):
    ids = tokenizer.sp_model.encode("the quick brown fox")
    replier.partner.model.script = ids
    answers = iter([False, False, True])  # after the prompt, the first and the second token
    outcome = replier.reply("hi", print, lambda: next(answers))
    assert outcome.stopped
    assert outcome.tokens == 2
    assert "stopped" in outcome.describe()
    text = tokenizer.decode(ids[:2])
    assert capsys.readouterr().out == f"{text}\n"
    assert replier.conversation.turns[-1].answer == text


def test_settings_reach_generate(replier):
    model = replier.partner.model
    model.script = [2]
    replier.reply("one", print)
    replier.reply("two", print)
    assert [call["seed"] for call in model.calls] == [5, 6]
    assert all(call["use_past"] for call in model.calls)
    replier.reset()
    replier.reply("one", print)
    assert model.calls[2] == model.calls[0]


def test_cut_replies_say_why(replier, tokenizer):
    replier.partner.model.script = [300] * 100
    assert replier.reply("hi", print).cut == "cut: --max_new_tokens"
    replier.max_new_tokens = 1000
    outcome = replier.reply("hi", print)
    assert outcome.cut == "cut: the model's 64 tokens are full"
    assert len(replier.partner.model.calls[1]["ids"]) + outcome.tokens == 64


def test_long_conversation_drops_its_oldest_turns_in_one_line(replier):
    replier.partner.model.script = [300, 301, 2]
    said, note = notes()
    for _ in range(4):
        replier.reply("fox", note)
    assert said
    assert all("oldest turn" in line and "at most 64 tokens" in line for line in said)
    assert all(len(call["ids"]) <= 64 - 10 for call in replier.partner.model.calls)
    with pytest.raises(DataError, match="alone makes"):
        replier.reply("the quick brown fox " * 30, note)


def test_terminal_never_obeys_the_model(replier, tokenizer, capsys, monkeypatch):
    replier.partner.model.script = [i for i in range(3, 259) if tokenizer.sp_model.id_to_piece(i) == "<0x1B>"] + [2]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    replier.reply("hi", print)
    assert capsys.readouterr().out == "\ufffd\n"


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (Outcome(1, 0.5, None, False, ""), "1 token, first after 0.50 s"),
        (Outcome(30, 0.5, 41.26, True, ""), "30 tokens, 41.3 tokens/s, first after 0.50 s, stopped"),
        (Outcome(0, 0.0, None, True, ""), "0 tokens, stopped"),
    ],
)
def test_line_about_a_reply(outcome, text):
    assert outcome.describe() == text


@pytest.mark.parametrize(
    ("files", "name", "expected"),
    [
        ({"tokenizer_config.json": json.dumps({"chat_template": "{{ '[INST] ' }}"})}, "mine", True),
        ({"chat_template.jinja": "[INST]"}, "mine", True),
        ({"tokenizer_config.json": json.dumps({"chat_template": [{"template": "[INST]"}]})}, "mine", True),
        ({"tokenizer_config.json": json.dumps({"chat_template": "<|im_start|>"})}, "my-chat", False),
        ({"tokenizer_config.json": "{}"}, "Llama-2-7b-Chat-hf", True),
        ({}, "Llama-2-7b-hf", False),
    ],
)
def test_which_models_chat(tmp_path, files, name, expected):
    folder = tmp_path / name
    folder.mkdir()
    for file, text in files.items():
        (folder / file).write_text(text)
    assert speaks_llama2(str(folder))[0] is expected


def test_folders_above_do_not_make_a_chat_model(tmp_path, monkeypatch):
    (tmp_path / "chat" / "base").mkdir(parents=True)
    assert not speaks_llama2(str(tmp_path / "chat" / "base"))[0]
    assert speaks_llama2("runs/my_chat.yaml")[0]
    monkeypatch.chdir(tmp_path / "chat")
    assert speaks_llama2(".")[0]
    (tmp_path / "chat" / "tokenizer_config.json").write_text("[")
    with pytest.raises(DataError, match=r"tokenizer_config.json cannot be read"):
        speaks_llama2(".")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--greedy", "--temperature", "0.5", "--seed", "1"], "--greedy draws nothing.*--temperature, --seed"),
        (["--temperature", "0"], "temperature 0.0 is not allowed"),
        (["--top_p", "1.5"], "top_p 1.5 is not allowed"),
        (["--top_k", "-1"], "top_k -1 is not allowed"),
        (["--seed", "-1"], "seed -1 is not allowed"),
        (["--max_new_tokens", "0"], "max_new_tokens 0 is not allowed"),
        (["--system", "x"], "--system needs the chat format"),
    ],
)
def test_options_that_make_no_sense(words, message):
    with pytest.raises(ConfigError, match=message):
        main(["chat", "run_llama2_tiny", *words])
