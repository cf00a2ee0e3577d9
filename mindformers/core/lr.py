# SPDX-License-Identifier: Apache-2.0
"""Learning rate schedules: functions of the optimizer step, usable by every MindSpore optimizer.

The first update runs at step 0, so after a warm-up from 0 it changes nothing but the optimizer's moments. Within the
warm-up the rate is ``warmup_lr_init + learning_rate * step / warmup_steps``: it starts at ``warmup_lr_init`` but is
not interpolated from it (the rule of the old library; with the default 0 there is no difference).

Steps are compared and subtracted as integers and only ratios are fp32, so schedules longer than 2^24 steps are right.
"""

import inspect
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import mindspore as ms
from mindspore import Tensor, ops
from mindspore.nn.learning_rate_schedule import LearningRateSchedule

from mindformers.errors import ConfigError
from mindformers.registry import MindFormerModuleType, MindFormerRegister
from mindformers.tools.logger import get_logger

__all__ = [
    "ConstantWarmUpLR",
    "CosineWithRestartsAndWarmUpLR",
    "CosineWithWarmUpLR",
    "LearningRateWiseLayer",
    "LinearWithWarmUpLR",
    "PolynomialWithWarmUpLR",
    "WarmUpDecayLR",
    "resolve_schedule",
]

logger = get_logger(__name__)

_WARMUP_KEYS = ("warmup_steps", "warmup_ratio", "warmup_epochs")


class _WarmUpSchedule(LearningRateSchedule):
    """Warm-up, then :meth:`after_warmup`.

    Subclasses take ``learning_rate`` (the highest rate), ``warmup_steps``, ``total_steps`` (updates of the whole
    schedule, warm-up included) and ``warmup_lr_init`` (the rate at step 0). Called with the int32 step, of any shape,
    they give the fp32 rate of the same shape.
    """

    def __init__(self, learning_rate: float, warmup_steps: int, total_steps: int | None, warmup_lr_init: float) -> None:
        super().__init__()
        name = type(self).__name__
        self.learning_rate = _rate(name, "learning_rate", learning_rate)
        self.warmup_lr_init = _rate(name, "warmup_lr_init", warmup_lr_init)
        self.warmup_steps = _count(name, "warmup_steps", warmup_steps, 0)
        if total_steps is not None:
            self.total_steps = _count(name, "total_steps", total_steps, 1)
            if warmup_steps > total_steps:
                raise ConfigError(f"{name}: warmup_steps {warmup_steps} is more than total_steps {total_steps}")
            self.decay_length = max(1, total_steps - warmup_steps)

    def construct(self, global_step: Tensor) -> Tensor:
        """Rate of the update that is about to be done, given the number of updates done before it."""
        after = self.after_warmup(global_step)
        if self.warmup_steps == 0:
            return after
        rising = self.warmup_lr_init + self.learning_rate * (ops.cast(global_step, ms.float32) / self.warmup_steps)
        return ops.select(global_step < self.warmup_steps, rising, after)

    def after_warmup(self, step: Tensor) -> Tensor:
        """Rate at ``step >= warmup_steps``; for smaller steps the value is not used but must be finite."""
        raise NotImplementedError

    def progress(self, step: Tensor) -> Tensor:
        """0 at the end of the warm-up, 1 at total_steps, more after it; 0 during the warm-up."""
        return ops.cast(ops.maximum(step - self.warmup_steps, 0), ms.float32) / self.decay_length

    def remaining(self, step: Tensor) -> Tensor:
        """1 at the end of the warm-up, 0 from total_steps on."""
        left = ops.clamp(self.total_steps - step, 0, self.decay_length)
        return ops.cast(left, ms.float32) / self.decay_length


