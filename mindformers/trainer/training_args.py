# SPDX-License-Identifier: Apache-2.0
"""TrainingArguments: the settings of a run as one flat object; a table says which config key each of them is."""

from dataclasses import dataclass, fields
from typing import Any

from mindformers.errors import ConfigError

__all__ = ["KEYS", "RULES", "TrainingArguments"]

_SAVE = "callbacks.CheckpointMonitor"
# field -> the config keys it sets. Fields with a rule of their own are in RULES below.
KEYS: dict[str, tuple[str, ...]] = {
    "output_dir": ("output_dir",),
    "use_parallel": ("use_parallel",),
    "profile": ("profile",),
    "only_save_strategy": ("only_save_strategy",),
    "seed": ("seed",),
    "data_seed": ("train_dataset.seed",),
    "sink_mode": ("runner_config.sink_mode",),
    "sink_size": ("runner_config.sink_size",),
    "num_train_epochs": ("runner_config.epochs",),
    "batch_size": ("runner_config.batch_size",),
    "per_device_train_batch_size": ("runner_config.batch_size",),
    "gradient_accumulation_steps": ("runner_config.gradient_accumulation_steps",),
    "optim": ("optimizer.type",),
    "learning_rate": ("optimizer.learning_rate", "lr_schedule.learning_rate"),
    "weight_decay": ("optimizer.weight_decay",),
    "adam_beta1": ("optimizer.beta1",),
    "adam_beta2": ("optimizer.beta2",),
    "adam_epsilon": ("optimizer.eps",),
    "lr_scheduler_type": ("lr_schedule.type",),
    "warmup_steps": ("lr_schedule.warmup_steps",),
    "warmup_ratio": ("lr_schedule.warmup_ratio",),
    "max_grad_norm": ("runner_wrapper.max_grad_norm",),
    "integrated_save": (f"{_SAVE}.integrated_save",),
    "save_steps": (f"{_SAVE}.save_checkpoint_steps",),
    "save_seconds": (f"{_SAVE}.save_checkpoint_seconds",),
    "save_total_limit": (f"{_SAVE}.keep_checkpoint_max",),
    "resume_from_checkpoint": ("load_checkpoint",),
    "resume_training": ("resume_training",),
    "auto_trans_ckpt": ("auto_trans_ckpt",),
    "do_eval": ("do_eval",),
    "eval_step_interval": ("eval_step_interval",),
    "eval_epoch_interval": ("eval_epoch_interval",),
}
# Honoured by Trainer itself: evaluation may have a batch size of its own, and save_strategy 'no' saves nothing.
RULES = ("per_device_eval_batch_size", "save_strategy")
_STRATEGIES = ("no", "steps", "seconds")
# field -> the strategies it has a meaning with
_SAVE_FIELDS = {
    "save_steps": ("steps",),
    "save_seconds": ("seconds",),
    "save_total_limit": ("steps", "seconds"),
    "integrated_save": ("steps", "seconds"),
}


