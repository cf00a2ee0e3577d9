# SPDX-License-Identifier: Apache-2.0
"""TrainingArguments: every field lands where its table says, and contradictions are refused."""

from dataclasses import fields
from typing import Any

import pytest

from mindformers import Trainer, TrainingArguments
from mindformers.config.load import change_tree, load_tree
from mindformers.config.tree import value_at
from mindformers.errors import ConfigError
from mindformers.trainer.training_args import KEYS, RULES

# field -> a value that is not the default anywhere
VALUES: dict[str, Any] = {
    "output_dir": "elsewhere", "use_parallel": False, "profile": True, "only_save_strategy": True, "seed": 17,
    "data_seed": 18, "sink_mode": True, "sink_size": 5, "num_train_epochs": 6, "batch_size": 7,
    "per_device_train_batch_size": 8, "gradient_accumulation_steps": 9, "optim": "adamw", "learning_rate": 0.011,
    "weight_decay": 0.012, "adam_beta1": 0.71, "adam_beta2": 0.72, "adam_epsilon": 1e-4,
    "lr_scheduler_type": "polynomial", "warmup_steps": 13, "warmup_ratio": 0.14, "max_grad_norm": 0.15,
    "integrated_save": True, "save_steps": 16, "save_seconds": 19, "save_total_limit": 2,
    "resume_from_checkpoint": "old", "resume_training": True, "auto_trans_ckpt": True, "do_eval": True,
    "eval_step_interval": 21, "eval_epoch_interval": 22,
}  # fmt: skip
# what a field sets besides
ALSO = {"max_grad_norm": {"runner_wrapper"}, "resume_from_checkpoint": {"resume_training"}}


def config_with(args: TrainingArguments) -> Any:
    return change_tree(load_tree("run_llama2_tiny"), {}, args.overrides(True), "TrainingArguments")


def test_every_field_has_a_place() -> None:
    names = [field.name for field in fields(TrainingArguments)]
    assert set(names) == {*KEYS, *RULES}
    assert set(VALUES) == set(KEYS)


@pytest.mark.parametrize("name", KEYS)
def test_a_field_sets_its_keys_and_no_others(name: str) -> None:
    plain = config_with(TrainingArguments()).to_dict()
    changed = config_with(TrainingArguments(**{name: VALUES[name]})).to_dict()
    for key in KEYS[name]:
        path = tuple(key.split("."))
        if path[0] == "callbacks":
            entry = next(item for item in changed["callbacks"] if item["type"] == path[1])
            assert entry[path[2]] == VALUES[name]
        else:
            assert value_at(changed, path) == VALUES[name]
    sections = {key.split(".")[0] for key in KEYS[name]} | ALSO.get(name, set())
    assert {key for key in plain if plain[key] != changed.get(key)} <= sections


def test_nothing_given_changes_nothing() -> None:
    assert TrainingArguments().overrides(True) == []
    assert TrainingArguments().given() == {}


def test_rules_between_fields() -> None:
    clipped = config_with(TrainingArguments(max_grad_norm=0.5)).runner_wrapper
    assert (clipped.use_clip_grad, clipped.max_grad_norm) == (True, 0.5)
    resumed = config_with(TrainingArguments(resume_from_checkpoint="run"))
    assert (resumed.load_checkpoint, resumed.resume_training) == ("run", True)
    weights = config_with(TrainingArguments(resume_from_checkpoint="run", resume_training=False))
    assert weights.resume_training is False
    timed = config_with(TrainingArguments(save_strategy="seconds", save_seconds=60)).callbacks[1]
    assert (timed.save_checkpoint_steps, timed.save_checkpoint_seconds) == (0, 60)
    rising = config_with(TrainingArguments(warmup_steps=5)).lr_schedule
    assert (rising.warmup_steps, rising.warmup_ratio) == (5, None)
    rate = config_with(TrainingArguments(learning_rate=0.5))
    assert (rate.optimizer.learning_rate, rate.lr_schedule.learning_rate) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 2, "per_device_train_batch_size": 3}, "one setting"),
        ({"warmup_steps": 2, "warmup_ratio": 0.1}, "exclude"),
        ({"save_steps": 2, "save_seconds": 3}, "exclude"),
        ({"save_strategy": "epoch"}, "allowed: no, steps, seconds"),
        ({"save_strategy": "seconds"}, "needs save_seconds"),
        ({"save_strategy": "no", "save_steps": 2}, "contradicts"),
        ({"save_strategy": "no", "save_total_limit": 2}, "contradicts"),
        ({"save_strategy": "steps", "save_seconds": 2}, "contradicts"),
        ({"num_train_epochs": 1.5}, "epochs"),
        ({"num_train_epochs": True}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"optim": "adamww"}, "adamw"),
        ({"lr_scheduler_type": "cosin"}, "cosine"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"output_dir": 3}, "output_dir"),
    ],
)
def test_contradictions_and_wrong_values(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(TrainingArguments(**given), model="llama2_tiny")


def test_a_warmup_needs_a_schedule() -> None:
    with pytest.raises(ConfigError, match="lr_scheduler_type"):
        TrainingArguments(warmup_steps=3).overrides(False)
    assert ("lr_schedule.warmup_steps", 3) in TrainingArguments(warmup_steps=3, lr_scheduler_type="linear").overrides(
        False
    )