@MindFormerRegister.register(MindFormerModuleType.LR, alias="constant_with_warmup")
class ConstantWarmUpLR(_WarmUpSchedule):
    """Rises, then stays at ``learning_rate``.

    Args:
        learning_rate: the highest rate.
        warmup_steps: updates of the warm-up.
        warmup_lr_init: rate at step 0.
        total_steps: accepted like by the other schedules; has no effect.

    Raises:
        ConfigError: an argument is out of range (true of every class here).
    """

    def __init__(
        self, learning_rate: float, warmup_steps: int = 0, warmup_lr_init: float = 0.0, total_steps: int | None = None
    ) -> None:
        super().__init__(learning_rate, warmup_steps, total_steps, warmup_lr_init)

    def after_warmup(self, step: Tensor) -> Tensor:
        """``learning_rate``."""
        return ops.zeros_like(ops.cast(step, ms.float32)) + self.learning_rate


@MindFormerRegister.register(MindFormerModuleType.LR, alias="linear")
class LinearWithWarmUpLR(_WarmUpSchedule):
    """Rises, then falls on a straight line to 0 at ``total_steps``.

    Args:
        learning_rate: the highest rate.
        warmup_steps: updates of the warm-up.
        total_steps: updates of the whole schedule.
        warmup_lr_init: rate at step 0.
    """

    def __init__(self, learning_rate: float, warmup_steps: int, total_steps: int, warmup_lr_init: float = 0.0) -> None:
        super().__init__(learning_rate, warmup_steps, total_steps, warmup_lr_init)

    def after_warmup(self, step: Tensor) -> Tensor:
        """``learning_rate * (total_steps - step) / (total_steps - warmup_steps)``, not below 0."""
        return self.learning_rate * self.remaining(step)


@MindFormerRegister.register(MindFormerModuleType.LR, alias="cosine")
class CosineWithWarmUpLR(_WarmUpSchedule):
    """Rises, then follows a cosine between ``learning_rate`` and ``lr_end``.

    Args:
        learning_rate: the highest rate.
        warmup_steps: updates of the warm-up.
        total_steps: updates of the whole schedule.
        num_cycles: waves of the cosine; 0.5 is one descent. Past ``total_steps`` the cosine goes on.
        lr_end: the lowest rate.
        warmup_lr_init: rate at step 0.
    """

    def __init__(
        self,
        learning_rate: float,
        warmup_steps: int,
        total_steps: int,
        num_cycles: float = 0.5,
        lr_end: float = 0.0,
        warmup_lr_init: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, warmup_steps, total_steps, warmup_lr_init)
        self.num_cycles = _positive(type(self).__name__, "num_cycles", num_cycles)
        self.lr_end = _rate(type(self).__name__, "lr_end", lr_end)

    def after_warmup(self, step: Tensor) -> Tensor:
        """``lr_end + (learning_rate - lr_end) * (1 + cos(2 pi num_cycles progress)) / 2``."""
        # (1 + cos 2x) / 2 = cos^2 x keeps its digits where the rate is small
        wave = ops.square(ops.cos(math.pi * self.num_cycles * self.progress(step)))
        return self.lr_end + (self.learning_rate - self.lr_end) * wave


@MindFormerRegister.register(MindFormerModuleType.LR, alias="cosine_with_restarts")
class CosineWithRestartsAndWarmUpLR(_WarmUpSchedule):
    """Rises, then falls along half a cosine ``num_cycles`` times, jumping back in between.

    Args:
        learning_rate: the highest rate.
        total_steps: updates of the whole schedule.
        warmup_steps: updates of the warm-up.
        num_cycles: number of descents; 0.5 stops half way down. From ``total_steps`` on the rate is 0.
        lr_end: the lowest rate of a descent.
        warmup_lr_init: rate at step 0.
    """

    def __init__(
        self,
        learning_rate: float,
        total_steps: int,
        warmup_steps: int = 0,
        num_cycles: float = 0.5,
        lr_end: float = 0.0,
        warmup_lr_init: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, warmup_steps, total_steps, warmup_lr_init)
        self.num_cycles = _positive(type(self).__name__, "num_cycles", num_cycles)
        self.lr_end = _rate(type(self).__name__, "lr_end", lr_end)

    def after_warmup(self, step: Tensor) -> Tensor:
        """``lr_end + (learning_rate - lr_end) * (1 + cos(pi * (num_cycles * progress mod 1))) / 2``."""
        turns = self.num_cycles * self.progress(step)
        wave = ops.square(ops.cos(0.5 * math.pi * (turns - ops.floor(turns))))
        rate = self.lr_end + (self.learning_rate - self.lr_end) * wave
        return ops.select(step < self.total_steps, rate, ops.zeros_like(rate))


