# SPDX-License-Identifier: Apache-2.0
"""``python -m mindformers chat MODEL``: talk to a model in a terminal, or through a pipe.

Replies go to stdout; everything else (notes, speed, errors) goes to stderr.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from mindformers.checkpoint.download import OFFLINE_VARIABLES
from mindformers.commands import Command
from mindformers.commands.chat_model import speaks_llama2
from mindformers.commands.interrupts import Interrupts
from mindformers.errors import ConfigError, DataError
from mindformers.tools.utils import did_you_mean

HELP = """/reset         begin a new conversation
/system TEXT   set the system prompt of a chat model; /system shows it, /system - removes it
/exit          leave (also Ctrl-D)
/help          this text
Ctrl-C         stop the reply; once more at the prompt: leave"""
CONTINUES = "An empty line lets the model go on; what it writes and what you write is one text until /reset."

_COMMANDS = ("/reset", "/system", "/exit", "/help")
# Meta's own example of a chat (example_chat_completion.py of its reference code) draws with these two.
_TEMPERATURE, _TOP_P = 0.6, 0.9
_TOP_K = 50


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``chat``."""
    parser.add_argument("model", metavar="MODEL", help="name, YAML, output folder of a run, or Hugging Face folder")
    parser.add_argument("--load_checkpoint", default="", metavar="PATH", help="weights in place of the model's own")
    parser.add_argument("--quantize", choices=("int8", "bfloat16"), help="keep the weights in fewer bits, on CPU")
    parser.add_argument("--chat", action=argparse.BooleanOptionalAction, help="use the Llama 2 chat format, or do not")
    parser.add_argument("--system", default="", metavar="TEXT", help="system prompt of a chat model")
    parser.add_argument("--max_new_tokens", type=int, default=512, metavar="N", help="longest reply (512)")
    parser.add_argument("--temperature", type=float, metavar="T", help=f"divides the logits ({_TEMPERATURE})")
    parser.add_argument("--top_p", type=float, metavar="P", help=f"draw among the likeliest of this share ({_TOP_P})")
    parser.add_argument("--top_k", type=int, metavar="K", help=f"draw among the K likeliest, 0 for all ({_TOP_K})")
    parser.add_argument("--seed", type=int, metavar="N", help="of the draws; the same words get the same replies")
    parser.add_argument("--greedy", action="store_true", help="always take the likeliest token")
    parser.add_argument("--device_target", choices=("Ascend", "GPU", "CPU"), help="default: what this machine has")
    parser.add_argument("--device_id", type=int, default=0, metavar="N", help="number of the device (0)")
    parser.add_argument("--offline", action="store_true", help="download nothing")


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``generate`` that stay the same for all replies.

    Raises:
        ConfigError: a value that is not allowed, or drawing options beside --greedy.
    """
    from mindformers.generation.generation_config import GenerationConfig

    drawing = {name: getattr(args, name) for name in ("temperature", "top_p", "top_k", "seed")}
    if args.greedy:
        given = [f"--{name}" for name, value in drawing.items() if value is not None]
        if given:
            raise ConfigError(
                f"--greedy draws nothing, so {', '.join(given)} would have no effect: give one or the other"
            )
        chosen: dict[str, Any] = {"do_sample": False}
    else:
        defaults = {"temperature": _TEMPERATURE, "top_p": _TOP_P, "top_k": _TOP_K}
        chosen = {"do_sample": True} | defaults
        chosen |= {name: value for name, value in drawing.items() if value is not None and name in defaults}
    GenerationConfig(max_new_tokens=args.max_new_tokens, **chosen)
    if args.seed is not None:
        GenerationConfig(seed=args.seed)
    return {"use_past": True, **chosen}


def chat(args: argparse.Namespace) -> int:
    """Load the model, then answer line after line until /exit, the end of stdin, or Ctrl-C at the prompt."""
    if args.offline:
        os.environ[OFFLINE_VARIABLES[0]] = "1"
    with Interrupts() as interrupts:  # before MindSpore is imported
        try:
            return _chat(args, interrupts)
        except BrokenPipeError:  # the reader of our stdout is gone, and nobody is left to be told
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1


def _chat(args: argparse.Namespace, interrupts: Interrupts) -> int:
    speaks, why = speaks_llama2(args.model) if args.chat is None else (args.chat, "as you said")
    if args.system and not speaks:
        raise ConfigError(f"--system needs the chat format: {args.model} continues text ({why})")
    with interrupts.held():
        chosen = settings(args)  # imports MindSpore
    terminal = sys.stdin.isatty()
    if "MINDFORMERS_LOG_LEVEL" not in os.environ:
        logging.getLogger("mindformers").setLevel(logging.WARNING)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="strict" if stream is sys.stdin and not terminal else "replace")
    note(f"loading {args.model}")
    replier = _replier(args, chosen, speaks)
    if terminal:
        how = "Llama 2 chat format" if speaks else "continues text"
        note(f"{how}: {why}. At most {replier.seq_length} tokens. /help lists the commands")
    return Repl(replier, interrupts, terminal).run()


def _replier(args: argparse.Namespace, chosen: dict[str, Any], speaks: bool) -> Any:
    from mindformers.commands.chat_model import load_partner
    from mindformers.commands.chat_reply import Replier
    from mindformers.core.context import default_device_target, init_context
    from mindformers.generation.conversation import Conversation

    target = args.device_target or default_device_target()
    init_context(context_config={"mode": 0, "device_target": target, "device_id": args.device_id})
    partner = load_partner(args.model, args.load_checkpoint, args.quantize)
    conversation = Conversation(partner.tokenizer, speaks, args.system)
    return Replier(partner, conversation, chosen, args.max_new_tokens, args.seed)


def note(text: str) -> None:
    """A line about the conversation, not of it; dim on a terminal."""
    print(f"\033[2m[{text}]\033[0m" if sys.stderr.isatty() else f"[{text}]", file=sys.stderr, flush=True)


class Repl:
    """Reads lines, obeys commands, shows replies.

    Args:
        replier: makes the replies.
        interrupts: what Ctrl-C does.
        terminal: a person types; False reads a pipe: no prompts, and Ctrl-C ends the program.
    """

    def __init__(self, replier: Any, interrupts: Interrupts, terminal: bool) -> None:
        self.replier = replier
        self.interrupts = interrupts
        self.terminal = terminal
        self.conversation = replier.conversation
        self.interrupted = False  # by Ctrl-C, and nothing was typed since
        if terminal:
            with suppress(ImportError):  # line editing and history, where Python has it
                import readline  # noqa: F401

    def run(self) -> int:
        """Until the end; returns the exit code."""
        for line in self._lines():
            if line.startswith("/"):
                if self._command(line):
                    return 0
            elif line.strip() or (self.conversation.turns and not self.conversation.chat and self.terminal):
                self._reply(line)
        return 0

    def _lines(self) -> Iterator[str]:
        if not self.terminal:
            try:
                while line := self.interrupts.reading(sys.stdin.readline):
                    yield line.rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise DataError(f"stdin is not UTF-8 text: {error}") from error
            return
        while True:
            try:
                line = self.interrupts.reading(lambda: input("> "))
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                if self.interrupted:
                    return
                self.interrupted = True
                note("Ctrl-C once more leaves; so do Ctrl-D and /exit")
                continue
            self.interrupted = False
            yield line

    def _command(self, line: str) -> bool:
        """Obey; True when it is time to leave."""
        word, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if word == "/exit":
            return True
        if word == "/help":
            print(HELP if self.conversation.chat else f"{HELP}\n{CONTINUES}", file=sys.stderr, flush=True)
        elif word == "/reset":
            self.replier.reset()
            note("a new conversation")
        elif word == "/system":
            self._system(rest)
        else:
            note(f"no command is called {word}.{did_you_mean(word, _COMMANDS, 'commands')}")
        return False

    def _system(self, text: str) -> None:
        if text:
            try:
                self.conversation.set_system("" if text == "-" else text)
            except DataError as error:
                note(str(error))
                return
        note(f"system prompt: {self.conversation.system or 'none'}")

    def _reply(self, line: str) -> None:
        """Show a reply, its speed, and why it ended when that was not the model's wish."""
        with self.interrupts.reply():
            try:
                outcome = self.replier.reply(line, note, lambda: self.interrupts.requested)
            except DataError as error:
                if not self.terminal:
                    raise
                note(str(error))
                return
        note(outcome.describe())
        if outcome.stopped:
            self.interrupted = True
            if not self.terminal:
                raise KeyboardInterrupt


CHAT = Command(arguments, chat)
