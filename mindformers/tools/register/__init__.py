# SPDX-License-Identifier: Apache-2.0
"""Import path of the old library for the registry and the attribute-style config."""

from mindformers.config import ActionDict, MindFormerConfig
from mindformers.registry import MindFormerModuleType, MindFormerRegister

__all__ = ["ActionDict", "MindFormerConfig", "MindFormerModuleType", "MindFormerRegister"]
