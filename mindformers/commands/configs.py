# SPDX-License-Identifier: Apache-2.0
"""``python -m mindformers ls | validate | show | cp``: the shipped configs and the user's own."""

import argparse
import sys
from pathlib import Path

from mindformers.commands import Command
from mindformers.config import RunConfig, load_config
from mindformers.config.files import shipped_configs
from mindformers.config.save import save_text, to_yaml
from mindformers.config.yaml_text import read_text
from mindformers.errors import ConfigError
from mindformers.tools.utils import did_you_mean


def _size(number: int) -> str:
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.1f}M"


def _purpose(path: Path) -> str:
    """The second comment line of a shipped file says what it is for."""
    comments = [line[1:].strip() for line in read_text(path).splitlines() if line.startswith("#")]
    return comments[1] if len(comments) > 1 else ""


def ls(args: argparse.Namespace) -> int:
    """Print a table of the shipped configs."""
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


def validate(args: argparse.Namespace) -> int:
    """Check each file; 2 when one has a problem."""
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


def show(args: argparse.Namespace) -> int:
    """Print a config with everything it inherits."""
    config = load_config(args.file, args.options or ())
    sys.stdout.write(to_yaml(_differences(config) if args.diff else config.to_dict()))
    return 0


def cp(args: argparse.Namespace) -> int:
    """Copy a config, complete, to a file of the user's own."""
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
    title = f"# A copy of {Path(args.name).stem} with every key; what the keys mean: docs/config.md"
    save_text(destination, f"{title}\n{text}")
    print(destination)
    return 0


def show_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``show``."""
    parser.add_argument("file", metavar="FILE", help="a YAML file, or a shipped name")
    parser.add_argument("--diff", action="store_true", help="only what differs from the defaults")
    parser.add_argument("--options", nargs="+", metavar="KEY=VALUE", help="changes to apply first")


def cp_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``cp``."""
    parser.add_argument("name", metavar="NAME", help="a shipped name, or a YAML file")
    parser.add_argument("dest", metavar="DEST", help="the new file, or a folder")
    parser.add_argument("--force", action="store_true", help="overwrite")


def validate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``validate``."""
    parser.add_argument("files", nargs="+", metavar="FILE")


LS = Command(lambda parser: None, ls)
VALIDATE = Command(validate_arguments, validate)
SHOW = Command(show_arguments, show)
CP = Command(cp_arguments, cp)
