# SPDX-License-Identifier: Apache-2.0
"""Every test runs on the CPU in graph mode, the mode of real runs, and without the network."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def _graph_mode_on_cpu() -> None:
    import mindspore as ms

    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.fixture(scope="session", autouse=True)
def _no_downloads() -> None:
    os.environ["MINDFORMERS_OFFLINE"] = "1"