@dataclass
class TrainingArguments:
    """Settings of a run; a field left at None keeps what the model's config says.

    Args:
        output_dir: folder for everything the run writes.
        use_parallel: run on several ranks, started by a launcher.
        profile: profile some steps.
        only_save_strategy: compile, write the sharding strategies, and stop.
        seed: of weights, data order, dropout and sampling.
        data_seed: of the data order alone.
        sink_mode: feed data by the device queue.
        sink_size: steps per call of the sunk graph; -1 is a whole epoch.
        num_train_epochs: passes over the training data, a whole number.
        batch_size: records per data parallel rank and micro batch, in training and in evaluation.
        per_device_train_batch_size: another name of ``batch_size``; for training alone when
            ``per_device_eval_batch_size`` is given.
        per_device_eval_batch_size: records per batch in evaluation.
        gradient_accumulation_steps: batches whose gradients are added before an update.
        optim: class of the optimizer or its short name: adamw, fp32_adamw, adam, sgd, adagrad, adafactor.
        learning_rate: the highest one.
        weight_decay: decoupled weight decay.
        adam_beta1: decay of the mean of the gradients.
        adam_beta2: decay of the mean of their squares.
        adam_epsilon: added to the denominator.
        lr_scheduler_type: linear, cosine, cosine_with_restarts, polynomial or constant_with_warmup.
        warmup_steps: optimizer steps of rising learning rate.
        warmup_ratio: share of the run spent rising, instead of ``warmup_steps``.
        max_grad_norm: clip gradients to this global norm.
        save_strategy: 'no', 'steps' or 'seconds': when checkpoints are saved.
        save_steps: optimizer steps between two saves.
        save_seconds: seconds between two saves.
        save_total_limit: newest checkpoints kept.
        integrated_save: join sliced weights before saving.
        resume_from_checkpoint: go on from this checkpoint, or the newest one of this folder, at its exact step; with
            ``resume_training=False`` only its weights are taken.
        resume_training: go on with the run that wrote ``output_dir``.
        auto_trans_ckpt: slice the checkpoint anew for this run's layout.
        do_eval: evaluate while training.
        eval_step_interval: steps between two evaluations; -1 turns it off.
        eval_epoch_interval: epochs between two evaluations; -1 turns it off.
    """

    output_dir: str | None = None
    use_parallel: bool | None = None
    profile: bool | None = None
    only_save_strategy: bool | None = None
    seed: int | None = None
    data_seed: int | None = None
    sink_mode: bool | None = None
    sink_size: int | None = None
    num_train_epochs: int | None = None
    batch_size: int | None = None
    per_device_train_batch_size: int | None = None
    per_device_eval_batch_size: int | None = None
    gradient_accumulation_steps: int | None = None
    optim: str | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    adam_beta1: float | None = None
    adam_beta2: float | None = None
    adam_epsilon: float | None = None
    lr_scheduler_type: str | None = None
    warmup_steps: int | None = None
    warmup_ratio: float | None = None
    max_grad_norm: float | None = None
    save_strategy: str | None = None
    save_steps: int | None = None
    save_seconds: int | None = None
    save_total_limit: int | None = None
    integrated_save: bool | None = None
    resume_from_checkpoint: str | None = None
    resume_training: bool | None = None
    auto_trans_ckpt: bool | None = None
    do_eval: bool | None = None
    eval_step_interval: int | None = None
    eval_epoch_interval: int | None = None

    def given(self) -> dict[str, Any]:
        """The fields that were set."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def overrides(self, scheduled: bool) -> list[tuple[str, Any]]:
        """(config key, value) of the fields that were set, in the order in which they are applied.

        Args:
            scheduled: whether the config below has a learning rate schedule.

        Raises:
            ConfigError: fields that contradict each other.
        """
        values = self.given()
        self._check(values, scheduled)
        if "resume_from_checkpoint" in values:
            values.setdefault("resume_training", True)
        scheduled = scheduled or "lr_scheduler_type" in values
        found = [] if "max_grad_norm" not in values else [("runner_wrapper.use_clip_grad", True)]
        found += _saving(values)
        # the types come first: what is set later must be an argument of the new type
        for name in sorted(values, key=lambda name: not name.endswith(("optim", "scheduler_type"))):
            for key in KEYS.get(name, ()):
                if scheduled or not key.startswith("lr_schedule."):
                    found.append((key, values[name]))
        return found

    @property
    def saves(self) -> bool:
        """False when no checkpoint is wanted."""
        return self.save_strategy != "no"

    @staticmethod
    def _check(values: dict[str, Any], scheduled: bool) -> None:
        one, other = values.get("batch_size"), values.get("per_device_train_batch_size")
        if None not in (one, other) and one != other:
            raise ConfigError(f"batch_size {one} and per_device_train_batch_size {other} are one setting: give one")
        for pair in (("warmup_steps", "warmup_ratio"), ("save_steps", "save_seconds")):
            if all(name in values for name in pair):
                raise ConfigError(f"{pair[0]} and {pair[1]} exclude each other: give one")
        rising = next((name for name in ("warmup_steps", "warmup_ratio") if name in values), None)
        if rising and not scheduled and "lr_scheduler_type" not in values:
            raise ConfigError(f"{rising} needs a schedule: give lr_scheduler_type")
        strategy = values.get("save_strategy")
        if strategy is not None and strategy not in _STRATEGIES:
            raise ConfigError(f"save_strategy {strategy!r} is not allowed; allowed: {', '.join(_STRATEGIES)}")
        if strategy == "seconds" and "save_seconds" not in values:
            raise ConfigError("save_strategy 'seconds' needs save_seconds")
        for name, fitting in _SAVE_FIELDS.items():
            if name in values and strategy not in (None, *fitting):
                raise ConfigError(f"{name} contradicts save_strategy {strategy!r}: leave one of them out")


def _saving(values: dict[str, Any]) -> list[tuple[str, Any]]:
    """What turns the other way of saving off."""
    if "save_seconds" in values:
        return [(f"{_SAVE}.save_checkpoint_steps", 0)]
    if values.get("save_strategy") == "steps" or "save_steps" in values:
        return [(f"{_SAVE}.save_checkpoint_seconds", 0)]
    return []
