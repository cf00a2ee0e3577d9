# SPDX-License-Identifier: Apache-2.0
"""Every test runs on the CPU in graph mode, the mode of real runs, and without the network.

MindSpore's own kernels are the reference: tests that mean the native ones switch them on, and the commands of the
documents run as a user's would (tests/docs).
"""

import os

import pytest

os.environ.setdefault("MINDFORMERS_NATIVE", "0")


@pytest.fixture(scope="session", autouse=True)
def _graph_mode_on_cpu() -> None:
    import mindspore as ms

    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.fixture(scope="session", autouse=True)
def _no_downloads() -> None:
    os.environ["MINDFORMERS_OFFLINE"] = "1"
