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
    def num_kv_heads(self) -> int:
        """Key/value heads, K."""
        return self.n_kv_heads or self.num_heads

    @property
    def head_dim(self) -> int:
        """Features per head, D."""
        return self.hidden_size // self.num_heads

    @property
    def ffn_size(self) -> int:
        """Width of the feed-forward layer, F.

        ``intermediate_size`` when given, else two thirds of 4H, times ``ffn_dim_multiplier``, rounded up to
        ``multiple_of``. The multiplier gets 0.01 more and is applied first, as the old library did: with the 70B
        model's 1.3 and 256 that lands on Meta's 28672.
        """
        if self.intermediate_size:
            return self.intermediate_size
        size = 4 * self.hidden_size
        if self.ffn_dim_multiplier is not None:
            size = int((self.ffn_dim_multiplier + 0.01) * size)
        size = int(2 * size / 3)
        return -(-size // self.multiple_of) * self.multiple_of
