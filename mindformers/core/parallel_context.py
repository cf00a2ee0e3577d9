# SPDX-License-Identifier: Apache-2.0
"""Semi-auto and auto parallel, where the compiler splits one network over the ranks: settings and state."""

from collections.abc import Mapping
from typing import Any

import mindspore as ms

from mindformers.errors import ConfigError, DeviceError
from mindformers.simulate.cpu_auto_parallel import enable_run, require_support

SPLITTING_MODES = ("semi_auto_parallel", "auto_parallel")


def check_settings(settings: Mapping[str, Any], target: str) -> None:
    """Refuse what cannot run, before any process waits for the others.

    Args:
        settings: arguments of MindSpore's parallel context.
        target: device target.

    Raises:
        ConfigError: gradients would be averaged although the loss is a mean already.
        DeviceError: the device cannot execute the layout.
    """
    if settings["parallel_mode"] not in SPLITTING_MODES:
        return
    if settings.get("gradients_mean"):
        raise ConfigError(
            "parallel.gradients_mean is True, but in semi-auto and auto parallel the loss is a mean over all ranks "
            "already, and the gradients would be divided once more: set it to False"
        )
    if target == "CPU":
        require_support()
        if (settings.get("pipeline_stages") or 1) > 1:
            raise DeviceError(
                "pipeline stages cannot run on CPU, which has no Send and Receive: set parallel_config.pipeline_stage "
                "to 1, or compile and measure the layout with python -m mindformers plan"
            )


def prepare_device(settings: Mapping[str, Any], target: str) -> None:
    """Make the device take split graphs; after the processes are connected."""
    if target == "CPU" and settings["parallel_mode"] in SPLITTING_MODES:
        enable_run()


def is_split() -> bool:
    """Whether networks compiled now are split over ranks by the compiler."""
    return ms.get_auto_parallel_context("parallel_mode") in SPLITTING_MODES


def stage_ranks() -> int:
    """Ranks of one pipeline stage."""
    return ms.get_auto_parallel_context("device_num") // ms.get_auto_parallel_context("pipeline_stages")