@MindFormerRegister.register(MindFormerModuleType.LR, alias="polynomial")
class PolynomialWithWarmUpLR(_WarmUpSchedule):
    """Rises, then falls with a power of the remaining steps to ``lr_end`` at ``total_steps``.

    Args:
        learning_rate: the highest rate.
        warmup_steps: updates of the warm-up.
        total_steps: updates of the whole schedule.
        lr_end: the lowest rate, not above ``learning_rate``.
        power: 1 is a straight line.
        warmup_lr_init: rate at step 0.
    """

    def __init__(
        self,
        learning_rate: float,
        warmup_steps: int,
        total_steps: int,
        lr_end: float = 1e-7,
        power: float = 1.0,
        warmup_lr_init: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, warmup_steps, total_steps, warmup_lr_init)
        name = type(self).__name__
        self.lr_end = _rate(name, "lr_end", lr_end)
        self.power = _positive(name, "power", power)
        if lr_end > learning_rate:
            raise ConfigError(f"{name}: lr_end {lr_end} is above learning_rate {learning_rate}")

    def after_warmup(self, step: Tensor) -> Tensor:
        """``lr_end + (learning_rate - lr_end) * remaining^power``."""
        return self.lr_end + (self.learning_rate - self.lr_end) * ops.pow(self.remaining(step), self.power)


