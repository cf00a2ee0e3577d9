# SPDX-License-Identifier: Apache-2.0
"""``python -m mindformers rank-table check FILE``: what a rank table says, or everything that is wrong with it."""

import argparse
import sys

from mindformers.commands import Command
from mindformers.errors import ConfigError
from mindformers.tools.rank_table import explain, launch_lines, read_table


def check(args: argparse.Namespace) -> int:
    """Explain each table; 2 when one has a problem."""
    failed = False
    for file in args.files:
        try:
            table = read_table(file)
        except ConfigError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
        else:
            print(f"OK {file}: {explain(table)}")
            for line in launch_lines(table, file):
                print(f"  launch {line}")
    return 2 if failed else 0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``rank-table``."""
    parser.add_argument("action", choices=["check"])
    parser.add_argument("files", nargs="+", metavar="FILE")


RANK_TABLE = Command(arguments, check)
