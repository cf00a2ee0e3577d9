# SPDX-License-Identifier: Apache-2.0
"""The sub-commands of ``python -m mindformers``: one table; a module is imported when its command is called."""

import argparse
import importlib
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """What a module of this package offers for one sub-command.

    Args:
        arguments: adds its arguments to a parser.
        run: does it; returns the exit code.
    """

    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


# name -> (meaning for --help, module of this package, the Command in it)
TABLE: dict[str, tuple[str, str, str]] = {
    "ls": ("list the shipped configs", "configs", "LS"),
    "validate": ("check YAML files; exit code 2 when one has a problem", "configs", "VALIDATE"),
    "show": ("print a config with everything it inherits", "configs", "SHOW"),
    "serve": ("serve a model: OpenAI-compatible HTTP API and a chat page", "serve", "SERVE"),
    "chat": ("talk to a model in the terminal", "chat", "CHAT"),
    "download": ("bring the published files of a model, or say where they lie", "download", "DOWNLOAD"),
    "plan": ("compile a layout for a cluster on this machine; memory, communication, verdict", "plan", "PLAN"),
    "cp": ("copy a config, complete, to a file of your own", "configs", "CP"),
    "rank-table": ("explain rank tables; exit code 2 when one has a problem", "rank_table", "RANK_TABLE"),
    "native": ("build the native CPU kernels, or say what is used", "native", "NATIVE"),
    "eval": ("run tasks of lm-evaluation-harness on a model", "evaluate", "EVAL"),
}


def load_command(name: str) -> Command:
    """Import the module of a sub-command named in ``TABLE``."""
    _, module, attribute = TABLE[name]
    return getattr(importlib.import_module(f"mindformers.commands.{module}"), attribute)
