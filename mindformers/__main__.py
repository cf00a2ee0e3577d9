# SPDX-License-Identifier: Apache-2.0
"""``python -m mindformers COMMAND``: list, check, show and copy configs; see --help."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mindformers.config import RunConfig, load_config
from mindformers.config.files import shipped_configs
from mindformers.config.save import to_yaml, write_text
from mindformers.config.yaml_text import read_text
from mindformers.errors import ConfigError, run_cli
from mindformers.tools.utils import did_you_mean


@dataclass(frozen=True)
class Command:
    """One sub-command.

    Args:
        name: as it is typed.
        meaning: for ``--help``.
        arguments: adds its arguments to a parser.
        run: does it; returns the exit code.
    """

    name: str
    meaning: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def _size(number: int) -> str:
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.1f}M"


def _purpose(path: Path) -> str:
    """The second comment line of a shipped file says what it is for."""
    comments = [line[1:].strip() for line in read_text(path).splitlines() if line.startswith("#")]
    return comments[1] if len(comments) > 1 else ""


def _ls(args: argparse.Namespace) -> int:
    rows = [("NAME", "PARAMS", "DEVICES", "RUN_MODE", "FOR")]
    for name, path in shipped_configs().items():
        config = load_config(path)
        ranks = config.parallel_config.ranks if config.use_parallel else 1
        devices = f"{ranks} {config.context.device_target}"
        rows.append((name, _size(config.model.config.num_parameters), devices, config.run_mode, _purpose(path)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip())
    return 0


def _validate(args: argparse.Namespace) -> int:
    failed = 0
    for file in args.files:
        try:
            config = load_config(file)
        except ConfigError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
        else:
            print(f"OK {file}")
            for warning in config.warnings:
                print(f"warning: {warning}", file=sys.stderr)
    return 2 if failed else 0


def _differences(config: RunConfig) -> dict:
    """The keys of a config that are not at the schema's default."""

    def differing(values: dict, defaults: dict) -> dict:
        result = {}
        for key, value in values.items():
            if isinstance(value, dict) and isinstance(defaults.get(key), dict):
                below = differing(value, defaults[key])
                if below and "type" in value:  # a component is not readable without its type
                    below = {"type": value["type"]} | below
                result |= {key: below} if below else {}
            elif key not in defaults or value != defaults[key]:
                result[key] = value
        return result

    return differing(config.to_dict(), RunConfig().to_dict())


def _show(args: argparse.Namespace) -> int:
    config = load_config(args.file, args.options or ())
    sys.stdout.write(to_yaml(_differences(config) if args.diff else config.to_dict()))
    return 0


def _cp(args: argparse.Namespace) -> int:
    names = shipped_configs()
    if args.name not in names and not Path(args.name).is_file():
        raise ConfigError(f"no config is called {args.name!r}.{did_you_mean(args.name, names)}")
    destination = Path(args.dest)
    if destination.is_dir():
        destination /= Path(args.name).stem + ".yaml"
    if destination.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{destination}: the copy must end in .yaml")
    if destination.exists() and not args.force:
        raise ConfigError(f"{destination} exists; --force overwrites it")
    text = to_yaml(load_config(args.name).to_dict())
    write_text(
        f"# A copy of {Path(args.name).stem} with every key; what the keys mean: docs/config.md\n{text}", destination
    )
    print(destination)
    return 0


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a YAML file, or a shipped name")
    parser.add_argument("--diff", action="store_true", help="only what differs from the defaults")
    parser.add_argument("--options", nargs="+", metavar="KEY=VALUE", help="changes to apply first")


def _cp_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a shipped name, or a YAML file")
    parser.add_argument("dest", metavar="DEST", help="the new file, or a folder")
    parser.add_argument("--force", action="store_true", help="overwrite")


COMMANDS: tuple[Command, ...] = (
    Command("ls", "list the shipped configs", lambda parser: None, _ls),
    Command(
        "validate",
        "check YAML files; exit code 2 when one has a problem",
        lambda parser: parser.add_argument("files", nargs="+", metavar="FILE") and None,
        _validate,
    ),
    Command("show", "print a config with everything it inherits", _show_arguments, _show),
    Command("cp", "copy a config, complete, to a file of your own", _cp_arguments, _cp),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command.

    Args:
        argv: the words after the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="mindformers", description="Llama 2 for MindSpore: configs.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = commands.add_parser(command.name, help=command.meaning, description=command.meaning)
        command.arguments(sub)
        sub.set_defaults(run=command.run)
    args = parser.parse_args(argv)
    return args.run(args)


def cli() -> NoReturn:
    """Entry point of the console script."""
    run_cli(main)


if __name__ == "__main__":
    cli()
