# SPDX-License-Identifier: Apache-2.0
"""Two pipeline stages of a Llama in two processes, with a sum over both in the place of Send and Receive.

``python -m tests.parallel.two_stages FILE``: each rank writes its loss and gradients to FILE.rank_N.npz. A CPU has no
kernels for Send and Receive. In the sum the receiver takes part with zeros, so it gets what the sender has; going back,
the sender's own gradient is zero, because its loss is multiplied with zeros, and it gets the receiver's.
"""

import sys
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, communication, nn, ops

from mindformers.config.schema.parallel import layer_stages
from mindformers.errors import run_cli
from mindformers.models.llama.llama import LlamaForCausalLM
from tests.parity.llama_cases import fill, tiny_config

LAYERS, MICRO_BATCHES, OFFSET = 3, 2, 1


def make_network() -> LlamaForCausalLM:
    """The whole model with formula weights."""
    network = LlamaForCausalLM(tiny_config("gqa", num_layers=LAYERS))
    fill(network)
    return network


class Stage(nn.Cell):
    """A part of the network, and the sum that stands for Send and Receive."""

    def __init__(self, network: LlamaForCausalLM) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.exchange = ops.AllReduce()


class FirstStage(Stage):
    """Embedding and the first layers."""

    def construct(self, ids: Tensor, labels: Tensor, zeros: Tensor) -> Tensor:
        """A scalar that is zero; labels are not looked at."""
        b, length = ids.shape
        hidden = self.network._hidden(self.network.cut(ids, (0, 0), (b, length - 1)), None, None, None)
        sent = self.exchange(hidden + zeros)
        return ops.reduce_sum(sent * sent * zeros)


class LastStage(Stage):
    """The other layers, norm, head and loss."""

    def construct(self, ids: Tensor, labels: Tensor, zeros: Tensor) -> Tensor:
        """The summed loss."""
        b, length = ids.shape
        received = ops.reshape(self.exchange(zeros), (b, length - 1, -1))
        tokens = self.network.cut(ids, (0, 0), (b, length - 1))
        hidden = self.network._hidden(tokens, None, None, received)
        targets, mask = self.network._targets(ids, labels)
        return self.network.loss.total(self.network._logits(hidden), targets, mask)


def stage_of(network: LlamaForCausalLM, rank: int) -> tuple[nn.Cell, Sequence[ms.Parameter]]:
    """This rank's stage and its parameters."""
    model = network.model
    places = layer_stages(LAYERS, 2, OFFSET)
    mine = [layer for layer, place in zip(model.layers, places, strict=True) if place == rank]
    model.layers = nn.CellList(mine, auto_prefix=False)
    if rank == 0:
        model.norm_out = nn.Identity()
        return FirstStage(network), [*model.tok_embeddings.get_parameters(), *model.layers.get_parameters()]
    ends = (*model.norm_out.get_parameters(), *network.lm_head.get_parameters())
    return LastStage(network), [*model.layers.get_parameters(), *ends]


def main(file: str, ids: np.ndarray, labels: np.ndarray) -> None:
    """All micro batches through both stages; gradients are added up."""
    ms.set_context(mode=ms.GRAPH_MODE)
    communication.init()
    rank = communication.get_rank()
    network = make_network()
    names = {id(parameter): parameter.name for parameter in network.get_parameters()}
    stage, parameters = stage_of(network, rank)
    step = ms.value_and_grad(stage, 2, ParameterTuple(parameters))
    total, sums = 0.0, {names[id(parameter)]: 0.0 for parameter in parameters}
    rows = len(ids) // MICRO_BATCHES
    zeros = Tensor(np.zeros((rows * (ids.shape[1] - 1), network.config.hidden_size), np.float32))
    for first in range(0, len(ids), rows):
        part = (Tensor(column[first : first + rows], ms.int32) for column in (ids, labels))
        loss, (_, gradients) = step(*part, zeros)
        total += float(loss.asnumpy())
        for name, gradient in zip(sums, gradients, strict=True):
            sums[name] = sums[name] + gradient.asnumpy()
    np.savez(f"{file}.rank_{rank}.npz", total=total, **sums)


if __name__ == "__main__":
    from tests.unit.wrapper.test_train_step import batches

    run_cli(lambda: main(sys.argv[1], *batches()))
