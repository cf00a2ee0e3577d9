# SPDX-License-Identifier: Apache-2.0
"""Helpers that scripts import from here."""

from mindformers.checkpoint.load import get_last_checkpoint
from mindformers.core.context import set_seed

__all__ = ["get_last_checkpoint", "set_seed"]
