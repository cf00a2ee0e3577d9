# SPDX-License-Identifier: Apache-2.0
"""Logging for the whole library: one format, one handler, no output at import."""

import logging
import os
import sys

_ROOT = "mindformers"
_FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"


def get_logger(name: str = _ROOT) -> logging.Logger:
    """A standard logger below ``mindformers``; its level comes from MINDFORMERS_LOG_LEVEL (default INFO).

    Args:
        name: usually ``__name__``; a name outside the package is put below it.
    """
    root = logging.getLogger(_ROOT)
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(_FORMAT))
        root.addHandler(handler)
        root.setLevel(os.environ.get("MINDFORMERS_LOG_LEVEL", "INFO").upper())
        root.propagate = False
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


logger = get_logger()
