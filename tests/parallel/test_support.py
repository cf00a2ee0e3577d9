# SPDX-License-Identifier: Apache-2.0
"""What semi-auto parallel on CPU leans on is checked before it is touched."""

import mindspore
import pytest

from mindformers.errors import DeviceError
from mindformers.simulate import cpu_auto_parallel


@pytest.mark.parametrize("enable", [cpu_auto_parallel.enable_run, lambda: cpu_auto_parallel.enable_simulation(8, 0)])
def test_another_mindspore_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch, enable) -> None:
    monkeypatch.setattr(mindspore, "__version__", "2.11.0")
    monkeypatch.setattr(cpu_auto_parallel, "_hook_comm_manager", lambda *_: pytest.fail("memory was touched"))
    with pytest.raises(DeviceError, match=r"needs MindSpore 2.10.0 .* found MindSpore 2.11.0 .*parallel_mode to 0"):
        enable()


def test_one_process_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cpu_auto_parallel._state, "simulation", 3)
    with pytest.raises(DeviceError, match="each rank in a process of its own"):
        cpu_auto_parallel.enable_simulation(8, 4)
