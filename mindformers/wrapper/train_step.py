# SPDX-License-Identifier: Apache-2.0
"""One training step: forward, backward, gradient accumulation, clipping, loss scale, update."""

from typing import Any

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from mindformers.core.clip_grad import global_norm
from mindformers.core.optim import fp32_state
from mindformers.core.parallel_context import is_split
from mindformers.registry import MindFormerModuleType, MindFormerRegister
from mindformers.wrapper.split_norm import SplitGlobalNorm

# A hyper map over the gradients compiles in a fraction of the time of an unrolled loop.
_scale = ops.MultitypeFuncGraph("scale_gradient")
_store = ops.MultitypeFuncGraph("store_gradient")
_add = ops.MultitypeFuncGraph("add_gradient")


@_scale.register("Tensor", "Tensor")
def _scaled(factor: Tensor, gradient: Tensor) -> Tensor:
    return gradient * ops.cast(factor, gradient.dtype)


@_store.register("Tensor", "Tensor")
def _stored(accumulated: Parameter, gradient: Tensor) -> Tensor:
    return ops.assign(accumulated, ops.cast(gradient, ms.float32))


@_add.register("Tensor", "Tensor")
def _added(accumulated: Parameter, gradient: Tensor) -> Tensor:
    return ops.assign_add(accumulated, ops.cast(gradient, ms.float32))


