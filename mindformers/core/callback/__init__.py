# SPDX-License-Identifier: Apache-2.0
"""Callbacks of training runs; importing the package registers them."""

from mindformers.core.callback.checkpoint_monitor import CheckpointMointor, CheckpointMonitor
from mindformers.core.callback.eval_callback import EvalCallBack
from mindformers.core.callback.loss_monitor import MFLossMonitor
from mindformers.core.callback.other_monitors import ObsMonitor, ProfileMonitor, SummaryMonitor
from mindformers.core.callback.stop_monitor import StopMonitor

__all__ = [
    "CheckpointMointor",
    "CheckpointMonitor",
    "EvalCallBack",
    "MFLossMonitor",
    "ObsMonitor",
    "ProfileMonitor",
    "StopMonitor",
    "SummaryMonitor",
]
