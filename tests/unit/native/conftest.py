# SPDX-License-Identifier: Apache-2.0
"""The native library, built once for the tests of this folder; they skip where there is no compiler."""

import fcntl
import os
import tempfile
from pathlib import Path

import pytest

from mindformers.native import build, library


def ensure_library() -> None:
    """Build the library unless an up-to-date one lies where it is looked for; one process builds, others wait."""
    if build.find_compiler() is None:
        pytest.skip("no C++ compiler (CXX, c++, g++, clang++): the native kernels cannot be built")
    lock = Path(tempfile.gettempdir(), f"mindformers-native-{os.getuid()}.lock")
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if library.load() is None:
            build.build()
            library.forget()
    assert library.load() is not None, library.problem()


@pytest.fixture(scope="session")
def native_library():
    """The loaded library."""
    ensure_library()
    return library.load()


@pytest.fixture
def native_on(native_library, monkeypatch):
    """Models built in the test use the native kernels."""
    monkeypatch.setenv(library.ENVIRONMENT, "1")
    return native_library
