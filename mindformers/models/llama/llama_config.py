# SPDX-License-Identifier: Apache-2.0
"""LlamaConfig: the model section of a YAML as an object, with the sizes that follow from it."""

from mindformers.config.schema.model import LlamaModelConfig
from mindformers.registry import MindFormerModuleType, MindFormerRegister


@MindFormerRegister.register(MindFormerModuleType.CONFIG)
class LlamaConfig(LlamaModelConfig):
    """Everything that fixes a Llama's shape, numerics and generation defaults.

    The fields are those of the YAML's ``model.model_config``, documented in docs/config.md; they stay mutable, each
    assignment is checked, and :meth:`check` checks them together when a model is built.
    """

    @property
    def head_dim(self) -> int:
        """Features per head, D."""
        return self.hidden_size // self.num_heads
