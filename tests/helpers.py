# SPDX-License-Identifier: Apache-2.0
"""Helpers shared by the tests."""

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


def shared_data(relative: str) -> Path:
    """Path of a file of real data beside the checkout, or skip the calling test with the reason.

    The folder is ``../shared/data`` next to the repository; MINDFORMERS_TEST_DATA names another one.
    """
    root = Path(os.environ.get("MINDFORMERS_TEST_DATA", REPO.parent / "shared" / "data"))
    path = root / relative
    if not path.exists():
        pytest.skip(f"real data not present: {path} (see tests/helpers.py)")
    return path
