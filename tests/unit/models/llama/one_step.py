# SPDX-License-Identifier: Apache-2.0
"""One training step of a tiny Llama, for its compiled graph: ``python -m tests.unit.models.llama.one_step CASE``.

MindSpore reads once in a process where graphs are written, hence a process for each case.
"""

import math
import sys

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindformers.core.optim import AdamW
from mindformers.models.llama.llama import LlamaForCausalLM
from mindformers.models.llama.llama_config import LlamaConfig
from mindformers.pet import LoraConfig, get_pet_model
from mindformers.wrapper import MFTrainOneStepCell

BATCH, LENGTH, HIDDEN, FEED_FORWARD = 2, 16, 32, 48


class BroadcastingNorm(nn.Cell):
    """RMSNorm as one would write it first, which this test is there to refuse."""

    def __init__(self, weight: Parameter) -> None:
        super().__init__()
        self.weight = weight
        self.mean = ops.ReduceMean(keep_dims=True)

    def construct(self, x: Tensor) -> Tensor:
        """(T, H) -> (T, H)."""
        return x * ops.rsqrt(self.mean(x * x, -1) + 1e-5) * self.weight


def make_network() -> LlamaForCausalLM:
    kinds = ("compute_dtype", "param_init_type", "layernorm_compute_type", "softmax_compute_type", "rotary_dtype")
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=HIDDEN, intermediate_size=FEED_FORWARD, num_layers=1, num_heads=4, n_kv_heads=2, vocab_size=96,
            seq_length=LENGTH, pretrain_seqlen=LENGTH, **dict.fromkeys(kinds, "float32"),
        )
    )  # fmt: skip


def main(case: str) -> None:
    """``full``; ``lora`` with dropout on packed records; or ``wrong``, with a norm that broadcasts."""
    ms.set_context(mode=ms.GRAPH_MODE)
    network = make_network()
    ids = np.random.default_rng(0).integers(3, 96, (BATCH, LENGTH + 1)).astype(np.int32)
    batch = [Tensor(ids)]
    if case == "lora":
        lora = LoraConfig(lora_rank=4, lora_alpha=8, lora_dropout=0.1, target_modules=".*w.*")
        network = get_pet_model(network, lora)
        batch += [Tensor(ids), Tensor((np.arange(LENGTH + 1) // 6).astype(np.int32)[None].repeat(BATCH, 0))]
    if case == "wrong":
        network.model.norm_out = BroadcastingNorm(network.model.norm_out.weight)
    optimizer = AdamW(network.trainable_params(), learning_rate=1e-3, weight_decay=0.1)
    step = MFTrainOneStepCell(network.set_train(), optimizer, use_clip_grad=True).set_train()
    loss = float(step(*batch)[0].asnumpy())
    assert math.isfinite(loss)


if __name__ == "__main__":
    main(sys.argv[1])
