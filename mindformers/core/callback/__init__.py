# SPDX-License-Identifier: Apache-2.0
"""Callbacks of training runs."""

from mindformers.core.callback.checkpoint_monitor import CheckpointMointor, CheckpointMonitor

__all__ = ["CheckpointMointor", "CheckpointMonitor"]