@MindFormerRegister.register(MindFormerModuleType.WRAPPER, alias="mf_wrapper")
class MFTrainOneStepCell(nn.Cell):
    """Runs one (micro) step of training.

    Args:
        network: a cell with ``loss_and_count(*columns)``, the summed loss and the number of label tokens of a batch.
            Without accumulation and reducer a cell whose construct gives the scalar loss will do.
        optimizer: a MindSpore optimizer over the network's trainable parameters.
        use_clip_grad: scale the gradients down to ``max_grad_norm`` when their global norm exceeds it.
        max_grad_norm: the bound.
        scale_sense: loss scale: a number, or a MindSpore cell such as DynamicLossScaleUpdateCell that adapts it.
        accumulation: micro steps per update. The update uses the gradient of (sum of the losses of all label
            tokens) / (their number), so how a batch is cut into micro batches does not change the result.
        reducer: sums gradients over the ranks of a data parallel job, see ``core.distributed.DataParallelReducer``;
            None in one process and where the compiler does it. Loss and update are those of the batch of all ranks.
        gather: makes whole batches of the parts that the ranks of a split network are given, see
            ``core.distributed.GatherBatch``; None when they are given whole ones.

    Outputs of a call: (loss, overflow, loss_scale, learning_rate, grad_norm), scalars. ``loss`` is that of the whole
    accumulated batch at its last micro step and of the batch so far before; ``grad_norm`` is measured before
    clipping and 0 inside an accumulation. A gradient that is not finite skips the update and sets ``overflow``.
    """

    def __init__(
        self,
        network: nn.Cell,
        optimizer: nn.Optimizer,
        use_clip_grad: bool = False,
        max_grad_norm: float = 1.0,
        scale_sense: Any = 1.0,
        accumulation: int = 1,
        reducer: nn.Cell | None = None,
        gather: nn.Cell | None = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.gather = gather
        self.network.set_grad()
        self.optimizer = optimizer
        self.weights = optimizer.parameters
        self.hyper_map = ops.HyperMap()
        self.split_norm = SplitGlobalNorm(self.weights) if is_split() else None
        self.use_clip_grad = use_clip_grad
        self.max_grad_norm = float(max_grad_norm)
        self.accumulation = accumulation
        self.reducer = reducer
        self.ranks = 1 if reducer is None else reducer.ranks
        self.counts_labels = hasattr(network, "loss_and_count")
        self.dynamic_scale = scale_sense if isinstance(scale_sense, nn.Cell) else None
        self.dropout_step = getattr(network, "dropout_step", None)  # passes so far, see pet/dropout.py
        self.one_pass = Tensor([1], ms.int32)
        start = self.dynamic_scale.get_loss_scale() if self.dynamic_scale else float(scale_sense)
        self.scale_sense = Parameter(Tensor(start, ms.float32), name="scale_sense", requires_grad=False)
        if accumulation == 1 and reducer is None:
            self.grad_fn = ms.value_and_grad(self._scaled_loss, None, self.weights)
        elif self.split_norm is not None:
            self.grad_fn = ms.value_and_grad(self._scaled_total_alone, None, self.weights)
        else:
            self.grad_fn = ms.value_and_grad(self._scaled_total, None, self.weights, has_aux=True)
        if accumulation > 1:
            self._make_accumulators()

    def _make_accumulators(self) -> None:
        # not "accu_grads": MindSpore keeps what bears that name whole while the gradients are slices
        self.accu_grads = fp32_state(self.weights, "accu_sum", requires_grad=False)
        self.accu_loss = Parameter(Tensor(0.0, ms.float32), name="accu_loss", requires_grad=False)
        self.accu_tokens = Parameter(Tensor(0.0, ms.float32), name="accu_tokens", requires_grad=False)
        self.accu_step = Parameter(Tensor(0, ms.int32), name="accu_step", requires_grad=False)

    def _whole(self, batch: tuple) -> tuple:
        return batch if self.gather is None else self.gather(*batch)

    def _scaled_loss(self, scale: Tensor, *batch: Tensor) -> Tensor:
        if self.counts_labels:
            total, count = self.network.loss_and_count(*batch)
            return total / ops.maximum(count, Tensor(1.0, ms.float32)) * scale
        return self.network(*batch) * scale

    def _scaled_total(self, scale: Tensor, *batch: Tensor) -> tuple:
        total, count = self.network.loss_and_count(*batch)
        # divided by the batch's capacity only to keep scaled gradients in the range a mean loss would have
        return total * scale / self._capacity(batch), count

    def _capacity(self, batch: tuple) -> int:
        return batch[0].size * self.ranks

    def _scaled_total_alone(self, scale: Tensor, *batch: Tensor) -> Tensor:
        # MindSpore divides the loss by the ranks that repeat it only where it is the one output
        return self._scaled_total(scale, *batch)[0]

    def _gradients_of_total(self, batch: tuple, scale: Tensor) -> tuple:
        if self.split_norm is None:
            return self.grad_fn(scale, *batch)
        scaled, grads = self.grad_fn(scale, *batch)
        return (scaled, self.network.num_label_tokens(*batch)), grads

    def construct(self, *batch: Tensor) -> tuple:
        """One micro step on the columns of a batch, in the order in which the network takes them."""
        batch = self._whole(batch)
        if self.accumulation == 1 and self.reducer is not None:
            return self._reduce(batch)
        if self.accumulation == 1:
            scale = self.scale_sense.value()
            scaled, grads = self.grad_fn(scale, *batch)
            loss = self._count_pass(scaled / scale, grads)
            overflow, norm, lr = self._update(grads, 1.0 / scale)
            return loss, overflow, scale, lr, norm
        return self._accumulate(batch)

    def _reduce(self, batch: tuple) -> tuple:
        scale = self.scale_sense.value()
        (scaled, count), grads = self.grad_fn(scale, *batch)
        total = self._count_pass(scaled / scale * self._capacity(batch), grads)
        total, tokens = self.reducer.sums(total, count)
        safe_tokens = ops.maximum(tokens, Tensor(1.0, ms.float32))
        overflow, norm, lr = self._update(self.reducer(grads), self._capacity(batch) / (safe_tokens * scale))
        return total / safe_tokens, overflow, scale, lr, norm

    def _accumulate(self, batch: tuple) -> tuple:
        scale = self.scale_sense.value()
        (scaled, count), grads = self._gradients_of_total(batch, scale)
        total = self._count_pass(scaled / scale * self._capacity(batch), grads)
        if self.accu_step == 0:
            self.hyper_map(_store, self.accu_grads, grads)
            ops.assign(self.accu_loss, total)
            ops.assign(self.accu_tokens, count)
        else:
            self.hyper_map(_add, self.accu_grads, grads)
            ops.assign_add(self.accu_loss, total)
            ops.assign_add(self.accu_tokens, count)
        step = self.accu_step + 1
        loss_sum, tokens = self.accu_loss.value(), self.accu_tokens.value()
        safe_tokens = ops.maximum(tokens, Tensor(1.0, ms.float32))
        overflow, norm, lr = Tensor(False), Tensor(0.0, ms.float32), self.optimizer.get_lr()
        if step == self.accumulation:
            ops.assign(self.accu_step, Tensor(0, ms.int32))
            grads = self.accu_grads
            if self.reducer is not None:
                grads = self.reducer(grads)
                loss_sum, tokens = self.reducer.sums(loss_sum, tokens)
                safe_tokens = ops.maximum(tokens, Tensor(1.0, ms.float32))
            overflow, norm, lr = self._update(grads, self._capacity(batch) / (safe_tokens * scale))
        else:
            ops.assign(self.accu_step, step)
        return loss_sum / safe_tokens, overflow, scale, lr, norm

    def _count_pass(self, value: Tensor, grads: tuple) -> Tensor:
        """Advance the network's dropout, if it has one, when the gradients are there; gives ``value``."""
        if self.dropout_step is None:
            return value
        return ops.depend(value, ops.assign_add(self.dropout_step, ops.depend(self.one_pass, grads)))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile; afterwards it is known how the parameters are sliced over the ranks."""
        super().compile(*args, **kwargs)
        self.measure_slices()

    def measure_slices(self) -> None:
        """Tell the norm of the gradients how the compiled parameters are sliced; nothing to do in one process."""
        if self.split_norm is not None:
            self.split_norm.measure(self.weights)

    def _update(self, grads: tuple, factor: Tensor) -> tuple:
        """Apply ``grads * factor`` unless they are not finite; gives overflow, norm and learning rate."""
        norm = (global_norm(grads) if self.split_norm is None else self.split_norm(grads)) * factor
        overflow = ops.logical_not(ops.isfinite(norm))
        if self.use_clip_grad:
            factor = factor * self.max_grad_norm / ops.maximum(norm, Tensor(self.max_grad_norm, ms.float32))
        lr = self.optimizer.get_lr()
        if self.dynamic_scale is not None:
            self.dynamic_scale(self.scale_sense, overflow)
        if not overflow:
            done = self.optimizer(self.hyper_map(ops.partial(_scale, factor), grads))
            lr = ops.depend(lr, done)  # MindSpore can drop a branch that only writes parameters
        return overflow, norm, lr
