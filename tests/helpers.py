# SPDX-License-Identifier: Apache-2.0
"""Helpers shared by the tests."""

import os
import socket
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """A port of 127.0.0.1 nobody listens on, with the next one free as well."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = first.getsockname()[1]
            try:
                socket.create_server(("127.0.0.1", port + 1)).close()
            except (OSError, OverflowError):
                continue
        return port


def shared_data(relative: str) -> Path:
    """Path of a file of real data beside the checkout, or skip the calling test with the reason.

    The folder is ``../shared/data`` next to the repository; MINDFORMERS_TEST_DATA names another one.
    """
    root = Path(os.environ.get("MINDFORMERS_TEST_DATA", REPO.parent / "shared" / "data"))
    path = root / relative
    if not path.exists():
        pytest.skip(f"real data not present: {path} (see tests/helpers.py)")
    return path
