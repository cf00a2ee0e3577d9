# SPDX-License-Identifier: Apache-2.0
"""AdamW with and without bias correction, moments always in fp32, one fused kernel call per parameter.

``ops.Adam`` computes ``var -= lr * sqrt(1 - b2p) / (1 - b1p) * m / (sqrt(v) + eps)`` in one pass over memory, several
times as fast on CPU as ``AdamWeightDecay``. Both optimizers here are that kernel with other scalars: beta powers of 0
switch its correction off, and an eps that is scaled along turns its "epsilon hat" form (Kingma and Ba 2015, end of
section 2) into PyTorch's. Decoupled decay (Loshchilov and Hutter 2019) is applied to the variable just before.

The graphs below are shaped by compile time: tuples of scalars built in ``construct`` and unrolled loops over the
parameters cost seconds per hundred parameters, ``hyper_map`` over ready tuples costs milliseconds.
"""

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import initializer

from mindformers.errors import ConfigError
from mindformers.registry import MindFormerModuleType, MindFormerRegister

__all__ = ["AdamW", "FP32StateAdamWeightDecay"]

_assign = ops.Assign()
_cast = ops.Cast()
_descend = ops.ApplyGradientDescent()  # var -= alpha * delta, in place

_scale_rate = ops.MultitypeFuncGraph("scale_rate")
_decay = ops.MultitypeFuncGraph("decay")
_adam_step = ops.MultitypeFuncGraph("adam_step")
_full_step = ops.MultitypeFuncGraph("full_step")


@_scale_rate.register("Tensor", "Tensor")
def _scaled(factor, lr):
    return lr * factor


@_decay.register("Tensor", "Tensor")
def _decayed(amount, param):
    """``param *= 1 - amount``."""
    _descend(param, amount, param)
    return True


@_adam_step.register(
    "Function", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Bool"
)
def _stepped_by_adam(kernel, zero, beta1, beta2, eps, step_lr, param, moment1, moment2, gradient, is_mine):
    """One step of one fp32 parameter whose decay is done. ``is_mine`` (updated by this rank) is a constant."""
    if is_mine:
        gradient = _cast(gradient, ms.float32)
        kernel(param, moment1, moment2, zero, zero, step_lr, beta1, beta2, eps, gradient)
    return True


@_full_step.register(
    "Function", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor",
    "Tensor", "Tensor", "Tensor", "Tensor", "Bool", "Bool", "Bool",
)  # fmt: skip
def _stepped_with_decay(
    kernel, zero, beta1, beta2, eps, lr, step_lr, decay,
    param, moment1, moment2, gradient, is_mine, has_decay, by_kernel,
):  # fmt: skip
    """One step of one parameter with its decay: by Ascend's ``AdamWeightDecay`` kernel, or, for parameters that are
    not fp32, in single ops: computed in fp32 and rounded once. The flags are constants of the graph."""
    if is_mine:
        gradient = _cast(gradient, ms.float32)
        if by_kernel:
            kernel(param, moment1, moment2, step_lr, beta1, beta2, eps, decay if has_decay else zero, gradient)
        else:
            wide = _cast(param, ms.float32)
            if has_decay:
                wide = wide * (1.0 - lr * decay)
            m = beta1 * moment1 + (1.0 - beta1) * gradient
            v = beta2 * moment2 + (1.0 - beta2) * ops.square(gradient)
            _assign(moment1, m)
            _assign(moment2, v)
            _assign(param, _cast(wide - step_lr * (m / (ops.sqrt(v) + eps)), param.dtype))
    return True


