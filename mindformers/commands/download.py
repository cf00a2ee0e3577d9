# SPDX-License-Identifier: Apache-2.0
"""``python -m mindformers download NAME``: the published files of a model, before they are needed."""

import argparse
import sys

from mindformers.checkpoint.download import KINDS, fetch
from mindformers.commands import Command
from mindformers.errors import CheckpointError
from mindformers.model_zoo import MODELS


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``download``."""
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(MODELS)}")
    parser.add_argument("--kind", choices=KINDS, help="only this file; default: both")
    parser.add_argument("--offline", action="store_true", help="only look whether the files are there")


def download(args: argparse.Namespace) -> int:
    """Print the path of each file on stdout; 2 when one is missing."""
    failed = False
    for kind in (args.kind,) if args.kind else reversed(KINDS):  # the small file first
        try:
            print(fetch(args.name, kind, offline=args.offline or None), flush=True)
        except CheckpointError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
    return 2 if failed else 0


DOWNLOAD = Command(arguments, download)
