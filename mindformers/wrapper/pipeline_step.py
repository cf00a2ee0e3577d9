# SPDX-License-Identifier: Apache-2.0
"""One training step of a network whose layers are divided into pipeline stages."""

from typing import Any

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.nn.wrap.cell_wrapper import _VirtualDatasetCell

from mindformers.core.parallel_context import is_split, stage_ranks
from mindformers.registry import MindFormerModuleType, MindFormerRegister
from mindformers.wrapper.train_step import MFTrainOneStepCell

# Element by element: MindSpore removes what belongs to other stages from the tuples, and a dependency on a whole tuple
# keeps their positions from being renumbered.
_accumulated = ops.MultitypeFuncGraph("accumulated_gradient")
_clear = ops.MultitypeFuncGraph("clear_gradient")


@_accumulated.register("Tensor", "Tensor")
def _after_all_micro_batches(accumulated: Parameter, gradient: Tensor) -> Tensor:
    return ops.depend(accumulated, gradient)


@_clear.register("Tensor", "Tensor")
def _cleared(updated: Tensor, accumulated: Parameter) -> Tensor:
    # |x| < -1 is False for every x, also for one that overflowed. What the compiler recognizes as zero (a tensor of
    # zeros, x < x) would become a constant of the graph, as large as all gradients together.
    value = ops.depend(accumulated, updated)
    return ops.assign(accumulated, ops.cast(ops.less(ops.abs(value), -1.0), accumulated.dtype))


class _SummedLoss(nn.Cell):
    """The network as a pipeline wants it: one scalar per micro batch, which may be added up."""

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, *batch: Tensor) -> Tensor:
        """Columns of a micro batch to the sum of the losses of its label tokens."""
        total, _ = self.network.loss_and_count(*batch)
        return total


@MindFormerRegister.register(MindFormerModuleType.WRAPPER, alias="pipeline_wrapper")
class MFPipelineWithLossScaleCell(MFTrainOneStepCell):
    """A step in which micro batches follow each other through the stages; the schedule is MindSpore's.

    Args:
        network: as for MFTrainOneStepCell; it has ``loss_and_count`` and ``num_label_tokens``.
        optimizer, use_clip_grad, max_grad_norm, scale_sense: as for MFTrainOneStepCell.
        micro_batch_num: parts the batch is cut into, at least the number of stages. With one stage they follow each
            other on one device, and the step is that of MFTrainOneStepCell.

    Outputs are those of MFTrainOneStepCell, the same on every stage. Gradients of the micro batches are added in
    ``accu_grads.<parameter>`` and belong to (sum of all losses) / (number of label tokens).
    """

    def __init__(
        self,
        network: nn.Cell,
        optimizer: nn.Optimizer,
        use_clip_grad: bool = False,
        max_grad_norm: float = 1.0,
        scale_sense: Any = 1.0,
        micro_batch_num: int = 1,
    ) -> None:
        super().__init__(network, optimizer, use_clip_grad, max_grad_norm, scale_sense)
        pipeline = nn.PipelineCell(_SummedLoss(network), micro_batch_num)
        # the virtual dataset marks where the pipeline's inputs begin; without it, where any use of them begins
        self.pipeline = _VirtualDatasetCell(pipeline) if is_split() else pipeline
        self.pipeline.set_grad()
        self.accu_grads = self.weights.clone(prefix="accu_grads", init="zeros")
        self.grad = ops.GradOperation(get_by_list=True, sens_param=True)
        stages = ms.get_auto_parallel_context("pipeline_stages")
        # otherwise the gradients of a pipeline are those of the last micro batch, and the sums are in accu_grads
        self.gradients_are_sums = stages == 1 or ms.get_auto_parallel_context("enable_parallel_optimizer")
        self.last_stage_share = Tensor(_share_of_loss(stages), ms.float32)
        self.all_reduce = ops.AllReduce() if stages > 1 else None

    def construct(self, *batch: Tensor) -> tuple:
        """One step on the columns of a batch, in the order of the network's construct."""
        scale = self.scale_sense.value()
        total = self.pipeline(*batch)
        # divided by the batch's capacity only to keep scaled gradients in the range a mean loss would have
        grads = self.grad(self.pipeline, self.weights)(*batch, scale / batch[0].size)
        total = self._count_pass(total, grads)
        tokens = ops.maximum(self.network.num_label_tokens(*batch), Tensor(1.0, ms.float32))
        used = grads if self.gradients_are_sums else self.hyper_map(_accumulated, self.accu_grads, grads)
        overflow, norm, lr = self._update(used, batch[0].size / (tokens * scale))
        cleared = self.hyper_map(ops.partial(_clear, ops.depend(lr, norm)), self.accu_grads)
        # after the norm, whose sum over all ranks is the end of the schedule: earlier, it could wait for a rank that
        # waits for a gradient from this one
        total = self._on_every_stage(ops.depend(total, norm))
        return ops.depend(total / tokens, cleared), overflow, scale, lr, norm

    def _on_every_stage(self, total: Tensor) -> Tensor:
        """The last stage's loss on all ranks; MindSpore puts zeros in its place elsewhere."""
        return total if self.all_reduce is None else self.all_reduce(total * self.last_stage_share)


def _share_of_loss(stages: int) -> float:
    """What the ranks' losses are multiplied with so that their sum is the loss: all ranks of the last stage have it."""
    rank = ms.get_auto_parallel_context("global_rank")
    return 1.0 / stage_ranks() if stages > 1 and rank // stage_ranks() == stages - 1 else 0.0