class _AdamBase(nn.Optimizer):
    """What both optimizers share: checks, fp32 moments, and the loop over parameters."""

    _support_parallel_optimizer = True

    def __init__(
        self,
        params: Iterable[Parameter] | list[dict[str, Any]],
        learning_rate: Any,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: Any,
    ) -> None:
        params = list(params)
        _check_arguments(self.__class__.__name__, params, learning_rate, beta1, beta2, eps, weight_decay)
        super().__init__(learning_rate, params, weight_decay)
        self.moments1 = fp32_state(self._parameters, "adam_m")
        self.moments2 = fp32_state(self._parameters, "adam_v")
        self.beta1 = Tensor(beta1, ms.float32)
        self.beta2 = Tensor(beta2, ms.float32)
        self.eps = Tensor(eps, ms.float32)
        self.zero = Tensor(0.0, ms.float32)
        is_fp32 = tuple(param.dtype == ms.float32 for param in self._parameters)
        if not self.is_group:
            self.decay_flags = tuple(flag and self.exec_weight_decay for flag in self.decay_flags)
        self._use_adam_kernel(is_fp32)

    def _use_adam_kernel(self, is_fp32: tuple[bool, ...]) -> None:
        """Any device: decay, then ``ops.Adam``; single ops for all when a parameter is not fp32."""
        self.kernel: ops.Primitive = ops.Adam()
        self.two_passes = all(is_fp32)
        self.by_kernel = (False,) * self.param_length
        self.decay_sets = self._sets_of_equal_decay() if self.two_passes else ()

    def _use_weight_decay_kernel(self, is_fp32: tuple[bool, ...]) -> None:
        """Ascend, no bias correction: its kernel does decay and step in one pass over an fp32 parameter."""
        self.kernel = ops.AdamWeightDecay()
        self.two_passes = False
        self.by_kernel = is_fp32
        self.decay_sets = ()

    def _sets_of_equal_decay(self) -> tuple[tuple[int, ParameterTuple], ...]:
        """(index of one member, members) of the parameters of this rank that share learning rate and weight decay."""
        sets: dict[tuple, list[int]] = {}
        for index in range(self.param_length):
            if self.decay_flags[index] and self.optim_filter[index]:
                lr = id(self.group_lr[index]) if self.is_group_lr else 0
                decay = self.group_weight_decay[index] if self.is_group else 0
                sets.setdefault((lr, id(decay) if isinstance(decay, nn.Cell) else decay), []).append(index)
        return tuple((members[0], ParameterTuple([self._parameters[i] for i in members])) for members in sets.values())

    def _correction(self) -> tuple[Tensor | None, Tensor]:
        """Factor on the learning rate, and eps, of the step about to be done; here: no bias correction."""
        return None, self.eps

    def _decay_first(self, lr: Tensor | tuple, decay: Tensor | tuple) -> None:
        for index, members in self.decay_sets:
            member_lr = lr[index] if self.is_group_lr else lr
            member_decay = decay[index] if self.is_group else decay
            self.hyper_map(ops.partial(_decay, member_lr * member_decay), members)

    @ms.jit(backend="ms_backend")
    def construct(self, gradients: tuple) -> tuple:
        """Update the parameters.

        Args:
            gradients: one per parameter, in the order of ``self.parameters``, of any float type.

        Returns:
            A tuple of True. A caller that runs the update in a branch must make an output depend on it
            (``ops.depend``): MindSpore 2.10 silently drops such a branch in some graphs.
        """
        lr = self.get_lr()
        decay = self.get_weight_decay()
        factor, eps = self._correction()
        step_lr = lr
        if factor is not None:
            step_lr = self.map_(ops.partial(_scale_rate, factor), lr) if self.is_group_lr else lr * factor
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        kernel, zero, beta1, beta2 = self.kernel, self.zero, self.beta1, self.beta2
        state = (self._parameters, self.moments1, self.moments2, gradients, self.optim_filter)
        if self.two_passes:
            self._decay_first(lr, decay)
            if self.is_group_lr:
                step = ops.partial(_adam_step, kernel, zero, beta1, beta2, eps)
                done = self.hyper_map(step, step_lr, *state)
            else:  # a partial of a partial does not compile
                step = ops.partial(_adam_step, kernel, zero, beta1, beta2, eps, step_lr)
                done = self.hyper_map(step, *state)
        else:
            state = (*state, self.decay_flags, self.by_kernel)
            if self.is_group_lr:
                step = ops.partial(_full_step, kernel, zero, beta1, beta2, eps)
                done = self.hyper_map(step, lr, step_lr, decay, *state)
            elif self.is_group:
                step = ops.partial(_full_step, kernel, zero, beta1, beta2, eps, lr, step_lr)
                done = self.hyper_map(step, decay, *state)
            else:
                step = ops.partial(_full_step, kernel, zero, beta1, beta2, eps, lr, step_lr, decay)
                done = self.hyper_map(step, *state)
        if self.use_parallel:
            self.broadcast_params(done)
        return done


@MindFormerRegister.register(MindFormerModuleType.OPTIMIZER, alias="fp32_adamw")
class FP32StateAdamWeightDecay(_AdamBase):
    """AdamW as the old MindFormers had it: ``p = p - lr * (m / (sqrt(v) + eps) + weight_decay * p)``.

    There is **no bias correction**: with zero moments the first steps are larger than PyTorch's, by
    ``(1 - beta1) / sqrt(1 - beta2)`` at step 1. Take :class:`AdamW` for PyTorch's behaviour.

    Args:
        params: parameters, or MindSpore parameter groups (see ``param_groups.group_parameters``).
        learning_rate: a number, a list of one value per step, or a ``LearningRateSchedule``.
        beta1: decay of the mean of gradients, in [0, 1).
        beta2: decay of the mean of squared gradients, in [0, 1).
        eps: added to ``sqrt(v)``, positive.
        weight_decay: decoupled weight decay, not negative; a cell of the step makes it dynamic.

    The moments are fp32 whatever the parameters are, named ``adam_m.<parameter>`` and ``adam_v.<parameter>``; with
    ``global_step`` they are the whole state.

    Raises:
        ConfigError: an argument is out of range, or there is nothing to train.
    """

    def __init__(
        self,
        params: Iterable[Parameter] | list[dict[str, Any]],
        learning_rate: Any = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-6,
        weight_decay: Any = 0.0,
    ) -> None:
        super().__init__(params, learning_rate, beta1, beta2, eps, weight_decay)
        if ms.get_context("device_target") == "Ascend":
            self._use_weight_decay_kernel(tuple(param.dtype == ms.float32 for param in self._parameters))


