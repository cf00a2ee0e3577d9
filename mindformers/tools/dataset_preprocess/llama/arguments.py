# SPDX-License-Identifier: Apache-2.0
"""What the command lines of the preprocessing commands share."""

import argparse
from typing import Any

from mindformers.errors import ConfigError
from mindformers.tools.utils import str2bool

__all__ = ["boolean", "positive", "terminated"]


def positive(text: str) -> int:
    """A whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return value


def boolean(text: str) -> bool:
    """True or False, in any case."""
    try:
        return str2bool(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def terminated(*_: Any) -> None:
    """Handler of SIGTERM: lets half-written files be removed."""
    raise SystemExit(143)