@MindFormerRegister.register(MindFormerModuleType.LR)
class WarmUpDecayLR(LearningRateSchedule):
    """Rises linearly from 0 to the decay's value range, then falls; the decay counts from step 0, not from the warm-up.

    Args:
        learning_rate: the highest rate.
        end_learning_rate: the lowest rate, held from ``decay_steps`` on.
        warmup_steps: updates in which the rate is ``learning_rate * step / warmup_steps``.
        decay_steps: updates from ``learning_rate`` down to ``end_learning_rate``.
        power: of the remaining steps; 1 is a straight line.
        use_cosine: fall along half a cosine instead.
    """

    def __init__(
        self,
        learning_rate: float,
        end_learning_rate: float,
        warmup_steps: int,
        decay_steps: int,
        power: float = 1.0,
        use_cosine: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.learning_rate = _rate(name, "learning_rate", learning_rate)
        self.end_learning_rate = _rate(name, "end_learning_rate", end_learning_rate)
        self.warmup_steps = _count(name, "warmup_steps", warmup_steps, 0)
        self.decay_steps = _count(name, "decay_steps", decay_steps, 1)
        self.power = _positive(name, "power", power)
        self.use_cosine = bool(use_cosine)

    def construct(self, global_step: Tensor) -> Tensor:
        """Rate of the update that is about to be done, given the number of updates done before it."""
        left = ops.cast(ops.clamp(self.decay_steps - global_step, 0, self.decay_steps), ms.float32) / self.decay_steps
        share = ops.square(ops.sin(0.5 * math.pi * left)) if self.use_cosine else ops.pow(left, self.power)
        falling = self.end_learning_rate + (self.learning_rate - self.end_learning_rate) * share
        if self.warmup_steps == 0:
            return falling
        rising = self.learning_rate * (ops.cast(global_step, ms.float32) / self.warmup_steps)
        return ops.select(global_step < self.warmup_steps, rising, falling)


@MindFormerRegister.register(MindFormerModuleType.LR)
class LearningRateWiseLayer(LearningRateSchedule):
    """A schedule times a factor, for layers that learn slower.

    Args:
        base_lr: the schedule.
        lr_scale: the factor, not negative.
    """

    def __init__(self, base_lr: LearningRateSchedule, lr_scale: float) -> None:
        super().__init__()
        self.base_lr = base_lr
        self.lr_scale = _rate(type(self).__name__, "lr_scale", lr_scale)

    def construct(self, global_step: Tensor) -> Tensor:
        """``lr_scale * base_lr(global_step)``."""
        return self.lr_scale * self.base_lr(global_step)


def resolve_schedule(
    options: Mapping[str, Any],
    total_steps: int,
    steps_per_epoch: int | None = None,
    learning_rate: float | None = None,
) -> dict[str, Any]:
    """Constructor arguments of a schedule, from a config section and the length of the run.

    Args:
        options: the section ``lr_schedule``: ``type`` and arguments. One of ``warmup_steps``, ``warmup_ratio`` (share
            of the schedule's steps, rounded down) and ``warmup_epochs`` may be given; ``total_steps`` -1, None or
            absent means the run's length.
        total_steps: updates of the run.
        steps_per_epoch: updates of one pass over the data; needed for ``warmup_epochs``.
        learning_rate: the optimizer's rate, used where the section has none.

    Returns:
        The same mapping with ``warmup_steps`` and ``total_steps`` as numbers, where the class takes them.

    Raises:
        ConfigError: the warm-up is given in two ways or is longer than the schedule, or a value is out of range.
    """
    values = {key: value for key, value in options.items() if value is not None}
    accepted = _accepted_arguments(values.get("type"))
    length = _schedule_length(values.pop("total_steps", -1), total_steps)
    given = [key for key in _WARMUP_KEYS if key in values]
    if len(given) > 1:
        raise ConfigError(f"lr_schedule: {' and '.join(given)} exclude each other; give one of them")
    if "warmup_ratio" in values and "warmup_ratio" not in accepted:
        ratio = values.pop("warmup_ratio")
        if not _is_number(ratio) or not 0 <= ratio <= 1:
            raise ConfigError(f"lr_schedule: warmup_ratio must be a number in [0, 1], got {ratio!r}")
        values["warmup_steps"] = int(length * ratio)
    if "warmup_epochs" in values and "warmup_epochs" not in accepted:
        epochs = _rate("lr_schedule", "warmup_epochs", values.pop("warmup_epochs"))
        if steps_per_epoch is None:
            raise ConfigError("lr_schedule: warmup_epochs needs the number of steps per epoch; give warmup_steps")
        values["warmup_steps"] = int(epochs * steps_per_epoch)
    if "warmup_steps" in accepted:
        warmup = _count("lr_schedule", "warmup_steps", values.setdefault("warmup_steps", 0), 0)
        if warmup > length:
            raise ConfigError(f"lr_schedule: the warm-up of {warmup} steps is longer than the {length} steps to do")
    if "total_steps" in accepted or "total_steps" in options:
        values["total_steps"] = length
    if learning_rate is not None and "learning_rate" in accepted:
        values.setdefault("learning_rate", learning_rate)
    return values


def _accepted_arguments(kind: Any) -> tuple[str, ...]:
    if kind is None:
        return ("learning_rate", "warmup_steps", "total_steps")
    cls = kind if inspect.isclass(kind) else MindFormerRegister.get_cls(MindFormerModuleType.LR, kind)
    return tuple(inspect.signature(cls).parameters)


def _schedule_length(given: Any, total_steps: int) -> int:
    if given == -1:
        return _count("lr_schedule", "total_steps", total_steps, 1)
    length = _count("lr_schedule", "total_steps", given, 1)
    if length < total_steps:
        logger.warning("lr_schedule.total_steps is %d, the run has %d steps: it goes on past the schedule's end",
                       length, total_steps)  # fmt: skip
    return length


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _rate(name: str, key: str, value: Any) -> float:
    if not _is_number(value) or value < 0:
        raise ConfigError(f"{name}: {key} must be a number, not negative, got {value!r}")
    return float(value)


def _positive(name: str, key: str, value: Any) -> float:
    if not _is_number(value) or value <= 0:
        raise ConfigError(f"{name}: {key} must be a number above 0, got {value!r}")
    return float(value)


def _count(name: str, key: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name}: {key} must be a whole number of at least {least}, got {value!r}")
    return value
