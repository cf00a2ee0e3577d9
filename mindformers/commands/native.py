# SPDX-License-Identifier: Apache-2.0
"""``python -m mindformers native``: build the native CPU kernels, or say what is there and what is used."""

import argparse
from pathlib import Path

from mindformers.commands import Command
from mindformers.errors import ConfigError


def native_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``native``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    make = actions.add_parser("build", help="compile the kernels with the C++ compiler of this machine")
    make.add_argument("--force", action="store_true", help="compile even when the library is up to date")
    make.add_argument("--output", metavar="FILE", help="library to write; default: beside the package, else your cache")
    make.add_argument("--jobs", type=int, metavar="N", help="compilers run at a time; default: one per core")
    actions.add_parser("info", help="compiler, library, CPU, oneDNN, threads, and whether the kernels are used")


def native(args: argparse.Namespace) -> int:
    """Carry out the action; 0 unless a build fails."""
    from mindformers.native import build, library

    if args.action == "info":
        for name, value in library.info().items():
            print(f"{name + ':':22}{value}")
        return 0
    if args.jobs is not None and args.jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, got {args.jobs}")
    if not args.force and not args.output and library.load() is not None:
        print(f"{library.library_path()} is up to date")
        return 0
    try:
        path = build.build(Path(args.output).resolve() if args.output else None, args.jobs)
    except build.BuildError as error:
        raise ConfigError(str(error)) from error
    print(f"built {path}")
    return 0


NATIVE = Command(native_arguments, native)
