# SPDX-License-Identifier: Apache-2.0
"""``python -m mindformers COMMAND``; --help lists the commands."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from mindformers.commands import TABLE, load_command
from mindformers.errors import run_cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command.

    Args:
        argv: the words after the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="mindformers", description="Llama 2 for MindSpore.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (meaning, _, _) in TABLE.items():
        sub = commands.add_parser(name, help=meaning, description=meaning)
        if name in words[:1]:  # the others' modules need not be imported
            command = load_command(name)
            command.arguments(sub)
            sub.set_defaults(run=command.run)
    args = parser.parse_args(words)
    return args.run(args)


def cli() -> NoReturn:
    """Entry point of the console script."""
    run_cli(main)


if __name__ == "__main__":
    cli()