@MindFormerRegister.register(MindFormerModuleType.OPTIMIZER, alias="adamw")
class AdamW(_AdamBase):
    """AdamW with bias correction; equals ``torch.optim.AdamW``.

    With ``c1 = 1 - beta1^t`` and ``c2 = 1 - beta2^t`` at step t = 1, 2, ...:
    ``p = p * (1 - lr * weight_decay) - lr / c1 * m / (sqrt(v / c2) + eps)``.

    Args:
        params: parameters, or MindSpore parameter groups (see ``param_groups.group_parameters``).
        learning_rate: a number, a list of one value per step, or a ``LearningRateSchedule``.
        beta1: decay of the mean of gradients, in [0, 1).
        beta2: decay of the mean of squared gradients, in [0, 1).
        eps: added to ``sqrt(v / c2)``, positive.
        weight_decay: decoupled weight decay, not negative; a cell of the step makes it dynamic.
        betas: (beta1, beta2), PyTorch's spelling; when given, it replaces both.

    The state is ``adam_m.*``, ``adam_v.*`` (fp32) and ``global_step``, from which c1 and c2 are computed, so a resumed
    run corrects exactly as an uninterrupted one.

    Raises:
        ConfigError: an argument is out of range, or there is nothing to train.
    """

    def __init__(
        self,
        params: Iterable[Parameter] | list[dict[str, Any]],
        learning_rate: Any = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: Any = 0.01,
        betas: tuple[float, float] | None = None,
    ) -> None:
        if betas is not None:
            if not isinstance(betas, list | tuple) or len(betas) != 2:
                raise ConfigError(f"AdamW: betas must be two numbers (beta1, beta2), got {betas!r}")
            beta1, beta2 = betas
        super().__init__(params, learning_rate, beta1, beta2, eps, weight_decay)
        # 1 - beta^t as -expm1(t * log beta): beta^t in fp32 would lose the digits that 1 - beta^t is made of
        self.log_beta1 = Tensor(_log(beta1), ms.float32)
        self.log_beta2 = Tensor(_log(beta2), ms.float32)

    def _correction(self) -> tuple[Tensor, Tensor]:
        step = _cast(ops.reshape(self.global_step, ()) + 1, ms.float32)
        correction1 = -ops.expm1(step * self.log_beta1)
        root2 = ops.sqrt(-ops.expm1(step * self.log_beta2))
        return root2 / correction1, self.eps * root2


def _log(beta: float) -> float:
    """Logarithm of beta as the kernel has it: what it averages with rounded weights must be divided by their sum."""
    rounded = float(np.float32(beta))
    return math.log(rounded) if rounded > 0 else -math.inf


def fp32_state(parameters: ParameterTuple, prefix: str, requires_grad: bool | None = None) -> ParameterTuple:
    """Zero fp32 state of the shape and parallel layout of each parameter, named ``<prefix>.<parameter>``.

    ``requires_grad`` is that of the parameter unless given.
    """
    states = []
    for param in parameters:
        trained = param.requires_grad if requires_grad is None else requires_grad
        state = param.clone("zeros")
        if param.dtype != ms.float32:
            info = state.param_info
            state = Parameter(initializer("zeros", param.shape, ms.float32), requires_grad=trained)
            state.param_info = info
        state.requires_grad = trained
        state.name = f"{prefix}.{param.name}"
        states.append(state)
    return ParameterTuple(states)


def _check_arguments(
    name: str, params: list, learning_rate: Any, beta1: float, beta2: float, eps: float, weight_decay: Any
) -> None:
    if not params or all(isinstance(group, dict) and not group.get("params", ()) for group in params):
        raise ConfigError(f"{name}: no parameters to train (every parameter of the network is frozen?)")
    for key, value in (("beta1", beta1), ("beta2", beta2)):
        if not _is_number(value) or not 0 <= value < 1:
            raise ConfigError(f"{name}: {key} must be a number in [0, 1), got {value!r}")
    if not _is_number(eps) or eps <= 0:
        raise ConfigError(f"{name}: eps must be a positive number, got {eps!r}")
    groups = [group for group in params if isinstance(group, dict)]
    rates = [learning_rate, *(group["lr"] for group in groups if "lr" in group)]
    decays = [weight_decay, *(group["weight_decay"] for group in groups if "weight_decay" in group)]
    for key, values in (("learning_rate", rates), ("weight_decay", decays)):
        for value in values:
            plain = value is None or isinstance(value, bool | str | Real)
            if plain and (not _is_number(value) or value < 0):
                raise ConfigError(f"{name}: {key} must be a number, not negative, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
