# SPDX-License-Identifier: Apache-2.0
"""The exceptions a user can meet, and the one place that turns them into an exit code."""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from mindformers.atomic import write_text


class MindFormersError(Exception):
    """Base of every error that is the user's to mend; the message says what was given, allowed, and what to do."""

    exit_code = 2


class ConfigError(MindFormersError, ValueError):
    """A YAML file, a command line flag or a config object holds something that is not allowed."""


class DataError(MindFormersError, ValueError):
    """A dataset, a text file or a tokenizer file cannot be used as asked."""


class CheckpointError(MindFormersError, ValueError):
    """A checkpoint is missing, damaged, or does not fit the model."""


class DeviceError(MindFormersError, RuntimeError):
    """The device asked for is absent, or cannot do what the config asks of it."""


class TrainingError(MindFormersError, RuntimeError):
    """A run had to stop: the loss became NaN or Inf, or a save failed."""

    exit_code = 1


class RunStopped(KeyboardInterrupt):
    """A training run ended early because a signal asked for it; the message says what is saved."""


def run_cli(main: Callable[[], int | None]) -> NoReturn:
    """Run a command line entry point and leave the process with its exit code.

    Args:
        main: the command; it returns an exit code, or None for success.

    A :class:`MindFormersError` is printed as ``error: ...`` on stderr without a traceback and exits with its
    ``exit_code``; Ctrl-C exits with 130, and a training run that it stopped says what is saved. Every other exception
    is a bug of ours and keeps its traceback. A launcher learns at once how the work ended, by the file it names in
    MINDFORMERS_OUTCOME_FILE: the process may take long to end when others wait for it, or crash when it leaves them.
    """
    try:
        code = main()
    except MindFormersError as error:
        _tell_launcher(error.exit_code, error)
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    except Exception as error:
        _tell_launcher(1, error)
        raise
    _tell_launcher(code or 0)
    sys.exit(code or 0)


def _tell_launcher(exit_code: int, error: Exception | None = None) -> None:
    """Write time, exit code and message to the file of MINDFORMERS_OUTCOME_FILE, if a launcher named one."""
    path = os.environ.get("MINDFORMERS_OUTCOME_FILE")
    if not path:
        return
    record = {"time": time.time(), "exit_code": exit_code}
    if error is not None:
        record["error"] = f"{type(error).__name__}: {error}"
    try:
        write_text(path, json.dumps(record))
    except OSError as failure:  # an error itself still has to be shown
        print(f"note: {path} could not be written: {failure}", file=sys.stderr)
