# SPDX-License-Identifier: Apache-2.0
"""LlamaConfig: the model section of a YAML as an object, with the sizes that follow from it."""

from pydantic import PrivateAttr

from mindformers.config.schema.model import LlamaModelConfig
from mindformers.models.base_config import BaseConfig
from mindformers.registry import MindFormerModuleType, MindFormerRegister


@MindFormerRegister.register(MindFormerModuleType.CONFIG)
class LlamaConfig(LlamaModelConfig, BaseConfig):
    """Everything that fixes a Llama's shape, numerics and generation defaults.

    The fields are those of the YAML's ``model.model_config``, documented in docs/config.md; they stay mutable, each
    assignment is checked, and :meth:`check` checks them together when a model is built.
    """

    _architecture: str = PrivateAttr("LlamaForCausalLM")

    @property
    def architecture(self) -> str:
        """Registered name of the class of model that belongs to this config (``model.arch.type`` of a YAML)."""
        return self._architecture

    @architecture.setter
    def architecture(self, name: str) -> None:
        self._architecture = name

    @property
    def head_dim(self) -> int:
        """Features per head, D."""
        return self.hidden_size // self.num_heads
