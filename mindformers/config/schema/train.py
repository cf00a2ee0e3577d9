# SPDX-License-Identifier: Apache-2.0
"""Sections of training: trainer, runner_config, optimizer, lr_schedule, runner_wrapper."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from mindformers.config.schema.base import (
    Component,
    Finding,
    Float,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    by_type,
    other_component,
)
from mindformers.registry import MindFormerModuleType as Kind

Beta = Annotated[Float, Field(ge=0, lt=1)]


class TrainerSection(Component):
    """Section ``trainer``."""

    type: str = Field("CausalLanguageModelingTrainer", description="Class of the trainer.")
    model_name: str = Field("llama2_7b", description="Name of the model, for messages and for exports.")


class RunnerSection(Section):
    """Section ``runner_config``."""

    epochs: PositiveInt = Field(1, description="Passes over the training data.")
    batch_size: PositiveInt = Field(1, description="Records per data parallel rank and micro batch.")
    gradient_accumulation_steps: PositiveInt = Field(
        1, description="Batches whose gradients are added before the weights change."
    )
    sink_mode: bool = Field(True, description="Feed data by the device queue (faster on Ascend).")
    sink_size: int = Field(2, ge=-1, description="Steps per call of the sunk graph; -1 is a whole epoch.")
    initial_epoch: NonNegativeInt = Field(0, description="Epochs already done; set by resume_training.")

    def findings(self) -> Iterator[Finding]:
        """sink_size 0 and an initial epoch past the end."""
        if self.sink_size == 0:
            yield Finding("sink_size", "must be -1 or above 0, got 0")
        if self.initial_epoch >= self.epochs:
            yield Finding("initial_epoch", f"{self.initial_epoch} is not below epochs {self.epochs}", ("epochs",))


class FP32StateAdamWeightDecay(Component):
    """Adam with decoupled weight decay, fp32 state, no bias correction (as the old library)."""

    type: Literal["FP32StateAdamWeightDecay", "fp32_adamw"] = Field(
        "FP32StateAdamWeightDecay", description="Class of the optimizer."
    )
    learning_rate: NonNegativeFloat | None = Field(
        None, description="Learning rate; lr_schedule's if absent. Where both stand they must agree."
    )
    beta1: Beta = Field(0.9, description="Decay of the mean of the gradients.")
    beta2: Beta = Field(0.999, description="Decay of the mean of their squares.")
    eps: PositiveFloat = Field(1e-6, description="Added to the denominator.")
    weight_decay: NonNegativeFloat = Field(
        0.0, description="Decoupled weight decay; biases and one-dimensional weights have none."
    )


class AdamW(Component):
    """AdamW with bias correction (Loshchilov and Hutter 2019), fp32 state."""

    type: Literal["AdamW", "adamw"] = Field("AdamW", description="Class of the optimizer.")
    learning_rate: NonNegativeFloat | None = Field(
        None, description="Learning rate; lr_schedule's if absent. Where both stand they must agree."
    )
    betas: tuple[Beta, Beta] | None = Field(None, description="beta1 and beta2 as a pair.")
    beta1: Beta | None = Field(None, description="Decay of the mean of the gradients; 0.9 if absent.")
    beta2: Beta | None = Field(None, description="Decay of the mean of their squares; 0.999 if absent.")
    eps: PositiveFloat = Field(1e-8, description="Added to the denominator.")
    weight_decay: NonNegativeFloat = Field(
        0.0, description="Decoupled weight decay; biases and one-dimensional weights have none."
    )

    def findings(self) -> Iterator[Finding]:
        """betas and beta1 or beta2 exclude each other."""
        if self.betas is not None and not (self.beta1 is None and self.beta2 is None):
            yield Finding("betas", "give betas, or beta1 and beta2, not both", ("beta1", "beta2"))

    def options(self) -> dict[str, Any]:
        """The arguments with the two betas as one pair."""
        values = super().options()
        beta1, beta2 = values.pop("beta1", 0.9), values.pop("beta2", 0.999)
        return {"betas": (beta1, beta2)} | values


OtherOptimizer = other_component(Kind.OPTIMIZER, "OtherOptimizer")
Optimizer = by_type(Kind.OPTIMIZER, (FP32StateAdamWeightDecay, AdamW), OtherOptimizer)


class _WarmUp(Component):
    learning_rate: NonNegativeFloat | None = Field(
        None, description="Highest learning rate; the optimizer's if absent. Where both stand they must agree."
    )
    warmup_steps: NonNegativeInt | None = Field(
        None, description="Optimizer steps of rising learning rate; 0 if absent."
    )
    warmup_ratio: Fraction | None = Field(None, description="Share of the run spent rising, instead of warmup_steps.")
    warmup_epochs: NonNegativeFloat | None = Field(None, description="Epochs spent rising, instead of warmup_steps.")
    warmup_lr_init: NonNegativeFloat = Field(0.0, description="Learning rate at step 0.")
    total_steps: int = Field(
        -1, ge=-1, description="Optimizer steps of the whole schedule; -1 is the length of the run."
    )

    def findings(self) -> Iterator[Finding]:
        """One way to give the warm-up, and a sensible length."""
        given = [key for key in WARMUP_KEYS if getattr(self, key) is not None]
        if len(given) > 1:
            message = f"{' and '.join(given)} exclude each other; set all but one to null"
            yield Finding(given[0], message, tuple(given[1:]))
        if self.total_steps == 0:
            yield Finding("total_steps", "must be -1 or above 0, got 0")
        elif self.warmup_steps and 0 < self.total_steps <= self.warmup_steps:
            message = f"{self.warmup_steps} is not below total_steps {self.total_steps}"
            yield Finding("warmup_steps", message, ("total_steps",))


WARMUP_KEYS = ("warmup_steps", "warmup_ratio", "warmup_epochs")


class ConstantWarmUpLR(_WarmUp):
    """Rises, then stays."""

    type: Literal["ConstantWarmUpLR", "constant_with_warmup"] = Field(description="Class of the schedule.")


class LinearWithWarmUpLR(_WarmUp):
    """Rises, then falls on a straight line to 0."""

    type: Literal["LinearWithWarmUpLR", "linear"] = Field(description="Class of the schedule.")


class CosineWithWarmUpLR(_WarmUp):
    """Rises, then falls along a cosine to lr_end."""

    type: Literal["CosineWithWarmUpLR", "cosine"] = Field(description="Class of the schedule.")
    num_cycles: PositiveFloat = Field(0.5, description="Waves of the cosine; 0.5 is one descent.")
    lr_end: NonNegativeFloat = Field(0.0, description="Lowest learning rate.")


class CosineWithRestartsAndWarmUpLR(_WarmUp):
    """Rises, then falls along a cosine several times."""

    type: Literal["CosineWithRestartsAndWarmUpLR", "cosine_with_restarts"] = Field(description="Class of the schedule.")
    num_cycles: PositiveFloat = Field(0.5, description="Number of descents.")
    lr_end: NonNegativeFloat = Field(0.0, description="Lowest learning rate.")


class PolynomialWithWarmUpLR(_WarmUp):
    """Rises, then falls by a power to lr_end."""

    type: Literal["PolynomialWithWarmUpLR", "polynomial"] = Field(description="Class of the schedule.")
    lr_end: NonNegativeFloat = Field(1e-7, description="Lowest learning rate.")
    power: PositiveFloat = Field(1.0, description="Power of the descent; 1 is a straight line.")


class WarmUpDecayLR(Component):
    """Rises, then falls over a fixed number of steps."""

    type: Literal["WarmUpDecayLR"] = Field(description="Class of the schedule.")
    learning_rate: NonNegativeFloat | None = Field(
        None, description="Highest learning rate; the optimizer's if absent."
    )
    end_learning_rate: NonNegativeFloat = Field(0.0, description="Lowest learning rate.")
    warmup_steps: NonNegativeInt = Field(0, description="Optimizer steps of rising learning rate.")
    decay_steps: PositiveInt = Field(description="Optimizer steps from the first to the lowest learning rate.")
    power: PositiveFloat = Field(1.0, description="Power of the descent; 1 is a straight line.")
    use_cosine: bool = Field(False, description="Fall along a cosine instead.")


OtherSchedule = other_component(Kind.LR, "OtherSchedule")
Schedule = by_type(
    Kind.LR,
    (
        ConstantWarmUpLR,
        LinearWithWarmUpLR,
        CosineWithWarmUpLR,
        CosineWithRestartsAndWarmUpLR,
        PolynomialWithWarmUpLR,
        WarmUpDecayLR,
    ),
    OtherSchedule,
)


class DynamicLossScale(Component):
    """A loss scale that halves at an overflow and doubles after scale_window good steps."""

    type: Literal["DynamicLossScaleUpdateCell"] = Field("DynamicLossScaleUpdateCell", description="Kind of loss scale.")
    loss_scale_value: PositiveFloat = Field(65536, ge=1, description="Scale at the first step.")
    scale_factor: float = Field(2, gt=1, description="Divides or multiplies the scale.")
    scale_window: PositiveInt = Field(1000, description="Steps without overflow before the scale grows.")


class FixedLossScale(Component):
    """A loss scale that never changes."""

    type: Literal["FixedLossScaleUpdateCell"] = Field("FixedLossScaleUpdateCell", description="Kind of loss scale.")
    loss_scale_value: PositiveFloat = Field(ge=1, description="The scale.")


def _kind_of_scale(value: Any) -> str | None:
    if isinstance(value, FixedLossScale):
        return "<fixed>"
    if isinstance(value, dict):
        return "<fixed>" if value.get("type") == "FixedLossScaleUpdateCell" else "<dynamic>"
    return "<dynamic>" if isinstance(value, DynamicLossScale) else "<number>"


LossScale = Annotated[
    Annotated[PositiveFloat, Tag("<number>")]
    | Annotated[DynamicLossScale, Tag("<dynamic>")]
    | Annotated[FixedLossScale, Tag("<fixed>")],
    Discriminator(_kind_of_scale),
]


class TrainOneStep(Component):
    """One optimizer step: loss, gradients, clipping, update; skipped at an overflow."""

    type: Literal[
        "MFTrainOneStepCell",
        "MFPipelineWithLossScaleCell",
        "wrapper",
        "mf_wrapper",
        "loss_scale_wrapper",
        "pipeline_wrapper",
    ] = Field("MFTrainOneStepCell", description="Class of the step; the pipeline one is taken by itself when needed.")
    use_clip_grad: bool = Field(False, description="Clip gradients by their global norm.")
    max_grad_norm: PositiveFloat = Field(1.0, description="Largest global norm of the gradients.")
    scale_sense: LossScale = Field(1.0, description="Loss scale: a number, or a section with type.")


OtherWrapper = other_component(Kind.WRAPPER, "OtherWrapper")
Wrapper = by_type(Kind.WRAPPER, (TrainOneStep,), OtherWrapper)
